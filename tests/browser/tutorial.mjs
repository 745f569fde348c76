// Opens the page of the tutorial in windows of Chromium, until two of them are on different workers:
// node tutorial.mjs URL SCRIPT
// SCRIPT is what the page loads from a CDN. Lets the windows talk, kills the worker of the first one, and lets that talk
// again. Prints what they showed as JSON.
import { chromium } from "playwright-core";
import { launch } from "./launch.mjs";

const [url, script] = process.argv.slice(2);
const browser = await chromium.launch(launch);

/** Open a window, and wait until it has a worker. */
async function visit() {
  const page = await browser.newPage();
  await page.route("https://cdn.jsdelivr.net/**", (route) => route.fulfill({ path: script }));
  await page.goto(url);
  return { page, worker: await worker(page) };
}

/** Return the worker that a window shows, when it shows another one than it did before. */
async function worker(page, before = "Connecting") {
  await page.waitForFunction((text) => !document.querySelector("#me").textContent.endsWith(text), before);
  return (await page.textContent("#me")).replace("You are on ", "");
}

async function say(page, text) {
  await page.fill("input", text);
  await page.click("button");
}

const texts = (page) => page.locator("li").allTextContents();

try {
  const one = await visit();
  let other = await visit();
  for (let windows = 2; other.worker === one.worker && windows < 10; windows++) other = await visit();
  await say(one.page, "Hello");
  await Promise.all([one, other].map(({ page }) => page.locator("li").waitFor()));
  const heard = [await texts(one.page), await texts(other.page)];
  process.kill(Number(/process (\d+)/.exec(one.worker)[1]), "SIGKILL");
  const again = await worker(one.page, one.worker);
  await say(one.page, "Still here");
  await other.page.locator("li", { hasText: "Still here" }).waitFor();
  const after = await texts(other.page);
  console.log(JSON.stringify({ workers: [one.worker, other.worker], heard, again, after }));
} finally {
  await browser.close();
}

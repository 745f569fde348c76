// Opens the chat example in windows of Chromium, until two of them are on different workers: node chat.mjs URL
// Lets them talk to each other, and prints what they showed as JSON: the first one before anybody had typed.
import { chromium } from "playwright-core";
import { launch } from "./launch.mjs";

const [url] = process.argv.slice(2);
const browser = await chromium.launch(launch);
const errors = [];

/** Open a window. */
async function visit() {
  const context = await browser.newContext();
  const page = await context.newPage();
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) errors.push(message.text());
  });
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("response", (response) => {
    if (response.status() >= 400) errors.push(`${response.status()} ${response.url()}`);
  });
  await page.goto(url);
  await page.locator("#state", { hasText: "connected by WebSocket" }).waitFor();
  await page.locator("#me").waitFor();
  return { page, slot: await page.textContent("#slot") };
}

/** Say something in a window, and return the slot that each of the windows shows with it. */
async function say(speaker, listener, text) {
  await speaker.page.fill("#text", text);
  await speaker.page.click("#composer button");
  const mine = speaker.page.locator(".message.mine", { hasText: text });
  const theirs = listener.page.locator(".message:not(.mine)", { hasText: text });
  return [await mine.locator(".badge").textContent(), await theirs.locator(".badge").textContent()];
}

try {
  const start = performance.now();
  const one = await visit();
  await one.page.locator(".worker").nth(3).waitFor();
  const first = {
    seconds: (performance.now() - start) / 1000,
    workers: await one.page.locator(".worker .badge").allTextContents(),
    bots: await one.page.locator(".worker li", { hasText: "Bot" }).count(),
    line: await one.page.locator(".message .what").first().textContent(),
  };
  let other = await visit();
  for (let windows = 2; other.slot === one.slot && windows < 10; windows++) other = await visit();
  const asked = await say(one, other, "Hello from one window");
  const answered = await say(other, one, "Hello from the other");
  await one.page.click("#ask");
  await one.page.locator("#answers span").waitFor();
  const shown = {
    first,
    slots: [one.slot, other.slot],
    asked,
    answered,
    process: await one.page.textContent("#pid"),
    workers: await one.page.locator(".worker .badge").allTextContents(),
    here: await one.page.locator(".worker.here .badge").allTextContents(),
    answers: await one.page.textContent("#answers span"),
    errors,
  };
  console.log(JSON.stringify(shown));
} finally {
  await browser.close();
}

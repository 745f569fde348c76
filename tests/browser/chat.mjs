// Opens the chat example in Chromium: node chat.mjs URL TEXT ANSWER
// Says TEXT, waits until the page shows it and then ANSWER, and prints what the page showed as JSON.
import { chromium } from "playwright-core";
import { launch } from "./launch.mjs";

const [url, text, answer] = process.argv.slice(2);
const browser = await chromium.launch(launch);
try {
  const page = await browser.newPage();
  const errors = [];
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
  await page.fill("#text", text);
  await page.click("#composer button");
  await page.locator(".message.mine .what", { hasText: text }).waitFor();
  const reply = page.locator(".message:not(.mine)", { hasText: answer });
  await reply.waitFor();
  await page.locator(".worker").nth(3).waitFor();
  await page.click("#ask");
  await page.locator("#answers span").waitFor();

  const shown = {
    slot: await page.textContent("#slot"),
    process: await page.textContent("#pid"),
    badge: await page.locator(".message.mine .badge").first().textContent(),
    replyBadge: await reply.first().locator(".badge").textContent(),
    workers: await page.locator(".worker .badge").allTextContents(),
    here: await page.locator(".worker.here .badge").allTextContents(),
    answers: await page.textContent("#answers span"),
    errors,
  };
  console.log(JSON.stringify(shown));
} finally {
  await browser.close();
}

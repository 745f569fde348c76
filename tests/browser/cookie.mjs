// Opens a page of tests/apps/whoami.py in Chromium, several times and as several visitors: node cookie.mjs URL
// Prints, for each visitor, the worker that served each load of the page, and the names of the cookies.
import { chromium } from "playwright-core";
import { launch } from "./launch.mjs";

const [url] = process.argv.slice(2);
const browser = await chromium.launch(launch);
try {
  const visitors = [];
  for (let visitor = 0; visitor < 4; visitor++) {
    const context = await browser.newContext(); // a visitor has cookies of its own
    const page = await context.newPage();
    await page.goto(url);
    const workers = [];
    for (let load = 0; load < 3; load++) {
      workers.push(JSON.parse(await page.locator("body").innerText()).pid);
      await page.reload();
    }
    visitors.push({ workers, cookies: await context.cookies() });
    await context.close();
  }
  console.log(JSON.stringify(visitors));
} finally {
  await browser.close();
}

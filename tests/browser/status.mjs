// Opens the status page in windows of Chromium, and prints what one shows as a line of JSON whenever that changes, after
// the number of the window: node status.mjs URL WIDTH light|dark [WIDTH light|dark]...
import { chromium } from "playwright-core";
import { launch } from "./launch.mjs";

const [url, ...views] = process.argv.slice(2);

/** Runs in the page: calls `window.shown` with what it shows. */
function watch() {
  const text = (selector) => document.querySelector(selector).innerText;

  /** Return the brightness of a colour (WCAG 2, relative luminance). */
  function brightness(colour) {
    const channels = colour.match(/[\d.]+/g).slice(0, 3).map((value) => value / 255);
    const [r, g, b] = channels.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  }

  const back = (element) => {
    const own = getComputedStyle(element).backgroundColor;
    return own === "rgba(0, 0, 0, 0)" ? back(element.parentElement) : own;
  };

  /** Return the lowest contrast that text has, with where that is. */
  function contrast() {
    let lowest = [Infinity];
    for (const element of document.querySelectorAll("main *")) {
      const own = [...element.childNodes].filter((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
      if (!own.length || !element.checkVisibility()) continue;
      const both = [getComputedStyle(element).color, back(element)].map(brightness);
      const found = (Math.max(...both) + 0.05) / (Math.min(...both) + 0.05);
      if (found < lowest[0]) lowest = [found, element.innerText];
    }
    return lowest;
  }

  function look() {
    if (!document.querySelector("tbody tr")) return;
    const heads = [...document.querySelectorAll("thead th")].map((head) => head.textContent);
    window.shown({
      title: document.title,
      state: text("#state"),
      silence: text("#silence"),
      headline: text(".card"),
      rows: [...document.querySelectorAll("tbody tr")].map((row) => ({
        ...Object.fromEntries([...row.cells].map((cell, n) => [heads[n], cell.innerText.trim()])),
        bar: row.querySelector(".bar i").getBoundingClientRect().width,
      })),
      facts: Object.fromEntries(
        [...document.querySelectorAll(".groups div")].map((fact) => [...fact.children].map((e) => e.innerText.trim())),
      ),
      unexplained: [...document.querySelectorAll("thead th, .tiles dt, .groups dt")].filter((e) => !e.title).length,
      overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
      contrast: contrast(),
      background: getComputedStyle(document.body).backgroundColor,
    });
  }

  let isDue = false;
  new MutationObserver(() => {
    if (isDue) return;
    isDue = true;
    requestAnimationFrame(() => {
      isDue = false;
      look();
    });
  }).observe(document, { subtree: true, childList: true, attributes: true, characterData: true });
}

/** Open the page in a window of its own. */
async function open(number, width, colorScheme) {
  const errors = [], elsewhere = [];
  const page = await browser.newPage({ viewport: { width: Number(width), height: 800 }, colorScheme });
  page.on("console", (message) => errors.push(message.text()));
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("request", (request) => {
    const target = new URL(request.url());
    if (target.protocol !== "data:" && target.origin !== new URL(url).origin) elsewhere.push(request.url());
  });
  await page.exposeFunction("shown", (shown) => console.log(JSON.stringify([number, { ...shown, errors, elsewhere }])));
  await page.addInitScript(watch);
  await page.goto(url);
  await page.click("summary");
}

const browser = await chromium.launch(launch);
process.once("SIGTERM", () => browser.close());
for (let n = 0; n < views.length / 2; n++) await open(n, views[2 * n], views[2 * n + 1]);

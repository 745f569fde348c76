"use strict";

const COLOURS = ["#2563eb", "#c2410c", "#15803d", "#9333ea", "#be123c", "#0e7490", "#a16207", "#57534e"];
const SILENT = 5000; // a worker tells several times a second who is there
const $ = (id) => document.getElementById(id);

/** Make an element. */
function make(tag, className, ...content) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...content);
  return element;
}

/** Give an element the colour of a slot. */
function paint(element, slot) {
  element.style.setProperty("--slot", COLOURS[slot % COLOURS.length]);
  return element;
}

const badge = (slot) => paint(make("span", "badge", `slot ${slot}`), slot);

// --- connection ---

const pollingOnly = new URLSearchParams(location.search).has("polling");
$("transport-switch").textContent = pollingOnly ? "Allow WebSocket again" : "Use long polling only";
$("transport-switch").href = pollingOnly ? "/" : "/?polling";

$("name").value = localStorage.getItem("name") || `Guest ${100 + Math.floor(Math.random() * 900)}`;

let me = {};
const socket = io({
  transports: pollingOnly ? ["polling"] : ["polling", "websocket"],
  auth: (send) => send({ name: $("name").value }),
});

function showState() {
  const transport = socket.connected && socket.io.engine.transport.name;
  $("state").dataset.state = transport ? "connected" : "connecting";
  $("state-text").textContent = transport
    ? `connected by ${transport === "polling" ? "long polling" : "WebSocket"}`
    : "connecting";
}

socket.on("connect", () => {
  showState();
  socket.io.engine.once("upgrade", showState);
});
socket.on("disconnect", () => {
  showState();
  notice("Connection lost. Trying again.");
});

socket.on("welcome", (welcome) => {
  me = welcome;
  $("slot").textContent = `slot ${me.slot}`;
  paint($("slot"), me.slot);
  $("pid").textContent = `process ${me.pid}`;
  $("me").hidden = false;
});

$("name").addEventListener("change", () => {
  localStorage.setItem("name", $("name").value);
  socket.disconnect().connect(); // a new session, maybe on another worker
});

// --- messages ---

function add(item) {
  const list = $("messages");
  const atEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 60;
  list.append(item);
  while (list.children.length > 200) list.firstElementChild.remove();
  if (atEnd) list.scrollTop = list.scrollHeight;
}

function notice(text) {
  add(make("li", "notice", text));
}

socket.on("said", ({ id, name, slot, text, time }) => {
  const clock = new Date(time * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
  const who = make("div", "who", make("b", "", name), badge(slot), clock);
  add(paint(make("li", id === me.id ? "message mine" : "message", who, make("div", "what", text)), slot));
});

$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!$("text").value.trim()) return;
  socket.emit("say", $("text").value);
  $("text").value = "";
});

// --- workers ---

const workers = new Map();

socket.on("roster", (roster) => {
  workers.set(roster.pid, { ...roster, heard: Date.now() });
  showWorkers();
});

function showWorkers() {
  for (const [pid, { heard }] of workers) if (Date.now() - heard > SILENT) workers.delete(pid);
  const cards = [...workers.values()].sort((a, b) => a.slot - b.slot || a.pid - b.pid).map(({ slot, pid, members }) => {
    const list = members.map((member) => {
      const line = make("li", member.id === me.id ? "me" : "", make("span", "", member.name), make("span", "", member.key));
      line.title = member.transport;
      return line;
    });
    const top = make("div", "top", badge(slot), `process ${pid}`);
    return paint(make("div", pid === me.pid ? "worker here" : "worker", top, make("ul", "", ...list)), slot);
  });
  $("workers").replaceChildren(...cards);
}
setInterval(showWorkers, 1000);

// --- is it sticky? ---

$("ask").addEventListener("click", async () => {
  const answers = $("answers");
  $("ask").disabled = true;
  answers.replaceChildren();
  const slots = new Set();
  try {
    for (let n = 0; n < 24; n++) {
      // The session id, where Socket.IO's own requests have it, leads them to the worker.
      const { slot } = await (await fetch(`/where?sid=${socket.io.engine.id}`, { cache: "no-store" })).json();
      slots.add(slot);
      answers.append(paint(make("i"), slot));
    }
    answers.append(make("span", "", `24 requests, answered by ${slots.size} worker${slots.size === 1 ? "" : "s"}: `
      + `slot ${[...slots].sort().join(", ")}`));
  } catch {
    answers.append(make("span", "", "No answer. Is the server still running?"));
  } finally {
    $("ask").disabled = false;
  }
});

// Socket.IO clients, all at once. Reads what to do from stdin and prints one JSON object a client, as client.py does.

import { once } from "node:events";
import { Agent } from "node:http";
import { json } from "node:stream/consumers";
import { setTimeout as sleep } from "node:timers/promises";
import { io } from "socket.io-client";

const TIMEOUT = 60_000;

async function run(address, task, transports) {
  const socket = io(`http://127.0.0.1:${task.port}`, {
    forceNew: true,
    transports,
    timeout: TIMEOUT,
    ackTimeout: TIMEOUT,
    // Without keepAlive, each request of long polling is a new TCP connection.
    agent: new Agent({ keepAlive: false, localAddress: task.by === "ip" ? address : undefined }),
    extraHeaders: task.by === "header" ? { "X-Forwarded-For": address } : {},
  });
  const result = { address, answers: [], reconnects: 0 };
  let lost = false;
  const over = new AbortController();
  socket.on("disconnect", (reason) => {
    lost = reason;
    over.abort();
  });
  socket.io.on("reconnect_attempt", () => result.reconnects++);
  try {
    await new Promise((resolve, reject) => {
      socket.once("connect", resolve);
      socket.once("connect_error", reject);
    });
    const { engine } = socket.io;
    result.answers.push(await socket.emitWithAck("who"));
    const last = transports.at(-1);
    if (engine.transport.name !== last) {
      await once(engine, "upgrade", { signal: AbortSignal.timeout(TIMEOUT) });
    }
    await sleep(task.stay * 1000, undefined, { signal: over.signal });
    result.answers.push(await socket.emitWithAck("who"));
    result.transport = engine.transport.name;
  } catch (error) {
    // What Node says of a connection that failed is in `context`.
    result.error = `${error} ${error.description ?? ""} ${error.context?.statusText ?? ""} ${lost}`;
  }
  result.still_connected = socket.connected && !lost;
  socket.disconnect();
  return result;
}

const task = await json(process.stdin);
const clients = task.clients.flatMap(([transports, addresses]) => addresses.map((address) => [address, transports]));
const results = await Promise.all(clients.map(([address, transports]) => run(address, task, transports)));
// A poll that a server does not answer at once would keep this process waiting after all has been said.
process.stdout.write(`${JSON.stringify(results)}\n`, () => process.exit());

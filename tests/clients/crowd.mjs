// The same as crowd.py, with socket.io-client: node crowd.mjs PORT WEBSOCKETS POLLERS ENDS

import { io } from "socket.io-client";

const [port, websockets, pollers, ends] = process.argv.slice(2).map(Number);
const transports = [...Array(websockets).fill("websocket"), ...Array(pollers).fill("polling")];

const clients = transports.map((transport) => {
  const socket = io(`http://127.0.0.1:${port}`, { forceNew: true, reconnection: false, transports: [transport] });
  const heard = [];
  let left = ends;
  socket.on("said", (...args) => heard.push(args));
  const over = new Promise((resolve, reject) => {
    socket.on("end", () => --left || resolve(heard));
    socket.on("connect_error", reject);
    socket.on("disconnect", reject);
  });
  return { socket, over };
});

const where = await Promise.all(clients.map(({ socket }) => socket.emitWithAck("where")));
console.log(JSON.stringify(where.map(({ pid }) => pid)));
const heard = await Promise.all(clients.map(({ over }) => over));
process.stdout.write(JSON.stringify(heard) + "\n", () => process.exit());

// The application of app.py, for Node's packages: node app.mjs PACKAGE PORT WORKERS

import cluster from "node:cluster";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { Server as Engine } from "engine.io";

const require = createRequire(import.meta.url);
const [name, port, workers] = [process.argv[2], Number(process.argv[3]), Number(process.argv[4])];
const HOST = "127.0.0.1";

function application() {
  const body = `hello ${String(process.pid).padStart(8, "0")}`;
  const server = createServer((request, response) => {
    response.writeHead(200, { "Content-Length": body.length });
    response.end(body);
  });
  // As long as Gunicorn is told to.
  server.keepAliveTimeout = 75_000;
  const engine = new Engine();
  engine.attach(server);
  engine.on("connection", (socket) => socket.on("message", (data) => socket.send(data)));
  return { server, engine };
}

const start = {
  "@socket.io/sticky": () => {
    const { setupPrimary, setupWorker } = require("@socket.io/sticky");
    if (cluster.isPrimary) {
      // Buffers are to arrive as such, says its README.
      cluster.setupPrimary({ serialization: "advanced" });
      const server = createServer();
      setupPrimary(server);
      for (let n = 0; n < workers; n++) cluster.fork();
      server.listen(port, HOST);
    } else {
      const { server, engine } = application();
      setupWorker({ httpServer: server, engine });
    }
  },
  "sticky-session": () => require("sticky-session").listen(application().server, port, { workers }),
  "socketio-sticky-session by ip": () =>
    require("socketio-sticky-session")({ num: workers }, () => application().server).listen(port, HOST),
  "socketio-sticky-session by header": () =>
    require("socketio-sticky-session")({ num: workers, proxy: true }, () => application().server).listen(port, HOST),
};
start[name]();

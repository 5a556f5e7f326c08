// h2_site.js ADDRESS PORT TLS_PORT CERTIFICATE KEY: a server of HTTP/2, by TLS also of HTTP/1.1.
//
//     POST /sum       the length and SHA-256 of the body, Content-Length, and the trailers
//     GET /bytes/N    N zeros, and a trailer
//     GET /hints      103, then 200
//     GET /status/N   that status, without a body
//     GET /hold/N     an answer when there are N such requests at the same time
//     GET /wait       nothing until the client has gone, of which it prints a line
//     POST /early     an answer before the body, of which it reads nothing
//     GET /reset/N    no answer but this code
//     GET /once/N     the same the first time
//     GET /cut        less than it promises
//     GET /goaway     an answer, and the end of the connection
//     GET /http1      an answer in HTTP/1.1 only
//     GET /echo       with an upgrade: every line comes back, in capitals
//     other           the method, the path and the fields
//
// Prints a line for each request: the number of its connection (of HTTP/2), the version, the method
// and the path.
"use strict";
const crypto = require("crypto");
const fs = require("fs");
const http2 = require("http2");

const [address, port, tlsPort, cert, key] = process.argv.slice(2);
const seen = new Set();
let held = [];
let sessions = 0;

function sum(request, response) {
  const digest = crypto.createHash("sha256");
  let length = 0;
  request.on("data", (part) => {
    digest.update(part);
    length += part.length;
  });
  request.on("end", () => {
    const told = request.headers["content-length"];
    const trailers = JSON.stringify(request.trailers);
    response.end(`${length} ${digest.digest("hex")} ${told} ${trailers}\n`);
  });
}

function bytes(response, count) {
  response.writeHead(200, { trailer: "x-trailer" });
  const more = () => {
    while (count > 0) {
      const size = Math.min(count, 1 << 16);
      count -= size;
      if (!response.write(Buffer.alloc(size))) return response.once("drain", more);
    }
    response.addTrailers({ "x-trailer": "yes" });
    return response.end();
  };
  more();
}

function serve(request, response) {
  const { stream } = request;
  const [, what, number] = request.url.split("?")[0].split("/");
  const isHttp2 = request.httpVersion === "2.0";
  const session = isHttp2 ? stream.session.number : "-";
  console.log(`${session} ${request.httpVersion} ${request.method} ${request.url}`);
  if (what === "sum") return sum(request, response);
  if (what === "bytes") return bytes(response, Number(number));
  if (what === "hints") {
    response.writeEarlyHints({ link: "</style.css>; rel=preload" });
    return response.end("with hints\n");
  }
  if (what === "status") return response.writeHead(Number(number)).end();
  if (what === "hold") {
    held.push(response);
    if (held.length < Number(number)) return undefined;
    held.forEach((one) => one.end("held\n"));
    held = [];
    return undefined;
  }
  if (what === "wait") return stream.on("close", () => console.log(`gone ${stream.rstCode}`));
  if (what === "early") {
    response.end("early\n");
    return stream.on("finish", () => stream.close(http2.constants.NGHTTP2_NO_ERROR));
  }
  if (what === "reset") return stream.close(Number(number));
  if (what === "once" && !seen.has(request.url)) {
    seen.add(request.url);
    return stream.close(Number(number));
  }
  if (what === "cut") {
    response.writeHead(200, { "content-length": 10 });
    response.write("abc");
    return setTimeout(() => stream.close(2), 300);
  }
  if (what === "goaway") {
    response.end("bye\n");
    return stream.session.close();
  }
  if (what === "http1" && isHttp2) return stream.close(http2.constants.NGHTTP2_HTTP_1_1_REQUIRED);
  response.setHeader("content-type", "application/json");
  const { method, url, headers } = request;
  return response.end(`${JSON.stringify({ method, url, headers })}\n`);
}

function upgrade(request, socket) {
  console.log(`- ${request.httpVersion} ${request.method} ${request.url}`);
  const { upgrade: to } = request.headers;
  socket.write(`HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: ${to}\r\n\r\nwelcome\n`);
  socket.on("data", (lines) => socket.write(lines.toString().toUpperCase()));
}

const tls = { cert: fs.readFileSync(cert), key: fs.readFileSync(key), allowHTTP1: true };
const servers = [
  [http2.createServer(serve), port],
  [http2.createSecureServer(tls, serve).on("upgrade", upgrade), tlsPort],
];
for (const [server, at] of servers) {
  server.on("session", (session) => {
    sessions += 1;
    session.number = sessions;
  });
  server.listen(+at, address);
}

// web.js ADDRESS PORT TLS_PORT CERTIFICATE KEY: as web.py, by Node.
"use strict";
const fs = require("fs");
const http = require("http");
const https = require("https");

const [address, port, tlsPort, cert, key] = process.argv.slice(2);
const files = new Map();

function put(request, response) {
  const parts = [];
  request.on("data", (part) => parts.push(part));
  request.on("end", () => {
    files.set(request.url, Buffer.concat(parts));
    response.writeHead(201, { "Content-Length": 0 }).end();
  });
}

function serve(request, response) {
  if (request.method === "PUT") return put(request, response);
  if (request.url === "/hints") {
    response.writeEarlyHints({ link: "</style.css>; rel=preload" });
    return response.end("with hints\n");
  }
  if (request.url === "/big-head") {
    for (let i = 0; i < 30; i += 1) response.setHeader(`X-${i}`, "y".repeat(1000));
    return response.end();
  }
  const body = files.get(request.url);
  if (!body) return response.writeHead(404, { "Content-Length": 0 }).end();
  const range = /^bytes=(\d+)-(\d+)$/.exec(request.headers.range || "");
  const part = range ? body.subarray(+range[1], +range[2] + 1) : body;
  if (range) response.setHeader("Content-Range", `bytes ${range[1]}-${range[2]}/${body.length}`);
  response.writeHead(range ? 206 : 200, { "Content-Length": part.length });
  return response.end(request.method === "HEAD" ? undefined : part);
}

function expects(request, response) {
  if (request.url.startsWith("/refuse")) {
    response.writeHead(417, { "Content-Length": 0, Connection: "close" }).end();
  } else {
    if (!request.url.startsWith("/ignore")) response.writeContinue();
    serve(request, response);
  }
}

const tls = { cert: fs.readFileSync(cert), key: fs.readFileSync(key) };
http.createServer(serve).on("checkContinue", expects).listen(+port, address);
https.createServer(tls, serve).on("checkContinue", expects).listen(+tlsPort, address);

// h2_connect.js PROXY TARGET...: asks a proxy for tunnels to targets (host:port), all on one connection of
// HTTP/2 without TLS, one after the other; sends a request through each, and then its end.
//
// Prints for each the target, the status of CONNECT, and the first line that came through.
"use strict";
const http2 = require("http2");

const [proxy, ...targets] = process.argv.slice(2);
const session = http2.connect(`http://${proxy}`);

function ask(target) {
  return new Promise((resolve, reject) => {
    const tunnel = session.request({ ":method": "CONNECT", ":authority": target });
    let text = "";
    let status = 0;
    tunnel.on("response", (head) => {
      status = head[":status"];
      tunnel.end(`GET / HTTP/1.1\r\nHost: ${target}\r\nConnection: close\r\n\r\n`);
    });
    tunnel.setEncoding("latin1");
    tunnel.on("data", (part) => (text += part));
    tunnel.on("close", () => {
      const first = status === 200 ? text.split("\r\n", 1)[0] : "-";
      console.log(`${target} ${status} ${first}`);
      resolve();
    });
    tunnel.on("error", reject);
  });
}

(async () => {
  for (const target of targets) {
    await ask(target);
  }
  session.close();
})();

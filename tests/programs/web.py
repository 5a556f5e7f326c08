"""web.py ADDRESS PORT TLS_PORT CERTIFICATE KEY: keeps what is PUT, by Python's http.server.

    PUT /refuse*    417 if the client waits for leave, without a word about its body
    PUT /ignore*    reads the body without giving leave
    GET /hints      103, then 200
    GET /big-head   an answer with 30 KB of fields
"""

import ssl
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

files = {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle_expect_100(self):
        if self.path.startswith("/refuse"):
            self.close_connection = True
            self.say(417, b"", Connection="close")
            return False
        if self.path.startswith("/ignore"):
            return True
        return super().handle_expect_100()

    def say(self, status, body=b"", **fields):
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in fields.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers["Content-Length"]))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return body

    def do_PUT(self):
        files[self.path] = self.body()
        self.say(201)

    def do_GET(self):
        if self.path == "/hints":
            self.send_response_only(103)
            self.send_header("Link", "</style.css>")
            self.end_headers()
            return self.say(200, b"with hints\n")
        if self.path == "/big-head":
            return self.say(200, **{f"X_{i}": "y" * 1000 for i in range(30)})
        body = files.get(self.path)
        if body is None:
            return self.say(404)
        if (asked := self.headers.get("Range", "")).startswith("bytes="):
            first, last = (int(number) for number in asked[6:].split("-"))
            told = f"bytes {first}-{last}/{len(body)}"
            return self.say(206, body[first : last + 1], Content_Range=told)
        self.say(200, body)

    do_HEAD = do_GET


class Server(ThreadingHTTPServer):
    def finish_request(self, request, client_address):
        # Not in the thread that accepts.
        if isinstance(request, ssl.SSLSocket):
            request.do_handshake()
        super().finish_request(request, client_address)


address, port, tls_port, certificate, key = sys.argv[1:]
plain, secure = Server((address, int(port)), Handler), Server((address, int(tls_port)), Handler)
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(certificate, key)
secure.socket = context.wrap_socket(
    secure.socket, server_side=True, do_handshake_on_connect=False
)
threading.Thread(target=plain.serve_forever, daemon=True).start()
secure.serve_forever()

"""site.py ADDRESS PORT [CERTIFICATE KEY]: a server of HTTP/1.1 that does what others seldom do.

    POST /sum      the length and SHA-256 of the body, its framing, and the trailers
    GET /bytes/N   N zeros, in chunks
    GET /short     less than it promises, and then a reset
    GET /cut       less than it promises, and then the end
    GET /none      no answer at all
    GET /hints     103, then 200
    GET /status/N  that status, without a body
    GET /bye       an answer, and then the end of the connection, of which it says nothing
    GET /wait      nothing until the client has gone, of which it prints a line
    GET /echo      with an upgrade: every line comes back, in capitals
    other          the request line and the fields

Prints one line for each request.
"""

import hashlib
import socket
import socketserver
import ssl
import struct
import sys


class Handler(socketserver.StreamRequestHandler):
    def handle(self):
        while self.one():
            pass

    def say(self, status, body=b"", *fields):
        head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *fields, "", ""]
        self.wfile.write("\r\n".join(head).encode() + (b"" if self.method == "HEAD" else body))

    def one(self):
        line = self.rfile.readline().decode("latin-1").rstrip("\r\n")
        if not line:
            return False
        self.method, path, _ = line.split(" ")
        path = path.partition("?")[0]
        raw = []
        while (field := self.rfile.readline().decode("latin-1").rstrip("\r\n")):
            raw.append(field)
        print(line, [f for f in raw if f.lower().startswith("host")], flush=True)
        fields = {f.split(":", 1)[0].lower(): f.split(":", 1)[1].strip() for f in raw}
        if path == "/sum":
            if fields.get("expect") == "100-continue":
                self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.sum(fields)
        elif path.startswith("/bytes/"):
            left = int(path.split("/")[2])
            self.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
            while left:
                size = min(left, 1 << 16)
                self.wfile.write(b"%x\r\n" % size + bytes(size) + b"\r\n")
                left -= size
            self.wfile.write(b"0\r\nX-Trailer: yes\r\n\r\n")
        elif path == "/short":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
            linger = struct.pack("ii", 1, 0)
            # What was written first has to be there first.
            self.rfile.readline()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            return False
        elif path == "/cut":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc")
            return False
        elif path == "/none":
            return False
        elif path == "/bye":
            self.say("200 OK", b"bye\n")
            return False
        elif path == "/wait":
            try:
                self.rfile.readline()
            except OSError:
                pass
            print("gone", flush=True)
            return False
        elif path == "/hints":
            self.wfile.write(b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n\r\n")
            self.say("200 OK", b"with hints\n")
        elif path.startswith("/status/"):
            status = path.split("/")[2]
            length = "" if status == "204" else "Content-Length: 0\r\n"
            self.wfile.write(f"HTTP/1.1 {status} Told\r\n{length}\r\n".encode())
        elif path == "/echo" and "upgrade" in fields.get("connection", "").lower():
            self.wfile.write(
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\n"
                b"Upgrade: " + fields["upgrade"].encode() + b"\r\n\r\nwelcome\n"
            )
            for line in self.rfile:
                self.wfile.write(line.upper())
            return False
        else:
            self.say("200 OK", "\n".join([line, *raw, ""]).encode())
        return not line.endswith("HTTP/1.0") and fields.get("connection") != "close"

    def sum(self, fields):
        digest, length, trailers = hashlib.sha256(), 0, []
        if "transfer-encoding" in fields:
            while size := int(self.rfile.readline().split(b";")[0], 16):
                digest.update(self.rfile.read(size))
                length += size
                self.rfile.readline()
            while (field := self.rfile.readline().decode().rstrip("\r\n")):
                trailers.append(field)
            framing = "chunked"
        else:
            left = int(fields["content-length"])
            while left:
                data = self.rfile.read(min(left, 1 << 16))
                digest.update(data)
                length += len(data)
                left -= len(data)
            framing = "length"
        self.say("200 OK", f"{length} {digest.hexdigest()} {framing} {trailers}\n".encode())


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET


server = Server((sys.argv[1], int(sys.argv[2])), Handler)
if len(sys.argv) > 3:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*sys.argv[3:])
    tls.set_alpn_protocols(["http/1.1"])
    server.socket = tls.wrap_socket(server.socket, server_side=True)
server.serve_forever()

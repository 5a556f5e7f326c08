"""moods.py ADDRESS PORT: a server of HTTP/1.1 that does well or not, as the path asks for.

    /status/CODE       this status
    /fail/N/NAME       503 for the first N requests with this name, then 200
    /mute/N/NAME       no answer for these, until the client has gone; then 200
    /drop/N/NAME       the end of the connection for these; then 200
    /wait              no answer until the client has gone
    /drip              the head of an answer and a byte, and no more until the client has gone
    other              200

The body of an answer is how many requests have come on its connection. Prints the request line of
each request.
"""

import collections
import socket
import socketserver
import sys
import threading

seen = collections.Counter()
lock = threading.Lock()


class Handler(socketserver.StreamRequestHandler):
    count = 0

    def handle(self):
        try:
            while self.one():
                pass
        except OSError:
            pass

    def say(self, status):
        body = f"{self.count}\n".encode()
        head = f"HTTP/1.1 {status} As asked\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        self.wfile.write(head + body)
        return True

    def until_gone(self):
        while self.rfile.read(1):
            pass
        return False

    def one(self):
        line = self.rfile.readline().decode("latin-1").rstrip("\r\n")
        if not line:
            return False
        length = 0
        while field := self.rfile.readline().decode("latin-1").rstrip("\r\n"):
            name, value = field.split(":", 1)
            if name.lower() == "content-length":
                length = int(value)
        self.rfile.read(length)
        print(line, flush=True)
        self.count += 1
        _, what, *more = line.split(" ")[1].split("?")[0].split("/")
        with lock:
            seen[line] += 1
            early = len(more) == 2 and seen[line] <= int(more[0])
        if what == "status":
            return self.say(more[0])
        if what == "wait" or (early and what == "mute"):
            return self.until_gone()
        if what == "drip":
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n.")
            return self.until_gone()
        if early and what == "drop":
            return False
        return self.say(503 if early else 200)


class Server(socketserver.ThreadingTCPServer):
    address_family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 64


Server((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()

"""mix.py SEED ADDRESS PORT ECHO HOST...: a workload that asks for all sorts of things, and counts.

Eight threads open connections to ADDRESS, to PORT for HTTP (site.py), to ECHO for bytes. A connection
of HTTP has some requests for hosts by chance, one after the other or at once, and ends in one of many
ways. In the end some connections are held, and a line says "holding"; SIGTERM ends them.

Prints then, as JSON: how many requests had which status ("0" if none was waited for), the numbers of
those that must have reached their targets, connections of bytes, and bytes. Held are connections of
bytes, and those of HTTP with the number of their hosts.
"""

import collections
import itertools
import json
import random
import signal
import socket
import struct
import sys
import threading

SEED, ADDRESS, PORT, ECHO = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
HOSTS = sys.argv[5:]
#: What policy denies, and a name at which nobody listens.
DENIED, REFUSED = "secret.example", "internal.example"

numbers = itertools.count()
lock = threading.Lock()
statuses, reached = collections.Counter(), []
streams, echoed, held = 0, 0, {"bytes": [], "http": [], "hosts": 0}


def count(status, number=None):
    with lock:
        statuses[str(status)] += 1
        if number is not None:
            reached.append(number)


class Connection:
    def __init__(self, dice):
        self.dice = dice
        self.sock = socket.create_connection((ADDRESS, PORT), timeout=60)
        self.stream = self.sock.makefile("rb")

    def text(self, method, path, host=None, fields=(), body=b""):
        number = next(numbers)
        host = host or self.dice.choice(HOSTS)
        head = [f"{method} {path}?{number} HTTP/1.1", f"Host: {host}:{PORT}", *fields, "", ""]
        return number, host, "\r\n".join(head).encode() + body

    def say(self, *args, **kwargs):
        number, host, text = self.text(*args, **kwargs)
        self.sock.sendall(text)
        return number, host

    def answer(self, method="GET"):
        """Reads one answer. Gives its status and whether it is the last."""
        status = int(self.stream.readline().split(b" ")[1])
        fields = {}
        while line := self.stream.readline().strip():
            name, value = line.split(b":", 1)
            fields[name.lower()] = value.strip()
        if status < 200:
            return self.answer(method)
        if method != "HEAD":
            if fields.get(b"transfer-encoding") == b"chunked":
                while size := int(self.stream.readline(), 16):
                    self.stream.read(size)
                    self.stream.readline()
                while self.stream.readline().strip():
                    pass
            else:
                self.stream.read(int(fields.get(b"content-length", 0)))
        return status, fields.get(b"connection") == b"close"

    def close(self, reset=False):
        if reset:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.stream.close()
        self.sock.close()

    # Each gives whether the connection may be used further.

    def get(self):
        number, _ = self.say("GET", self.dice.choice(["/", "/hints", "/bytes/70000"]))
        status, last = self.answer()
        assert status == 200, status
        count(200, number)
        return not last

    def bye(self):
        """The target ends its stream behind an answer, which it does not say."""
        number, host = self.say("GET", "/bye")
        status, last = self.answer()
        assert status == 200, status
        count(200, number)
        # What comes next may meet the end, and must be something that can be said twice.
        number, _ = self.say("GET", "/", host=host)
        status, last = self.answer()
        assert status == 200, status
        count(200, number)
        return not last

    def head(self):
        number, _ = self.say("HEAD", "/")
        status, last = self.answer("HEAD")
        assert status == 200, status
        count(200, number)
        return not last

    def post(self):
        body = self.dice.randbytes(self.dice.randrange(50000))
        if self.dice.random() < 0.5:
            fields = [f"Content-Length: {len(body)}"]
        else:
            fields = ["Transfer-Encoding: chunked"]
            body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
        number, _ = self.say("POST", "/sum", fields=fields, body=body)
        status, last = self.answer()
        assert status == 200, status
        count(200, number)
        return not last

    def pipeline(self):
        asked = [self.text("GET", "/") for _ in range(self.dice.randrange(2, 6))]
        self.sock.sendall(b"".join(text for _, _, text in asked))
        for number, _, _ in asked:
            status, _ = self.answer()
            assert status == 200, status
            count(200, number)
        return True

    def missing(self):
        code = self.dice.choice([404, 500])
        number, _ = self.say("GET", f"/status/{code}")
        status, last = self.answer()
        assert status == code, (status, code)
        count(code, number)
        return not last

    def denied(self):
        self.say("GET", "/", host=DENIED)
        status, last = self.answer()
        assert status == 403, status
        count(403)
        return not last

    def refused(self):
        self.say("GET", "/", host=REFUSED)
        status, last = self.answer()
        assert status == 503, status
        count(503)
        return not last

    def unanswered(self):
        number, _ = self.say("GET", "/none")
        status, last = self.answer()
        assert status == 502, status
        count(502, number)
        return not last

    def malformed(self):
        self.say("GET", "/", fields=["Content-Length: 1", "Content-Length: 2"])
        status, last = self.answer()
        assert status == 400 and last, status
        count(400)
        return False

    def cut(self):
        """The answer breaks off."""
        number, _ = self.say("GET", "/cut")
        assert self.stream.readline() == b"HTTP/1.1 200 OK\r\n"
        count(200, number)
        try:
            while self.stream.readline():
                pass
            raise AssertionError("an end like that of a whole answer")
        except ConnectionResetError:
            return False

    def leave(self):
        """The end of our side, while the target is silent."""
        number, _ = self.say("GET", "/wait")
        count(0, number)
        return False

    def abort(self):
        """A reset within the answer."""
        number, _ = self.say("GET", "/bytes/100000000")
        assert self.stream.read(100).startswith(b"HTTP/1.1 200 OK\r\n")
        count(200, number)
        self.close(reset=True)
        return False


USUAL = [Connection.get, Connection.head, Connection.post, Connection.pipeline, Connection.missing]
USUAL += [Connection.denied, Connection.refused, Connection.unanswered, Connection.bye]
LAST = [Connection.malformed, Connection.cut, Connection.leave, Connection.abort]


def converse(dice, hold=False):
    connection = Connection(dice)
    for _ in range(dice.randrange(1, 8)):
        if not dice.choice(USUAL)(connection):
            connection.close()
            return
    if not hold and dice.random() < 0.5:
        dice.choice(LAST)(connection)
    if not hold:
        connection.close()
        return
    # What is held at last is known: one idle connection to each of these.
    for host in HOSTS:
        number, _ = connection.say("GET", "/", host=host)
        assert connection.answer() == (200, False)
        count(200, number)
    with lock:
        held["http"].append(connection)
        held["hosts"] += len(HOSTS)


def echo(dice, hold=False):
    global streams, echoed
    sock = socket.create_connection((ADDRESS, ECHO), timeout=60)
    said = dice.randbytes(dice.randrange(1, 20000))
    sock.sendall(said)
    left = len(said)
    while left:
        left -= len(sock.recv(left))
    with lock:
        streams += 1
        echoed += len(said)
    if hold:
        held["bytes"].append(sock)
    else:
        sock.close()


def work(number):
    dice = random.Random(SEED * 1000 + number)
    for _ in range(25):
        echo(dice) if dice.random() < 0.2 else converse(dice)
    echo(dice, hold=dice.random() < 0.7)
    converse(dice, hold=True)


def guarded(number):
    try:
        work(number)
    except BaseException as error:
        failures.append(f"thread {number}: {type(error).__name__} {error}")
        raise


signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
failures = []
threads = [threading.Thread(target=guarded, args=(number,)) for number in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
if failures:
    sys.exit("\n".join(failures))
print("holding", flush=True)
print(
    json.dumps(
        {
            "statuses": statuses,
            "reached": sorted(reached),
            "streams": streams,
            "echoed": echoed,
            "held": {
                "bytes": len(held["bytes"]),
                "http": len(held["http"]),
                "tunnels": held["hosts"],
            },
        }
    ),
    flush=True,
)
signal.sigwait({signal.SIGTERM})

"""manners.py HOST PORT [PROXY]: how connections begin and end, as a workload sees it.

The servers are on the ports from PORT on, as PORTS has them. With PROXY (ADDRESS:PORT) it asks that
proxy for each connection itself, by HTTP/1.1. Prints a JSON object: for each case what came of it, in
words, and of the one that is refused after how many seconds. `whole` means every byte, and no other.
"""

import json
import socket
import struct
import sys
import time
import zlib

PORTS = ["gone", "silent", "first", "last", "echo", "drips", "resets", "greets", "nobody"]
PATIENCE = 20
BYTES = bytes(number * number % 251 for number in range(300_000))
# What the servers send of themselves: see tests/tests/manners.rs.
SOURCE = bytes(range(251)) * 12_000
DRIPS = b"drop by drop by drop " * 20

host, port = sys.argv[1], int(sys.argv[2])
proxy = sys.argv[3].rsplit(":", 1) if len(sys.argv) > 3 else None


def dial(name):
    to = (host, port + PORTS.index(name))
    if proxy is None:
        return socket.create_connection(to, timeout=PATIENCE)
    sock = socket.create_connection((proxy[0], int(proxy[1])), timeout=PATIENCE)
    sock.sendall(b"CONNECT %s:%d HTTP/1.1\r\nHost: %s:%d\r\n\r\n" % ((host.encode(), to[1]) * 2))
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        # No more than the head: what follows is the target's.
        byte = sock.recv(1)
        if not byte:
            raise ConnectionError
        head += byte
    if b" 200 " not in head:
        raise ConnectionRefusedError
    return sock


def rest(sock):
    """Reads to the end; gives the bytes, and which end it was."""
    read = b""
    try:
        while data := sock.recv(1 << 16):
            read += data
        return read, "end"
    except ConnectionResetError:
        return read, "reset"
    except OSError as error:
        return read, type(error).__name__


def compared(came, expected):
    read, end = came
    return f"{'whole' if read == expected else len(read)}, {end}"


def told(count, data):
    return b"%d %d\n" % (count, zlib.adler32(data))


def gone():
    """Says all it has to say, and is gone."""
    sock = dial("gone")
    sock.sendall(BYTES)
    sock.close()
    return "closed"


def silent():
    """Ends its side at once, and hears the other."""
    sock = dial("silent")
    sock.shutdown(socket.SHUT_WR)
    return compared(rest(sock), told(0, b""))


def first():
    """Ends its side, and only then is answered."""
    sock = dial("first")
    sock.sendall(BYTES)
    sock.shutdown(socket.SHUT_WR)
    return compared(rest(sock), told(len(BYTES), BYTES))


def last():
    """Hears the other side to its end, and only then speaks."""
    sock = dial("last")
    came = compared(rest(sock), SOURCE)
    try:
        sock.sendall(BYTES)
    except OSError:
        # What became of it the server tells.
        pass
    sock.close()
    return came


def both():
    """Ends its side while there is much to come back."""
    sock = dial("echo")
    sock.sendall(BYTES)
    sock.shutdown(socket.SHUT_WR)
    return compared(rest(sock), BYTES)


def pieces():
    """Speaks in pieces of one byte, each in a segment of its own."""
    sock = dial("echo")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    read = b""
    for byte in DRIPS:
        sock.sendall(bytes([byte]))
        read += sock.recv(1)
    return "whole" if read == DRIPS else f"{len(read)}"


def drips():
    """Hears pieces of one byte."""
    return compared(rest(dial("drips")), DRIPS)


def greeted():
    """Says nothing before it is greeted."""
    sock = dial("greets")
    greeting = sock.recv(100).decode()
    sock.sendall(b"you too")
    sock.shutdown(socket.SHUT_WR)
    return greeting


def reset():
    """Is reset by the server in the middle."""
    sock = dial("resets")
    sock.sendall(b"?")
    return compared(rest(sock), b"")


def resets():
    """Resets, when it has spoken with the server."""
    sock = dial("greets")
    sock.recv(100)
    sock.sendall(b"half of what")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()
    return "closed"


def refused():
    """Speaks to a port at which nobody is."""
    sock = dial("nobody")
    try:
        sock.sendall(b"anybody?")
    except ConnectionResetError:
        # So soon.
        return "reset"
    return rest(sock)[1]


seen = {}
for case in [gone, silent, first, last, both, pieces, drips, greeted, reset, resets, refused]:
    start = time.monotonic()
    try:
        seen[case.__name__] = case()
    except OSError as error:
        seen[case.__name__] = type(error).__name__
seen["seconds"] = time.monotonic() - start
print(json.dumps(seen))

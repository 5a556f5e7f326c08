"""fetch.py HOST PORT: says a word, reads to the end of what comes of it, and prints how much it was."""

import socket
import sys

sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60)
sock.sendall(b"more")
buffer = bytearray(1 << 18)
received = 0
while read := sock.recv_into(buffer):
    received += read
print(received)

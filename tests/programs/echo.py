"""echo.py HOST PORT BYTES: sends BYTES to an echo server while reading them back.

Prints the number of bytes read and the SHA-256 of what was sent and of what was read.
"""

import hashlib
import os
import socket
import sys
import threading

host, port, total = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sock = socket.create_connection((host, port))
# Bytes that do not repeat within the stream: a block lost, doubled or swapped changes the sum.
seed = os.urandom(1 << 16)
sent = hashlib.sha256()


def send():
    left, number = total, 0
    while left:
        block = (number.to_bytes(8, "big") + seed)[: min(left, 1 << 16)]
        sock.sendall(block)
        sent.update(block)
        left -= len(block)
        number += 1


thread = threading.Thread(target=send)
thread.start()
read, count = hashlib.sha256(), 0
# Neither side ends its stream before all is there: Squid closes both when one ends.
while count < total and (data := sock.recv(1 << 18)):
    read.update(data)
    count += len(data)
thread.join()
print(count, sent.hexdigest(), read.hexdigest())

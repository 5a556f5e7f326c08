"""download.py HOST PORT: reads to the end of what the server sends.

Prints how many bytes that were, and after how many seconds they were all there.
"""

import socket
import sys
import time

start = time.monotonic()
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])))
sock.shutdown(socket.SHUT_WR)
buffer = bytearray(1 << 18)
received = 0
while read := sock.recv_into(buffer):
    received += read
print(received, f"{time.monotonic() - start:.3f}")

"""end_last.py HOST PORT TEXT: reads to the end of the server's stream, and only then says TEXT.

Prints how many bytes came and their Adler-32 checksum.
"""

import socket
import sys
import time
import zlib

sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20)
count, checksum = 0, 1
while data := sock.recv(65536):
    count += len(data)
    checksum = zlib.adler32(data, checksum)
time.sleep(0.5)
sock.sendall(sys.argv[3].encode())
sock.close()
print(count, checksum)

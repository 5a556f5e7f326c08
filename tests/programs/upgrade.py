"""upgrade.py HOST PORT NAME: changes from HTTP/1.1 to another protocol, and speaks it."""

import socket
import sys

host, port, name = sys.argv[1], int(sys.argv[2]), sys.argv[3]
sock = socket.create_connection((host, port), timeout=20)
sock.sendall(
    f"GET /echo HTTP/1.1\r\nHost: {name}\r\nConnection: Upgrade\r\nUpgrade: lines\r\n\r\n".encode()
)
stream = sock.makefile("rwb")
print(stream.readline().decode().strip())
while stream.readline().strip():
    pass
print(stream.readline().decode().strip())
for word in ["one", "two"]:
    stream.write(word.encode() + b"\n")
    stream.flush()
    print(stream.readline().decode().strip())

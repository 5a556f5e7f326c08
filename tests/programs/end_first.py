"""end_first.py HOST PORT TEXT: says TEXT, ends its stream, and prints all that still comes."""

import socket
import sys

sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20)
sock.sendall(sys.argv[3].encode())
sock.shutdown(socket.SHUT_WR)
answer = b""
while data := sock.recv(65536):
    answer += data
print(answer.decode(), end="")

"""mapped.py HOST PORT [LOCAL]: connects to an IPv4 address with an IPv6 socket, as Java does.

Prints what getpeername says, and what the server sent back of "mapped".
"""

import socket
import sys

sock = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
sock.settimeout(20)
if len(sys.argv) > 3:
    sock.bind(("::ffff:" + sys.argv[3], 0))
sock.connect(("::ffff:" + sys.argv[1], int(sys.argv[2])))
sock.sendall(b"mapped")
print(sock.getpeername()[0], sock.recv(100).decode())

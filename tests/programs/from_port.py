"""from_port.py HOST PORT SOURCE: one connection from that local port; prints what is heard, or the errno.

Says nothing itself and reads up to the end, so it is for servers that speak first.
"""

import errno
import socket
import sys

host, port, source = sys.argv[1], *map(int, sys.argv[2:4])
try:
    sock = socket.socket()
    sock.settimeout(15)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", source))
    sock.connect((host, port))
    said = b""
    while part := sock.recv(4096):
        said += part
    print(said.decode())
except OSError as error:
    print(errno.errorcode.get(error.errno, error))

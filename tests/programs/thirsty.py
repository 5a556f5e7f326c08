"""thirsty.py HOST PORT COUNT: COUNT connections that ask for everything and read nothing.

Prints a line when all have asked, and then waits until it is killed.
"""

import select
import socket
import sys

host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
socks = []
for _ in range(count):
    sock = socket.socket()
    # As little as there may be, so that it is the agent that has to hold back.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect((host, port))
    sock.send(b"more")
    socks.append(sock)
print("waiting", flush=True)
select.select([], [], [])

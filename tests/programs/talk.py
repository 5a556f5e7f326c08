"""talk.py HOST PORT [TEXT]: connects, says TEXT, and tells as one line of words what came back.

Words: SECONDS what-happened PEER [DATA]. What happened is one of: data, closed, reset, refused,
timeout. PEER is what getpeername says.
"""

import socket
import sys
import time

host, port = sys.argv[1], int(sys.argv[2])
text = sys.argv[3].encode().decode("unicode_escape").encode("latin-1") if len(sys.argv) > 3 else b""
family = socket.AF_INET6 if ":" in host else socket.AF_INET
start = time.monotonic()
peer, data = "-", b""
sock = socket.socket(family, socket.SOCK_STREAM)
sock.settimeout(25)
try:
    sock.connect((host, port))
    peer = sock.getpeername()[0]
    if text:
        sock.sendall(text)
    data = sock.recv(4096)
    what = "data" if data else "closed"
except ConnectionResetError:
    what = "reset"
except (ConnectionRefusedError, PermissionError):
    what = "refused"
except socket.timeout:
    what = "timeout"
print(f"{time.monotonic() - start:.3f} {what} {peer} {data!r}")

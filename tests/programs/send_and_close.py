"""send_and_close.py HOST PORT TEXT [LOCAL]: connects, says TEXT, closes, and waits for nothing.

With LOCAL: from that local port, which it then leaves to whoever wants it next.
"""

import socket
import struct
import sys

local = ("", int(sys.argv[4])) if len(sys.argv) > 4 else None
sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20, source_address=local)
sock.sendall(sys.argv[3].encode())
if local:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
sock.close()

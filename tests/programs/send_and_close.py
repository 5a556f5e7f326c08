"""send_and_close.py HOST PORT TEXT: connects, says TEXT, closes, and does not wait for anything."""

import socket
import sys

sock = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=20)
sock.sendall(sys.argv[3].encode())
sock.close()

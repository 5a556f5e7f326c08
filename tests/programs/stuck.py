"""stuck.py HOST PORT COUNT: COUNT connections that never get through the handshake.

A filter on each socket drops all it is sent, so that it waits for an answer to its SYN for ever.
Prints a line when all of them wait, and then waits until it is killed.
"""

import ctypes
import select
import socket
import struct
import sys

SO_ATTACH_FILTER = 26
# BPF_RET | BPF_K with 0: no byte of any packet.
DROP = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
PROGRAM = struct.pack("HxxxxxxP", 1, ctypes.addressof(DROP))

host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
socks = []
for _ in range(count):
    sock = socket.socket()
    sock.setblocking(False)
    sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, PROGRAM)
    sock.connect_ex((host, port))
    socks.append(sock)
print("stuck", flush=True)
select.select([], [], [])

"""hold.py HOST PORT COUNT HOW: COUNT connections, each sends a word and holds what comes of it.

HOW is `in-turn`, where each is answered or reset before the next begins, or `at-once`. Prints
`answered` or `reset` for each, as it happens, and then waits until it is killed.
"""

import select
import socket
import sys

host, port, count, how = sys.argv[1], *map(int, sys.argv[2:4]), sys.argv[4]


def start():
    sock = socket.socket()
    sock.connect((host, port))
    sock.send(b"word")
    return sock


def outcome(sock):
    try:
        return "answered" if sock.recv(100) else "ended"
    except OSError:
        return "reset"


held = []
waiting = []
for _ in range(count):
    try:
        sock = start()
    except OSError:
        print("reset", flush=True)
        continue
    if how == "in-turn":
        print(outcome(sock), flush=True)
        held.append(sock)
    else:
        waiting.append(sock)
while waiting:
    for sock in select.select(waiting, [], [])[0]:
        print(outcome(sock), flush=True)
        waiting.remove(sock)
        held.append(sock)
select.select([], [], [])

"""many.py HOST PORT COUNT ROUNDS: COUNT connections at a time, each with one exchange.

All of a round are open and have been answered before the first of them is closed. Prints one line
per round: how many were answered, and what went wrong with the others.
"""

import collections
import selectors
import socket
import sys
import time

host, port, count, rounds = sys.argv[1], *map(int, sys.argv[2:5])
DEADLINE = 60


def play():
    selector = selectors.DefaultSelector()
    errors = collections.Counter()
    socks = []
    for number in range(count):
        sock = socket.socket()
        sock.setblocking(False)
        sock.connect_ex((host, port))
        selector.register(sock, selectors.EVENT_WRITE, b"connection %06d" % number)
        socks.append(sock)
    waiting, answered = count, 0
    end = time.monotonic() + DEADLINE
    while waiting and time.monotonic() < end:
        for key, events in selector.select(1):
            sock, word = key.fileobj, key.data
            try:
                if events & selectors.EVENT_WRITE:
                    sock.send(word)
                    selector.modify(sock, selectors.EVENT_READ, word)
                    continue
                answer = sock.recv(100)
                if answer == word:
                    answered += 1
                else:
                    errors[f"answer {answer!r}"] += 1
            except OSError as error:
                errors[type(error).__name__] += 1
            selector.unregister(sock)
            waiting -= 1
    errors["no answer"] += waiting
    for sock in socks:
        sock.close()
    return answered, {what: n for what, n in errors.items() if n}


for _ in range(rounds):
    print(*play(), flush=True)

"""rounds.py HOST PORT COUNT: COUNT connections at a time that talk to an echo server, round by round.

In a round each connection that is left says words of its own and has them back. The first round is at
once, another with each SIGUSR1. After SIGTERM each ends its side, and reads to the end. Prints a line
of JSON per round, and one for the end: how many saw what.
"""

import collections
import json
import signal
import socket
import sys

DEADLINE = 40
WORDS = 200

host, port, count = sys.argv[1], *map(int, sys.argv[2:4])
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGTERM})


def guarded(sock, action):
    try:
        return action(sock)
    except ConnectionResetError:
        return "reset"
    except socket.timeout:
        return "no answer"
    except OSError as error:
        return error.strerror


def connect():
    sock = socket.socket()
    sock.setblocking(False)
    sock.connect_ex((host, port))
    sock.settimeout(DEADLINE)
    return sock


def hear(words):
    def action(sock):
        got = b""
        while len(got) < len(words):
            data = sock.recv(len(words) - len(got))
            if not data:
                return "ended"
            got += data
        return "echoed" if got == words else "wrong"

    return action


def end(sock):
    return "data" if sock.recv(1) else "ended"


def tell(saw):
    print(json.dumps(collections.Counter(saw.values())), flush=True)


left = [(number, connect()) for number in range(count)]
turn = 0
while True:
    words = {number: b"%06d %06d," % (turn, number) * WORDS for number, _ in left}
    said = {number: guarded(sock, lambda sock: sock.sendall(words[number])) for number, sock in left}
    saw = {number: said[number] or guarded(sock, hear(words[number])) for number, sock in left}
    tell(saw)
    left = [(number, sock) for number, sock in left if saw[number] == "echoed"]
    turn += 1
    if signal.sigwait({signal.SIGUSR1, signal.SIGTERM}) == signal.SIGTERM:
        break
for _, sock in left:
    guarded(sock, lambda sock: sock.shutdown(socket.SHUT_WR))
tell({number: guarded(sock, end) for number, sock in left})

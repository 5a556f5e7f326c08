"""raw.py HOST PORT: sends what it reads, and prints what comes back.

Standard input is a JSON list of strings (Latin-1). Each is sent on a connection of its own, whose
answer is read to its end. Prints a JSON list of [answer, end], the end being "closed" or the error.
"""

import json
import socket
import sys

host, port = sys.argv[1], int(sys.argv[2])
results = []
for text in json.load(sys.stdin):
    sock = socket.create_connection((host, port), timeout=20)
    sock.sendall(text.encode("latin-1"))
    answer, end = b"", "closed"
    try:
        while data := sock.recv(1 << 16):
            answer += data
    except OSError as error:
        end = type(error).__name__
    sock.close()
    results.append([answer.decode("latin-1"), end])
print(json.dumps(results))

"""resolve.py VERB …: asks name servers without the system's resolver, or answers as none should.

ask NAME TYPE SERVER…         one unconnected socket asks all servers, as musl does, and takes the first
                              answer; prints its address
listen ADDRESS PORT           a socket there asks a server that is silent; says `ready`, and prints from whom a
                              datagram came
forge FROM HOST PORT NAME IP  sends HOST an answer to that question, from port 53 of FROM: NAME is at IP
"""

import socket
import struct
import sys

TYPES = {"A": 1, "AAAA": 28}
NUMBER = 4711


def encoded(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def question(name, kind):
    head = struct.pack(">6H", NUMBER, 0x0100, 1, 0, 0, 0)
    return head + encoded(name) + struct.pack(">2H", TYPES[kind], 1)


def address(message, name, kind):
    """The first address of the answer, whose names are compressed or not."""
    at = 12 + len(encoded(name)) + 4
    for _ in range(struct.unpack(">H", message[6:8])[0]):
        at += 2 if message[at] & 0xC0 else message.index(b"\0", at) + 1 - at
        found, _, _, length = struct.unpack(">2HIH", message[at : at + 10])
        data = message[at + 10 : at + 10 + length]
        at += 10 + length
        if found == TYPES[kind]:
            family = socket.AF_INET if kind == "A" else socket.AF_INET6
            return socket.inet_ntop(family, data)
    raise SystemExit("no address")


verb, args = sys.argv[1], sys.argv[2:]
if verb == "ask":
    name, kind, *servers = args
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(20)
    for server in servers:
        sock.sendto(question(name, kind), (server, 53))
    print(address(sock.recv(4096), name, kind))
elif verb == "listen":
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(20)
    sock.bind((args[0], int(args[1])))
    # A question of this very number, to somebody else.
    sock.sendto(question("evil.example", "A"), ("192.0.2.99", 53))
    print("ready", flush=True)
    print("got", sock.recvfrom(4096)[1][0], flush=True)
else:
    here, host, port, name, ip = args
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((here, 53))
    head = struct.pack(">6H", NUMBER, 0x8180, 1, 1, 0, 0)
    body = encoded(name) + struct.pack(">2H", 1, 1)
    record = b"\xc0\x0c" + struct.pack(">2HIH", 1, 1, 600, 4) + socket.inet_aton(ip)
    sock.sendto(head + body + record, (host, int(port)))

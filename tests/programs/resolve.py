"""resolve.py VERB …: asks name servers without the system's resolver, or answers as none should.

ask NAME TYPE SERVER…         one unconnected socket asks all servers, as musl does, and takes the first
                              answer; prints its address
each FAMILY NAME TYPE SERVER… the same, and tells of every answer from whom it came, and the address; a socket of
                              the family inet6 asks servers with IPv4 by their mapped addresses
peer NAME TYPE SERVER         a connected socket asks; tells whom it is connected to, and the address
both NAME SERVER              two connected sockets ask for both families at a time, with EDNS and a number of
                              their own, as Go does; prints the addresses
bytes SERVER HEX…             sends each datagram to the server; prints the answer in hexadecimal digits, or
                              `silence` where none comes in TIME
names COUNT DOMAIN SERVER     asks for so many names below a domain; prints the addresses there are
rounds COUNT NAME SERVER      asks so many times, and prints the microseconds of a round in the middle
listen ADDRESS PORT           a socket there asks a server that is silent; says `ready`, and prints from whom a
                              datagram came
forge FROM HOST PORT NAME IP  sends HOST an answer to that question, from port 53 of FROM: NAME is at IP
"""

import os
import socket
import struct
import sys
import time

TYPES = {"A": 1, "AAAA": 28}
NUMBER = 4711


def encoded(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def question(name, kind, number=NUMBER, options=b""):
    head = struct.pack(">6H", number, 0x0100, 1, 0, 0, 1 if options else 0)
    return head + encoded(name) + struct.pack(">2H", TYPES[kind], 1) + options


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
elif verb == "each":
    family, name, kind, *servers = args
    six = family == "inet6"
    sock = socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(20)
    for server in servers:
        server = "::ffff:" + server if six and ":" not in server else server
        sock.sendto(question(name, kind), (server, 53))
    for _ in servers:
        message, peer = sock.recvfrom(4096)
        print(peer[0], peer[1], address(message, name, kind), flush=True)
elif verb == "peer":
    name, kind, server = args
    sock = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(20)
    sock.connect((server, 53))
    sock.send(question(name, kind))
    message, peer = sock.recvfrom(4096)
    print(*sock.getpeername()[:2], *peer[:2], address(message, name, kind))
elif verb == "both":
    name, server = args
    # A payload of 1232 bytes at the most (RFC 6891 section 6.1.2).
    edns = b"\0" + struct.pack(">2HIH", 41, 1232, 0, 0)
    asked = []
    for kind in TYPES:
        sock = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(20)
        sock.connect((server, 53))
        query = question(name, kind, int.from_bytes(os.urandom(2), "big"), edns)
        sock.send(query)
        asked.append((sock, kind, query))
    for sock, kind, query in asked:
        message = sock.recv(4096)
        # Go takes only what has the number and the very question.
        end = 12 + len(encoded(name)) + 4
        if (message[:2], message[12:end]) != (query[:2], query[12:end]):
            raise SystemExit("another answer")
        print(address(message, name, kind))
elif verb == "bytes":
    server, *datagrams = args
    for datagram in datagrams:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(float(os.environ.get("TIME", "20")))
        sock.sendto(bytes.fromhex(datagram), (server, 53))
        try:
            print(sock.recv(65535).hex(), flush=True)
        except socket.timeout:
            print("silence", flush=True)
elif verb == "names":
    count, domain, server = int(args[0]), args[1], args[2]
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(20)
    sock.connect((server, 53))
    for n in range(count):
        name = f"n{n}.{domain}"
        sock.send(question(name, "A"))
        message = sock.recv(4096)
        if message[3] & 0x0F == 0:
            print(address(message, name, "A"))
elif verb == "rounds":
    count, name, server = int(args[0]), args[1], args[2]
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(20)
    sock.connect((server, 53))
    took = []
    for _ in range(count):
        start = time.perf_counter()
        sock.send(question(name, "A"))
        sock.recv(4096)
        took.append(time.perf_counter() - start)
    print(int(sorted(took)[count // 2] * 1e6))
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

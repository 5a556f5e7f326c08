"""udp.py HOST PORT [TIMES]: sends datagrams in every way, and tells for each what came of it.

A line `WAY sent` or `WAY ERROR` for each of: a connected socket, an unconnected one, sendmsg with several
buffers; over IPv4 also an IPv6 socket with a mapped address, and IP options. `WAY connect ERROR` if the
socket could not even be connected. With TIMES only the unconnected one, that many times.
"""

import errno
import socket
import sys

host, port = sys.argv[1], int(sys.argv[2])
FAMILY = socket.AF_INET6 if ":" in host else socket.AF_INET


def make(family=FAMILY):
    return socket.socket(family, socket.SOCK_DGRAM)


def name(error):
    return errno.errorcode.get(error.errno, str(error))


def connected(sock, to):
    try:
        sock.connect(to)
    except OSError as error:
        return "connect " + name(error)
    # Where getaddrinfo stops; the answer must be an address of this host.
    sock.getsockname()
    sock.send(b"connected")
    return "sent"


def unconnected(sock, to):
    sock.sendto(b"unconnected", to)
    return "sent"


def scattered(sock, to):
    sock.sendmsg([b"scat", b"tered"], [], 0, to)
    return "sent"


def optioned(sock, to):
    # Four times "no operation": the UDP header stands four bytes later.
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, b"\x01" * 4)
    return unconnected(sock, to)


def extended(sock, to):
    # Destination options, of padding only (RFC 8200).
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_DSTOPTS, bytes([0, 0, 1, 4, 0, 0, 0, 0]))
    return unconnected(sock, to)


ways = [connected, unconnected, scattered]
if FAMILY == socket.AF_INET:
    ways.append(optioned)
else:
    ways.append(extended)


def tell(way, sock, to, label):
    try:
        outcome = way(sock, to)
    except OSError as error:
        outcome = name(error)
    print(label, outcome, flush=True)


if len(sys.argv) > 3:
    sock = make()
    for _ in range(int(sys.argv[3])):
        tell(unconnected, sock, (host, port), "unconnected")
    sys.exit()
for way in ways:
    tell(way, make(), (host, port), way.__name__)
if FAMILY == socket.AF_INET:
    for way in (connected, unconnected):
        tell(way, make(socket.AF_INET6), ("::ffff:" + host, port), "mapped-" + way.__name__)

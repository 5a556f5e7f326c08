"""intruder.py VERB …: tries what it should not get away with, and tells what came of it.

bind HOST PORT [reuseport]   listens there; `bound`, or the error; then `got BYTES` for each client
steal HOST PORT LOCAL        connects from the local port LOCAL; tells as talk.py does
mark HOST PORT               connects with SO_MARK set to every likely value
leave HOST PORT CGROUP…      tries to move into each cgroup; then connects
move HOST PORT CGROUP        makes a socket, moves into the cgroup, and connects
early HOST PORT FILE         makes a socket, says `made`, waits for the file, and connects
open PIN…                    opens each pinned BPF object
"""

import ctypes
import errno
import os
import platform
import socket
import struct
import sys
import time

verb, args = sys.argv[1], sys.argv[2:]
QUESTION = b"GET / HTTP/1.0\r\nHost: site.example\r\n\r\n"


def name(error):
    return errno.errorcode.get(error.errno, str(error))


def make(host):
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.settimeout(25)
    return sock


def talk(sock, host, port):
    """Asks for a page; the word for what happened, and leaves no TIME_WAIT behind."""
    try:
        sock.connect((host, int(port)))
        sock.sendall(QUESTION)
        data = sock.recv(4096)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        print("data" if data else "closed", flush=True)
    except OSError as error:
        print(name(error), flush=True)
    sock.close()


def move(cgroup):
    try:
        with open(os.path.join(cgroup, "cgroup.procs"), "w") as procs:
            procs.write("0")
        print("moved")
    except OSError as error:
        print(name(error))


if verb == "bind":
    sock = make(args[0])
    sock.settimeout(None)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if "reuseport" in args:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    try:
        sock.bind((args[0], int(args[1])))
        sock.listen()
    except OSError as error:
        print(name(error))
        sys.exit()
    print("bound", flush=True)
    while True:
        client, _ = sock.accept()
        print("got", client.recv(100), flush=True)
        client.close()
elif verb == "steal":
    sock = make(args[0])
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind(("", int(args[2])))
    talk(sock, args[0], args[1])
elif verb == "mark":
    for mark in (1, 2, 0x1337, 0x29A, 0xFFFFFFFF):
        sock = make(args[0])
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, struct.pack("I", mark))
        talk(sock, *args)
elif verb == "leave":
    for cgroup in args[2:]:
        move(cgroup)
    talk(make(args[0]), *args[:2])
elif verb == "move":
    sock = make(args[0])
    move(args[2])
    talk(sock, *args[:2])
elif verb == "early":
    sock = make(args[0])
    print("made", flush=True)
    while not os.path.exists(args[2]):
        time.sleep(0.01)
    talk(sock, *args[:2])
elif verb == "open":
    libc = ctypes.CDLL(None, use_errno=True)
    number = {"x86_64": 321, "aarch64": 280}[platform.machine()]
    for pin in args:
        path = ctypes.create_string_buffer(pin.encode())
        attr = struct.pack("QII", ctypes.addressof(path), 0, 0)
        BPF_OBJ_GET = 7
        fd = libc.syscall(number, BPF_OBJ_GET, attr, len(attr))
        print("opened" if fd >= 0 else errno.errorcode[ctypes.get_errno()])

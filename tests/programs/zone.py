"""zone.py ADDRESS RECORD…: a name server that says what no other one would, over UDP and TCP.

A RECORD is NAME/TYPE/TTL/DATA: TTL in seconds, or several with commas between them, of which each
question gets the next; DATA in hexadecimal digits. What is signed is told to be authentic. TYPE 1 with
DATA `flood` has thirty addresses that are new for each question.
"""

import socket
import struct
import sys
import threading

RRSIG = 46


def encoded(name):
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


class Record:
    def __init__(self, text):
        name, kind, ttls, self.data = text.split("/")
        self.name, self.kind = encoded(name), int(kind)
        self.ttls = [int(ttl) for ttl in ttls.split(",")]

    def entries(self):
        ttl = self.ttls.pop(0) if len(self.ttls) > 1 else self.ttls[0]
        if self.data == "flood":
            global flooded
            flooded += 30
            each = (struct.pack(">I", 0xC6120000 + flooded - n) for n in range(30))
        else:
            each = [bytes.fromhex(self.data)]
        for data in each:
            yield b"\xc0\x0c" + struct.pack(">2HIH", self.kind, 1, ttl, len(data)) + data


flooded = 0
lock = threading.Lock()
records = [Record(text) for text in sys.argv[2:]]


def answer(query):
    end = query.index(b"\0", 12) + 5
    name, kind = query[12 : end - 4].lower(), struct.unpack(">H", query[end - 4 : end - 2])[0]
    with lock:
        of_name = [record for record in records if record.name == name]
        asked = [record for record in of_name if record.kind == kind]
        asked += [record for record in of_name if record.kind == RRSIG and asked]
        found = [entry for record in asked for entry in record.entries()]
    signed = any(record.kind == RRSIG for record in asked)
    flags = 0x8180 | (0x20 if signed else 0) | (0 if of_name else 3)
    return query[:2] + struct.pack(">5H", flags, 1, len(found), 0, 0) + query[12:end] + b"".join(found)


def over_tcp(listener):
    while True:
        client = listener.accept()[0]
        with client:
            while length := client.recv(2, socket.MSG_WAITALL):
                query = client.recv(struct.unpack(">H", length)[0], socket.MSG_WAITALL)
                said = answer(query)
                client.sendall(struct.pack(">H", len(said)) + said)


here = (sys.argv[1], 53)
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind(here)
listener = socket.create_server(here)
threading.Thread(target=over_tcp, args=[listener], daemon=True).start()
while True:
    query, client = datagrams.recvfrom(4096)
    datagrams.sendto(answer(query), client)

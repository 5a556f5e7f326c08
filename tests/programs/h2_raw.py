"""h2_raw.py HOST PORT: HTTP/2 frame by frame, so that rules can be broken.

Standard input is a JSON list of connections. Each is a list of frames, sent at once behind the
preface and SETTINGS:

    ["headers", STREAM, FLAGS, [[NAME, VALUE], ...]]
    ["data", STREAM, FLAGS, TEXT]
    ["frame", TYPE, FLAGS, STREAM, HEX]

FLAGS are those of the frame (1 END_STREAM, 4 END_HEADERS). Prints a JSON list with what came for
each connection: for each stream, in their order, "STATUS BODY" (with `grpc-status` behind the
status if there is one), "reset CODE", or nothing; then "goaway CODE" if that came.
"""

import json
import socket
import struct
import sys

import hpack

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


def frame(kind, flags, stream, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def write(one, encoder):
    name, *rest = one
    if name == "headers":
        stream, flags, fields = rest
        block = encoder.encode([(k.encode("latin-1"), v.encode("latin-1")) for k, v in fields], huffman=False)
        return frame(1, flags, stream, block), stream
    if name == "data":
        stream, flags, text = rest
        return frame(0, flags, stream, text.encode("latin-1")), stream
    kind, flags, stream, payload = rest
    return frame(kind, flags, stream, bytes.fromhex(payload)), stream


class Reader:
    def __init__(self, sock):
        self.sock, self.buffer = sock, b""

    def read(self, size):
        while len(self.buffer) < size:
            data = self.sock.recv(1 << 16)
            if not data:
                raise EOFError
            self.buffer += data
        taken, self.buffer = self.buffer[:size], self.buffer[size:]
        return taken

    def frame(self):
        head = self.read(9)
        length = int.from_bytes(head[:3], "big")
        return head[3], head[4], int.from_bytes(head[5:], "big"), self.read(length)


def talk(sock, frames):
    encoder, decoder = hpack.Encoder(), hpack.Decoder()
    sent, streams = PREFACE + frame(4, 0, 0), set()
    for one in frames:
        data, stream = write(one, encoder)
        sent += data
        streams.add(stream)
    streams.discard(0)
    sock.sendall(sent)
    seen = {stream: {"text": "", "over": False} for stream in sorted(streams)}
    reader, last = Reader(sock), None
    try:
        while not all(one["over"] for one in seen.values()):
            kind, flags, stream, payload = reader.frame()
            one = seen.get(stream, {"text": "", "over": True})
            if kind == 4 and not flags & 1:
                sock.sendall(frame(4, 1, 0))
            elif kind == 1:
                fields = dict(decoder.decode(payload))
                words = [fields.get(":status"), fields.get("grpc-status")]
                one["text"] += " ".join(word for word in words if word) + " "
            elif kind == 0:
                one["text"] += payload.decode("latin-1")
            elif kind == 3 and not one["over"]:
                one["text"] += f"reset {int.from_bytes(payload, 'big')}"
                one["over"] = True
            elif kind == 7:
                last = f"goaway {int.from_bytes(payload[4:8], 'big')}"
                if payload[4:8] != bytes(4):
                    break
            if kind in (0, 1) and flags & 1:
                one["over"] = True
    except (EOFError, OSError):
        pass
    return [one["text"] for one in seen.values()] + ([last] if last else [])


def main(host, port):
    results = []
    for frames in json.load(sys.stdin):
        sock = socket.create_connection((host, int(port)), timeout=20)
        results.append(talk(sock, frames))
        sock.close()
    print(json.dumps(results))


main(*sys.argv[1:])

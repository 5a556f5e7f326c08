"""collector.py ADDRESS PORT: a collector of OpenTelemetry's traces, by OTLP over HTTP.

Reads the messages by the numbers in opentelemetry/proto/trace/v1/trace.proto, and prints one line of
JSON for each span. What it does not know it says is unknown.
"""

import http.server
import json
import struct
import sys

LINK = {1: ("trace", "hex"), 2: ("span", "hex"), 6: ("flags", "int")}
STATUS = {2: ("message", "text"), 3: ("code", "int")}
VALUE = {1: ("text", "text"), 3: ("int", "int")}
ATTRIBUTE = {1: ("key", "text"), 2: ("value", VALUE)}
SPAN = {
    1: ("trace", "hex"),
    2: ("span", "hex"),
    4: ("parent", "hex"),
    5: ("name", "text"),
    6: ("kind", "int"),
    7: ("start", "int"),
    8: ("end", "int"),
    9: ("attributes[]", ATTRIBUTE),
    13: ("links[]", LINK),
    15: ("status", STATUS),
    16: ("flags", "int"),
}
SCOPE = {1: ("name", "text"), 2: ("version", "text")}
SCOPE_SPANS = {1: ("scope", SCOPE), 2: ("spans[]", SPAN)}
RESOURCE = {1: ("attributes[]", ATTRIBUTE)}
RESOURCE_SPANS = {1: ("resource", RESOURCE), 2: ("scopes[]", SCOPE_SPANS)}
REQUEST = {1: ("resources[]", RESOURCE_SPANS)}


def varint(data, at):
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def read(data, schema):
    message = {}
    at = 0
    while at < len(data):
        tag, at = varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = varint(data, at)
        elif wire == 1:
            (value,), at = struct.unpack_from("<Q", data, at), at + 8
        elif wire == 5:
            (value,), at = struct.unpack_from("<I", data, at), at + 4
        elif wire == 2:
            length, at = varint(data, at)
            if at + length > len(data):
                raise ValueError("cut off")
            value, at = data[at : at + length], at + length
        else:
            raise ValueError(f"wire type {wire}")
        name, kind = schema.get(number, (f"unknown {number}", "int"))
        if isinstance(kind, dict):
            value = read(value, kind)
        elif kind == "hex":
            value = value.hex()
        elif kind == "text":
            value = value.decode()
        elif isinstance(value, bytes):
            value = value.hex()
        if name.endswith("[]"):
            message.setdefault(name[:-2], []).append(value)
        else:
            message[name] = value
    return message


def plain(message):
    attributes = message.get("attributes", [])
    return {one["key"]: next(iter(one["value"].values())) for one in attributes}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        for resource in read(body, REQUEST)["resources"]:
            for scope in resource["scopes"]:
                for span in scope["spans"]:
                    span["attributes"] = plain(span)
                    span["resource"] = plain(resource["resource"])
                    span["path"] = self.path
                    span["headers"] = {k.lower(): v for k, v in self.headers.items()}
                    print(json.dumps(span), flush=True)
        self.send_response(200)
        self.send_header("Content-Type", "application/x-protobuf")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


address, port = sys.argv[1:]
http.server.ThreadingHTTPServer((address, int(port)), Handler).serve_forever()

"""grpc_call.py ADDRESS: a client of gRPC on one connection. What to do stands on its standard input,
a list in JSON; what came of it goes to its standard output, a line of JSON each.

    ["echo", TEXT, METADATA]        the answer, initial and trailing metadata
    ["collect", NUMBER, SIZE]       sends so many messages of so many bytes: what came, and whether
                                    it is what was sent
    ["count", NUMBER, SIZE]         the same the other way
    ["talk", NUMBER]                so many messages, each after the answer to the one before
    ["fail", NUMBER, TEXT]
    ["wait", TEXT, SECONDS]         a call with a deadline
    ["cancel", TEXT, SECONDS]       a call that is given up after this time
    ["at-once", NUMBER]             so many calls of echo at the same time: how many were right
    ["as", AUTHORITY]               what follows is for this one, on the same address
"""

import hashlib
import json
import sys
import threading
import time

import grpc

OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.enable_http_proxy", 0)]


def binary(key, value):
    return key, value.encode() if key.endswith("-bin") else value


def expected(number, size):
    sum_ = hashlib.sha256()
    for at in range(number):
        sum_.update(bytes([at % 251]) * size)
    return sum_.hexdigest()


class Client:
    def __init__(self, address):
        self.address = address
        self.channel = grpc.insecure_channel(address, OPTIONS)

    def method(self, kind, name):
        return getattr(self.channel, kind)(f"/test.Site/{name}")

    def echo(self, text, metadata=()):
        message, call = self.method("unary_unary", "Echo").with_call(
            text.encode(), metadata=[binary(*pair) for pair in metadata], timeout=60
        )
        said = lambda got: [[key, str(value)] for key, value in got if key.startswith("x-said")]
        initial, trailing = said(call.initial_metadata()), said(call.trailing_metadata())
        return [message.decode(), initial, trailing]

    def collect(self, number, size):
        messages = (bytes([at % 251]) * size for at in range(number))
        answer = self.method("stream_unary", "Collect")(messages, timeout=300).decode()
        seen, length, sum_ = answer.split()
        return [int(seen), int(length), sum_ == expected(number, size)]

    def count(self, number, size):
        seen, length, sum_ = 0, 0, hashlib.sha256()
        for message in self.method("unary_stream", "Count")(f"{number} {size}".encode(), timeout=300):
            seen, length = seen + 1, length + len(message)
            sum_.update(message)
        return [seen, length, sum_.hexdigest() == expected(number, size)]

    def talk(self, number):
        turn = threading.Semaphore(1)

        def say():
            for at in range(number):
                turn.acquire()
                yield f"line {at}".encode()

        heard = []
        for message in self.method("stream_stream", "Talk")(say(), timeout=60):
            heard.append(message.decode())
            turn.release()
        return [len(heard), heard[-1]]

    def fail(self, number, text):
        return self.method("unary_unary", "Fail")(f"{number} {text}".encode(), timeout=60).decode()

    def wait(self, text, seconds):
        return self.method("unary_unary", "Wait")(text.encode(), timeout=seconds).decode()

    def cancel(self, text, seconds):
        call = self.method("unary_unary", "Wait").future(text.encode(), timeout=60)
        time.sleep(seconds)
        call.cancel()
        return call.result()

    def at_once(self, number):
        calls = [
            self.method("unary_unary", "Echo").future(str(at).encode(), timeout=60)
            for at in range(number)
        ]
        return sum(call.result() == str(at).encode()[::-1] for at, call in enumerate(calls))

    def set_as(self, authority):
        options = [*OPTIONS, ("grpc.default_authority", authority)]
        self.channel = grpc.insecure_channel(self.address, options)


def main(address):
    client = Client(address)
    for name, *arguments in json.load(sys.stdin):
        method = getattr(client, {"as": "set_as"}.get(name, name.replace("-", "_")))
        try:
            result = {"ok": method(*arguments)}
        except grpc.RpcError as error:
            result = {"code": error.code().name, "details": error.details()}
        except grpc.FutureCancelledError:
            result = {"code": "CANCELLED"}
        print(json.dumps(result), flush=True)


main(*sys.argv[1:])

"""grpc_site.py ADDRESS PORT [CERTIFICATE KEY]: a server of gRPC. Messages are bytes.

    /test.Site/Echo      the message, backwards; its metadata `x-said` in initial and trailing metadata
    /test.Site/Collect   a stream of messages: how many there were, their length, SHA-256
    /test.Site/Count     "NUMBER SIZE": so many messages of so many bytes
    /test.Site/Talk      a stream: each message at once, in capitals
    /test.Site/Fail      "NUMBER TEXT": this status, with this text
    /test.Site/Wait      nothing, until the call has ended, of which it prints a line

Prints one line for each call: its method, and how many connections it has had.
"""

import hashlib
import sys
import threading
from concurrent import futures

import grpc

peers = set()


def begin(context, method):
    peers.add(context.peer())
    print(method, len(peers), flush=True)


def echo(message, context):
    begin(context, "Echo")
    said = [(key, value) for key, value in context.invocation_metadata() if key.startswith("x-said")]
    context.send_initial_metadata(said)
    context.set_trailing_metadata(said)
    return message[::-1]


def collect(messages, context):
    begin(context, "Collect")
    number, length, sum_ = 0, 0, hashlib.sha256()
    for message in messages:
        number, length = number + 1, length + len(message)
        sum_.update(message)
    return f"{number} {length} {sum_.hexdigest()}".encode()


def count(message, context):
    begin(context, "Count")
    number, size = map(int, message.split())
    for at in range(number):
        yield bytes([at % 251]) * size


def talk(messages, context):
    begin(context, "Talk")
    for message in messages:
        yield message.upper()


def fail(message, context):
    begin(context, "Fail")
    number, text = message.decode().split(" ", 1)
    code = next(code for code in grpc.StatusCode if code.value[0] == int(number))
    context.abort(code, text)


def wait(message, context):
    begin(context, "Wait")
    ended = threading.Event()
    context.add_callback(ended.set)
    ended.wait()
    print("ended", message.decode(), flush=True)


HANDLERS = grpc.method_handlers_generic_handler(
    "test.Site",
    {
        "Echo": grpc.unary_unary_rpc_method_handler(echo),
        "Collect": grpc.stream_unary_rpc_method_handler(collect),
        "Count": grpc.unary_stream_rpc_method_handler(count),
        "Talk": grpc.stream_stream_rpc_method_handler(talk),
        "Fail": grpc.unary_unary_rpc_method_handler(fail),
        "Wait": grpc.unary_unary_rpc_method_handler(wait),
    },
)


def read(path):
    with open(path, "rb") as file:
        return file.read()


def main(address, port, certificate=None, key=None):
    server = grpc.server(
        futures.ThreadPoolExecutor(64), [HANDLERS], options=[("grpc.so_reuseport", 0)]
    )
    if certificate:
        credentials = grpc.ssl_server_credentials([(read(key), read(certificate))])
        server.add_secure_port(f"{address}:{port}", credentials)
    else:
        server.add_insecure_port(f"{address}:{port}")
    server.start()
    server.wait_for_termination()


main(*sys.argv[1:])

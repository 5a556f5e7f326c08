"""fault.py WHAT HOST PORT [ARG...]: a workload that does something odd, or meets it.

Prints what it saw as its last line. Every wait has a deadline, so that a hang is an answer too.
"""

import os
import selectors
import signal
import socket
import struct
import sys
import threading
import time

DEADLINE = 25
WORDS = b"hello"


def stream(family=None, protocol=0):
    sock = socket.socket(family or FAMILY, socket.SOCK_STREAM, protocol)
    sock.settimeout(DEADLINE)
    return sock


def connected():
    sock = stream()
    sock.connect(TARGET)
    return sock


def exchange(sock, words=WORDS):
    """Says words and reads them back."""
    sock.sendall(words)
    return expect(sock, words)


def expect(sock, words=WORDS):
    got = b""
    while len(got) < len(words):
        data = sock.recv(len(words) - len(got))
        if not data:
            return f"end after {len(got)} bytes"
        got += data
    return "echoed" if got == words else f"got {got!r}"


def drain(sock):
    """Reads to the end."""
    got = b""
    while data := sock.recv(65536):
        got += data
    return got


def reset_on_close(sock):
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def echo():
    return exchange(connected())


def silent():
    """Says nothing, reads to the end."""
    return f"{drain(connected()).decode()}, then the end"


def unescaped(text):
    return text.encode().decode("unicode_escape").encode("latin-1")


def say(text):
    """Says a text and reads to the end."""
    sock = connected()
    sock.sendall(unescaped(text))
    return f"{drain(sock).decode().split(chr(13))[0]}, then the end"


def say_and_finish(text):
    sock = connected()
    sock.sendall(unescaped(text))
    sock.shutdown(socket.SHUT_WR)
    return f"{drain(sock).decode().split(chr(13))[0]}, then the end"


def echo_of(text, finish=""):
    """Says a text, ends its side if told to, and has it back."""
    sock = connected()
    sock.sendall(unescaped(text))
    if finish:
        sock.shutdown(socket.SHUT_WR)
    return expect(sock, unescaped(text))


def answer(sock):
    """The status of an answer, the length of its body if it is one of 2xx, and how it ended."""
    got, end = b"", "the end"
    try:
        while data := sock.recv(65536):
            got += data
    except ConnectionResetError:
        end = "a reset"
    if not got:
        return end.removeprefix("a ")
    head, _, body = got.partition(b"\r\n\r\n")
    status = head.decode().split(" ")[1]
    length = f", {len(body)} bytes" if status.startswith("2") else ""
    return f"{status}{length}, then {end}"


def ask(text):
    """Says a request and reads its answer."""
    sock = connected()
    sock.sendall(unescaped(text))
    return answer(sock)


def ask_in_parts(first, second):
    """The same, but the second part is said a little later."""
    sock = connected()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.sendall(unescaped(first))
    time.sleep(0.3)
    sock.sendall(unescaped(second))
    return answer(sock)


def ask_and_leave(text, how, read="0"):
    """Says a request, reads so much of the answer, and leaves when told to."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    sock = connected()
    sock.sendall(unescaped(text))
    left = int(read)
    while left:
        left -= len(sock.recv(left))
    print("up", flush=True)
    signal.sigwait({signal.SIGTERM})
    if how == "reset":
        reset_on_close(sock)
    sock.close()
    return "gone"


def flood_head():
    """A request head without an end."""
    sock = connected()
    sock.sendall(b"GET / HTTP/1.1\r\nHost: other.example\r\n")
    try:
        for number in range(10000):
            sock.sendall(b"X-%d: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n" % number)
    except ConnectionError:
        pass
    return drain(sock).decode().split("\r")[0]


def count():
    """Says words and counts what comes to the end."""
    sock = connected()
    sock.sendall(WORDS)
    return f"{len(drain(sock))} bytes, then the end"


def late():
    """Reads to the end, and only then speaks."""
    sock = connected()
    sock.sendall(WORDS)
    got = drain(sock)
    time.sleep(0.3)
    sock.sendall(b" late")
    sock.close()
    return f"{got.decode()}, then the end"


def one_byte():
    return exchange(connected(), b"x")


def abandon():
    """A connect that does not wait, and is given up before anything comes of it."""
    sock = stream()
    sock.setblocking(False)
    sock.connect_ex(TARGET)
    sock.close()
    return "given up"


def touch():
    connected().close()
    return "closed"


def reset_upload():
    sock = connected()
    sock.sendall(b"a" * (1 << 20))
    reset_on_close(sock)
    sock.close()
    return "reset by itself"


def stuck_upload(then="wait"):
    """Sends until nothing is taken any more, then waits for what comes of it, or resets."""
    sock = connected()
    sock.settimeout(1)
    sent = 0
    try:
        while sent < 64 << 20:
            sent += sock.send(b"a" * (1 << 16))
        return f"sent {sent} bytes"
    except socket.timeout:
        print("stuck", flush=True)
    if then == "wait":
        sock.settimeout(DEADLINE)
        return "the end" if not sock.recv(1) else "data"
    reset_on_close(sock)
    sock.close()
    return "stuck"


def stay():
    """Keeps an open connection and tells what becomes of it."""
    sock = connected()
    print(exchange(sock), flush=True)
    return "the end" if not sock.recv(1) else "data"


def download():
    sock = connected()
    sock.sendall(WORDS)
    total = 0
    print("up", flush=True)
    while data := sock.recv(1 << 20):
        total += len(data)
    return f"end after {total} bytes"


def transfer(blocks):
    """Has bytes that do not repeat echoed, sending and reading at the same time."""
    sock, rest = connected(), os.urandom((1 << 16) - 8)
    sent = [number.to_bytes(8, "big") + rest for number in range(int(blocks))]
    sender = threading.Thread(target=lambda: [sock.sendall(block) for block in sent])
    sender.start()
    for block in sent:
        said = expect(sock, block)
        if said != "echoed":
            return said
        print("up", flush=True)
    sender.join()
    return "echoed"


def crowd(number):
    """So many connections at once; what became of them."""
    selector = selectors.DefaultSelector()
    for each in range(int(number)):
        sock = stream()
        sock.setblocking(False)
        sock.connect_ex(TARGET)
        selector.register(sock, selectors.EVENT_WRITE, b"number %05d" % each)
    print("up", flush=True)
    ends, end = {}, time.monotonic() + DEADLINE
    while selector.get_map() and time.monotonic() < end:
        for key, events in selector.select(1):
            sock, word = key.fileobj, key.data
            try:
                if events & selectors.EVENT_WRITE:
                    sock.send(word)
                    selector.modify(sock, selectors.EVENT_READ, word)
                    continue
                answer = sock.recv(100)
                what = "served" if answer == word else "end" if not answer else "wrong"
            except ConnectionResetError:
                what = "reset"
            except OSError as error:
                what = error.strerror
            ends[what] = ends.get(what, 0) + 1
            selector.unregister(sock)
            sock.close()
    if selector.get_map():
        ends["no answer"] = len(selector.get_map())
    print(ends, flush=True)
    if len(ends) == 1:
        return f"all {next(iter(ends))}"
    if set(ends) <= {"served", "reset"}:
        return "served or reset"
    return str(ends)


def fill(number):
    """One connection more than allowed."""
    kept = [connected() for _ in range(int(number))]
    for sock in kept:
        if exchange(sock) != "echoed":
            return "too early"
    try:
        more = exchange(connected())
    except ConnectionResetError:
        more = "reset"
    return f"{more}, the others {' '.join({exchange(sock) for sock in kept})}"


def reuse(rounds):
    """The same source port for another destination each time; the proxy says which it was."""
    port = None
    for number in range(int(rounds)):
        sock = stream()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("", port or 0))
        sock.connect((HOST, 20000 + number))
        port = sock.getsockname()[1]
        sock.sendall(b"x")
        told = drain(sock).decode()
        if told != f"{HOST}:{20000 + number}":
            return f"round {number} reached {told!r}"
        reset_on_close(sock)
        sock.close()
    return "each its own"


def forked():
    """A child has the socket, its maker ends."""
    sock = connected()
    child = os.fork()
    if child:
        sock.close()
        os.waitpid(child, 0)
        sys.exit()
    return exchange(sock)


def passed(cgroup, connect_first):
    """A socket is handed to a process outside the cgroup, connected already or not."""
    here, there = socket.socketpair()
    child = os.fork()
    if child:
        sock = connected() if connect_first == "connected" else stream()
        socket.send_fds(here, [b"."], [sock.fileno()])
        sock.close()
        os.waitpid(child, 0)
        sys.exit()
    with open(f"{cgroup}/cgroup.procs", "w") as procs:
        procs.write("0")
    _, fds, _, _ = socket.recv_fds(there, 1, 1)
    sock = socket.socket(fileno=fds[0])
    sock.settimeout(DEADLINE)
    if connect_first != "connected":
        sock.connect(TARGET)
    return exchange(sock)


def mptcp():
    sock = stream(protocol=262)
    sock.connect(TARGET)
    return f"{exchange(sock)}, its peer {sock.getpeername()[0]}"


def bound_to_device(device):
    sock = stream()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    sock.connect(TARGET)
    return exchange(sock)


def after_refusal(device):
    """The same socket connects again after it was refused."""
    sock = stream()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
    try:
        sock.connect(TARGET)
        return "not refused"
    except PermissionError:
        pass
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"")
    sock.connect(TARGET)
    return exchange(sock)


def after_internal(internal):
    """The same socket connects to the outside after nobody listened inside."""
    sock = stream()
    # One that does not block would first have to be told of its failure once more.
    sock.settimeout(None)
    try:
        sock.connect((internal, 9))
        return "somebody listens"
    except ConnectionRefusedError:
        pass
    sock.settimeout(DEADLINE)
    sock.connect(TARGET)
    return exchange(sock)


def dissolved(internal):
    """A captured socket is disconnected and connects to the inside."""
    sock = connected()
    said = exchange(sock)
    # Here, since it takes the time of ten connections and is seldom needed.
    import ctypes

    # AF_UNSPEC dissolves the association.
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(sock.fileno(), struct.pack("H14x", 0), 16) != 0:
        return os.strerror(ctypes.get_errno())
    sock.settimeout(DEADLINE)
    sock.connect((internal, 7))
    return f"{said}, then {exchange(sock)} by {sock.getpeername()[0]}"


def fast_open_send():
    sock = stream()
    sock.settimeout(None)
    sock.sendto(WORDS, 0x20000000, TARGET)
    sock.settimeout(DEADLINE)
    return expect(sock)


def fast_open_connect():
    sock = stream()
    sock.setsockopt(socket.IPPROTO_TCP, 30, 1)
    sock.connect(TARGET)
    return exchange(sock)


def marked():
    sock = stream()
    for mark in (1, 0x1337, 0xFFFFFFFF):
        sock.setsockopt(socket.SOL_SOCKET, 36, struct.pack("I", mark))
    sock.connect(TARGET)
    return exchange(sock)


def bound(source):
    sock = stream()
    sock.bind((source, 0))
    sock.connect(TARGET)
    return exchange(sock)


def v6only():
    sock = stream()
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.connect(TARGET)
    return exchange(sock)


def proxied(target):
    """Speaks to a proxy itself."""
    sock = connected()
    sock.sendall(f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        if not byte:
            return f"end after {head!r}"
        head += byte
    return exchange(sock)


WHAT, HOST, PORT = sys.argv[1], sys.argv[2], int(sys.argv[3])
FAMILY = socket.AF_INET6 if ":" in HOST else socket.AF_INET
TARGET = (HOST, PORT)
try:
    saw = globals()[WHAT](*sys.argv[4:])
except ConnectionResetError:
    saw = "reset"
except ConnectionRefusedError:
    saw = "refused"
except PermissionError:
    saw = "not permitted"
except BrokenPipeError:
    saw = "broken pipe"
except socket.timeout:
    saw = "no answer"
print(saw)

"""h2_proxy.py HOST PORT ORDERS: a forward proxy of HTTP/2 by prior knowledge that does as it is told.

It is the target of its tunnels as well, by the port that is asked for:

    7     sends back what comes
    9     sends 16 MiB and the end, as soon as anything comes
    5     reads, and opens the window of the connection again, but never that of the stream
    19    sends without an end, as soon as anything comes

On port ORDERS each line is an order as JSON, and is answered by a line. Connections are counted from 0.

    {"settings": {ID: VALUE}}        the SETTINGS of connections to come
    {"greet": HEX}                   frames that each connection to come gets behind those
    {"answer": {...}}                how requests to come are answered: "interim": so many times 103
                                     first, "status", "reset": CODE instead, "frames": HEX instead,
                                     "hold": not before this is called off
    {"send": HEX, "to": N, "times": COUNT, "end": HEX}
                                     COUNT times the same bytes, and END once; answered when they are
                                     under way, or when the connection is gone
    {"grant": BYTES, "to": N}        opens the window of each of its streams
    {"deaf": N, "is": BOOL}          nothing more is read from this connection
    {"dead": N}                      nothing more comes from it, not even an acknowledgement of TCP
    {"state": true}                  what is known of each connection
"""

import asyncio
import collections
import ctypes
import json
import socket
import struct
import sys

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

SIZE = 16 << 20
CHUNK = bytes(range(256)) * 64
SO_ATTACH_FILTER = 26
# BPF_RET | BPF_K with 0: no byte of any packet.
DROP = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))
PROGRAM = struct.pack("HxxxxxxP", 1, ctypes.addressof(DROP))

connections = []
settings, greeting = {}, b""
answer, changed = {}, asyncio.Event()


class Stream:
    def __init__(self, port):
        self.port, self.open = port, True
        self.received, self.sent = 0, 0
        # What is to be sent: words, and how many other bytes (`None`: without an end).
        self.out, self.left, self.end = bytearray(), 0, False


class Connection:
    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer
        config = h2.config.H2Configuration(
            client_side=False, validate_inbound_headers=False, header_encoding="utf-8"
        )
        self.h2 = h2.connection.H2Connection(config)
        self.h2.local_settings = h2.settings.Settings(client=False, initial_values=settings)
        self.streams, self.events = {}, collections.Counter()
        self.peak, self.requests, self.ended = 0, 0, None
        self.hears = asyncio.Event()
        self.hears.set()
        self.dead = False

    def open(self):
        return sum(stream.open for stream in self.streams.values())

    def state(self):
        return {
            "open": self.open(),
            "peak": self.peak,
            "requests": self.requests,
            "ended": self.ended,
            "events": self.events,
            "received": [stream.received for stream in self.streams.values()],
            "sent": [stream.sent for stream in self.streams.values()],
        }

    async def run(self):
        self.h2.initiate_connection()
        # The tests look at how many streams there are; the library is not to.
        limit = h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS
        values = {name: value for name, value in settings.items() if name != limit}
        self.h2.local_settings = h2.settings.Settings(client=False, initial_values=values)
        self.flush()
        self.writer.write(greeting)
        while data := await self.reader.read(1 << 16):
            await self.hears.wait()
            for event in self.h2.receive_data(data):
                self.events[type(event).__name__] += 1
                await self.on(event)
            self.pump()

    def flush(self):
        if not self.dead:
            self.writer.write(self.h2.data_to_send())

    async def on(self, event):
        number = getattr(event, "stream_id", None)
        if isinstance(event, h2.events.RequestReceived):
            authority = dict(event.headers)[":authority"]
            self.streams[number] = Stream(int(authority.rpartition(":")[2]))
            self.requests += 1
            self.peak = max(self.peak, self.open())
            asyncio.get_running_loop().create_task(self.answer(number))
        elif isinstance(event, h2.events.DataReceived):
            stream, length = self.streams[number], event.flow_controlled_length
            stream.received += len(event.data)
            if length and stream.port == 5:
                self.h2.increment_flow_control_window(length)
            elif length:
                self.h2.acknowledge_received_data(length, number)
            if stream.port == 7:
                stream.out += event.data
            elif stream.port == 9:
                stream.left, stream.end = SIZE, True
            elif stream.port == 19:
                stream.left = None
        elif isinstance(event, h2.events.StreamEnded):
            self.streams[number].end = True
        elif isinstance(event, h2.events.StreamReset):
            self.streams[number].open = False

    async def answer(self, number):
        while answer.get("hold"):
            await changed.wait()
        try:
            for _ in range(answer.get("interim", 0)):
                self.h2.send_headers(number, [(":status", "103"), ("link", "</x>")])
            if "frames" in answer:
                self.writer.write(bytes.fromhex(answer["frames"]))
            elif "reset" in answer:
                self.h2.reset_stream(number, answer["reset"])
                self.streams[number].open = False
            else:
                self.h2.send_headers(number, [(":status", str(answer.get("status", 200)))])
        except h2.exceptions.ProtocolError:
            # The client has reset it meanwhile.
            pass
        self.pump()

    def pump(self):
        """Sends what streams have, as far as their windows are open."""
        if self.dead:
            return
        for number, stream in self.streams.items():
            if not stream.open:
                continue
            try:
                self.pump_one(number, stream)
            except h2.exceptions.ProtocolError:
                # Not answered yet, or reset.
                pass
        self.flush()

    def pump_one(self, number, stream):
        while stream.out or stream.left != 0:
            room = self.h2.local_flow_control_window(number)
            room = min(room, self.h2.max_outbound_frame_size)
            # What nobody reads is not to fill the memory here.
            if room <= 0 or self.writer.transport.get_write_buffer_size() > 1 << 20:
                return
            if stream.out:
                data = bytes(stream.out[:room])
                self.h2.send_data(number, data)
                del stream.out[: len(data)]
            else:
                data = CHUNK[: room if stream.left is None else min(room, stream.left)]
                self.h2.send_data(number, data)
                if stream.left is not None:
                    stream.left -= len(data)
            stream.sent += len(data)
            self.flush()
        if stream.end:
            self.h2.end_stream(number)
            stream.open = False

    async def send(self, data, times, end):
        """As fast as the client reads it."""
        whole = max(1, (1 << 16) // max(1, len(data)))
        try:
            while times > 0:
                self.writer.write(data * min(whole, times))
                times -= whole
                await self.writer.drain()
            self.writer.write(end)
            await self.writer.drain()
        except OSError:
            return False
        return self.ended is None

    def grant(self, length):
        for number, stream in self.streams.items():
            if stream.open:
                self.h2.increment_flow_control_window(length, number)
        self.flush()

    def die(self):
        self.dead = True
        self.hears.clear()
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, PROGRAM)


async def serve(reader, writer):
    connection = Connection(reader, writer)
    connections.append(connection)
    try:
        await connection.run()
        connection.ended = "closed"
    except h2.exceptions.ProtocolError as error:
        connection.ended = f"{type(error).__name__}: {error}"
        connection.flush()
    except OSError as error:
        connection.ended = type(error).__name__
    for stream in connection.streams.values():
        stream.open = False
    writer.close()


async def obey(order):
    global settings, greeting, answer
    match order:
        case {"settings": values}:
            settings = {int(name): value for name, value in values.items()}
        case {"greet": data}:
            greeting = bytes.fromhex(data)
        case {"answer": how}:
            answer = how
            changed.set()
            changed.clear()
        case {"send": data, "to": number, "times": times, "end": end}:
            return await connections[number].send(bytes.fromhex(data), times, bytes.fromhex(end))
        case {"grant": length, "to": number}:
            connections[number].grant(length)
        case {"deaf": number, "is": True}:
            connections[number].hears.clear()
        case {"deaf": number, "is": False}:
            connections[number].hears.set()
        case {"dead": number}:
            connections[number].die()
        case {"state": True}:
            return [connection.state() for connection in connections]
    return True


async def orders(reader, writer):
    while line := await reader.readline():
        said = await obey(json.loads(line))
        writer.write(json.dumps(said).encode() + b"\n")
        await writer.drain()
    writer.close()


async def main(host, port, control):
    await asyncio.start_server(serve, host, int(port), backlog=1024)
    server = await asyncio.start_server(orders, host, int(control), limit=1 << 22)
    await server.serve_forever()


asyncio.run(main(*sys.argv[1:]))

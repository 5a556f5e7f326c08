"""ws_client.py URL: speaks WebSocket to ws_server.py, and prints a line for what went as it should.

Each connection has a path of its own: /talk, /close, /vanish (of the server), /abort (a reset of its own).
"""

import asyncio
import os
import struct
import sys
from socket import SO_LINGER, SOL_SOCKET

import websockets


async def echoed(websocket, message):
    await websocket.send(message)
    answer = await websocket.recv()
    whole = message if isinstance(message, (str, bytes)) else "".join(message)
    assert answer == whole, (len(answer), len(whole))
    return len(answer)


async def talk(url):
    async with websockets.connect(url + "/talk", max_size=1 << 24, subprotocols=["chat"]) as socket:
        print("text", await echoed(socket, "grüße"))
        print("text", await echoed(socket, "x" * (1 << 20)))
        print("binary", await echoed(socket, os.urandom(1 << 20)))
        print("binary", await echoed(socket, b""))
        print("fragments", await echoed(socket, ["one ", "two ", "three"]))
        await (await socket.ping(b"are you there"))
        print("pong")
        # Many on their way at once, both ways.
        messages = [os.urandom(1 + 997 * i) for i in range(100)]
        sending = asyncio.gather(*(socket.send(message) for message in messages))
        assert [await socket.recv() for _ in messages] == messages
        await sending
        print("crowd")
        await socket.close(4001, "that was all")
    print("closed", socket.close_code, socket.close_reason)


async def ended_by_server(url, path, word):
    async with websockets.connect(url + path) as socket:
        await socket.send(word)
        try:
            await socket.recv()
        except websockets.ConnectionClosed:
            pass
        print(path, socket.close_code, socket.close_reason)


async def abort(url):
    async with websockets.connect(url + "/abort") as socket:
        await echoed(socket, "here")
        linger = struct.pack("ii", 1, 0)
        own = socket.transport.get_extra_info("socket")
        own.setsockopt(SOL_SOCKET, SO_LINGER, linger)
        socket.transport.abort()


async def main(url):
    await talk(url)
    await ended_by_server(url, "/close", "close 4002 your turn")
    await ended_by_server(url, "/vanish", "vanish")
    await abort(url)


asyncio.run(asyncio.wait_for(main(sys.argv[1]), 30))

"""ws_server.py ADDRESS PORT [CERTIFICATE KEY]: a WebSocket server, with TLS if it has a certificate.

Sends every message back, but for these texts:

    close CODE REASON   closes so
    vanish              breaks the connection without a word

Prints a line for each connection when it has ended: its path and the code and reason it heard.
"""

import asyncio
import ssl
import sys

import websockets


async def serve(websocket):
    try:
        async for message in websocket:
            if isinstance(message, str) and message.startswith("close "):
                _, code, reason = message.split(" ", 2)
                await websocket.close(int(code), reason)
            elif message == "vanish":
                websocket.transport.abort()
            else:
                await websocket.send(message)
    except websockets.ConnectionClosed:
        pass
    print(websocket.path, websocket.close_code, websocket.close_reason, flush=True)


async def main():
    tls = None
    if len(sys.argv) > 3:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*sys.argv[3:5])
    async with websockets.serve(serve, sys.argv[1], int(sys.argv[2]), ssl=tls, max_size=1 << 24):
        await asyncio.Future()


asyncio.run(main())

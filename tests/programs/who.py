"""who.py ADDRESS PORT CERTIFICATE KEY CLIENTS: says what it knows of who asks.

Listens on three ports: without TLS on PORT, with it on the next, and with certificates of the
authority CLIENTS on the one after. What it says, in an answer of HTTP if it was asked for one, is a
line of: the version of TLS, the server name, and the common name of the client's certificate; `-`
for what is not there.
"""

import socket
import ssl
import sys
import threading

address, port, certificate, key, clients = sys.argv[1:]


def context(mutual):
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    if mutual:
        tls.verify_mode = ssl.CERT_REQUIRED
        tls.load_verify_locations(clients)

    def named(connection, name, _):
        connection.asked_for = name

    tls.sni_callback = named
    return tls


def serve(connection, tls):
    who = "- - -"
    try:
        if tls:
            connection = tls.wrap_socket(connection, server_side=True)
            subject = (connection.getpeercert() or {}).get("subject", ())
            names = [value for part in subject for key, value in part if key == "commonName"]
            name = getattr(connection, "asked_for", None) or "-"
            who = f"{connection.version()} {name} {' '.join(names) or '-'}"
        elif connection.recv(1, socket.MSG_PEEK) == b"\x16":
            print("TLS where none is spoken", flush=True)
            return connection.close()
        stream = connection.makefile("rwb")
        line = stream.readline()
        answer = who + "\n"
        if line.rstrip().endswith(b"HTTP/1.1"):
            while stream.readline().strip():
                pass
            answer = f"HTTP/1.1 200 OK\r\nContent-Length: {len(answer)}\r\n\r\n{answer}"
        stream.write(answer.encode())
        stream.flush()
        stream.readline()
        connection.close()
    except OSError as error:
        print(error, flush=True)


def listen(port, tls):
    listener = socket.create_server((address, port))
    while True:
        connection, _ = listener.accept()
        threading.Thread(target=serve, args=(connection, tls), daemon=True).start()


threads = [
    threading.Thread(target=listen, args=(int(port) + number, tls))
    for number, tls in enumerate([None, context(False), context(True)])
]
for thread in threads:
    thread.start()

"""api_server.py ADDRESS PORT PLAIN_PORT CERTIFICATE KEY TOKEN: an API server of Kubernetes, as far as
an agent needs one.

It keeps objects of any kind that is served: lists, watches with resource versions and bookmarks,
server-side apply, merge patches, status, and optimistic locking. What is served is what is given to
PUT /served/PATH. On PORT it speaks TLS and wants TOKEN, on PLAIN_PORT neither.

Faults, on PORT only: POST /fault/away?seconds=N breaks every connection and takes none for so long;
POST /fault/identity?certificate=C&key=K&token=T has it be another from the next connection on;
POST /fault/answer?path=P&status=N answers so, 0 as usual, and with &after=S tells when to come again.
Of the watches of a kind that there are now POST /fault/hang?path=P has no more be heard, without an end;
POST /fault/cut?path=P ends one in the middle of its next event; POST /fault/say?path=P has them say
the given line. POST /fault/compact forgets history, so that watches that ask for it are told 410.

POST /bulk takes a list of objects with their "path". GET /requests shows what was asked on PORT.
"""

import bisect
import contextlib
import datetime
import http.server
import json
import socket
import ssl
import sys
import threading
import time
import urllib.parse
import uuid

# The sources stay as they are.
sys.dont_write_bytecode = True
import fields

ADDRESS, PORT, PLAIN_PORT, CERTIFICATE, KEY, TOKEN = sys.argv[1:7]

changed = threading.Condition()
version = 100
oldest = 0
served = set()
objects = {}  # collection -> (namespace, name) -> object
owners = {}  # collection -> (namespace, name) -> manager and part -> fields
history = {}  # collection -> [(version, event)]
answers = {}  # collection -> (status, seconds)
watches = {}  # collection -> handlers
requests = []
away_until = 0.0
connections = set()

# Between two bookmarks of a watch.
BOOKMARKS = 60


def now():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def store(collection, key, body, of_status=False, manager="test", patch=None, force=True):
    """Has an object be as a request wants it; to be called with the lock. `patch` is "apply", "merge", or
    None where `body` takes the place of what was."""
    global version
    old = objects.setdefault(collection, {}).get(key)
    before = old or {name: body[name] for name in ("apiVersion", "kind") if name in body}
    owned = owners.setdefault(collection, {}).setdefault(key, {})
    part = fields.part(before, of_status)
    wanted = fields.part(body, of_status)
    if patch == "apply":
        owner = (manager, "Apply", of_status)
        wanted = fields.applied(part, wanted, owned, owner, force)
    else:
        owner = (manager, "Update", of_status)
        wanted = fields.patched(part, wanted) if patch == "merge" else wanted
        wanted = fields.replaced(part, wanted, owned, owner)
    new = fields.whole(before, wanted, of_status)
    metadata = new["metadata"] = dict(new.get("metadata", {}))
    metadata["namespace"], metadata["name"] = key
    metadata["managedFields"] = [
        {"manager": name, "operation": how, **({"subresource": "status"} if status else {})}
        for (name, how, status), has in owned.items() if has]
    if old is None:
        metadata.update(uid=str(uuid.uuid4()), creationTimestamp=now(), generation=1)
    elif new == old:
        return old
    elif new.get("spec") != old.get("spec"):
        metadata["generation"] += 1
    version += 1
    metadata["resourceVersion"] = str(version)
    objects[collection][key] = new
    tell("ADDED" if old is None else "MODIFIED", collection, new)
    return new


def tell(kind, collection, thing):
    history.setdefault(collection, []).append((version, {"type": kind, "object": thing}))
    changed.notify_all()


def failure(code, reason="Reason", message="as the test wants it"):
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
            "reason": reason, "message": message}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wants_token = True

    def setup(self):
        super().setup()
        connections.add(self.connection)
        self.writing = threading.Lock()
        self.is_hung = self.is_cut = False

    def finish(self):
        connections.discard(self.connection)
        super().finish()

    def log_message(self, format, *args):
        pass

    def answer(self, code, body, after=0):
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if after:
            self.send_header("Retry-After", str(after))
        self.end_headers()
        self.wfile.write(data)

    def do(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        url = urllib.parse.urlsplit(self.path)
        query = dict(urllib.parse.parse_qsl(url.query))
        if self.wants_token:
            requests.append(f"{self.command} {self.path}")
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.answer(401, failure(401, "Unauthorized"))
        else:
            self.code = 200
            done = self.control(url.path, query, body)
            if done is not None:
                return self.answer(self.code, done)
        return self.api(url.path, query, body)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do

    def control(self, path, query, body):
        global away_until, oldest, version, TOKEN
        if path == "/requests":
            return requests
        with changed:
            if path.startswith("/served/"):
                served.add("/" + path.removeprefix("/served/"))
                return {}
            if path == "/bulk":
                for thing in body:
                    collection = thing.pop("path")
                    metadata = thing["metadata"]
                    store(collection, (metadata["namespace"], metadata["name"]), thing, patch="apply")
                return {}
            if path == "/fault/compact":
                version += 1
                oldest = version
                history.clear()
                return {}
            if path == "/fault/answer":
                answers[query["path"]] = int(query["status"]), int(query.get("after", 0))
                return {}
            if path == "/fault/identity":
                TOKEN = query["token"]
                secure.context = identity(query["certificate"], query["key"])
                return {}
            there = list(watches.get(query.get("path"), ()))
            if path == "/fault/hang":
                for watch in there:
                    watch.is_hung = True
                return {"watches": len(there)}
            if path == "/fault/cut":
                for watch in there[:1]:
                    watch.is_cut = True
                return {"watches": len(there)}
            if path == "/fault/say":
                for watch in there:
                    watch.say(body["line"].encode() + b"\n")
                return {"watches": len(there)}
        if path == "/fault/away":
            away_until = time.monotonic() + float(query["seconds"])
            with changed:
                changed.notify_all()
            for connection in list(connections):
                if isinstance(connection, ssl.SSLSocket):
                    try:
                        connection.shutdown(socket.SHUT_RDWR)
                    except OSError:
                        pass
            return {}
        return None

    def api(self, path, query, body):
        parts = path.strip("/").split("/")
        if parts[0] == "apis" and len(parts) == 2:
            versions = sorted({p.split("/")[3] for p in served if p.startswith(path + "/")})
            if not versions:
                return self.answer(404, failure(404, "NotFound"))
            listed = [{"groupVersion": f"{parts[1]}/{v}", "version": v} for v in versions]
            return self.answer(200, {"kind": "APIGroup", "apiVersion": "v1", "name": parts[1],
                                     "versions": listed, "preferredVersion": listed[0]})
        root, rest = ("/".join(parts[:2]), parts[2:]) if parts[0] == "api" else (
            "/".join(parts[:3]), parts[3:])
        namespace = None
        if rest and rest[0] == "namespaces":
            namespace, rest = rest[1], rest[2:]
        collection = f"/{root}/{rest[0]}" if rest else path
        name = rest[1] if len(rest) > 1 else None
        of_status = rest[2:] == ["status"]
        if self.wants_token and self.must_fail(collection):
            return None
        if collection not in served:
            return self.answer(404, failure(404, "NotFound"))
        if self.command == "GET" and query.get("watch") == "true":
            return self.watch(collection, namespace, query)
        with changed:
            try:
                code, result = self.reply(collection, namespace, name, of_status, query, body)
            except fields.Conflict as conflict:
                code, result = 409, failure(409, "Conflict", str(conflict))
        return self.answer(code, result)

    def must_fail(self, collection):
        code, after = answers.get(collection, (0, 0))
        if code:
            self.answer(code, failure(code), after)
        return code != 0

    def patch(self):
        """What kind of patch it is, if it is one."""
        if self.command != "PATCH":
            return None
        return "merge" if "merge-patch" in self.headers.get("Content-Type", "") else "apply"

    def reply(self, collection, namespace, name, of_status, query, body):
        global version
        here = objects.setdefault(collection, {})
        if self.command == "GET" and name is None:
            items = [thing for thing in here.values() if meant(thing, namespace, query)]
            return 200, {"kind": "List", "apiVersion": "v1", "items": items,
                         "metadata": {"resourceVersion": str(version)}}
        name = name or body["metadata"]["name"]
        key = (namespace, name)
        old = here.get(key)
        if self.command == "GET":
            return (200, old) if old else (404, failure(404, "NotFound"))
        if self.command == "DELETE":
            if old is None:
                return 404, failure(404, "NotFound")
            del here[key]
            del owners[collection][key]
            version += 1
            gone = json.loads(json.dumps(old))
            gone["metadata"]["resourceVersion"] = str(version)
            tell("DELETED", collection, gone)
            return 200, gone
        if self.command == "POST" and old is not None:
            return 409, failure(409, "AlreadyExists")
        if self.command == "PUT" and old is not None:
            wanted = body["metadata"].get("resourceVersion")
            if wanted != old["metadata"]["resourceVersion"]:
                return 409, failure(409, "Conflict")
        if old is None and (of_status or self.patch() == "merge"):
            return 404, failure(404, "NotFound")
        manager, force = query.get("fieldManager", "test"), query.get("force") == "true"
        return 200, store(collection, key, body, of_status, manager, self.patch(), force)

    def watch(self, collection, namespace, query):
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        seen = int(query.get("resourceVersion") or 0)
        if seen < oldest:
            gone = failure(410, "Expired", "too old resource version")
            self.send({"type": "ERROR", "object": gone})
            return self.wfile.write(b"0\r\n\r\n")
        end = time.monotonic() + float(query.get("timeoutSeconds") or 290)
        wants_bookmarks = query.get("allowWatchBookmarks") == "true"
        bookmark = time.monotonic() + BOOKMARKS
        with self.watching(collection):
            while time.monotonic() < end:
                with changed:
                    known = history.get(collection, [])
                    news = known[bisect.bisect_right(known, seen, key=lambda it: it[0]):]
                    reached = version
                    if not news:
                        changed.wait(0.5)
                if self.wants_token and time.monotonic() < away_until:
                    self.close_connection = True
                    return None
                for at, event in news:
                    seen = at
                    if meant(event["object"], namespace, query):
                        self.send(event)
                if not news and wants_bookmarks and time.monotonic() > bookmark:
                    bookmark = time.monotonic() + BOOKMARKS
                    mark = {"apiVersion": "v1", "kind": "Any", "metadata": {"resourceVersion": str(reached)}}
                    self.send({"type": "BOOKMARK", "object": mark})
            return self.wfile.write(b"0\r\n\r\n")

    @contextlib.contextmanager
    def watching(self, collection):
        if self.wants_token:
            watches.setdefault(collection, set()).add(self)
        try:
            yield
        finally:
            watches.get(collection, set()).discard(self)

    def send(self, event):
        line = json.dumps(event).encode() + b"\n"
        while self.is_hung:
            time.sleep(0.1)
        if self.is_cut:
            self.say(line[:len(line) // 2])
            raise ConnectionAbortedError
        self.say(line)

    def say(self, line):
        with self.writing:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))


def meant(thing, namespace, query):
    metadata = thing["metadata"]
    if namespace is not None and metadata["namespace"] != namespace:
        return False
    for term in filter(None, query.get("fieldSelector", "").split(",")):
        field, value = term.split("=")
        node = thing
        for step in field.split("."):
            node = node.get(step, {})
        if node != value:
            return False
    for term in filter(None, query.get("labelSelector", "").split(",")):
        label, _, value = term.partition("=")
        has = metadata.get("labels", {}).get(label)
        if has is None or (value and has != value):
            return False
    return True


class Plain(Handler):
    wants_token = False


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    context = None

    def get_request(self):
        connection, peer = super().get_request()
        if self.context is None:
            return connection, peer
        if time.monotonic() < away_until:
            connection.close()
            raise OSError("away")
        connection.settimeout(None)
        # The handshake is made by the thread of the connection.
        return self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), peer

    def handle_error(self, request, client_address):
        pass


def identity(certificate, key):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def serve(handler, plain_handler):
    global secure
    secure = Server((ADDRESS, int(PORT)), handler)
    secure.context = identity(CERTIFICATE, KEY)
    threading.Thread(target=secure.serve_forever, daemon=True).start()
    plain = Server((ADDRESS, int(PLAIN_PORT)), plain_handler)
    print("serving", flush=True)
    plain.serve_forever()


if __name__ == "__main__":
    serve(Handler, Plain)

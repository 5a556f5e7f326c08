"""real_api_server.py ADDRESS PORT PLAIN_PORT CERTIFICATE KEY TOKEN PROGRAMS CRDS: as api_server.py, with
the API server of Kubernetes that serves custom resources, and etcd, from the directory PROGRAMS.

What is no custom resource is made one, under another name where that must be: what agents and tests ask
for /api/v1/pods is asked of /apis/core.underpass.test/v1/pods. The kinds of underpass.dev are those of
the directory CRDS.
"""

import concurrent.futures
import glob
import http.client
import json
import os
import pathlib
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.parse

# The sources stay as they are.
sys.dont_write_bytecode = True
import api_server as front

PROGRAMS, CRDS = map(pathlib.Path, sys.argv[7:9])
CORE = "core.underpass.test"
UPSTREAM = 7443
ETCD = 7379
KINDS = {"pods": "Pod", "secrets": "Secret", "services": "Service", "endpointslices": "EndpointSlice",
         "leases": "Lease", "events": "Event", "serviceentries": "ServiceEntry",
         "destinationrules": "DestinationRule", "virtualservices": "VirtualService"}
# What a real one can select pods by, too.
SELECTABLE = {"pods": [{"jsonPath": ".spec.nodeName"}]}
LOOSE = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}

scratch = pathlib.Path(tempfile.mkdtemp(dir=os.environ.get("HOME")))
local = threading.local()
running = []
served = set()


def openssl(*arguments):
    subprocess.run(["openssl", *arguments], cwd=scratch, check=True, capture_output=True)


def certificates():
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")
    openssl("req", "-x509", *key, "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.crt")
    for name, subject, extension in [
            ("server", "/CN=server", "subjectAltName=IP:127.0.0.1"),
            ("client", "/O=system:masters/CN=test", "extendedKeyUsage=clientAuth")]:
        openssl("req", "-x509", *key, "-subj", subject, "-addext", extension,
                "-addext", "basicConstraints=critical,CA:FALSE", "-CA", "ca.crt", "-CAkey", "ca.key",
                "-keyout", f"{name}.key", "-out", f"{name}.crt")
    (scratch / "nowhere").write_text(json.dumps({
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "users": [{"name": "u", "user": {}}],
        "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:1"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}]}))


def start(program, *arguments):
    log = open(scratch / f"{program}.log", "ab")
    process = subprocess.Popen([PROGRAMS / program, *arguments], stdout=log, stderr=log, cwd=scratch)
    running.append(process)
    return process


def start_api_server():
    process = start(
        "apiextensions-apiserver", f"--etcd-servers=http://127.0.0.1:{ETCD}", "--bind-address=127.0.0.1",
        f"--secure-port={UPSTREAM}", "--tls-cert-file=server.crt", "--tls-private-key-file=server.key",
        "--client-ca-file=ca.crt", "--authentication-skip-lookup", "--authentication-kubeconfig=nowhere",
        "--authorization-kubeconfig=nowhere", "--kubeconfig=nowhere",
        "--enable-priority-and-fairness=false",
        "--disable-admission-plugins=NamespaceLifecycle,MutatingAdmissionWebhook,"
        "ValidatingAdmissionWebhook,ValidatingAdmissionPolicy,MutatingAdmissionPolicy")
    wait_for(lambda: ask("GET", "/healthz")[0] == 200, process)
    return process


def wait_for(condition, process=None):
    end = time.monotonic() + 60
    while True:
        try:
            if condition():
                return
        except OSError:
            pass
        if time.monotonic() > end or process is not None and process.poll() is not None:
            for log in glob.glob(f"{scratch}/*.log"):
                sys.stderr.write(open(log).read()[-4000:])
            sys.exit("the API server does not start")
        time.sleep(0.05)


def connect():
    context = ssl.create_default_context(cafile=scratch / "ca.crt")
    context.load_cert_chain(scratch / "client.crt", scratch / "client.key")
    return http.client.HTTPSConnection("127.0.0.1", UPSTREAM, context=context, timeout=400)


def ask(method, path, body=None, kind="application/json"):
    """The status and the text of an answer, over this thread's connection."""
    for last in (False, True):
        connection = getattr(local, "connection", None) or connect()
        local.connection = connection
        try:
            connection.request(method, path, body, {"Content-Type": kind})
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException):
            # It has been closed since, or its server started again.
            local.connection = None
            connection.close()
            if last:
                raise


def apply(path, text, manager="test"):
    separator = "&" if "?" in path else "?"
    query = "" if "fieldManager=" in path else f"{separator}fieldManager={manager}&force=true"
    return ask("PATCH", path + query, text, "application/apply-patch+yaml")


def serve(collection):
    """Has a kind served: /apis/GROUP/VERSION/PLURAL."""
    parts = there(collection).strip("/").split("/")
    group, version, plural = parts[1:]
    name = f"{plural}.{group}"
    file = CRDS / f"{plural}.{group}.yaml"
    if file.exists():
        definition = file.read_text()
    else:
        kind = KINDS[plural]
        definition = json.dumps({
            "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
            "metadata": {"name": name, "annotations": {
                "api-approved.kubernetes.io": "unapproved, experimental-only"}},
            "spec": {"group": group, "scope": "Namespaced",
                     "names": {"plural": plural, "singular": kind.lower(), "kind": kind,
                               "listKind": f"{kind}List"},
                     "versions": [{
                         "name": version, "served": True, "storage": True,
                         "subresources": {"status": {}},
                         "selectableFields": SELECTABLE.get(plural, []),
                         "schema": {"openAPIV3Schema": {**LOOSE, "properties": {
                             "spec": {**LOOSE, "properties": {
                                 field["jsonPath"].split(".")[-1]: {"type": "string"}
                                 for field in SELECTABLE.get(plural, [])}},
                             "status": LOOSE}}}}]}})
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"
    status, text = apply(path, definition)
    if status >= 300:
        return status, json.loads(text)

    def established():
        conditions = json.loads(ask("GET", path)[1]).get("status", {}).get("conditions") or []
        return any(it["type"] == "Established" and it["status"] == "True" for it in conditions)
    wait_for(established)
    served.add(collection)
    wait_for_served()
    return 200, {}


def wait_for_served():
    for collection in served:
        wait_for(lambda: ask("GET", there(collection) + "?limit=1")[0] == 200)


def there(path):
    """A path of Kubernetes' own API, as it is upstream."""
    core = "/api/v1"
    return f"/apis/{CORE}/v1" + path.removeprefix(core) if path.startswith(core + "/") else path


def renamed(thing, before, after):
    if thing.get("apiVersion") == before:
        thing["apiVersion"] = after
    for item in thing.get("items", []):
        renamed(item, before, after)
    if isinstance(thing.get("object"), dict):
        renamed(thing["object"], before, after)
    return thing


class Handler(front.Handler):
    def control(self, path, query, body):
        if path.startswith("/served/"):
            code, result = serve(path.removeprefix("/served"))
            self.code = code
            return result
        if path == "/bulk":
            def put(thing):
                metadata = thing["metadata"]
                root, plural = thing.pop("path").rsplit("/", 1)
                at = f"{root}/namespaces/{metadata['namespace']}/{plural}/{metadata['name']}"
                renamed(thing, "v1", f"{CORE}/v1")
                status, text = apply(there(at), json.dumps(thing))
                return None if status < 300 else text.decode()
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                failed = [text for text in pool.map(put, body) if text]
            return {"failed": failed[:3]} if failed else {}
        if path == "/fault/compact":
            # Its cache of what was goes with the process, and etcd's with the compaction.
            running[-1].kill()
            running.pop().wait()
            etcdctl = [PROGRAMS / "etcdctl", f"--endpoints=http://127.0.0.1:{ETCD}"]
            put = subprocess.run([*etcdctl, "put", "x", "x", "-w", "json"], check=True, capture_output=True)
            revision = json.loads(put.stdout)["header"]["revision"]
            subprocess.run([*etcdctl, "compact", str(revision)], check=True, capture_output=True)
            start_api_server()
            wait_for_served()
            return {}
        return super().control(path, query, body)

    def api(self, path, query, body):
        parts = path.split("/")
        if "namespaces" in parts:
            at = parts.index("namespaces")
            parts[at:at + 2] = []
        collection = "/".join(parts[:5 if parts[1] == "apis" else 4])
        if self.wants_token and self.must_fail(collection):
            return None
        target = there(path)
        question = urllib.parse.urlsplit(self.path).query
        target += f"?{question}" if question else ""
        kind = self.headers.get("Content-Type") or "application/json"
        if self.patch() == "apply" and not self.wants_token:
            kind = "application/apply-patch+yaml"
        text = None
        if self.command in ("POST", "PUT", "PATCH"):
            text = json.dumps(renamed(body, "v1", f"{CORE}/v1"))
        if query.get("watch") in ("true", "1"):
            return self.watch_upstream(collection, target)
        try:
            code, answer = ask(self.command, target, text, kind)
        except OSError as error:
            return self.answer(503, front.failure(503, "ServiceUnavailable", str(error)))
        try:
            answer = renamed(json.loads(answer), f"{CORE}/v1", "v1")
        except ValueError:
            answer = front.failure(code, "Unknown", answer.decode(errors="replace"))
        # What tests ask for has worked or it has not.
        if not self.wants_token and code < 300:
            code = 200
        return self.answer(code, answer)

    def watch_upstream(self, collection, target):
        connection = connect()
        try:
            connection.request("GET", target)
            answer = connection.getresponse()
            if answer.status != 200:
                return self.answer(answer.status, json.loads(answer.read()))
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            with self.watching(collection):
                for line in answer:
                    self.send(renamed(json.loads(line), f"{CORE}/v1", "v1"))
            return self.wfile.write(b"0\r\n\r\n")
        except (OSError, http.client.HTTPException):
            self.close_connection = True
            return None
        finally:
            connection.close()


class Plain(Handler):
    wants_token = False


# So that what it has started ends as well.
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
certificates()
peer = ETCD + 1
start("etcd", "--data-dir=etcd", "--unsafe-no-fsync", "--log-level=error",
      f"--listen-client-urls=http://127.0.0.1:{ETCD}", f"--advertise-client-urls=http://127.0.0.1:{ETCD}",
      f"--listen-peer-urls=http://127.0.0.1:{peer}",
      f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
      f"--initial-cluster=default=http://127.0.0.1:{peer}")
start_api_server()
try:
    front.serve(Handler, Plain)
finally:
    for process in running:
        process.kill()

"""Small base-less images for tests of module runtimes, written straight into a content store.

The image's `scoring_runtime` is a few lines of standard library that keep the real one's contract: it serves
EDGEWRIGHT_HEALTH_FD when it is ready, EDGEWRIGHT_HTTP_FD at once or, with EDGEWRIGHT_HOLD, after SIGUSR1; SIGTERM ends it
when the requests at hand are answered. `GET /run?…` runs the Python given as `code` and answers with its `result`.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile

from edge_containers.image_model import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_TAR,
    OCI_MANIFEST,
    ImageConfig,
    ImageIndex,
    ImageManifest,
    Platform,
)
from edge_containers.store import ContentStore
from edge_contracts.image_ref import ImageDigest

MODULE = """
import os, queue, signal, socket, sys, threading, traceback, urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import a_dependency

VERSION = open(os.path.join(os.environ["AZUREML_MODEL_DIR"], os.environ["EDGEWRIGHT_MODEL_FILE"])).read()


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        status, answer = 200, VERSION
        if url.path == "/run":
            names = {}
            try:
                exec(urllib.parse.parse_qs(url.query)["code"][0], names)
                answer = repr(names.get("result"))
            except Exception:
                status, answer = 500, traceback.format_exc()
        body = answer.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


class Server(ThreadingHTTPServer):
    daemon_threads = False


def serve(variable):
    listener = socket.socket(fileno=int(os.environ[variable]))
    # Shared with another instance: it may take the connection that woke both.
    listener.setblocking(False)
    server = Server(listener.getsockname(), Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listener
    accept = server.get_request

    def get_request():
        connection, address = accept()
        connection.setblocking(True)
        return connection, address

    server.get_request = get_request
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}).start()
    return server


def main():
    print("module", VERSION, "starts", flush=True)
    if VERSION == "crash":
        sys.exit(3)
    signals = queue.SimpleQueue()
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: signals.put(number))
    servers = [serve("EDGEWRIGHT_HEALTH_FD")]
    public = "EDGEWRIGHT_HTTP_FD" in os.environ
    if public and "EDGEWRIGHT_HOLD" not in os.environ:
        servers.append(serve("EDGEWRIGHT_HTTP_FD"))
    while True:
        # Not for ever: a signal taken by another thread interrupts no wait here.
        try:
            number = signals.get(timeout=0.05)
        except queue.Empty:
            continue
        if number == signal.SIGTERM and VERSION != "deaf":
            break
        if public and len(servers) == 1:
            servers.append(serve("EDGEWRIGHT_HTTP_FD"))
    for server in servers:
        server.shutdown()
        server.server_close()
    print("module", VERSION, "ends", flush=True)


main()
"""
HTTP_PORT = 5001
MODELS = "var/azureml-app/azureml-models"
PLATFORM = Platform.host()
PYTHON_VERSION = f"{sys.version_info[0]}.{sys.version_info[1]}"


def layer(files: dict[str, str]) -> bytes:
    """An uncompressed layer with these files and their folders."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        folders = {"/".join(path.split("/")[:n]) for path in files for n in range(1, path.count("/") + 1)}
        for folder in sorted(folders):
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        for path, text in sorted(files.items()):
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(text.encode()), 0o644
            tar.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


def put_image(
    store: ContentStore,
    version: str = "1",
    *,
    labels: dict[str, str | None] | None = None,
    platform: Platform = PLATFORM,
    module: str = MODULE,
    more_models: tuple[str, ...] = (),
) -> ImageDigest:
    """Store an image that answers with `version`; the digest is its index's.

    Args:
        version: "crash" ends with code 3 at once, "deaf" ignores SIGTERM.
        labels: changes to the labels; None takes one away.
        more_models: NAME/VERSION of models beside digits/1, each in a layer of its own.
    """
    model = f"{MODELS}/digits/1"
    layers = {
        "dependencies": ("opt/edgewright/dependencies", {"a_dependency.py": "", "edgewright.lock": ""}),
        "runtime": ("opt/edgewright/runtime", {"scoring_runtime/__main__.py": module}),
        "model:digits:1" if more_models else "model": (model, {"model.onnx": version}),
        **{
            f"model:{each.replace('/', ':')}": (f"{MODELS}/{each}", {"model.pkl": each})
            for each in more_models
        },
        "script": ("var/azureml-app", {"score.py": "", "helpers/__init__.py": ""}),
    }
    blobs = [
        layer({f"{home}/{name}": text for name, text in files.items()}) for home, files in layers.values()
    ]
    all_labels: dict[str, str | None] = {
        "edgewright.base": "none",
        "edgewright.python": PYTHON_VERSION,
        "edgewright.libc": "glibc",
        "edgewright.layers": json.dumps({role: f"/{home}" for role, (home, _) in layers.items()}),
        "edgewright.layer-roles": json.dumps(list(layers)),
        "edgewright.http-port": str(HTTP_PORT),
        "edgewright.model": "digits:1",
        "edgewright.model-file": "digits/1/model.onnx" if more_models else "model.onnx",
        "edgewright.entry-script": "score.py",
        "edgewright.messages": "input1=output1",
        **(labels or {}),
    }
    config = ImageConfig(
        platform=platform,
        diff_ids=tuple(ImageDigest.of(blob) for blob in blobs),
        labels={name: value for name, value in all_labels.items() if value is not None},
    )
    manifest = ImageManifest(
        config=store.put_bytes(config.to_bytes()).describe(OCI_CONFIG),
        layers=tuple(store.put_bytes(blob).describe(OCI_LAYER_TAR) for blob in blobs),
    )
    described = store.put_bytes(manifest.to_bytes()).describe(OCI_MANIFEST, platform=platform)
    return store.put_bytes(ImageIndex((described,)).to_bytes()).describe(OCI_INDEX).digest

"""One request to an image, on this machine: started as a device would start it, asked, and removed.

An image without a base runs in a sandboxed process under an interpreter of its own version. As in the original the
image has 30 s until it is ready, and nothing of it stays.
"""

from __future__ import annotations

import http.client
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_containers.image_model import ImageConfig, Platform
from edge_containers.interpreter import BASE_LABEL, Interpreter
from edge_containers.process_runtime import ProcessRuntime
from edge_containers.runtime import Address, ModuleSpec, ModuleStatus, RunningModule
from edge_contracts.errors import ContainerError, PublishError
from edge_contracts.image_ref import ImageRef
from publisher.errors import UsageError

if TYPE_CHECKING:
    from publisher.images import Image

READY_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 300.0
_POLL_S = 0.1
_SHOWN_LOG_LINES = 20
_INSTANCE = "once"


class LocalRunError(PublishError):
    """The image could not be started here, or did not answer as it should."""

    code = "local-run"


def run_once(image: Image, input_data: str | bytes) -> Any:
    """Start the image, wait until it is ready, post `input_data` to `/score`, and remove it.

    Returns:
        The answer, parsed when it is JSON, else as text.

    Raises:
        UsageError: `input_data` is empty, or neither text nor bytes.
        LocalRunError: it cannot run here, was not ready in 30 s, or answered with another status than 200; the message
            ends with the last lines it printed.
    """
    if not isinstance(input_data, str | bytes) or not input_data:
        raise UsageError(f"input_data must be text or bytes, and not empty, not {input_data!r}")
    body = input_data.encode() if isinstance(input_data, str) else input_data
    with image.workspace.work_folder() as work, _started(image, work) as (runtime, module):
        _wait_until_ready(runtime, module, image)
        assert module.public_address is not None
        status, answer = _ask(module.public_address, "POST", "/score", body, ANSWER_TIMEOUT_S)
        if status != http.client.OK:
            text = answer.decode(errors="replace")
            raise _failed(runtime, module, image, f"answered {status}: {text}")
    try:
        return json.loads(answer)
    except ValueError:
        return answer.decode(errors="replace")


@contextmanager
def _started(image: Image, work: Path) -> Iterator[tuple[ProcessRuntime, RunningModule]]:
    store = image.workspace.store
    stored = store.find_image(image.digest, Platform.host())
    if stored is None:
        raise LocalRunError(
            f"image {image.id} is not built for {Platform.host()}, so it cannot run here", where=image.id
        )
    python = _interpreter(stored.config, image.id)
    runtime = ProcessRuntime(work / "run", python, store=store)
    name = image.name
    try:
        runtime.prepare(image.digest)
        module = runtime.start(ModuleSpec(name, ImageRef(None, name, None, image.digest), _INSTANCE))
    except ContainerError as error:
        raise LocalRunError(
            f"image {image.id} cannot be started here: {error.message}", where=image.id
        ) from error
    try:
        yield runtime, module
    finally:
        runtime.remove(name, _INSTANCE)


def _interpreter(config: ImageConfig, image: str) -> Path:
    base, version = config.labels.get(BASE_LABEL), config.labels.get("edgewright.python")
    if base != "none":
        raise LocalRunError(
            f"image {image} stands on base {base}, and only an image without a base runs as a process; export it, "
            "then start it with a container engine",
            where=image,
            next_command=f"edgewright image export {image} --output-file image.tar",
        )
    found = [sys.executable, shutil.which(f"python{version}"), "/usr/bin/python3"]
    for each in filter(None, found):
        try:
            if Interpreter.ask(Path(each)).version == version:
                return Path(each)
        except ContainerError:
            continue
    raise LocalRunError(
        f"image {image} needs Python {version}, and there is none here as python{version}", where=image
    )


def _wait_until_ready(runtime: ProcessRuntime, module: RunningModule, image: Image) -> None:
    assert module.health_address is not None
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if _ask(module.health_address, "GET", "/ready", None, 1.0)[0] == http.client.OK:
                return
        except LocalRunError:
            pass  # it does not listen yet, or init() runs
        if all(each.status is ModuleStatus.EXITED for each in runtime.list()):
            raise _failed(runtime, module, image, "ended before it was ready")
        time.sleep(_POLL_S)
    raise _failed(runtime, module, image, f"was not ready in {READY_TIMEOUT_S:.0f} s")


def _ask(address: Address, method: str, path: str, body: bytes | None, timeout_s: float) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(*address, timeout=timeout_s)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        response = connection.getresponse()
        return response.status, response.read()
    except (OSError, http.client.HTTPException) as error:
        raise LocalRunError(f"no answer from {path}: {error}") from error
    finally:
        connection.close()


def _failed(runtime: ProcessRuntime, module: RunningModule, image: Image, how: str) -> LocalRunError:
    runtime.stop(module.name, _INSTANCE)  # what it printed last is in the log once it has ended
    log = runtime.logs(module.name, _SHOWN_LOG_LINES).strip()
    printed = f"; it printed:\n{log}" if log else ""
    return LocalRunError(f"image {image.id} {how}{printed}", where=image.id)

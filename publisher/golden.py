"""Golden cases: requests whose answers an image carries, and computes again before it says that it is ready.

A case is a file `NAME.json` of `{contentType, request, response, rtol, atol}`, as `scoring_runtime/golden.py` reads
it. Requests come from the user (`--golden`) or from the script's own sample (`--golden schema`: the example in its
swagger document). Answers come from running the image's layers here, in a process without this project's packages;
one that the user gives is an expectation, and the build fails where it is not met. Machines of other platforms
compare with the same answers, so tolerances leave room for another order of additions.
"""

from __future__ import annotations

import base64
import binascii
import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import urllib3

from edge_containers.image_model import Platform
from edge_containers.module_view import BOOTSTRAP
from publisher.builders.layer import LayerFile
from publisher.errors import GoldenError
from publisher.image_plan import APP_ROOT, GOLDEN_FOLDER
from scoring_runtime.golden import difference

SCHEMA = "schema"
JSON = "application/json"
# float32 sums in another order differ in the sixth digit; two more leave room for a deep network.
RTOL, ATOL = 1e-4, 1e-6
CASE_KEYS = frozenset(
    {"contentType", "request", "requestBase64", "response", "responseBase64", "rtol", "atol"}
)
CASES_LIMIT, REQUEST_LIMIT_BYTES = 100, 10 << 20
START_TIMEOUT_S, SCORE_TIMEOUT_S, STOP_TIMEOUT_S = 120.0, 120.0, 10.0
SHOWN_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class GoldenRequest:
    """One case, with or without its answer; `document` is the file as it was given."""

    name: str
    document: Mapping[str, Any]

    @property
    def is_answered(self) -> bool:
        return not {"response", "responseBase64"}.isdisjoint(self.document)

    @property
    def content_type(self) -> str:
        return str(self.document.get("contentType", JSON))

    @property
    def body(self) -> bytes:
        if "requestBase64" in self.document:
            return base64.b64decode(self.document["requestBase64"], validate=True)
        request = self.document["request"]
        if isinstance(request, str) and self.content_type != JSON:
            return request.encode()
        return json.dumps(request).encode()

    def answered(self, status: int, content_type: str, body: bytes) -> dict[str, Any]:
        """The case with this answer.

        Raises:
            GoldenError: the answer is an error, or not the one that was given.
        """
        if status != 200:
            raise GoldenError(
                f"golden request {self.name} was answered {status}: {_shown(body)}", where=self.name
            )
        tolerance: dict[str, Any] = {
            "rtol": self.document.get("rtol", RTOL),
            "atol": self.document.get("atol", ATOL),
        }
        is_json = content_type.partition(";")[0].strip() == JSON
        found = {"response": json.loads(body)} if is_json else {"responseBase64": _base64(body)}
        if self.is_answered:
            self._compare(found, tolerance)
            return {**self.document, **tolerance}
        return {**self.document, **found, **tolerance}

    def _compare(self, found: Mapping[str, Any], tolerance: Mapping[str, Any]) -> None:
        if "response" in self.document and "response" in found:
            text = difference(self.document["response"], found["response"], **tolerance)
        else:
            same = all(self.document.get(name) == value for name, value in found.items())
            text = "" if same else "the answer is not the one that is given"
        if text:
            raise GoldenError(f"golden case {self.name}: {text}", where=self.name)


@dataclass(frozen=True, slots=True)
class RunnableLayers:
    """An image's layers unpacked here: folders by what they are."""

    dependencies: Path
    runtime: Path
    root: Path
    environment: Mapping[str, str]
    python: str


def read_golden(path: Path) -> tuple[GoldenRequest, ...]:
    """The cases in a file, or in a folder's `*.json`; a file that is no case is one request's body.

    Raises:
        GoldenError: there are none, or one cannot be read.
    """
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise GoldenError(f"there are no golden requests (*.json) in {path}", where=str(path))
    if len(files) > CASES_LIMIT:
        raise GoldenError(
            f"at most {CASES_LIMIT} golden requests are taken, {path} has {len(files)}", where=str(path)
        )
    return tuple(_read_case(file) for file in files)


def _read_case(file: Path) -> GoldenRequest:
    try:
        if file.stat().st_size > REQUEST_LIMIT_BYTES:
            raise GoldenError(
                f"golden request {file} must be at most {REQUEST_LIMIT_BYTES} bytes", where=str(file)
            )
        document = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise GoldenError(f"golden request {file} cannot be read: {error}", where=str(file)) from error
    if not isinstance(document, dict) or {"request", "requestBase64"}.isdisjoint(document):
        return GoldenRequest(file.name, {"request": document})
    unknown = sorted(document.keys() - CASE_KEYS)
    if unknown:
        known = ", ".join(sorted(CASE_KEYS))
        raise GoldenError(
            f"golden case {file} has the unknown key {unknown[0]!r}; known: {known}", where=str(file)
        )
    case = GoldenRequest(file.name, document)
    try:
        _ = case.body
    except (binascii.Error, TypeError, ValueError) as error:
        raise GoldenError(
            f"golden case {file}: requestBase64 must be base64: {error}", where=str(file)
        ) from error
    return case


def golden_files(cases: Sequence[GoldenRequest], answers: Sequence[Mapping[str, Any]]) -> list[LayerFile]:
    """The files of the script layer."""
    folder = f"{APP_ROOT.strip('/')}/{GOLDEN_FOLDER}"
    return [
        LayerFile(f"{folder}/{case.name}", json.dumps(answer, sort_keys=True, indent=1).encode() + b"\n")
        for case, answer in zip(cases, answers, strict=True)
    ]


def recording_platform(platforms: Sequence[Platform]) -> Platform:
    """The platform whose image is run here.

    Raises:
        GoldenError: the image is built for none that runs here.
    """
    host = Platform.host()
    found = next((each for each in platforms if host.runs(each)), None)
    if found is None:
        built = ", ".join(map(str, platforms))
        raise GoldenError(
            f"golden answers are recorded by running the image here, on {host}, and it is built for {built} alone; add "
            f"--platform {host}",
            where=str(host),
        )
    return found


def recording_python(version: str) -> str:
    """An interpreter of the image's minor version.

    Raises:
        GoldenError: there is none here.
    """
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        return sys.executable
    found = shutil.which(f"python{version}")
    if found is None:
        raise GoldenError(
            f"golden answers are recorded by running the image here, which needs python{version}; install it, or build "
            "without --golden",
            where=f"python{version}",
        )
    return found


def record(cases: Sequence[GoldenRequest], layers: RunnableLayers) -> list[dict[str, Any]]:
    """Every case with the answer that the image gives here.

    Raises:
        GoldenError: the module does not start, or an answer is an error or not the given one.
    """
    with _running(layers) as url:
        answers = []
        for case in cases:
            reply = _post(f"{url}/score", case)
            kind = reply.headers.get("Content-Type", "")
            answers.append(case.answered(reply.status, kind, reply.data))
        return answers


def sample_of(layers: RunnableLayers) -> GoldenRequest:
    """The sample that the script's input schema was made of.

    Raises:
        GoldenError: its swagger document has none.
    """
    with _running(layers) as url:
        document = urllib3.request("GET", f"{url}/swagger.json", timeout=SCORE_TIMEOUT_S).json()
    example = document.get("definitions", {}).get("ServiceInput", {}).get("example")
    if example is None:
        raise GoldenError(
            "the script's swagger document has no sample of its input; decorate run() with inference_schema's "
            "input_schema, or give requests with --golden PATH",
            where=SCHEMA,
        )
    return GoldenRequest("sample.json", {"request": example})


@contextmanager
def _running(layers: RunnableLayers) -> Iterator[str]:
    """The scoring runtime on a socket bound here, so that no port is raced for; its URL."""
    log = layers.root / "golden.log"
    arguments = ["-I", "-S", "-u", "-B", "-c", BOOTSTRAP, str(layers.dependencies), str(layers.runtime)]
    with socket.create_server(("127.0.0.1", 0)) as listener, log.open("wb") as output:
        environment = {**layers.environment, "EDGEWRIGHT_HTTP_FD": str(listener.fileno())}
        process = subprocess.Popen(
            [layers.python, *arguments],
            cwd=environment["AML_APP_ROOT"],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        try:
            _wait_until_ready(process, url, log)
            yield url
        finally:
            _stop(process)


def _wait_until_ready(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            # The socket takes connections from the start; nobody answers before init() is done.
            if urllib3.request("GET", f"{url}/ready", retries=False, timeout=1.0).status == 200:
                return
        except urllib3.exceptions.HTTPError:
            continue
        time.sleep(0.05)
    how = "did not become ready" if process.poll() is None else f"ended with code {process.returncode}"
    tail = log.read_text(encoding="utf-8", errors="replace").strip()[-SHOWN_CHARACTERS:]
    raise GoldenError(
        f"golden answers cannot be recorded: the image, run here, {how}: {tail}", where=str(log)
    )


def _post(url: str, case: GoldenRequest) -> urllib3.BaseHTTPResponse:
    headers = {"Content-Type": case.content_type}
    try:
        return urllib3.request(
            "POST", url, body=case.body, headers=headers, retries=False, timeout=SCORE_TIMEOUT_S
        )
    except urllib3.exceptions.HTTPError as error:
        raise GoldenError(f"golden request {case.name} was not answered: {error}", where=case.name) from error


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(STOP_TIMEOUT_S)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _shown(body: bytes) -> str:
    return body[:SHOWN_CHARACTERS].decode("utf-8", "replace")

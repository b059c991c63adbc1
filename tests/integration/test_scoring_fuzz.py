"""Fuzz of the real server from its own swagger document and below HTTP: a 2xx or a 4xx, never a failure of ours.

EDGEWRIGHT_FUZZ_EXAMPLES sets how many of each; `scripts/verify scoring_fuzz` runs many. Schemathesis, which is not ours,
reads the swagger documents too: each model's in one version here, in all of them there.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import scoring_models as models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scoring_fuzz import bodies, damaged_bytes, damaged_documents, raw_requests
from scoring_server import TIMEOUT_S, Reply, ScoringServer, call
from scoring_soak import rss_bytes
from scoring_wire import parse_answers

SHORT = 60
EXAMPLES = int(os.environ.get("EDGEWRIGHT_FUZZ_EXAMPLES", SHORT))
FUZZ = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
pytestmark = pytest.mark.timeout(120 + EXAMPLES)
# Buffers of the largest requests here are far below; without a bound this is where it would show.
MEMORY_BOUND_BYTES = 16_000_000
# What the server has not said after this long it does not say until more comes.
SILENCE_S = 0.03

MODELS: dict[str, Callable[[Path], Path]] = {
    "two inputs": models.adder,
    "float": models.doubler,
    "integer": lambda folder: models.copier(folder, models.INT64, ("N", 2)),
    "text": lambda folder: models.copier(folder, models.STRING),
    "boolean": lambda folder: models.copier(folder, models.BOOL),
}
JSON = {"content-type": "application/json"}


@dataclass(frozen=True)
class Target:
    """A server, and what its swagger document says of bodies."""

    server: ScoringServer
    input: dict[str, Any]
    output: dict[str, Any]
    good: bytes
    model: str

    def score(self, body: bytes) -> Reply:
        return call(self.server.address, "POST", "/score", body, JSON)

    def lives(self) -> None:
        assert self.score(self.good).status == 200, self.server.log


@pytest.fixture(scope="module", params=MODELS)
def target(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    folder = tmp_path_factory.mktemp("fuzz")
    MODELS[request.param](folder)
    with ScoringServer(folder, "--model", "model.onnx", AZUREML_LOG_LEVEL="ERROR") as server:
        definitions = server.get("/swagger.json").json()["definitions"]
        schema = definitions["ServiceInput"]
        good = json.dumps(smallest(schema)).encode()
        found = Target(server, schema, definitions["ServiceOutput"], good, request.param)
        found.lives()
        before = rss_bytes(server.process.pid)
        yield found
        found.lives()
        assert rss_bytes(server.process.pid) - before < MEMORY_BOUND_BYTES
        assert server.stop() == 0
        assert "Traceback" not in server.log
        assert "supervisor" not in server.log, "no worker was replaced"


def smallest(schema: dict[str, Any]) -> Any:
    """The simplest value that the schema allows."""
    if schema["type"] == "object":
        return {name: smallest(each) for name, each in schema["properties"].items()}
    if schema["type"] == "array":
        return [smallest(schema["items"])] * schema.get("minItems", 1)
    return {"number": 1.5, "integer": 1, "boolean": True, "string": "x"}[schema["type"]]


def refused_or_scored(reply: Reply) -> None:
    assert reply.status == 200 or 400 <= reply.status < 500, (reply.status, reply.body)
    document = reply.json()
    assert reply.status == 200 or isinstance(document["message"], str)


@FUZZ
@given(data=st.data())
def test_what_the_swagger_document_allows_is_scored_and_the_answer_is_as_it_says(
    target: Target, data: st.DataObject
) -> None:
    document = data.draw(bodies(target.input))
    reply = target.score(json.dumps(document).encode())
    assert reply.status == 200, (reply.body, document)
    jsonschema.validate(reply.json(), target.output)


@FUZZ
@given(data=st.data())
def test_a_damaged_document_is_refused_or_scored(target: Target, data: st.DataObject) -> None:
    document = data.draw(damaged_documents(bodies(target.input)))
    refused_or_scored(target.score(json.dumps(document).encode()))


@FUZZ
@given(data=st.data())
def test_damaged_bytes_are_refused_or_scored(target: Target, data: st.DataObject) -> None:
    refused_or_scored(target.score(data.draw(damaged_bytes(bodies(target.input)))))


# GET on /score is served and not described: Azure ML's documents describe POST alone.
NOT_WANTED = "unsupported_method"
# A document cannot say that bytes come in multiples of a row, so what it allows as octets may be refused.
NOT_OF_OCTETS = "positive_data_acceptance"
VERSIONS = ("2", "3", "3.1")


@pytest.mark.parametrize("version", VERSIONS)
def test_schemathesis_finds_nothing(target: Target, version: str, tmp_path: Path) -> None:
    if EXAMPLES <= SHORT and version != VERSIONS[list(MODELS).index(target.model) % len(VERSIONS)]:
        return  # the long run has this pair
    excluded = [NOT_WANTED] if target.model in ("two inputs", "text") else [NOT_WANTED, NOT_OF_OCTETS]
    base = f"http://{target.server.address[0]}:{target.server.address[1]}"
    done = subprocess.run(
        [Path(sys.executable).with_name("schemathesis"), "run", f"{base}/swagger.json?version={version}", "--url", base,
         "--phases", "coverage,fuzzing", "--checks", "all", "--exclude-checks", ",".join(excluded),
         "--max-examples", str(min(EXAMPLES // 2, 1000)), "--request-timeout", "10", "--no-color", "--continue-on-failure"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60 + EXAMPLES,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No issues found" in done.stdout, done.stdout


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScoringServer]:
    folder = tmp_path_factory.mktemp("heads")
    (folder / "score.py").write_text("def init(): pass\ndef run(data): return data\n")
    with ScoringServer(folder, "--entry-script", "score.py", AZUREML_LOG_LEVEL="CRITICAL") as server:
        assert server.score(1).json() == "1"
        before = rss_bytes(server.process.pid)
        yield server
        assert server.score(1).json() == "1"
        assert rss_bytes(server.process.pid) - before < MEMORY_BOUND_BYTES
        assert server.stop() == 0


def exchange(address: tuple[str, int], requests: list[bytes]) -> bytes:
    """All that the server says to these requests on one connection."""
    received = b""
    # What is refused before it is sent whole is reset; that is an end like any other.
    with (
        socket.create_connection(address, timeout=TIMEOUT_S) as connection,
        contextlib.suppress(TimeoutError, ConnectionResetError, BrokenPipeError),
    ):
        for request in requests:
            connection.sendall(request)
            time.sleep(0)  # mostly a read of its own
        connection.settimeout(SILENCE_S)
        while data := connection.recv(1 << 16):
            received += data
    return received


@FUZZ
@given(requests=st.lists(raw_requests(), min_size=1, max_size=3))
def test_whatever_comes_as_a_head_every_answer_is_http_and_no_failure_of_ours(
    script: ScoringServer, requests: list[bytes]
) -> None:
    answers = parse_answers(exchange(script.address, requests))
    assert all(200 <= each.status < 500 for each in answers), answers
    assert script.score(2).json() == "2"


@FUZZ
@given(request=raw_requests(), cuts=st.lists(st.integers(0, 300), max_size=4))
def test_where_a_request_is_cut_makes_no_difference_to_its_being_answered_well(
    script: ScoringServer, request: bytes, cuts: list[int]
) -> None:
    edges = sorted({0, len(request), *(min(cut, len(request)) for cut in cuts)})
    pieces = [request[start:end] for start, end in pairwise(edges)]
    answers = parse_answers(exchange(script.address, pieces))
    assert all(200 <= each.status < 500 for each in answers), answers

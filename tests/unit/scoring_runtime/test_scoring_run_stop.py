"""Runs over their time that must end for real: an ONNX graph in a loop, and a script in native code."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import scoring_models as models
from scoring_server import ScoringServer, call

from scoring_runtime.data_plane import DataPlane, Outcome, ScoringRequest
from scoring_runtime.messages import Counts, InputFlow
from scoring_runtime.metrics import Metrics
from scoring_runtime.onnx_model import OnnxModel
from scoring_runtime.run_timer import RunTimer, ScoringTimeout
from scoring_runtime.settings import EdgeModule
from scoring_runtime.workers import WorkerPool

TIMEOUT_MS = 300
TOO_LATE = f"Scoring timeout after {TIMEOUT_MS} ms"
ENDLESS = [[1e9]]  # turns; a million take seconds
JSON = {"content-type": "application/json"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScoringServer]:
    folder = tmp_path_factory.mktemp("looper")
    models.looper(folder)
    with ScoringServer(folder, "--model", "model.onnx", SCORING_TIMEOUT_MS=str(TIMEOUT_MS)) as found:
        assert found.score({"data": [[2]]}).json() == {"y": [[2]], "last": [[2]]}
        yield found


def overdue(server: ScoringServer) -> bool:
    return "edgewright_runs_overdue" in server.get("/metrics").body.decode().replace(
        'edgewright_runs_overdue{model="model"} 0\n', ""
    ).replace("# TYPE edgewright_runs_overdue gauge\n", "")


def test_a_models_run_ends_when_its_time_is_up_and_its_thread_is_free(server: ScoringServer) -> None:
    [worker] = server.workers
    for _ in range(2):
        started = time.monotonic()
        late = server.score({"data": ENDLESS})
        assert (late.status, late.message) == (500, TOO_LATE)
        assert time.monotonic() - started < 2
        assert late.headers["x-ms-run-function-failed"] == "True"
        assert server.score({"data": [[3]]}).status == 200
    assert not overdue(server)
    assert server.workers == [worker]


def test_so_does_a_run_by_the_open_inference_protocol(server: ScoringServer) -> None:
    body = b'{"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [1e9]}]}'
    late = call(server.address, "POST", "/v2/models/model/infer", body, JSON)
    assert (late.status, late.json()) == (500, {"error": TOO_LATE})
    assert not overdue(server)


def test_of_requests_that_share_a_run_the_endless_one_fails_alone(server: ScoringServer) -> None:
    found: dict[int, int] = {}

    def ask(number: int) -> None:
        found[number] = server.score({"data": ENDLESS if number < 2 else [[number]]}).status

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(12)]
    threads[0].start()
    time.sleep(
        0.1
    )  # it keeps the event loop; what comes meanwhile is looked at in one turn, and shares a run
    for thread in threads[1:]:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {0: 500, 1: 500, **dict.fromkeys(range(2, 12), 200)}


def loaded(folder: Path) -> tuple[OnnxModel, RunTimer]:
    models.looper(folder)
    model = OnnxModel.load(folder / "model.onnx", threads=1, count_non_finite=lambda count: None)
    return model, RunTimer(TIMEOUT_MS, model.stops)


def test_a_stop_that_came_too_late_does_not_hit_the_threads_next_run(tmp_path: Path) -> None:
    model, timer = loaded(tmp_path)
    with pytest.raises(ScoringTimeout):
        timer.run(model.run, {"x": np.array(ENDLESS, np.float32)})
    for _ in range(20):
        assert timer.run(model.run, {"x": np.array([[5]], np.float32)})[0] == [[5]]


class FakeLink:
    """A link whose other end acknowledges nothing."""

    def __init__(self) -> None:
        self.published: list[tuple[str, bytes]] = []

    def publish(self, topic: str, payload: bytes) -> int:
        self.published.append((topic, payload))
        return len(self.published)

    def acknowledge(self, packet_id: int) -> None:
        raise AssertionError(packet_id)


MODULE = EdgeModule("hub", "d1", "m1", "gateway", "1", "unix:///none", "2019-01-30", {"input1": "output1"})


def answer_of(flow: InputFlow, body: bytes) -> tuple[str, bytes]:
    link = FakeLink()
    flow.received("devices/d1/modules/m1/inputs/input1/%24.ct=application%2Fjson", body, 7)
    deadline = time.monotonic() + 5
    while not link.published:
        assert time.monotonic() < deadline
        flow.advance(link, start_new=True)
        time.sleep(0.01)
    return link.published[0]


def test_a_message_over_its_time_is_answered_and_its_run_ended(tmp_path: Path) -> None:
    model, timer = loaded(tmp_path)
    pool = WorkerPool(1)
    flow = InputFlow(MODULE, DataPlane(model, Metrics("m"), timer), pool, Counts(), lambda: None)
    topic, body = answer_of(flow, b'{"data": [[1e9]]}')
    assert "status=error" in topic and TOO_LATE.encode() in body
    deadline = time.monotonic() + 5
    while pool.is_busy:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert answer_of(flow, b'{"data": [[1]]}')[1] == b'{"y":[[1.0]],"last":[[1.0]]}'


def test_a_message_whose_run_cannot_be_ended_is_answered_in_time() -> None:
    class Sleeper:
        def parse(self, request: ScoringRequest) -> float:
            return 3.0

        run = staticmethod(time.sleep)

        def render(self, result: None) -> bytes:
            return b""

    plane = DataPlane(Sleeper(), Metrics("m"), RunTimer(TIMEOUT_MS))  # type: ignore[arg-type]
    flow = InputFlow(MODULE, plane, WorkerPool(1), Counts(), lambda: None)
    started = time.monotonic()
    assert TOO_LATE.encode() in answer_of(flow, b"1")[1]
    assert time.monotonic() - started < 2


SLEEPS = """
import json, os, time
def init():
    pass
def run(data):
    if json.loads(data) == "sleep":
        time.sleep(60)  # native, without the interpreter's lock: everything else of this process goes on
    return os.getpid()
"""


def test_a_worker_whose_run_keeps_its_thread_is_replaced_and_every_client_answered(tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text(SLEEPS)
    variables = {"SCORING_TIMEOUT_MS": str(TIMEOUT_MS)}
    with ScoringServer(tmp_path, "--entry-script", "score.py", **variables) as server:
        first = server.score(1).json()
        late: list[tuple[int, str]] = []

        def sleep() -> None:
            reply = server.score("sleep")
            late.append((reply.status, reply.message))

        sleeping = threading.Thread(target=sleep)
        sleeping.start()
        time.sleep(0.1)
        started = time.monotonic()
        behind = server.score(1)  # waits for the only thread, which does not come back
        assert (behind.status, behind.headers["retry-after"]) == (503, "1")
        assert behind.message == "this worker is being replaced; try again"
        sleeping.join(20)
        assert late == [(500, TOO_LATE)]
        assert server.score(1).json() != first
        assert time.monotonic() - started < TIMEOUT_MS / 1000 + 3
        assert "replaced" in server.log and "cannot be stopped" in server.log


def test_timed_out_is_an_outcome_of_its_own(tmp_path: Path) -> None:
    model, timer = loaded(tmp_path)
    reply = DataPlane(model, Metrics("m"), timer).score(
        ScoringRequest(b'{"data": [[1e9]]}', "application/json", "r1")
    )
    assert reply.outcome is Outcome.TIMED_OUT

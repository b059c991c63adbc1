"""Edge messages: a real MQTT/TLS server and workload API in front of the message thread."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import scoring_models as models
from scoring_asgi import FunctionScorer
from scoring_edge import DEVICE, HUB, MODULE, TIMEOUT_S, EdgeDouble
from scoring_server import ScoringServer

from iot_hub.pki import PkiFiles, ensure_pki
from scoring_runtime import messages
from scoring_runtime.data_plane import DataPlane, Outcome, ScoringReply
from scoring_runtime.message_topics import InputTopic, output_topic, parse_input_topic
from scoring_runtime.messages import (
    Counts,
    EdgeMessages,
    Input,
    InputFlow,
    output_message,
    pause_s,
    sas_token,
    user_name,
)
from scoring_runtime.metrics import Metrics
from scoring_runtime.settings import EdgeModule, Settings
from scoring_runtime.workers import WorkerPool

HOST = "127.0.41.7"
ROUTES = "input1=output1,in2=out2"


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> PkiFiles:
    return ensure_pki(tmp_path_factory.mktemp("pki"), [HOST])


@pytest.fixture
def edge(pki: PkiFiles, tmp_path: Path) -> Iterator[EdgeDouble]:
    with EdgeDouble(pki, tmp_path, HOST) as double:
        yield double


def module_of(edge: EdgeDouble) -> EdgeModule:
    environment = {**edge.environment(), "EDGEWRIGHT_MESSAGES": ROUTES}
    module = Settings.read(environment, entry_script="score.py", cwd=Path("/")).edge
    assert module is not None
    return module


class Running:
    """The message thread around one function; stopped at the end of the test."""

    def __init__(self, edge: EdgeDouble, run: Callable[[Any], Any]) -> None:
        self.metrics = Metrics("m")
        self.messages = EdgeMessages(
            module_of(edge), DataPlane(FunctionScorer(run), self.metrics), WorkerPool(1)
        )
        self.messages.start()

    def until(self, state: str) -> None:
        eventually(
            lambda: self.messages.report()["state"] == state, f"state {state}: {self.messages.report()}"
        )

    def stop(self) -> None:
        self.messages.stop(time.monotonic() + 5)


@pytest.fixture
def run_module(edge: EdgeDouble) -> Iterator[Callable[[Callable[[Any], Any]], Running]]:
    running: list[Running] = []

    def start(run: Callable[[Any], Any]) -> Running:
        running.append(Running(edge, run))
        return running[-1]

    yield start
    for one in running:
        one.stop()


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {TIMEOUT_S} s: {what}"
        time.sleep(0.01)


def double(value: Any) -> Any:
    return [2 * number for number in value]


Start = Callable[[Callable[[Any], Any]], Running]


def test_an_input_is_scored_and_answered_on_its_output(edge: EdgeDouble, run_module: Start) -> None:
    run_module(double)
    edge.send("in2", b"[1, 2]", "%24.mid=m%201&%24.ct=application%2Fjson&%24.cdid=other&line=a%26b&z=")
    output = edge.output()
    assert output.json() == [2, 4]
    message_id = output.properties.pop("$.mid")
    assert output.properties == {
        "$.on": "out2",
        "$.cid": "m 1",
        "$.ct": "application/json",
        "$.ce": "utf-8",
        "line": "a&b",
        "z": "",
        "status": "ok",
    }
    assert message_id == messages.output_message_id(module_of(edge), "m 1", "out2")
    eventually(lambda: not edge.unacknowledged, "the input is acknowledged")


def test_connect_is_what_a_stock_edge_hub_expects(edge: EdgeDouble, run_module: Start) -> None:
    run_module(double).until("connected")
    connect = edge.connects[0]
    assert connect.client_id == f"{DEVICE}/{MODULE}"
    assert (connect.username or "").startswith(
        f"{HUB}/{DEVICE}/{MODULE}/?api-version=2019-10-01&DeviceClientType="
    )
    assert (connect.keep_alive_s, connect.clean_session) == (60, False)


def test_bad_input_is_answered_as_an_error_and_the_next_is_scored(
    edge: EdgeDouble, run_module: Start
) -> None:
    running = run_module(double)
    edge.send("input1", b"{", "%24.mid=bad")
    edge.send("input1", b"[3]")
    bad, good = edge.output(), edge.output()
    assert (bad.properties["status"], bad.properties["$.cid"]) == ("error", "bad")
    assert bad.json()["message"].startswith("the body is not JSON")
    assert (good.properties["status"], good.json()) == ("ok", [6])
    assert running.messages.report()["failed"] == 1
    assert 'source="message",outcome="ok"} 1' in running.metrics.text()


def test_messages_are_answered_in_order(edge: EdgeDouble, run_module: Start) -> None:
    run_module(double)
    for number in range(50):
        edge.send("input1", b"[%d]" % number)
    assert [edge.output().json() for _ in range(50)] == [[2 * number] for number in range(50)]


def test_an_input_nobody_routes_is_acknowledged_and_counted(edge: EdgeDouble, run_module: Start) -> None:
    running = run_module(double)
    edge.send("other", b"[1]")
    eventually(lambda: not edge.unacknowledged, "the input is acknowledged")
    assert running.messages.report()["ignored"] == 1


def test_an_input_is_acknowledged_only_after_its_output_was(edge: EdgeDouble, run_module: Start) -> None:
    edge.acknowledge_outputs = False
    run_module(double)
    edge.send("input1", b"[1]")
    edge.output()
    time.sleep(0.2)
    assert edge.unacknowledged
    edge.acknowledge_outputs = True
    eventually(lambda: not edge.unacknowledged, "the input is acknowledged")


def test_a_lost_connection_repeats_what_was_not_acknowledged(
    edge: EdgeDouble, run_module: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "MAX_PAUSE_S", 0.05)
    edge.acknowledge_outputs = False
    running = run_module(double)
    edge.send("input1", b"[1]", "%24.mid=m1")
    first = edge.output()
    edge.drop_connection()
    eventually(lambda: len(edge.connects) == 2, "a second connection")
    edge.acknowledge_outputs = True
    second = edge.output()
    assert (first.json(), first.properties["$.mid"]) == (second.json(), second.properties["$.mid"])
    eventually(lambda: not edge.unacknowledged, "the input is acknowledged")
    running.until("connected")


def test_a_refused_token_is_told_and_tried_again(
    edge: EdgeDouble, run_module: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "MAX_PAUSE_S", 0.05)
    edge.refuse_tokens = True
    running = run_module(double)
    eventually(lambda: len(edge.connects) >= 2, "another attempt")
    assert (
        "refuses the connection: it does not accept this module's token"
        in running.messages.report()["lastError"]
    )
    edge.refuse_tokens = False
    running.until("connected")
    assert running.messages.report()["lastError"] is None


def test_the_token_is_renewed_by_connecting_again(
    edge: EdgeDouble, run_module: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "RENEW_BEFORE_S", messages.TOKEN_LIFETIME_S - 0.3)
    run_module(double)
    eventually(lambda: len(edge.connects) >= 3, "two renewals")
    edge.send("input1", b"[1]")
    assert edge.output().json() == [2]


def test_a_stop_finishes_the_message_in_hand_and_takes_no_other(edge: EdgeDouble, run_module: Start) -> None:
    entered, gate = threading.Event(), threading.Event()

    def slow(value: Any) -> Any:
        entered.set()
        gate.wait(TIMEOUT_S)
        return value

    running = run_module(slow)
    edge.send("input1", b"1")
    edge.send("input1", b"2")
    assert entered.wait(TIMEOUT_S)
    stopping = threading.Thread(target=running.messages.stop, args=(time.monotonic() + 10,))
    stopping.start()
    time.sleep(0.1)
    gate.set()
    stopping.join(TIMEOUT_S)
    assert running.messages.report()["state"] == "stopped"
    assert edge.output().json() == 1
    assert edge.waiting_outputs == 0
    eventually(
        lambda: [body for _, body in edge.unacknowledged.values()] == [b"2"],
        "the first alone is acknowledged",
    )


def test_an_absent_workload_socket_is_told_and_does_not_end_the_thread(
    edge: EdgeDouble, run_module: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(messages, "MAX_PAUSE_S", 0.05)
    running = Running(_Nowhere(edge), double)  # type: ignore[arg-type]
    eventually(lambda: bool(running.messages.report()["lastError"]), "an error")
    assert "/sign on unix:///nowhere.sock failed" in running.messages.report()["lastError"]
    running.stop()


class _Nowhere:
    def __init__(self, edge: EdgeDouble) -> None:
        self._edge = edge

    def environment(self) -> dict[str, str]:
        return {**self._edge.environment(), "IOTEDGE_WORKLOADURI": "unix:///nowhere.sock"}


def test_the_whole_module_answers_http_and_messages_alike(edge: EdgeDouble, tmp_path: Path) -> None:
    models.doubler(tmp_path)
    with ScoringServer(tmp_path, "--model", "model.onnx", **edge.environment()) as server:
        edge.send("input1", b'{"data": [[1, 2, 3]]}', "%24.mid=1")
        assert edge.output().json() == server.score({"data": [[1, 2, 3]]}).json() == {"y": [[2, 4, 6]]}
        report = server.health("/ready?verbose=1").json()["messages"]
        assert (report["state"], report["received"], report["routes"]) == (
            "connected",
            1,
            {"input1": "output1"},
        )
        assert 'edgewright_messages_connected{model="model"} 1' in server.get("/metrics").body.decode()
        assert server.stop() == 0
        assert "SharedAccessSignature" not in server.log


def test_a_held_module_does_not_take_the_connection(edge: EdgeDouble, tmp_path: Path) -> None:
    models.doubler(tmp_path)
    with ScoringServer(
        tmp_path, "--model", "model.onnx", EDGEWRIGHT_HOLD="1", **edge.environment()
    ) as server:
        assert server.health("/ready?verbose=1").json()["messages"]["state"] == "not started"
        assert server.stop() == 0
    assert edge.connects == []


def test_of_several_workers_one_has_the_modules_identity_and_so_has_its_successor(
    edge: EdgeDouble, tmp_path: Path
) -> None:
    models.doubler(tmp_path)
    with ScoringServer(tmp_path, "--model", "model.onnx", "--workers", "2", **edge.environment()) as server:
        edge.send("input1", b'{"data": [[1, 2, 3]]}')
        assert edge.output().json() == {"y": [[2, 4, 6]]}
        eventually(lambda: server.log.count("scoring on http") == 2, "both workers serve")
        expected = ('messages_connected{model="model"} 1', 'source="message",outcome="ok"} 1')

        def is_shown() -> bool:
            metrics = server.get("/metrics").body.decode()
            return all(line in metrics for line in expected)

        # The other worker learns of a gauge with the next beat; then whichever is asked says it.
        eventually(
            lambda: all(is_shown() for _ in range(20)), "both workers show the connection and the message"
        )
        assert len(edge.connects) == 1
        os.kill(server.workers[0], signal.SIGKILL)
        edge.send("input1", b'{"data": [[2, 3, 4]]}')
        assert edge.output().json() == {"y": [[4, 6, 8]]}
        assert len(edge.connects) == 2
        assert server.stop() == 0


# ---- without a network ----

MODULE_VALUE = EdgeModule(
    hub_host="hub.test",
    device_id="d",
    module_id="m",
    gateway_host="gateway",
    generation_id="1",
    workload_uri="unix:///w.sock",
    api_version="2022-08-03",
    routes={"input1": "output1"},
)


class RecordingLink:
    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.acknowledged: list[int] = []

    def publish(self, topic: str, payload: bytes) -> int:
        self.sent.append((topic, payload))
        return 100 + len(self.sent)

    def acknowledge(self, packet_id: int) -> None:
        self.acknowledged.append(packet_id)


class InstantPool(WorkerPool):
    """Runs what it is given at once, in the caller's thread."""

    def __init__(self) -> None:
        super().__init__(0)

    def submit(self, call: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        future.set_result(call())
        return future


def flow() -> InputFlow:
    plane = DataPlane(FunctionScorer(double), Metrics("m"))
    return InputFlow(MODULE_VALUE, plane, InstantPool(), Counts(), lambda: None)


def receive(inputs: InputFlow, packet_id: int) -> None:
    inputs.received("devices/d/modules/m/inputs/input1/", b"[1]", packet_id)


def test_reading_stops_when_too_many_wait_and_goes_on_after() -> None:
    inputs, link = flow(), RecordingLink()
    for packet_id in range(1, messages.MAX_WAITING + 1):
        receive(inputs, packet_id)
    assert not inputs.has_room
    inputs.advance(link, start_new=True)
    assert inputs.has_room


def test_a_hub_that_acknowledges_nothing_is_found_stuck() -> None:
    inputs, link = flow(), RecordingLink()
    for packet_id in range(1, messages.MAX_UNACKED + messages.MAX_WAITING + 1):
        receive(inputs, packet_id)
        inputs.advance(link, start_new=True)
    while inputs.has_room:
        receive(inputs, 9999)
    inputs.advance(link, start_new=True)
    assert inputs.is_stuck
    assert link.acknowledged == []


def test_inputs_without_quality_of_service_are_answered_and_not_acknowledged() -> None:
    inputs, link = flow(), RecordingLink()
    receive(inputs, 0)
    inputs.advance(link, start_new=True)
    inputs.advance(link, start_new=True)
    inputs.output_acked(101)
    inputs.advance(link, start_new=True)
    assert (len(link.sent), link.acknowledged, inputs.is_settled) == (1, [], True)


def test_an_answer_over_the_message_limit_becomes_an_error() -> None:
    reply = ScoringReply(Outcome.OK, b"x" * messages.MAX_MESSAGE_BYTES)
    message = Input(InputTopic("input1", {}, {}), b"", 1)
    topic, body = output_message(MODULE_VALUE, message, reply)
    assert b"262144" in body and topic.endswith("status=error")


def test_topics_survive_any_text_in_properties() -> None:
    properties = {"a b": "c&d=e", "å/#": "+%"}
    topic = output_topic(MODULE_VALUE, {"$.on": "o"}, properties)
    bag = topic.rpartition("/")[2]
    parsed = parse_input_topic(f"devices/d/modules/m/inputs/input1/{bag}", MODULE_VALUE)
    assert parsed == InputTopic("input1", {"$.on": "o"}, properties)
    assert parse_input_topic("devices/d/modules/other/inputs/input1/", MODULE_VALUE) is None


def test_the_token_is_signed_over_the_quoted_resource() -> None:
    token = sas_token(MODULE_VALUE, lambda text: f"<{text}>", 1700000000)
    resource = "hub.test%2Fdevices%2Fd%2Fmodules%2Fm"
    assert (
        token
        == f"SharedAccessSignature sr={resource}&sig=%3C{resource.replace('%', '%25')}%0A1700000000%3E&se=1700000000"
    )
    assert user_name(MODULE_VALUE).startswith("hub.test/d/m/?api-version=")


def test_pauses_double_to_a_cap_and_are_spread() -> None:
    assert [pause_s(attempt, lambda low, high: high) for attempt in (1, 2, 3, 9, 500)] == [2, 4, 8, 60, 60]
    assert all(1 <= pause_s(1) <= 2 for _ in range(100))

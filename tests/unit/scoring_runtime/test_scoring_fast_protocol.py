"""The fast path and the general parser on one connection: same answers, same framing, whatever the bytes."""

from __future__ import annotations

import asyncio
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import scoring_models as models
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scoring_asgi import FunctionScorer
from scoring_wire import Answer, Wire, post, settle

from scoring_runtime.onnx_model import OnnxModel
from scoring_runtime.server import ListenerState

CHUNKED = (
    b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"3\r\n[4,\r\n2\r\n5]\r\n0\r\n\r\n"
)
# What is sent, and the status and body that answer it, alone or among others.
REQUESTS: list[tuple[bytes, int, bytes | None]] = [
    (post(b"[1]"), 200, b"[1]"),
    (post(b'{"a": 2}', b"x-request-id: abc"), 200, b'{"a":2}'),
    (post(b'"%b"' % (b"x" * 900)), 200, b'"%b"' % (b"x" * 900)),
    (post(b"[6]", b"Connection: Keep-Alive", b"traceparent: nothing"), 200, b"[6]"),
    (post(b"{"), 400, None),
    (post(b"[7]", target=b"/score?a=1"), 200, b"[7]"),
    (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 200, b"Healthy"),
    (b"GET /score?a=1 HTTP/1.1\r\nHost: x\r\n\r\n", 200, b'{"a":1}'),
    (CHUNKED, 200, b"[4,5]"),
    (post(b"", target=b"/nothing"), 404, None),
]


@pytest.fixture(scope="module")
def wire() -> Wire:
    return Wire()


def pieces(stream: bytes, cuts: list[int]) -> list[bytes]:
    bounds = [0, *sorted({cut % (len(stream) + 1) for cut in cuts}), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(bounds) if a < b]


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    chosen=st.lists(st.sampled_from(range(len(REQUESTS))), min_size=1, max_size=6),
    cuts=st.lists(st.integers(0, 6000), max_size=8),
)
def test_any_split_of_pipelined_requests_gives_the_same_answers_in_order(
    wire: Wire, chosen: list[int], cuts: list[int]
) -> None:
    stream = b"".join(REQUESTS[index][0] for index in chosen)
    answers = wire.exchange(pieces(stream, cuts), len(chosen))
    for index, answer in zip(chosen, answers, strict=True):
        _, status, body = REQUESTS[index]
        assert answer.status == status
        assert body is None or answer.body == body


def test_one_byte_at_a_time_is_answered_too(wire: Wire) -> None:
    stream = b"".join(request for request, _, _ in REQUESTS)
    answers = wire.exchange([stream[i : i + 1] for i in range(len(stream))], len(REQUESTS))
    assert [answer.status for answer in answers] == [status for _, status, _ in REQUESTS]


CHANGING = ("date", "x-ms-run-fn-exec-ms", "x-request-id", "x-ms-request-id")
TRACE = b"traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def fail(value: Any) -> Any:
    if value == "fail":
        raise RuntimeError("secret")
    return {1, 2} if value == "unwritable" else value


@pytest.mark.parametrize(
    "request_bytes",
    [
        post(b"[1]"),
        post(b"[1]", b"x-request-id: given"),
        post(b"[1]", b"X-Request-Id: given", b"x-ms-client-request-id: client", b"TraceId: t", TRACE),
        post(b"[1]", b"x-ms-request-id: legacy"),
        post(b"[1]", TRACE),
        post(b"not json"),
        post(b'"fail"'),
        post(b'"unwritable"'),
        post(b"", b"x-request-id: " + b"a" * 101),
        post(b"", b"x-ms-client-request-id: " + b"a" * 101),
        post(b"[1]", b"Origin: https://app.example"),
        post(b"1" * 4001),
    ],
)
def test_the_fast_answer_is_the_general_answer(request_bytes: bytes) -> None:
    def shape(answer: Answer) -> Any:
        return (
            answer.status,
            answer.body,
            {
                k: v if k not in CHANGING or v in ("given", "client", "legacy") else "…"
                for k, v in answer.headers.items()
            },
        )

    fast, general = (
        Wire(FunctionScorer(fail), fast=fast).exchange([request_bytes], 1)[0] for fast in (True, False)
    )
    general.headers.pop("date", None)
    fast.headers.pop("date", None)
    assert shape(fast) == shape(general)


def framed(*lines: bytes, end: bytes = b"\r\n\r\n", body: bytes = b"[1]") -> bytes:
    return b"\r\n".join((b"POST /score HTTP/1.1", b"Host: x", *lines)) + end + body


HOSTILE = {
    "two lengths": framed(b"Content-Length: 3", b"Content-Length: 3"),
    "two different lengths": framed(b"Content-Length: 3", b"Content-Length: 30"),
    "a list of lengths": framed(b"Content-Length: 3, 3"),
    "a signed length": framed(b"Content-Length: +3"),
    "an underscored length": framed(b"Content-Length: 0_3"),
    "a length in other digits": framed("Content-Length: ٣".encode()),
    "length and transfer-encoding": framed(b"Content-Length: 3", b"Transfer-Encoding: chunked"),
    "a spaced transfer-encoding": framed(b"Content-Length: 3", b"Transfer-Encoding : chunked"),
    "a tabbed transfer-encoding": framed(b"Content-Length: 3", b"Transfer-Encoding:\tchunked"),
    "a folded line": framed(b"Content-Length: 3", b"X: a", b" Transfer-Encoding: chunked"),
    "a bare LF": b"POST /score HTTP/1.1\r\nHost: x\nContent-Length: 3\r\n\r\n[1]",
    "a bare CR": framed(b"X: a\rTransfer-Encoding: chunked", b"Content-Length: 3"),
    "LF at the end": framed(b"Content-Length: 3", end=b"\n\n"),
    "a NUL": framed(b"X: a\0", b"Content-Length: 3"),
    "no name": framed(b": a", b"Content-Length: 3"),
    "no colon": framed(b"nothing", b"Content-Length: 3"),
    "no length": framed(body=b""),
    "expect": framed(b"Expect: 100-continue", b"Content-Length: 3"),
    "upgrade": framed(b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 3"),
    "close": framed(b"Connection: close", b"Content-Length: 3"),
    "a huge length": framed(b"Content-Length: 99999999999999999999999"),
    "a huge head": framed(b"X: " + b"a" * 9000, b"Content-Length: 3"),
    "HTTP/1.0": framed(b"Content-Length: 3").replace(b"HTTP/1.1", b"HTTP/1.0"),
    "two ids": framed(b"x-request-id: a", b"x-request-id: b", b"Content-Length: 3"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_head_is_never_the_fast_paths(wire: Wire, name: str) -> None:
    head = HOSTILE[name].partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
    assert wire.fast is not None
    assert wire.fast.memo.read(head) is None


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_head_among_plain_ones_is_framed_as_without_the_fast_path(wire: Wire, name: str) -> None:
    """A plain request before and one behind: what the general parser alone makes of the stream is what comes."""
    stream = HOSTILE[name] + post(b"[2]")
    expected = outcome(GENERAL, [post(b"[0]"), stream])
    assert expected[0] == (200, b"[0]")
    assert outcome(wire, [post(b"[0]"), stream]) == expected
    assert outcome(wire, [post(b"[0]") + stream[:40], stream[40:150], stream[150:]])[0] == expected[0]


def outcome(wire: Wire, chunks: list[bytes]) -> list[tuple[int, bytes]]:
    """What is answered, a request at a time; without the refusal of what is no request, for which there is no place when
    the general parser finds it behind a request that it has not answered yet."""
    answers = [(answer.status, answer.body) for answer in wire.exchange(chunks, patient=True)]
    return [(status, body) for status, body in answers if INVALID not in body]


INVALID = b"expected an HTTP/1.1 request, found: "
GENERAL = Wire(fast=False)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    at=st.integers(0, 120),
    inserted=st.sampled_from(
        [b"\r", b"\n", b"\r\n", b" ", b"\t", b":", b"\0", b"0", b"9", b",", b";", b"\xff", b"a"]
    ),
    delete=st.integers(0, 2),
)
def test_a_damaged_head_is_framed_as_without_the_fast_path(
    wire: Wire, at: int, inserted: bytes, delete: int
) -> None:
    whole = post(b"[1]")
    damaged = whole[:at] + inserted + whole[at + delete :]
    chunks = [post(b"[0]"), damaged + post(b"[2]")]
    assert outcome(wire, chunks) == outcome(GENERAL, chunks)


def test_a_client_that_says_it_is_done_gets_its_answer_first(wire: Wire) -> None:
    assert wire.exchange([post(b"[1]")], 1, eof=True)[0].body == b"[1]"


def test_while_it_drains_the_last_answer_closes_the_connection() -> None:
    async def drain() -> bytes:
        wire, state = Wire(), ListenerState()
        transport, protocol = wire.connect(state)
        protocol.data_received(post(b"[1]") + post(b"[2]"))
        state.draining = True
        protocol.shutdown()
        await settle(lambda: transport.closed)
        return transport.written

    written = asyncio.run(drain())
    assert written.count(b"HTTP/1.1 200") == 2
    assert written.count(b"connection: close") == 1 and written.endswith(b"[2]")


def test_a_client_that_does_not_read_is_not_answered_into_memory() -> None:
    """Its requests wait in a bounded backlog and then in the socket."""

    async def stall() -> tuple[int, bool, int]:
        wire = Wire(FunctionScorer(lambda value: value))
        transport, protocol = wire.connect()
        protocol.pause_writing()
        for _ in range(2000):
            if not transport.paused:
                protocol.data_received(post(b"[1]"))
        stalled = len(transport.written)
        paused = transport.paused
        protocol.resume_writing()
        await settle(lambda: not protocol._pending)
        return stalled, paused, transport.written.count(b"200 OK")

    stalled, paused, answered = asyncio.run(stall())
    assert (stalled, paused) == (0, True)
    assert answered > 100


def test_a_slow_body_is_a_408_and_an_idle_connection_ends() -> None:
    async def slow() -> tuple[bytes, bool, bool]:
        wire, state = Wire(), ListenerState()
        transport, protocol = wire.connect(state)
        protocol.data_received(post(b"[1", length=3))
        state.second += 61
        protocol.tick()
        idle, idle_protocol = wire.connect(state)
        state.second += 75
        idle_protocol.tick()
        early = idle.closed
        state.second += 1
        idle_protocol.tick()
        return transport.written, early, idle.closed

    written, early, late = asyncio.run(slow())
    assert written.startswith(b"HTTP/1.1 408 Request Timeout\r\n") and b"connection: close" in written
    assert (early, late) == (False, True)


def test_requests_of_one_turn_share_a_run_and_keep_their_own_answers(tmp_path: Path) -> None:
    """Good, ragged and wrong requests in the same turn, from many connections."""
    model = OnnxModel.load(models.doubler(tmp_path), threads=1, count_non_finite=lambda values: None)
    runs: list[int] = []
    run = model.run
    model.run = lambda arguments: runs.append(len(arguments["x"])) or run(arguments)  # type: ignore[method-assign]
    bodies = [json.dumps({"data": [[n, n + 0.5, -n]] * (n % 3 + 1)}).encode() for n in range(12)]
    bodies[5], bodies[7] = b'{"data": [[1, 2]]}', b"{"

    async def together() -> list[bytes]:
        wire = Wire(model)
        assert wire.fast is not None
        listener = ListenerState()
        connections = [wire.connect(listener) for _ in bodies]
        for (_, protocol), body in zip(connections, bodies, strict=True):
            protocol.data_received(post(body))
        await settle(lambda: all(transport.written for transport, _ in connections))
        return [transport.written for transport, _ in connections]

    written = asyncio.run(together())
    for n, answer in enumerate(written):
        if n in (5, 7):
            assert answer.startswith(b"HTTP/1.1 400 ")
        else:
            expected = {"y": [[2 * n, 2 * n + 1, -2 * n]] * (n % 3 + 1)}
            assert json.loads(answer.partition(b"\r\n\r\n")[2]) == expected
    assert max(runs) > 3 or model.calibration.rows == 1  # a busy machine may find that joining does not pay

"""`POST /score` without ASGI: from a parsed head and a body to the answer's bytes.

Where a request is computed:

| scorer | others in the same turn | computed |
| --- | --- | --- |
| bare model, joined runs pay | any | in the loop, one run for all of them |
| bare model, short | any | in the loop, one after the other |
| bare model, long | none, and the threads idle | in the loop |
| bare model, long | some, or the threads busy | in the threads |
| script | any | in a thread, in the loop once its calls have shown to be short |

A large body (`Call.is_small`) is never computed in the loop while somebody else waits. The answer is what `app.py`
gives: the same data plane, ids and headers, without the request and response objects in between.
"""

from __future__ import annotations

import asyncio
import functools
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Protocol

from .calibration import (
    INLINE_BODY_BYTES,
    INLINE_OCTETS_BYTES,
    LONE_INLINE_S,
    SLOW_S,
    WRITE_EVERY_S,
    Calibration,
    Placement,
)
from .data_plane import DataPlane, Outcome, ScoringReply, request_label
from .errors import BusyError
from .head_memo import Head, HeadMemo
from .json_codec import encode
from .metrics import Metrics
from .request_ids import new_request_id
from .settings import DEFAULT_BODY_TIMEOUT_S
from .turn_batch import score_together
from .workers import WorkerPool

if TYPE_CHECKING:
    from .data_plane import Scorer


class Connection(Protocol):
    """Who asked; told once, in the event loop's thread.

    `is_only`: there is no other connection whose request could arrive in the same turn.
    """

    @property
    def is_only(self) -> bool: ...

    def answer(self, call: Call, reply: ScoringReply) -> None: ...

    def answer_ok(self, call: Call, start: bytes, body: bytes) -> None: ...

    def refuse(self, call: Call, status: int, message: str) -> None: ...


class Call:
    """One request between its arrival and its answer; scorers read it as a `ScoringRequest`, of which it makes no copy."""

    __slots__ = ("body", "connection", "given_id", "head")
    method = "POST"
    target = "/score"

    def __init__(
        self, connection: Connection, head: Head, given_id: str | None, body: bytes | memoryview
    ) -> None:
        self.connection = connection
        self.head = head
        self.given_id = given_id
        self.body = body

    @property
    def content_type(self) -> str:
        return self.head.content_type

    @property
    def request_id(self) -> str:
        if self.given_id is None:
            self.given_id = new_request_id()
        return self.given_id

    @property
    def headers(self) -> Mapping[str, str]:
        return self.head.headers_with(self.request_id)

    @property
    def label(self) -> str:
        return request_label(self.request_id, self.headers)

    @property
    def is_small(self) -> bool:
        """Whether reading the body takes no longer than a short run; octets are taken as they lie."""
        return len(self.body) <= (INLINE_OCTETS_BYTES if self.head.has_octets else INLINE_BODY_BYTES)

    def id_headers(self) -> bytes:
        return self.head.id_headers(self.given_id or self.request_id)


class FastScore:
    """The event loop's own; shared by all connections of a process."""

    def __init__(
        self,
        scorer: Scorer,
        plane: DataPlane,
        pool: WorkerPool,
        metrics: Metrics,
        *,
        body_limit_bytes: int,
        body_timeout_s: float = DEFAULT_BODY_TIMEOUT_S,
    ) -> None:
        self.body_timeout_s = body_timeout_s
        self.memo = HeadMemo(body_limit_bytes)
        self._scorer: Any = scorer
        self._plane = plane
        self._pool = pool
        self._count = functools.partial(metrics.request, "http", Outcome.OK.value)
        is_model = hasattr(scorer, "join")
        self.calibration: Calibration = scorer.calibration if is_model else Calibration(None)  # type: ignore[attr-defined]
        self._placement = Placement(inline=self.calibration.is_short, settled=is_model)
        self._turn: list[Call] = []
        self._flush = self._run_together if self.calibration.rows > 1 else self._run_turn

    @classmethod
    def over(
        cls,
        scorer: Scorer,
        plane: DataPlane,
        pool: WorkerPool,
        metrics: Metrics,
        *,
        body_limit_bytes: int,
        body_timeout_s: float = DEFAULT_BODY_TIMEOUT_S,
    ) -> FastScore | None:
        """None for a script that reads raw requests or writes its own responses (they may stream): ASGI's work."""
        if getattr(scorer, "takes_raw_http", False) or _RESPONSES in sys.modules:
            return None
        return cls(
            scorer, plane, pool, metrics, body_limit_bytes=body_limit_bytes, body_timeout_s=body_timeout_s
        )

    def accept(self, call: Call) -> None:
        """Requests are looked at when the turn of the event loop is over."""
        if call.connection.is_only and not self._turn and self._placement.inline:
            self._place(call)  # nobody can join it
            return
        if not self._turn:
            asyncio.get_running_loop().call_soon(self._end_turn)
        self._turn.append(call)

    def _end_turn(self) -> None:
        calls, self._turn = self._turn, []
        self._flush(calls)

    def _run_together(self, calls: list[Call]) -> None:
        if len(calls) == 1:
            self._place(calls[0])
            return
        small = [call for call in calls if call.is_small]
        score_together(
            self._scorer,
            small,
            most_rows=self.calibration.rows,
            run=self._plane.timed_run,
            answer=self._answer_together,
            alone=self._place,
        )
        for call in calls:
            if not call.is_small:
                self._place(call)

    def _answer_together(self, calls: Sequence[Call], bodies: Sequence[bytes], run_s: float) -> None:
        start = _START % (run_s * 1000)
        self._count(run_s, len(calls))
        for call, body in zip(calls, bodies, strict=True):
            call.connection.answer_ok(call, start, body)

    def _run_turn(self, calls: list[Call]) -> None:
        lone = len(calls) == 1 and (self.calibration.run_s or 1.0) < LONE_INLINE_S
        if lone and self._pool.try_enter():
            self._run_here(calls[0])
        elif self._placement.inline and len(calls) > 1:
            self._run_in_order(calls)
        else:
            for call in calls:
                self._place(call)

    def _run_in_order(self, calls: list[Call]) -> None:
        done = 0
        if self._pool.try_enter():
            done = self._run_entered(calls)
            self._pool.leave()
        for call in calls[done:]:
            self._hand_over(call)

    def _run_entered(self, calls: list[Call]) -> int:
        """How many were seen to: all of them, unless they turn out to be long.

        Answers are written some at a time: the first one may wake its reader, the others then find it awake.
        """
        placement, score = self._placement, self._plane.score
        answers: list[tuple[Call, ScoringReply]] = []
        watch = placement.watch()
        written, done = watch.last, 0
        for call in calls:
            done += 1
            if not call.is_small:
                self._hand_over(call)
                continue
            answers.append((call, score(call)))
            if watch.lap() > SLOW_S:
                placement.saw_slow(watch)
            if watch.last - written > WRITE_EVERY_S:
                _write(answers)
                written = watch.last
                if not placement.inline:
                    break
        _write(answers)
        placement.saw_in_loop(done)
        return done

    def _place(self, call: Call) -> None:
        if self._placement.inline and call.is_small and self._pool.try_enter():
            self._run_here(call)
        else:
            self._hand_over(call)

    def _run_here(self, call: Call) -> None:
        """The caller has entered the pool."""
        watch = self._placement.watch()
        reply = self._plane.score(call)
        self._pool.leave()
        if watch.lap() > SLOW_S:
            self._placement.saw_slow(watch)
        self._placement.saw_in_loop(1)
        call.connection.answer(call, reply)

    def _hand_over(self, call: Call) -> None:
        run = _HandedOver(self._plane, call)
        try:
            future = self._pool.submit(run)
        except BusyError as error:
            call.connection.refuse(call, 503, str(error))
            return
        loop = asyncio.get_running_loop()
        limit_s = self._plane.timeout_s
        if limit_s is not None:
            run.timer = loop.call_later(limit_s, self._check_time, call, run, limit_s)
        future.add_done_callback(lambda done: loop.call_soon_threadsafe(self._handed_back, call, run, done))

    def _handed_back(self, call: Call, run: _HandedOver, done: Future[ScoringReply]) -> None:
        if run.timer is not None:
            run.timer.cancel()
        if run.given_up:
            return
        try:
            reply = done.result()
        except BusyError as error:  # it waited, and nothing runs here any more
            call.connection.refuse(call, 503, str(error))
            return
        self._placement.saw_in_thread(run.seconds, run.processor_s)
        call.connection.answer(call, reply)

    def _check_time(self, call: Call, run: _HandedOver, limit_s: float) -> None:
        """The client is answered in time; the run itself may be one that cannot be stopped."""
        remaining_s = run.remaining_s(limit_s)
        if remaining_s > 0:
            run.timer = asyncio.get_running_loop().call_later(
                remaining_s, self._check_time, call, run, limit_s
            )
            return
        run.given_up = True
        call.connection.answer(call, self._plane.timed_out(call))


def _write(answers: list[tuple[Call, ScoringReply]]) -> None:
    for call, reply in answers:
        if reply.outcome is Outcome.OK and reply.rendered is None and reply.run_s is not None:
            call.connection.answer_ok(call, _START % (reply.run_s * 1000), reply.body)
        else:
            call.connection.answer(call, reply)
    answers.clear()


class _HandedOver:
    """One scoring in a worker thread; its time runs from where the thread takes it, not while it waits."""

    __slots__ = ("_call", "_plane", "_started", "given_up", "processor_s", "seconds", "timer")

    def __init__(self, plane: DataPlane, call: Call) -> None:
        self._plane = plane
        self._started: float | None = None
        self._call = call
        self.seconds = self.processor_s = 0.0
        self.given_up = False
        self.timer: asyncio.TimerHandle | None = None

    def __call__(self) -> ScoringReply:
        self._started = started = time.monotonic()
        processor_s = time.thread_time()
        reply = self._plane.score(self._call)
        self.processor_s = time.thread_time() - processor_s
        self.seconds = time.monotonic() - started
        return reply

    def remaining_s(self, limit_s: float) -> float:
        return limit_s if self._started is None else self._started + limit_s - time.monotonic()


# Where scripts get AMLResponse from, ours or the original package.
_RESPONSES = "azureml.contrib.services.aml_response"


def answer_bytes(call: Call, reply: ScoringReply, date: bytes, *, close: bool) -> bytes:
    """The whole answer; `date` is a header line, or nothing."""
    if reply.outcome is Outcome.OK and reply.rendered is None and reply.run_s is not None:
        return ok_bytes(call, _START % (reply.run_s * 1000), reply.body, _with_close(date) if close else date)
    return _other_answer(call, reply, _with_close(date) if close else date)


def ok_bytes(call: Call, start: bytes, body: bytes, date: bytes) -> bytes:
    """The answer of a run that succeeded; `start` says how long it took."""
    return b"%b%bcontent-length: %d\r\n%b\r\n%b" % (start, date, len(body), call.id_headers(), body)


def _with_close(date: bytes) -> bytes:
    return date + CLOSE


CLOSE = b"connection: close\r\n"
_START = (
    b"HTTP/1.1 200 OK\r\nx-ms-run-function-failed: False\r\nx-ms-run-fn-exec-ms: %.3f\r\n"
    b"content-type: application/json\r\n"
)


def _other_answer(call: Call, reply: ScoringReply, date: bytes) -> bytes:
    from .app import STATUS, score_headers

    status, body = STATUS[reply.outcome], reply.body
    headers = score_headers(reply)
    if reply.rendered is None:
        headers = [*headers, ("content-type", reply.content_type)]
    else:
        status = reply.rendered.status
        body = body if reply.rendered.stream is None else b"".join(reply.rendered.stream)
        headers = [*reply.rendered.headers, *headers]
    return _answer(status, headers, call, date, body)


def refusal_bytes(call: Call, status: int, message: str, date: bytes, *, close: bool) -> bytes:
    date = _with_close(date) if close else date
    headers = [("x-ms-run-function-failed", "False"), ("content-type", "application/json")]
    if status == 503:
        headers.append(("retry-after", "1"))
    return _answer(status, headers, call, date, encode({"message": message}))


def _answer(status: int, headers: Sequence[tuple[str, str]], call: Call, date: bytes, body: bytes) -> bytes:
    lines = "".join(
        f"{name}: {value}\r\n"
        for name, value in headers
        if name.lower() not in ("content-length", "connection")
    )
    return b"HTTP/1.1 %d %b\r\n%b%bcontent-length: %d\r\n%b\r\n%b" % (
        status,
        _phrase(status),
        date,
        lines.encode("latin-1", "replace"),
        len(body),
        call.id_headers(),
        body,
    )


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:
        return b""

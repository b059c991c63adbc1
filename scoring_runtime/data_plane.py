"""Scoring without HTTP: a request in, a reply out, whoever asks (HTTP, edge messages).

1. A scorer has three steps, so that each can be timed, batched or moved to another thread by itself:
   `parse` (the caller's mistakes), `run` (the model), `render` (the answer as bytes).
2. `DataPlane.score` never raises: every failure is an outcome with a message that may be shown to the caller.
   What the user's code raised is in the log under the request's id, and nowhere else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from typing import Any, Protocol

from .errors import ContentTypeError, RequestError, ResultError
from .json_codec import encode
from .metrics import Metrics
from .run_timer import RunTimer, ScoringTimeout
from .schema import Signature
from .tracebacks import user_traceback

log = logging.getLogger("scoring_runtime")


# JSON of a megabyte is read in about 0.02 s, on a small device ten times as slow, and the interpreter's lock is kept.
LARGE_BODY_BYTES = 1024 * 1024
SLOWEST_BYTES_PER_S = 5e6


class Outcome(Enum):
    OK = "ok"
    BAD_INPUT = "bad_input"
    UNSUPPORTED_CONTENT_TYPE = "unsupported_content_type"
    RUN_FAILED = "run_failed"
    BAD_RESULT = "bad_result"
    TIMED_OUT = "timed_out"


@dataclass(
    slots=True
)  # not frozen: that would triple the time of making one, and one is made for every request
class ScoringRequest:
    """`content_type` is the media type alone, in lower case, empty when the caller gave none.

    `body` may be a view when the content type is octets. `method` and `target` (path and query as sent) are for scripts that want the request whole.
    """

    body: bytes | memoryview
    content_type: str = ""
    request_id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)
    method: str = "POST"
    target: str = "/score"

    @property
    def label(self) -> str:
        """How log lines name this request: its id, and the caller's trace where there is one."""
        return request_label(self.request_id, self.headers)


def request_label(request_id: str, headers: Mapping[str, str]) -> str:
    trace = headers.get("traceparent")
    return f"{request_id} traceparent {trace}" if trace else request_id


@dataclass(frozen=True, slots=True)
class Rendered:
    """An answer that is more than a JSON body: what a script said by `AMLResponse`.

    `headers` include the content type. With `stream` the body comes from it piece by piece, after `run` has returned.
    """

    body: bytes
    status: int
    headers: tuple[tuple[str, str], ...]
    failed: bool = False
    stream: Iterator[bytes] | None = None


@dataclass(slots=True)
class ScoringReply:
    """`run_s` is how long the model ran, None when it was not reached.

    `rendered` stands for `body` and `content_type` when a script answered by `AMLResponse`; rare, so the usual reply
    pays nothing for it.
    """

    outcome: Outcome
    body: bytes
    run_s: float | None = None
    content_type: str = "application/json"
    rendered: Rendered | None = None


class Scorer(Protocol):
    """What a data plane scores with: a user's script or a bare ONNX model."""

    signature: Signature

    def parse(self, request: ScoringRequest) -> Any:
        """Raises RequestError for what the caller can mend."""

    def run(self, arguments: Any) -> Any:
        """Raises RequestError where only the model can tell that the input is wrong; anything else is a failure."""

    def render(self, result: Any) -> bytes | Rendered:
        """Raises ResultError when the result cannot be written."""


class DataPlane:
    def __init__(
        self,
        scorer: Scorer,
        metrics: Metrics,
        timer: RunTimer | None = None,
        expect_silence: Callable[[float], None] | None = None,
    ) -> None:
        """`expect_silence` is told for how many seconds a large body may keep the interpreter's lock: whoever watches
        this process should not take it for frozen."""
        self._scorer = scorer
        self._metrics = metrics
        self._timer = timer
        self._timed_run = scorer.run if timer is None else partial(timer.run, scorer.run)
        self._expect_silence = expect_silence

    def beside(self, scorer: Scorer) -> DataPlane:
        """One for another scorer of the same process."""
        return DataPlane(scorer, self._metrics, self._timer, self._expect_silence)

    @property
    def takes_raw_http(self) -> bool:
        """Whether the scorer wants every request whole: GET, POST and OPTIONS."""
        return bool(getattr(self._scorer, "takes_raw_http", False))

    @property
    def timeout_s(self) -> float | None:
        """How long one run may take. `score` stops it where that is possible; whoever waits for the reply from another
        thread gives up at this time all the same and answers with `timed_out`."""
        return self._timer.timeout_s if self._timer is not None else None

    def timed_run(self, arguments: Any) -> Any:
        """The model's run alone, stopped when it takes too long.

        Raises:
            ScoringTimeout: it did.
        """
        return self._timed_run(arguments)

    def timed_out(self, request: ScoringRequest) -> ScoringReply:
        """The answer for a run that has not come back; it is counted when it does."""
        log.error("request %s: run() exceeds its time and has not stopped yet", request.label)
        return self._too_slow(self.timeout_s)

    def score(self, request: ScoringRequest, source: str = "http") -> ScoringReply:
        """Answer one request; `source` is the counter's label."""
        if len(request.body) > LARGE_BODY_BYTES and self._expect_silence is not None:
            self._expect_silence(len(request.body) / SLOWEST_BYTES_PER_S)
        reply = self._answer(request)
        if reply.rendered is not None and reply.rendered.stream is not None and source != "http":
            reply = _gathered(reply, reply.rendered.stream, request)
        outcome = (
            reply.outcome._value_
        )  # `value` is a property written in Python, and this is every request's way
        self._metrics.request(source, outcome, reply.run_s)
        if log.isEnabledFor(logging.DEBUG):
            log.debug("request %s: %s %s", request.label, source, outcome)
        return reply

    def _answer(self, request: ScoringRequest) -> ScoringReply:
        started: float | None = None
        run_s: float | None = None
        try:
            arguments = self._scorer.parse(request)
            started = time.perf_counter()
            result = self._timed_run(arguments)
            run_s = time.perf_counter() - started
            answer = self._scorer.render(result)
            if isinstance(answer, bytes):
                return ScoringReply(Outcome.OK, answer, run_s)
            outcome = Outcome.RUN_FAILED if answer.failed else Outcome.OK
            return ScoringReply(outcome, answer.body, run_s, rendered=answer)
        except ContentTypeError as error:
            return failure(Outcome.UNSUPPORTED_CONTENT_TYPE, str(error))
        except RequestError as error:
            return failure(Outcome.BAD_INPUT, str(error), run_s)
        except ResultError as error:
            log.error("request %s: run() returned what JSON cannot hold: %s", request.label, error)
            return failure(Outcome.BAD_RESULT, BAD_RESULT, run_s)
        except ScoringTimeout as error:
            log.error("request %s: run() exceeded its time\n%s", request.label, user_traceback(error))
            return self._too_slow(time.perf_counter() - started if started is not None else None)
        except BaseException as error:  # SystemExit in a script must not end a worker thread
            if started is not None and run_s is None:
                run_s = time.perf_counter() - started
            log.error("request %s: run() raised\n%s", request.label, user_traceback(error))
            return failure(Outcome.RUN_FAILED, RUN_FAILED, run_s)

    def _too_slow(self, run_s: float | None) -> ScoringReply:
        limit_ms = self._timer.timeout_ms if self._timer is not None else 0
        return failure(Outcome.TIMED_OUT, f"Scoring timeout after {limit_ms} ms", run_s)


class TimedCall:
    """One scoring in a worker thread; its time runs from where the thread takes it, not while it waits."""

    def __init__(self, plane: DataPlane, request: ScoringRequest, source: str = "http") -> None:
        self.request = request
        self._plane = plane
        self._source = source
        self._started: float | None = None

    def __call__(self) -> ScoringReply:
        self._started = time.monotonic()
        return self._plane.score(self.request, self._source)

    def remaining_s(self, limit_s: float) -> float:
        if self._started is None:
            return limit_s
        return self._started + limit_s - time.monotonic()


def _gathered(reply: ScoringReply, stream: Iterator[bytes], request: ScoringRequest) -> ScoringReply:
    """A streamed answer in one piece, for callers that have no stream."""
    try:
        return ScoringReply(reply.outcome, b"".join(stream), reply.run_s, rendered=reply.rendered)
    except Exception as error:
        log.error("request %s: the answer's stream raised\n%s", request.label, user_traceback(error))
        return failure(Outcome.RUN_FAILED, RUN_FAILED, reply.run_s)


# The texts a caller sees: nothing of the script, its data or its traceback.
RUN_FAILED = "Scoring failed. The reason is in the module's log under this request's id."
BAD_RESULT = (
    "The result cannot be written as JSON. The reason is in the module's log under this request's id."
)


def failure(outcome: Outcome, message: str, run_s: float | None = None) -> ScoringReply:
    return ScoringReply(outcome, encode({"message": message}), run_s)

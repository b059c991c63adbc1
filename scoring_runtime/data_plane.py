"""Scoring without HTTP: a request in, a reply out, whoever asks (HTTP, edge messages).

1. A scorer has three steps, so that each can be timed, batched or moved to another thread by itself:
   `parse` (the caller's mistakes), `run` (the model), `render` (the answer as bytes).
2. `DataPlane.score` never raises: every failure is an outcome with a message that may be shown to the caller.
   What the user's code raised is in the log under the request's id, and nowhere else.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from .errors import ContentTypeError, RequestError, ResultError
from .json_codec import encode
from .metrics import Metrics
from .schema import Signature
from .tracebacks import user_traceback

log = logging.getLogger("scoring_runtime")


class Outcome(Enum):
    OK = "ok"
    BAD_INPUT = "bad_input"
    UNSUPPORTED_CONTENT_TYPE = "unsupported_content_type"
    RUN_FAILED = "run_failed"
    BAD_RESULT = "bad_result"


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """`content_type` is the media type alone, in lower case, empty when the caller gave none."""

    body: bytes
    content_type: str = ""
    request_id: str = ""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ScoringReply:
    """`run_s` is how long the model ran, None when it was not reached."""

    outcome: Outcome
    body: bytes
    run_s: float | None = None
    content_type: str = "application/json"


class Scorer(Protocol):
    """What a data plane scores with: a user's script or a bare ONNX model."""

    signature: Signature

    def parse(self, request: ScoringRequest) -> Any:
        """Raises RequestError for what the caller can mend."""

    def run(self, arguments: Any) -> Any:
        """Raises RequestError where only the model can tell that the input is wrong; anything else is a failure."""

    def render(self, result: Any) -> bytes:
        """Raises ResultError when the result cannot be written."""


class DataPlane:
    def __init__(self, scorer: Scorer, metrics: Metrics) -> None:
        self._scorer = scorer
        self._metrics = metrics

    def score(self, request: ScoringRequest, source: str = "http") -> ScoringReply:
        """Answer one request; `source` is the counter's label."""
        reply = self._answer(request)
        self._metrics.request(source, reply.outcome.value, reply.run_s)
        return reply

    def _answer(self, request: ScoringRequest) -> ScoringReply:
        started: float | None = None
        run_s: float | None = None
        try:
            arguments = self._scorer.parse(request)
            started = time.perf_counter()
            result = self._scorer.run(arguments)
            run_s = time.perf_counter() - started
            return ScoringReply(Outcome.OK, self._scorer.render(result), run_s)
        except ContentTypeError as error:
            return failure(Outcome.UNSUPPORTED_CONTENT_TYPE, str(error))
        except RequestError as error:
            return failure(Outcome.BAD_INPUT, str(error), run_s)
        except ResultError as error:
            log.error("request %s: run() returned what JSON cannot hold: %s", request.request_id, error)
            return failure(Outcome.BAD_RESULT, BAD_RESULT, run_s)
        except BaseException as error:  # SystemExit in a script must not end a worker thread
            if started is not None and run_s is None:
                run_s = time.perf_counter() - started
            log.error("request %s: run() raised\n%s", request.request_id, user_traceback(error))
            return failure(Outcome.RUN_FAILED, RUN_FAILED, run_s)


# The texts a caller sees: nothing of the script, its data or its traceback.
RUN_FAILED = "Scoring failed. The reason is in the module's log under this request's id."
BAD_RESULT = (
    "The result cannot be written as JSON. The reason is in the module's log under this request's id."
)


def failure(outcome: Outcome, message: str, run_s: float | None = None) -> ScoringReply:
    return ScoringReply(outcome, encode({"message": message}), run_s)

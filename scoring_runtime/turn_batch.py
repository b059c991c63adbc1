"""Requests that arrive in the same turn of the event loop share one run of the model. No timer: nobody waits.

1. What a member is told is what it would have been told alone: each is parsed by itself, gets its own rows, and its
   own ids.
2. A member that cannot be joined (a wrong body, too many rows) and every member of a run that failed goes through
   the data plane alone, so that one bad request never fails its neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from .data_plane import Outcome, ScoringReply


class Member(Protocol):
    """A request as the model's `parse` takes it."""

    body: bytes

    @property
    def content_type(self) -> str: ...


Asked = TypeVar("Asked", bound=Member)


class RowModel(Protocol):
    def parse(self, request: Any) -> Any: ...

    def rows_of(self, arguments: Any) -> int: ...

    def join(self, arguments: Sequence[Any]) -> Any: ...

    def run(self, arguments: Any) -> Any: ...

    def render_rows(self, result: Any, rows: Sequence[int]) -> list[bytes]:
        """One answer for each count of rows, in order. Raises ResultError when the result has other rows."""


def score_together(
    model: RowModel,
    members: Sequence[Asked],
    *,
    most_rows: int,
    answer: Callable[[Asked, ScoringReply], None],
    alone: Callable[[Asked], None],
) -> None:
    """Answer every member: in joined runs of at most `most_rows` rows, or alone."""
    joined: list[tuple[Asked, Any, int]] = []
    total = 0
    for member in members:
        try:
            arguments = model.parse(member)
            rows = model.rows_of(arguments)
        except Exception:  # the data plane says it again, with the message, the metrics and the log
            alone(member)
            continue
        if not 0 < rows <= most_rows:
            alone(member)
            continue
        if total + rows > most_rows:
            _run(model, joined, answer, alone)
            joined, total = [], 0
        joined.append((member, arguments, rows))
        total += rows
    if joined:
        _run(model, joined, answer, alone)


def _run(
    model: RowModel,
    joined: Sequence[tuple[Asked, Any, int]],
    answer: Callable[[Asked, ScoringReply], None],
    alone: Callable[[Asked], None],
) -> None:
    try:
        arguments = model.join([member[1] for member in joined])
        started = time.perf_counter()
        result = model.run(arguments)
        run_s = time.perf_counter() - started
        bodies = model.render_rows(result, [member[2] for member in joined])
    except Exception:
        for member, _, _ in joined:
            alone(member)
        return
    for (member, _, _), body in zip(joined, bodies, strict=True):
        answer(member, ScoringReply(Outcome.OK, body, run_s))

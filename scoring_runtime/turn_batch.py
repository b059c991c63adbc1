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

from .run_timer import ScoringTimeout


class Member(Protocol):
    """A request as the model reads it."""

    body: bytes

    @property
    def content_type(self) -> str: ...


Asked = TypeVar("Asked", bound=Member)


class RowModel(Protocol):
    def read_rows(self, request: Any) -> tuple[Any, int]:
        """One request's rows and how many they are. Raises RequestError for what the caller can mend."""

    def join(self, rows: Sequence[Any]) -> Any: ...

    def render_rows(self, result: Any, rows: Sequence[int]) -> list[bytes]:
        """One answer for each count of rows, in order. Raises ResultError when the result has other rows."""


class JoinedRun:
    """What one run is made of."""

    __slots__ = ("counts", "members", "rows", "total")

    def __init__(self) -> None:
        self.members: list[Any] = []
        self.rows: list[Any] = []
        self.counts: list[int] = []
        self.total = 0

    def add(self, member: Any, rows: Any, count: int) -> None:
        self.members.append(member)
        self.rows.append(rows)
        self.counts.append(count)
        self.total += count


def score_together(
    model: RowModel,
    members: Sequence[Asked],
    *,
    most_rows: int,
    run: Callable[[Any], Any],
    answer: Callable[[Sequence[Asked], Sequence[bytes], float], None],
    alone: Callable[[Asked], None],
) -> None:
    """Answer every member: in joined runs of at most `most_rows` rows, or alone.

    Args:
        run: of the model, with joined rows.
        answer: told the members of one run, their answers in the same order, and how long the run took.
    """
    joined = JoinedRun()
    for member in members:
        try:
            rows, count = model.read_rows(member)
        except Exception:  # the data plane says it again, with the message, the metrics and the log
            alone(member)
            continue
        if not 0 < count <= most_rows:
            alone(member)
            continue
        if joined.total + count > most_rows:
            _run(model, joined, run, answer, alone)
            joined = JoinedRun()
        joined.add(member, rows, count)
    if joined.members:
        _run(model, joined, run, answer, alone)


def _run(
    model: RowModel,
    joined: JoinedRun,
    run: Callable[[Any], Any],
    answer: Callable[[Sequence[Any], Sequence[bytes], float], None],
    alone: Callable[[Any], None],
) -> None:
    try:
        arguments = model.join(joined.rows)
        started = time.perf_counter()
        result = run(arguments)
        run_s = time.perf_counter() - started
        bodies = model.render_rows(result, joined.counts)
    except (Exception, ScoringTimeout):
        for member in joined.members:
            alone(member)
        return
    answer(joined.members, bodies, run_s)

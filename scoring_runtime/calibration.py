"""How long runs take, and what follows from it: where a run belongs, and whether runs may share one.

1. A run shorter than INLINE_S is done in the event loop: handing it to a thread costs more than it takes.
2. A script's time is known by watching alone: it starts in a thread, comes into the loop after PROMOTE_AFTER calls that
   were nearly all short, and leaves it when slow ones have held up the loop for DEMOTE_S; each time it must then be short
   for twice as many calls.
3. A bare model is timed at load. Its runs are joined only if its first axis is free in all inputs and outputs,
   if joined rows give what single rows give, and if a joined run of several rows is much cheaper than as many runs.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

# A hand-off to a thread and back costs 0.5 to 0.7 ms (facts/serving.md §5, 4).
INLINE_S = 300e-6
PROMOTE_AFTER = 32
_MOST_PROMOTE_AFTER = 4096
# Inline calls over SLOW_S, well over INLINE_S, are added up; when they come to DEMOTE_S within PROVEN_AFTER calls (one is
# enough), the script goes back to the threads: by so much others wait longer than they had to.
SLOW_S = 3e-3
DEMOTE_S = 50e-3
PROVEN_AFTER = 1024
# Linux counts for each thread; elsewhere a process's own numbers make slow calls count as slow.
_THREAD = getattr(resource, "RUSAGE_THREAD", resource.RUSAGE_SELF)
# Answers of one turn are held back this long at most, so that several are written together.
WRITE_EVERY_S = 2e-3
# A lone run may hold up the loop, and so a health answer, this long: it saves the hand-off.
LONE_INLINE_S = 20e-3
# Larger bodies are parsed in a thread, whatever the run takes: 64 KiB of JSON is about 0.3 ms.
INLINE_BODY_BYTES = 64 * 1024
# Octets are not parsed; beyond this, copying them costs as much as a short run.
INLINE_OCTETS_BYTES = 1024 * 1024

_BATCHES = (8, 32, 64)
_TRIALS = 5
# A joined run must cost at most half of what its rows cost alone, or waiting for its end is not worth it.
_PAYS = 0.5
_LONGEST_BATCH_S = 1e-3


class Placement:
    """Whether the next call of a scorer runs in the event loop; told how each one went.

    It judges by many calls, and not by time that other programs or threads took: a busy machine is not the script's fault.
    """

    def __init__(self, *, inline: bool = False, settled: bool = False) -> None:
        self.inline = inline
        self._settled = settled
        self._calls = self._long_calls = self._late_calls = 0
        self._slow_s = 0.0
        self._promote_after = PROMOTE_AFTER

    def watch(self) -> LoopWatch:
        """To be taken before calls in the event loop; one for several that follow each other."""
        return LoopWatch(counts=not self._settled)

    def saw_slow(self, watch: LoopWatch) -> None:
        """The lap that ended took longer than SLOW_S."""
        if self._settled:
            return
        self._slow_s += watch.own_part()
        if self._slow_s > DEMOTE_S:
            self._promote_after = min(self._promote_after * 2, _MOST_PROMOTE_AFTER)
            self._start(inline=False)

    def saw_in_loop(self, calls: int) -> None:
        """So many calls have ended in the event loop, slow ones included."""
        if self._settled or not self.inline:
            return
        self._calls += calls
        if self._calls >= PROVEN_AFTER:
            self._promote_after = PROMOTE_AFTER
            self._start(inline=True)

    def saw_in_thread(self, seconds: float, processor_s: float) -> None:
        """A call in a thread of its own; `processor_s` leaves out what it waited, for the interpreter's lock above all."""
        if self._settled:
            return
        self._calls += 1
        self._long_calls += processor_s > INLINE_S
        self._late_calls += seconds > INLINE_S
        if self._calls >= self._promote_after:
            is_short = self._long_calls <= self._calls // 16 and self._late_calls <= self._calls // 2
            self._start(inline=is_short)

    def _start(self, *, inline: bool) -> None:
        self.inline = inline
        self._calls = self._long_calls = self._late_calls = 0
        self._slow_s = 0.0


class LoopWatch:
    """Times calls that follow each other, and tells what of a long one was taken by others.

    Asking the kernel costs as much as a part of a short call, so it is asked once at first and then only after a long one.
    """

    __slots__ = ("_lap_s", "_processor_s", "_started", "_waits", "last")

    def __init__(self, *, counts: bool) -> None:
        self._processor_s, self._waits = _thread_use() if counts else (0.0, 0)
        self._lap_s = 0.0
        self._started = self.last = time.perf_counter()

    def lap(self) -> float:
        """Seconds since the last lap."""
        before, self.last = self.last, time.perf_counter()
        self._lap_s = self.last - before
        return self._lap_s

    def own_part(self) -> float:
        """What the last lap computed or waited for by itself."""
        processor_s, waits = _thread_use()
        if waits != self._waits:
            return self._lap_s
        taken_s = (self.last - self._started) - (processor_s - self._processor_s)
        return max(0.0, self._lap_s - taken_s)


def _thread_use() -> tuple[float, int]:
    """Processor time of this thread, and how often it gave its processor away to wait."""
    used = resource.getrusage(_THREAD)
    return used.ru_utime + used.ru_stime, used.ru_nvcsw


class Batchable(Protocol):
    """What is timed: a bare model."""

    def example(self, rows: int) -> Any | None:
        """Arguments of that many rows, None when the graph leaves more open than the rows."""

    def run(self, arguments: Any) -> Any: ...

    def joins_rows(self) -> bool:
        """Whether inputs and outputs all have rows."""

    def same_rows(self, joined: Any, singles: Sequence[Any]) -> bool:
        """Whether the result `joined` holds the rows of `singles`, one after the other."""

    def row(self, arguments: Any, index: int) -> Any:
        """One row of arguments, as arguments."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """`run_s` of one row, None when it could not be tried; `rows`: most rows of a joined run, 1 when none pays."""

    run_s: float | None
    rows: int = 1

    @property
    def is_short(self) -> bool:
        return self.run_s is not None and self.run_s < INLINE_S


def calibrate(model: Batchable) -> Calibration:
    """Time a model with made-up rows; never raises for what the model makes of them."""
    try:
        single = model.example(1)
        if single is None:
            return Calibration(None)
        run_s = _shortest(model, single)
        if run_s >= INLINE_S or not model.joins_rows():
            return Calibration(run_s)
        return Calibration(run_s, _rows_that_pay(model, run_s))
    except Exception:  # made-up values may be none that the model takes; then it is not calibrated
        return Calibration(None)


def _rows_that_pay(model: Batchable, run_s: float) -> int:
    if not _is_row_wise(model):
        return 1
    best = 1
    for rows in _BATCHES:
        joined_s = _shortest(model, model.example(rows))
        if joined_s > max(_LONGEST_BATCH_S, 2 * run_s) or joined_s > _PAYS * rows * run_s:
            break
        best = rows
    return best


def _is_row_wise(model: Batchable) -> bool:
    """Joined rows must be what single rows are: a graph may well compute across its first axis."""
    joined = model.example(_BATCHES[0])
    singles = [model.run(model.row(joined, index)) for index in range(_BATCHES[0])]
    return model.same_rows(model.run(joined), singles)


def _shortest(model: Batchable, arguments: Any) -> float:
    """The first run may allocate; after it the shortest of a few is what the model takes undisturbed."""
    times = []
    for _ in range(_TRIALS):
        started = time.perf_counter()
        model.run(arguments)
        times.append(time.perf_counter() - started)
        if sum(times) > 0.1 and len(times) > 1:
            break
    return min(times)

"""How long runs take, and what follows from it: where a run belongs, and whether runs may share one.

1. A run shorter than INLINE_S is done in the event loop: handing it to a thread costs more than it takes.
2. A script's time is known by watching alone: it starts in a thread, comes into the loop after PROMOTE_AFTER short
   calls in a row, and leaves it at the first slow one; each time it must then be short twice as long.
3. A bare model is timed at load. Its runs are joined only if its first axis is free in all inputs and outputs,
   if joined rows give what single rows give, and if a joined run of several rows is much cheaper than as many runs.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

# A hand-off to a thread and back costs 0.5 to 0.7 ms (facts/serving.md §5, 4).
INLINE_S = 300e-6
# An inline call that takes this long goes back to the threads. Well over INLINE_S, so that a processor that was
# taken away for a moment is not the script's fault.
DEMOTE_S = 3e-3
PROMOTE_AFTER = 32
_MOST_PROMOTE_AFTER = 4096
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
    """Whether the next call of a scorer runs in the event loop; told how long each one took."""

    def __init__(self, *, inline: bool = False, settled: bool = False) -> None:
        self.inline = inline
        self._settled = settled
        self._short_calls = 0
        self._promote_after = PROMOTE_AFTER

    def saw(self, seconds: float) -> None:
        if self._settled:
            return
        if self.inline:
            if seconds > DEMOTE_S:
                self.inline = False
                self._short_calls = 0
                self._promote_after = min(self._promote_after * 2, _MOST_PROMOTE_AFTER)
        elif seconds > INLINE_S:
            self._short_calls = 0
        else:
            self._short_calls += 1
            self.inline = self._short_calls >= self._promote_after


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

"""What a worker and its supervisor know of each other: rows of numbers in shared memory, one row for each worker.

1. Each number is eight aligned bytes with one writer, so it is read whole without a lock.
2. A worker beats from its event loop: a beat says that the loop turns and that no native code holds the interpreter.
3. What a worker counts stays in its row when it dies, and its successor counts on.

The standard library alone, and little of it: the supervisor keeps this module.
"""

from __future__ import annotations

import mmap
import os
import signal
import socket
import time
from collections.abc import Sequence
from enum import IntEnum

from .signals import EarlySignals

MAX_WORKERS = 64
COUNTERS = 120  # numbers of a row that `metrics` gives a meaning to


class Field(IntEnum):
    """Where a row keeps what."""

    READY = 0  # 1 once `init()` has returned and the event loop turns
    BEAT = 1  # monotonic seconds of the last sign of life
    LENIENT_UNTIL = 2  # silence before this time is expected
    REPLACED = 3  # how often the supervisor has put a new worker here
    STARVED = 4  # seconds that its threads had waited for a processor at the last sign of life
    FIRST_COUNTER = 8


_ROW = Field.FIRST_COUNTER + COUNTERS


class Board:
    """All rows. Made before the first fork, so that every process has the same memory."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, MAX_WORKERS * _ROW * 8)
        self._numbers = memoryview(self._memory).cast("d")

    def row(self, worker: int) -> memoryview[float]:
        return self._numbers[worker * _ROW : (worker + 1) * _ROW]


def starved_s(process: int) -> float:
    """Seconds that the threads of a process were ready to run and had no processor; 0 where the kernel does not count."""
    waited_ns = 0
    try:
        for thread in os.listdir(f"/proc/{process}/task"):
            with open(f"/proc/{process}/task/{thread}/schedstat", "rb") as file:  # noqa: PTH123 - no pathlib here
                waited_ns += int(file.read().split()[1])
    except (OSError, IndexError):  # a thread may end meanwhile, and then little was counted
        pass
    return waited_ns / 1e9


class Seat:
    """A worker's place: its number, its row, and the way to its supervisor.

    Attributes:
        number: from 0; the module's identity on IoT Edge is with worker 0.
        early: the signals that came while nothing was served.
    """

    def __init__(
        self, number: int, board: Board, early: EarlySignals, supervisor: int, line: socket.socket | None
    ) -> None:
        self.number = number
        self.early = early
        self._board = board
        self._row = board.row(number)
        self._supervisor = supervisor
        self._line = line

    def report(self, sockets: Sequence[socket.socket], workers: int, silence_s: float) -> None:
        """Give the listening sockets (public, then health) to the supervisor, for its next workers.

        Args:
            workers: how many there shall be.
            silence_s: a worker without a sign of life for so long is replaced.
        """
        if self._line is None:
            return
        message = b"%d %f" % (workers, silence_s)
        socket.send_fds(self._line, [message], [sock.fileno() for sock in sockets])
        self._line.close()
        self._line = None

    def ready(self) -> None:
        self.beat()
        self._row[Field.READY] = 1
        os.kill(self._supervisor, signal.SIGUSR2)

    def beat(self) -> None:
        self._row[Field.STARVED] = starved_s(os.getpid())
        self._row[Field.BEAT] = time.monotonic()

    def expect_silence(self, seconds: float) -> None:
        """What follows may keep the interpreter to itself for so long."""
        self._row[Field.LENIENT_UNTIL] = max(self._row[Field.LENIENT_UNTIL], time.monotonic() + seconds)

    def counters(self, workers: int) -> tuple[memoryview[float], list[memoryview[float]]]:
        """The numbers that `metrics` keeps: this worker's, and those of the others, to read only."""
        rows = {worker: self._board.row(worker)[Field.FIRST_COUNTER :] for worker in range(workers)}
        return rows.pop(self.number), list(rows.values())

    def replaced(self, workers: int) -> int:
        """How many workers were replaced so far."""
        return int(sum(self._board.row(worker)[Field.REPLACED] for worker in range(workers)))

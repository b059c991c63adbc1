"""A few things at a time, in threads that do not outlive the wish for their result.

The first failure stops the rest, and so does Ctrl-C: work looks at `stop` wherever it would otherwise go on for long.
Threads are daemons, because one that waits for a silent peer must not hold up the end of the program.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable
from typing import TypeVar

_POLL_S = 0.1
_GRACE_S = 2.0

T = TypeVar("T")


class StoppedError(Exception):
    """Given up because something beside it failed; never seen by a caller of `in_parallel`."""


def check(stop: threading.Event) -> None:
    """Give up if the others did."""
    if stop.is_set():
        raise StoppedError


def in_parallel(work: Callable[[T], None], items: Iterable[T], workers: int, stop: threading.Event) -> None:
    """Do `work` for each item, `workers` at a time, in order of the items; raises the first failure."""
    todo: queue.SimpleQueue[T] = queue.SimpleQueue()
    count = 0
    for item in items:
        todo.put(item)
        count += 1
    if min(workers, count) <= 1:
        while not todo.empty():
            work(todo.get())
        return
    failures: list[BaseException] = []
    threads = [
        threading.Thread(target=_drain, args=(work, todo, failures, stop), daemon=True)
        for _ in range(min(workers, count))
    ]
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads) and not failures:
            threads[0 if threads[0].is_alive() else -1].join(_POLL_S)
    finally:
        if failures or any(thread.is_alive() for thread in threads):
            stop.set()
        deadline = time.monotonic() + _GRACE_S
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
    for failure in failures:
        if not isinstance(failure, StoppedError):
            raise failure


def _drain(
    work: Callable[[T], None],
    todo: queue.SimpleQueue[T],
    failures: list[BaseException],
    stop: threading.Event,
) -> None:
    try:
        while not stop.is_set():
            work(todo.get_nowait())
    except queue.Empty:
        pass
    except BaseException as error:
        failures.append(error)

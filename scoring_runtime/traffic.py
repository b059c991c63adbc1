"""What begins and ends with the public socket beside HTTP."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


def _nothing(*_: object) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Traffic:
    """`start()` must not block; `stop(deadline)` returns by that monotonic time, in a thread of its own."""

    start: Callable[[], None] = _nothing
    stop: Callable[[float], None] = _nothing

"""How long work tells whoever watches what it is doing, without knowing how that is shown."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Progress = Callable[[int, int], None]
"""Called with bytes done and bytes in all."""

Steps = Callable[[str], AbstractContextManager[Progress]]
"""Called with what begins now ("resolving dependencies for linux/arm64"); the block is that work, and what it yields
takes progress in bytes where there is any. May be called from several threads at once."""


def no_steps(_label: str) -> AbstractContextManager[Progress]:
    """Nobody watches."""
    return nullcontext(_ignore)


def _ignore(_done_bytes: int, _total_bytes: int) -> None:
    pass

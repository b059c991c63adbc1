"""How long work tells whoever watches what it is doing, without knowing how that is shown."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

Steps = Callable[[str], AbstractContextManager[object]]
"""Called with what begins now ("resolving dependencies for linux/arm64"); the block is that work. May be called from
several threads at once."""


def no_steps(label: str) -> AbstractContextManager[object]:
    """Nobody watches."""
    del label
    return nullcontext()

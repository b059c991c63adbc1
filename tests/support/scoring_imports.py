"""What loading a script leaves behind in the interpreter, and how a test undoes it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def imports_undone() -> Iterator[None]:
    """`sys.path` as before, and of the modules none that a script, or the shims it used, brought.

    What is installed stays: numpy refuses to load its compiled parts a second time.
    """
    path, modules = list(sys.path), set(sys.modules)
    try:
        yield
    finally:
        sys.path[:] = path
        for name in set(sys.modules) - modules:
            if not _is_installed(sys.modules[name]):
                del sys.modules[name]


def _is_installed(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None)
    return file is not None and file.startswith((sys.prefix, sys.base_prefix))

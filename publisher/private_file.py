"""Files that may hold secrets: whole or not there, readable by their owner alone at any time."""

from __future__ import annotations

import os
from pathlib import Path

from edge_contracts.errors import PublishError


def write_private(path: Path, text: str) -> None:
    """Write `path` by rename, with mode 0600.

    Raises:
        PublishError: it cannot be written; what was there stays.
    """
    target = path.resolve()  # a link stays one
    if target.exists() and not target.is_file():
        raise PublishError(f"{path} cannot be written: it is no file", code="file", where=str(path))
    scratch = target.with_name(f".{target.name}.new")
    try:
        scratch.unlink(missing_ok=True)  # one that a killed command left may have any mode
        descriptor = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(target)
    except OSError as error:
        raise PublishError(
            f"{path} cannot be written: {error.strerror or error}", code="file", where=str(path)
        ) from error

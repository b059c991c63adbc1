"""disk-space: room for another release."""

from __future__ import annotations

import shutil

from edge_agent.checks import Check, Finding, Outcome
from edge_agent.config import AgentConfig

# A scoring image without a base unpacks to about 150 MB; its layers are kept beside that while it is pulled.
NEEDED_BYTES = 500 * 1024 * 1024
LEAST_BYTES = 50 * 1024 * 1024
MEBIBYTE = 1024 * 1024


def judge(free_bytes: int, folder: str) -> Finding:
    """What to say of that much free space."""
    text = f"{free_bytes // MEBIBYTE} MiB free in {folder}"
    if free_bytes >= NEEDED_BYTES:
        return Finding(Outcome.OK, text)
    outcome = Outcome.WARNING if free_bytes >= LEAST_BYTES else Outcome.ERROR
    return Finding(
        outcome, f"{text}, {NEEDED_BYTES // MEBIBYTE} MiB wanted", "free space, or move agent.state_dir"
    )


def _run(config: AgentConfig) -> Finding:
    folder = config.state_dir
    while not folder.exists():
        folder = folder.parent
    return judge(shutil.disk_usage(folder).free, str(folder))


CHECK = Check("disk-space", "the disk has room for another release", _run)

"""Shared by every test: `tests/support` is importable, and reference data is found in one place."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from docker_engine import DockerEngine

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

# A shell without job control starts what it puts in the background with SIGINT ignored, and children inherit that;
# the tests of Ctrl-C send it to programs of their own.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """Folder with `schemas/` and `models/`: $EDGEWRIGHT_REFERENCE_DATA, else `../shared` beside the project."""
    folder = Path(os.environ.get("EDGEWRIGHT_REFERENCE_DATA", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no reference data at {folder}: set EDGEWRIGHT_REFERENCE_DATA")
    return folder


@pytest.fixture(scope="session")
def docker_engine() -> Iterator[DockerEngine]:
    """A Docker engine of the tests' own; see tests/support/docker_engine.py."""
    from docker_engine import running_docker_engine

    with running_docker_engine() as engine:
        yield engine

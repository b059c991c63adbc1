"""What every integration test shares."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def _microsoft_clients_are_collected() -> Iterator[None]:
    """Microsoft's device SDK (by paho 1.6) leaves sockets to the garbage collector; collect them here, in the test
    that made them, so that such a warning anywhere else is our own leak."""
    yield
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()

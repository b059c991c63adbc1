"""Which request the calling thread computes; written only when something asks for it (data collection)."""

from __future__ import annotations

import threading

_LOCAL = threading.local()


def set_request_id(request_id: str) -> None:
    _LOCAL.request_id = request_id


def request_id() -> str:
    """Empty outside a request."""
    return str(getattr(_LOCAL, "request_id", ""))

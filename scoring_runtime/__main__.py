"""`python -m scoring_runtime`: a supervisor, and beneath it the processes that serve (`serve.py`).

Little is imported here: the supervisor keeps what it imports for as long as it lives.
"""

from __future__ import annotations

from .seat import Seat
from .supervisor import supervise


def work(seat: Seat) -> None:
    """One worker, from its fork to its end."""
    from . import serve

    serve.finish(serve.main(seat=seat))


if __name__ == "__main__":
    raise SystemExit(supervise(work))

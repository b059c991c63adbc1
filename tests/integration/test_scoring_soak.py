"""The short form of `scripts/verify scoring`: the same requests, too few to say anything about memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from scoring_soak import soak

REQUESTS = 4000


@pytest.mark.parametrize("is_script", [False, True], ids=["model", "script"])
def test_every_answer_is_right_among_malformed_requests_and_clients_that_leave(
    tmp_path: Path, is_script: bool
) -> None:
    report = soak(tmp_path, REQUESTS, is_script=is_script, limit_s=90)
    assert report.requests >= REQUESTS
    assert set(report.answered) == {
        "kept alive",
        "on a connection of its own",
        "chunked",
        "other routes",
        "malformed",
    }

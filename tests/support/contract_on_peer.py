"""A pytest plugin: rows of the scoring contract that are this runtime's own are run too, not skipped, so that the
difference is seen rather than claimed."""

from __future__ import annotations

from dataclasses import replace

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        parameters = getattr(item, "callspec", None)
        if parameters is not None and "row" in parameters.params:
            parameters.params["row"] = replace(parameters.params["row"], ours="")

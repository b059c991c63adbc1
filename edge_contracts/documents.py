"""Reading JSON documents strictly, and writing them in one way.

Rules:
- Every error names the path inside the document, what was expected and what was found.
- Members that nobody asks for are left alone.

>>> member({"port": "8883"}, "port", "hub", int, "an integer")
Traceback (most recent call last):
edge_contracts.errors.ContractError: 'hub.port' must be an integer, not '8883'
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

from edge_contracts.errors import ContractError, shown, unexpected

T = TypeVar("T")


def canonical_json(value: object) -> str:
    """JSON with sorted keys, without spaces, in ASCII: equal values give equal text and equal digests."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def parse_object(text: str | bytes, *, where: str, code: str) -> dict[str, Any]:
    """The JSON object in `text`.

    Raises:
        ContractError: no JSON (with line and column), not UTF-8, or no object.
    """
    try:
        document = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ContractError(f"'{where}' must be JSON: {error}", code=code, where=where) from error
    if not isinstance(document, dict):
        raise unexpected(where, "a JSON object", document, code=code)
    return document


def member(
    document: Mapping[str, Any],
    key: str,
    where: str,
    kind: type[T],
    expected: str,
    *,
    default: T | None = None,
    code: str | None = None,
) -> T:
    """The member `key` of the object at `where`; a missing or null one is `default`, or an error without it."""
    path = f"{where}.{key}" if where else key
    value = document.get(key)
    if value is None and default is not None:
        return default
    if key not in document:
        raise ContractError(f"'{path}' must be {expected}, but is missing", code=code, where=path)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        raise unexpected(path, expected, value, code=code)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{shown(name)} is no JSON number")

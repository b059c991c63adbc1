"""JSON in and out: one place that decides what a result may hold.

1. numpy arrays and scalars are written as nested lists and numbers, pandas series by their `tolist()`.
2. Keys that are not strings are written as strings, as `json.dumps` does.
3. NaN and infinities become null: JSON has no other word for them.
4. What orjson refuses and the standard library writes (integers over 64 bits) is written all the same.
"""

from __future__ import annotations

import json
from typing import Any

import orjson

from .errors import BadInputError, ResultError

_OPTIONS = orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS


def decode(body: bytes) -> Any:
    """Parse a request body.

    Raises:
        BadInputError: the body is empty, not UTF-8 or not JSON; the message says where.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        if not body.strip():
            raise BadInputError("the body is empty; expected JSON") from None
        raise BadInputError(f"the body is not JSON: {error}") from None


def encode(value: Any) -> bytes:
    """Write a result.

    Raises:
        ResultError: `value` holds something that JSON cannot say.
    """
    try:
        return orjson.dumps(value, default=_as_list, option=_OPTIONS)
    except TypeError as first:
        try:
            return json.dumps(value, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError):
            raise ResultError(f"the result is not JSON serialisable: {first}") from first


def _as_list(value: Any) -> Any:
    """Arrays that are not contiguous, array scalars, series: all of them know how to become plain lists."""
    if callable(getattr(value, "tolist", None)):
        return value.tolist()
    raise TypeError(f"type {type(value).__name__}")

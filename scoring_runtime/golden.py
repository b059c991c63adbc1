"""The self-check at start (`--golden DIR`): the recorded answers are computed again before `/ready` says yes.

A case is a file `*.json`:

| key | what |
| --- | --- |
| contentType | of the request; `application/json` when absent |
| request, or requestBase64 | the request's body: a JSON value (text for other content types), or bytes |
| response, or responseBase64 | the answer: a JSON value, compared number by number, or bytes, compared exactly |
| rtol, atol | a number may differ from the recorded one by `atol + rtol * recorded`; 1e-5 and 1e-8 when absent |

The first difference in any file fails the start, with the file, the place in the answer, what was expected and found.
Text that holds JSON on both sides is compared as that JSON: scripts often answer `json.dumps(…)`.
"""

from __future__ import annotations

import base64
import binascii
import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .data_plane import DataPlane, Outcome, Scorer, ScoringRequest
from .errors import GoldenError
from .json_codec import decode, encode
from .metrics import Metrics

log = logging.getLogger("scoring_runtime")

JSON = "application/json"
RTOL, ATOL = 1e-5, 1e-8  # numpy.allclose's
_KEYS = {"contentType", "request", "requestBase64", "response", "responseBase64", "rtol", "atol"}


@dataclass(frozen=True, slots=True)
class GoldenCase:
    """One recorded request and its answer; `response` is a JSON value, or bytes."""

    file: Path
    content_type: str
    body: bytes
    response: Any
    rtol: float
    atol: float

    @classmethod
    def load(cls, file: Path) -> GoldenCase:
        """Read one file.

        Raises:
            GoldenError: it is not a case; the message names the key.
        """
        try:
            document = json.loads(file.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise GoldenError(f"golden case {file} cannot be read: {error}") from None
        if not isinstance(document, dict):
            raise GoldenError(f"golden case {file} must be a JSON object")
        unknown = sorted(set(document) - _KEYS)
        if unknown:
            raise GoldenError(f"golden case {file} has the unknown key '{unknown[0]}'")
        content_type = document.get("contentType", JSON)
        if not isinstance(content_type, str):
            raise GoldenError(f"golden case {file}: 'contentType' must be a string")
        request = _one_of(document, "request", file)
        return cls(
            file,
            content_type.partition(";")[0].strip().lower(),
            request if isinstance(request, bytes) else _body(request, content_type),
            _one_of(document, "response", file),
            _tolerance(document, "rtol", RTOL, file),
            _tolerance(document, "atol", ATOL, file),
        )

    def check(self, plane: DataPlane) -> None:
        """Compute the answer again.

        Raises:
            GoldenError: it differs.
        """
        headers = {"content-type": self.content_type}
        request = ScoringRequest(self.body, self.content_type, f"golden-{self.file.name}", headers)
        reply = plane.score(request, "golden")
        status = reply.rendered.status if reply.rendered is not None else None
        if reply.outcome is not Outcome.OK or (status or 200) >= 400:
            found = f"{reply.outcome.value}: {reply.body.decode('utf-8', 'replace')}"
            raise GoldenError(f"golden case {self.file}: expected the recorded answer, found {found}")
        difference = self._difference(reply.body)
        if difference:
            raise GoldenError(f"golden case {self.file}: {difference}")

    def _difference(self, body: bytes) -> str:
        if isinstance(self.response, bytes):
            return "" if body == self.response else f"expected {_short(self.response)}, found {_short(body)}"
        try:
            found = decode(body)
        except ValueError:
            return f"expected JSON, found {_short(body)}"
        return difference(self.response, found, rtol=self.rtol, atol=self.atol)


def check_golden(folder: Path, scorer: Scorer) -> int:
    """Check all cases of a folder; how many there were.

    Raises:
        GoldenError: there are none, one cannot be read, or an answer differs.
    """
    files = sorted(folder.glob("*.json"))
    if not files:
        raise GoldenError(f"there are no golden cases (*.json) in {folder}")
    plane = DataPlane(scorer, Metrics("golden"))  # counters of its own: these are nobody's requests
    for file in files:
        GoldenCase.load(file).check(plane)
    log.info("%d golden answers are reproduced", len(files))
    return len(files)


def difference(expected: Any, found: Any, *, rtol: float, atol: float, path: str = "response") -> str:
    """The first place where two JSON values differ, empty when nowhere."""
    if _is_number(expected) and _is_number(found):
        if math.isclose(expected, found, rel_tol=0, abs_tol=atol + rtol * abs(expected)):
            return ""
        return f"{path}: expected {expected!r}, found {found!r} (rtol {rtol:g}, atol {atol:g})"
    if type(expected) is not type(found):
        return f"{path}: expected {_short(expected)}, found {_short(found)}"
    pairs: list[tuple[str, Any, Any]] = []
    if isinstance(expected, list):
        if len(expected) != len(found):
            return f"{path}: expected {len(expected)} elements, found {len(found)}"
        pairs = [(f"{path}[{i}]", e, f) for i, (e, f) in enumerate(zip(expected, found, strict=True))]
    elif isinstance(expected, dict):
        if set(expected) != set(found):
            return f"{path}: expected the keys {sorted(expected)}, found {sorted(found)}"
        pairs = [(f"{path}.{key}", value, found[key]) for key, value in expected.items()]
    elif expected != found:
        inner = _both_json(expected, found)
        if inner is None:
            return f"{path}: expected {_short(expected)}, found {_short(found)}"
        pairs = [(path, *inner)]
    differences = (difference(e, f, rtol=rtol, atol=atol, path=place) for place, e, f in pairs)
    return next(filter(None, differences), "")


def _both_json(expected: Any, found: Any) -> tuple[Any, Any] | None:
    if not isinstance(expected, str):
        return None
    try:
        inner = json.loads(expected), json.loads(found)
    except ValueError:
        return None
    return None if any(isinstance(value, str) for value in inner) else inner


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _one_of(document: Mapping[str, Any], name: str, file: Path) -> Any:
    """The JSON value under `name`, or the bytes under `nameBase64`; exactly one of them is there."""
    encoded = f"{name}Base64"
    if (name in document) == (encoded in document):
        raise GoldenError(f"golden case {file} must have '{name}' or '{encoded}'")
    if name in document:
        return document[name]
    try:
        return base64.b64decode(document[encoded], validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise GoldenError(f"golden case {file}: '{encoded}' must be base64") from None


def _body(request: Any, content_type: str) -> bytes:
    if content_type.partition(";")[0].strip().lower() != JSON and isinstance(request, str):
        return request.encode()
    return encode(request)


def _tolerance(document: Mapping[str, Any], name: str, default: float, file: Path) -> float:
    value = document.get(name, default)
    if not _is_number(value) or not 0 <= value < math.inf:
        raise GoldenError(f"golden case {file}: '{name}' must be a number from 0, not {value!r}")
    return float(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "…"

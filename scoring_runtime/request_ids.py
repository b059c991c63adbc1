"""The three id headers of Azure ML's server, in and out (facts/azureml.md §2.3).

| header | in | out |
| --- | --- | --- |
| x-request-id | the request's id | the same; made here when absent |
| x-ms-client-request-id | the client's own id | echoed when given, else `x-ms-request-id` when that was given |
| x-ms-request-id | the old name of the client's id | always: its own value, else the client's id, else the request's |

An id of more than 100 characters is refused (431): the answer then carries `x-request-id` alone, and not even that when
it was the one too long. `TraceId` comes back as it came, and so does a well-formed `traceparent` (W3C Trace Context).
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

LIMIT_CHARACTERS = 100

# One random prefix per process and a counter: as unique as a random UUID for a tenth of its time.
_PREFIX = os.urandom(10).hex()
_COUNTER = itertools.count(1)


# W3C Trace Context level 1, §3.2: version-traceid-parentid-flags; ff is no version, all zeros are no ids.
_TRACEPARENT = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(-.*)?")


class IdTooLongError(ValueError):
    """`str()` is the text for the caller; `request` is the request's own id, empty when that was too long."""

    def __init__(self, names: str, request: str) -> None:
        super().__init__(f"{names} must not exceed {LIMIT_CHARACTERS} characters")
        self.request = request

    def headers(self) -> dict[str, str]:
        return {"x-request-id": self.request} if self.request else {}


@dataclass(frozen=True, slots=True)
class RequestIds:
    request: str
    client: str
    legacy: str
    trace: str | None = None
    traceparent: str | None = None

    @classmethod
    def read(cls, headers: Mapping[str, str]) -> RequestIds:
        """From header names in lower case.

        Raises:
            IdTooLongError: an id has more than 100 characters.
        """
        request = headers.get("x-request-id") or new_request_id()
        if len(request) > LIMIT_CHARACTERS:
            raise IdTooLongError("x-request-id", "")
        legacy = headers.get("x-ms-request-id", "")
        client = headers.get("x-ms-client-request-id", "") or legacy
        if len(legacy) > LIMIT_CHARACTERS or len(client) > LIMIT_CHARACTERS:
            raise IdTooLongError("x-ms-request-id and x-ms-client-request-id", request)
        traceparent = headers.get("traceparent")
        if traceparent is not None and not is_traceparent(traceparent):
            traceparent = None
        return cls(request, client, legacy or client or request, headers.get("traceid"), traceparent)

    def headers(self) -> list[tuple[bytes, bytes]]:
        pairs = [("x-request-id", self.request), ("x-ms-request-id", self.legacy)]
        if self.client:
            pairs.append(("x-ms-client-request-id", self.client))
        if self.trace is not None:
            pairs.append(("TraceId", self.trace))
        if self.traceparent is not None:
            pairs.append(("traceparent", self.traceparent))
        return [(name.encode(), value.encode("latin-1")) for name, value in pairs]


def is_traceparent(value: str) -> bool:
    """A longer value is allowed to later versions of the header alone (§3.2.3)."""
    return len(value) <= LIMIT_CHARACTERS and _TRACEPARENT.fullmatch(value) is not None


def new_request_id() -> str:
    return f"{_PREFIX}{next(_COUNTER):012x}"

"""The three id headers of Azure ML's server, in and out (facts/azureml.md §2.3).

| header | in | out |
| --- | --- | --- |
| x-request-id | the request's id | the same; made here when absent |
| x-ms-client-request-id | the client's own id | echoed when given, else `x-ms-request-id` when that was given |
| x-ms-request-id | the old name of the client's id | always: its own value, else the client's id, else the request's |

An id of more than 100 characters is refused (431). `TraceId` comes back as it came.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping
from dataclasses import dataclass

LIMIT_CHARACTERS = 100

# One random prefix per process and a counter: as unique as a random UUID for a tenth of its time.
_PREFIX = os.urandom(10).hex()
_COUNTER = itertools.count(1)


class IdTooLongError(ValueError):
    """`str()` is the text for the caller."""


@dataclass(frozen=True, slots=True)
class RequestIds:
    request: str
    client: str
    legacy: str
    trace: str | None = None

    @classmethod
    def read(cls, headers: Mapping[str, str]) -> RequestIds:
        """From header names in lower case.

        Raises:
            IdTooLongError: an id has more than 100 characters.
        """
        request = headers.get("x-request-id") or new_request_id()
        legacy = headers.get("x-ms-request-id", "")
        client = headers.get("x-ms-client-request-id", "") or legacy
        for name in ("x-request-id", "x-ms-request-id", "x-ms-client-request-id"):
            if len(headers.get(name, "")) > LIMIT_CHARACTERS:
                raise IdTooLongError(f"{name} must not exceed {LIMIT_CHARACTERS} characters")
        return cls(request, client, legacy or client or request, headers.get("traceid"))

    def headers(self) -> list[tuple[bytes, bytes]]:
        pairs = [("x-request-id", self.request), ("x-ms-request-id", self.legacy)]
        if self.client:
            pairs.append(("x-ms-client-request-id", self.client))
        if self.trace is not None:
            pairs.append(("TraceId", self.trace))
        return [(name.encode(), value.encode("latin-1")) for name, value in pairs]


def new_request_id() -> str:
    return f"{_PREFIX}{next(_COUNTER):012x}"

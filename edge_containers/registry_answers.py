"""What a registry's refusal means, said so that the reader can act on it.

Status                 error                     what the message adds
401                    RegistryAuthError         whether credentials were given, and whose
403                    RegistryForbiddenError    whose
404                    RegistryNotFoundError     what was looked for
413                    RegistryTooLargeError     that a proxy's body limit may be the cause
429                    RegistryBusyError         when to try again, if it says
507, or any status     RegistryFullError         that someone must make room there
 whose text says so
408, 500, 502–504      RegistryUnavailableError
anything else          RegistryError

Bodies are read in the shape of the distribution specification ("Error Codes") and cut short; secrets are redacted.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Self

import urllib3
from urllib3.exceptions import HTTPError

from edge_contracts.redact import redact_text

from .errors import (
    RegistryAuthError,
    RegistryBusyError,
    RegistryError,
    RegistryForbiddenError,
    RegistryFullError,
    RegistryNotFoundError,
    RegistryTooLargeError,
    RegistryUnavailableError,
)

SUBJECTS = {"manifests": "manifest", "blobs": "blob"}
CREDENTIALS_COMMAND = "edgewright registry credentials"

_MAX_ERROR_BYTES = 8 << 10
_SHOWN_CHARACTERS = 300
_MAX_RETRY_AFTER_S = 24 * 3600.0

_ERRORS: Mapping[int, type[RegistryError]] = {
    401: RegistryAuthError,
    403: RegistryForbiddenError,
    404: RegistryNotFoundError,
    413: RegistryTooLargeError,
    429: RegistryBusyError,
    507: RegistryFullError,
    **dict.fromkeys((408, 500, 502, 503, 504), RegistryUnavailableError),
}
# Go's words and errno 28 (ENOSPC) as Docker's registry passes them on with a 500; quotas as Harbor and others word them.
_FULL = re.compile(
    rb'no space left on device|"Err":\s*28\b|disk quota exceeded|quota (?:has been )?exceeded', re.I
)

_TEXTS: Mapping[type[RegistryError], str] = {
    RegistryNotFoundError: "has no {subject} in repository '{repository}'",
    RegistryTooLargeError: "takes no body as large as {subject} in repository '{repository}' (a proxy before it may set "
    "the limit, as client_max_body_size)",
    RegistryFullError: "has no room left for {subject} in repository '{repository}'; make room there, then push again: "
    "what it has is not sent twice",
    RegistryBusyError: "was asked too often and wants a pause before {subject} in repository '{repository}'",
    RegistryUnavailableError: "is not ready to answer for {subject} in repository '{repository}'",
    RegistryError: "refused {method} of {subject} in repository '{repository}'",
}


@dataclass(frozen=True, slots=True)
class AskedFor:
    """What was asked of whom, for messages; `user` is None where no credentials were given."""

    registry: str
    repository: str
    method: str
    subject: str
    user: str | None


@dataclass(frozen=True, slots=True)
class Answer:
    """A refusal: status, the start of its text, and after how many seconds to come back."""

    status: int
    reason: str
    data: bytes
    retry_after_s: float | None

    @classmethod
    def of(cls, response: urllib3.BaseHTTPResponse) -> Self:
        """Read a response to its end, or its start when it is long."""
        wait = retry_after_s(response.headers.get("Retry-After", ""))
        return cls(response.status, response.reason or "", discard(response), wait)

    @property
    def kind(self) -> type[RegistryError]:
        """Which error it is."""
        if self.status >= 400 and self.status != 401 and _FULL.search(self.data):
            return RegistryFullError
        return _ERRORS.get(self.status, RegistryError)

    def __str__(self) -> str:
        """Status and the first of the registry's own error entries."""
        status = f"{self.status} {self.reason}".strip()
        try:
            first = json.loads(self.data)["errors"][0]
            detail = ": ".join(str(first[name]) for name in ("code", "message") if first.get(name))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
            detail = ""
        return f"{status} {redact_text(detail)[:_SHOWN_CHARACTERS]}".strip()


def refusal(asked: AskedFor, answer: Answer) -> RegistryError:
    """The error that an answer stands for."""
    kind = answer.kind
    is_auth = issubclass(kind, RegistryAuthError)
    text = (
        _auth_text(asked, kind)
        if is_auth
        else _TEXTS[kind].format(subject=asked.subject, repository=asked.repository, method=asked.method)
    )
    when = f"; it says to try again in {answer.retry_after_s:.0f} s" if answer.retry_after_s else ""
    return kind(
        f"registry {asked.registry} {text}: {answer}{when}",
        registry=asked.registry,
        repository=asked.repository,
        status=answer.status,
        retry_after_s=answer.retry_after_s,
        next_command=CREDENTIALS_COMMAND if is_auth else None,
    )


def discard(response: urllib3.BaseHTTPResponse) -> bytes:
    """Finish with an answer whose body matters little: its start; the connection is kept if that was all."""
    with response:
        try:
            return response.read(_MAX_ERROR_BYTES)
        except HTTPError:
            return b""


def retry_after_s(text: str) -> float | None:
    """`Retry-After` as seconds from now: a number or a date (RFC 9110, 10.2.3); None for anything else."""
    if text.isascii() and text.isdigit():
        return min(float(text), _MAX_RETRY_AFTER_S)
    try:
        wait_s = parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(wait_s, 0.0), _MAX_RETRY_AFTER_S)


def _auth_text(asked: AskedFor, kind: type[RegistryError]) -> str:
    if asked.user is None:
        text = "asks for credentials, and none were given,"
    elif kind is RegistryForbiddenError:
        text = f"does not permit this to user '{asked.user}'"
    else:
        text = f"refused the credentials of user '{asked.user}'"
    return f"{text} for repository '{asked.repository}'"

"""What must never be printed.

Rules:
- A `Secret` shows `***` in every text form; only `reveal()` gives the value. It is no `str`, so JSON encoders refuse it.
- `redact_text` removes secrets from free text: connection strings, SAS signatures, `password=…` fields,
  `Authorization` headers, user information of URLs, PEM private keys.
- `redact_document` replaces the values under secret keys, whatever their type, and redacts every other string. A key is
  secret by how it ends (`DB_PASSWORD`), a few short ones by all of it (`auth`, `sig`).

>>> redact_text("HostName=h;DeviceId=d;SharedAccessKey=c2VjcmV0")
'HostName=h;DeviceId=d;SharedAccessKey=***'
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Mapping
from typing import NoReturn, final

MASK = "***"

SECRET_ENDINGS = (
    "accesskey",
    "accountkey",
    "apikey",
    "connectionstring",
    "passphrase",
    "passwd",
    "password",
    "primarykey",
    "privatekey",
    "secondarykey",
    "secret",
    "sharedaccesssignature",
    "token",
)
"""Ends of keys whose values are secret, lower case without `_` and `-`."""

SECRET_KEYS = frozenset({"auth", "authorization", "sig"})
"""Whole keys, likewise."""


@final
class Secret:
    """A string that stays out of logs, errors, reprs and documents."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The value; call it where it is sent or stored, nowhere else."""
        return self._value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __bool__(self) -> bool:
        return bool(self._value)

    def __repr__(self) -> str:
        return f"Secret('{MASK}')"

    def __str__(self) -> str:
        return MASK

    def __format__(self, spec: str) -> str:
        return format(MASK, spec)

    # dataclasses.asdict copies deeply; a copy of an immutable value is the value.
    def __copy__(self) -> Secret:
        return self

    def __deepcopy__(self, memo: object) -> Secret:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled: pass reveal() where the value is needed")


_NAMES = (
    "SharedAccessKey|AccountKey|primaryKey|secondaryKey|accessKey|apiKey|api_key|client_?secret"
    "|pass(?:word|wd|phrase)|private_?key|(?:access|refresh|identity|registry)_?token|token|secret"
)
_RULES: tuple[tuple[re.Pattern[str], str], ...] = (
    (
        re.compile(r"-----BEGIN ([A-Z ]*PRIVATE KEY)-----.*?(?:-----END \1-----|\Z)", re.DOTALL),
        f"-----BEGIN \\1-----{MASK}-----END \\1-----",
    ),
    # Header lines keep their scheme: "Basic" against "Bearer" is what one wants to see when a login fails.
    (
        re.compile(
            r"(?i)(\b(?:proxy-)?authorization['\"]?\s*[:=]\s*['\"]?)(?:(basic|bearer|sharedaccesssignature)\s+)?[^\r\n'\"]+"
        ),
        f"\\1\\2 {MASK}",
    ),
    # Not "basic authentication": a token has a capital, a digit or padding somewhere.
    (
        re.compile(r"\b((?i:bearer|basic))\s+(?=[a-z]*[A-Z0-9=+/_])[A-Za-z0-9._~+/=-]{8,}"),
        f"\\1 {MASK}",
    ),
    (re.compile(r"(?i)\b([a-z][a-z0-9+.-]{0,30}://)[^\s/@'\"]+@"), f"\\1{MASK}@"),
    (re.compile(r"(?i)(\bsig=)[^&;\s'\"]+"), f"\\1{MASK}"),
    # "password": "…" in JSON (also JSON inside a JSON string, where the quotes are escaped) and in reprs.
    (
        re.compile(rf"(?i)(\\?['\"][\w-]*?(?:{_NAMES})\\?['\"]\s*:\s*)(\\?)(['\"])(?:\\.|(?!\3)[^\\])*?\2\3"),
        f"\\1\\2\\3{MASK}\\2\\3",
    ),
    # password=… in connection strings, query strings and environment lists.
    (re.compile(rf"(?i)((?:{_NAMES})\s*=\s*)[^;&\s'\"\\]+"), f"\\1{MASK}"),
)


def redact_text(text: str) -> str:
    """`text` with every recognised secret replaced by `***`."""
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


def redact_document(document: object) -> object:
    """A copy of a JSON-like `document` without secrets.

    Values under secret keys become `***`, even when they are objects; null and empty values stay, since that a secret is
    missing is worth seeing.
    """
    if isinstance(document, Secret):
        return MASK
    if isinstance(document, str):
        return redact_text(document)
    if isinstance(document, Mapping):
        return {
            key: MASK if _hides(key, value) else redact_document(value) for key, value in document.items()
        }
    if isinstance(document, list | tuple):
        return [redact_document(item) for item in document]
    return document


def _hides(key: object, value: object) -> bool:
    if value is None or value == "":
        return False
    if not isinstance(key, str):
        return False
    plain = key.replace("_", "").replace("-", "").lower()
    return plain in SECRET_KEYS or plain.endswith(SECRET_ENDINGS)

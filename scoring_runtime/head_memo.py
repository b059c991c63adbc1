"""What the head of a `POST /score` asks for: a strict parse, remembered by the head's exact bytes.

1. The parse is a pure function of the bytes up to and including the empty line, so remembering it changes no answer.
2. It knows a small part of RFC 9112 and nothing beside it: `POST /score HTTP/1.1`, CRLF line ends, token names,
   each header once, one Content-Length of digits. Everything else (a second Content-Length, Transfer-Encoding,
   Expect, Upgrade, folded lines, bare LF, a query, CORS, an id over its limit, a body over the limit) is None:
   the caller gives those bytes to the general parser, which answers or refuses them.
3. Ids that differ in every request are cut out before the second look-up, so that clients which send them
   hit the memory too; a request with such an id is parsed by its head without them.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping

from .request_ids import LIMIT_CHARACTERS, RequestIds

START = b"POST /score HTTP/1.1\r\n"
END = b"\r\n\r\n"
# A head over this goes to the general parser: 8 KiB is what common proxies allow.
MAX_HEAD_BYTES = 8192
# Heads of one client differ by their Content-Length alone, so this is some tens of clients; 8 MiB at worst.
MAX_HEADS = 1024

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_HEAD = re.compile(rf"POST /score HTTP/1\.1\r\n(?:{_TOKEN}:[\t\x20-\x7e\x80-\xff]*\r\n)+\r\n")
_DIGITS = re.compile(r"[0-9]{1,10}")
# A header whose value is new in every request. One per request is cut out; a second one is parsed as it stands.
_FRESH_ID = re.compile(rb"\r\n[Xx]-(?:[Rr]equest-[Ii][Dd]):[\t ]*([!-~]{1,%d})(?=\r\n)" % LIMIT_CHARACTERS)
# Framing that is not a plain body, another protocol, or answers that depend on more than the ids.
_GENERAL = frozenset(
    (
        "transfer-encoding",
        "expect",
        "upgrade",
        "te",
        "trailer",
        "http2-settings",
        "proxy-connection",
        "content-encoding",
        "origin",
        "access-control-request-method",
        "access-control-request-headers",
    )
)
# Stands for the request's id while the answer's headers are made; no header value can hold it.
_ID = "\0"
_ID_HEADERS = ("x-request-id", "x-ms-request-id", "x-ms-client-request-id", "traceid", "traceparent")


class Head:
    """One parsed head.

    Attributes:
        length: of the body, within the limit.
        content_type: the media type alone, in lower case, empty when none was given.
        has_octets: the body is nothing but bytes.
        headers: by names in lower case.
        request_id: the client's, None when it is to be made or was cut out.
    """

    __slots__ = ("_id_headers", "content_type", "has_octets", "headers", "length", "request_id")

    def __init__(
        self, length: int, headers: Mapping[str, str], request_id: str | None, id_headers: list[bytes]
    ) -> None:
        self.length = length
        self.content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
        self.has_octets = self.content_type == "application/octet-stream"
        self.headers = headers
        self.request_id = request_id
        self._id_headers = id_headers

    def id_headers(self, request_id: str) -> bytes:
        """The answer's id headers, each line ended."""
        return request_id.encode("latin-1").join(self._id_headers)

    def headers_with(self, request_id: str | None) -> Mapping[str, str]:
        """All headers, with the id that was cut out."""
        if request_id is None or request_id == self.request_id:
            return self.headers
        return {**self.headers, "x-request-id": request_id}


class HeadMemo:
    """Not thread-safe: the event loop's own."""

    def __init__(self, body_limit_bytes: int) -> None:
        self._body_limit_bytes = body_limit_bytes
        self._heads: dict[bytes, tuple[Head, str | None]] = {}

    def read(self, head: bytes) -> tuple[Head, str | None] | None:
        """The head up to and including the empty line, and the client's request id.

        None: the general parser must see these bytes.
        """
        known = self._heads.get(head)
        if known is not None:
            return known
        if len(head) > MAX_HEAD_BYTES:
            return None
        fresh = _FRESH_ID.search(head)
        if fresh is None:
            return self._remember(head)
        rest = head[: fresh.start()] + head[fresh.end() :]
        known = self._heads.get(rest) or self._remember(rest)
        if known is None or known[1] is not None:
            return None  # the id is there twice
        return known[0], fresh[1].decode("latin-1")

    def _remember(self, head: bytes) -> tuple[Head, str | None] | None:
        parsed = parse_head(head, self._body_limit_bytes)
        if parsed is None:
            return None
        if len(self._heads) >= MAX_HEADS:
            self._heads.clear()
        self._heads[head] = known = (parsed, parsed.request_id)
        return known


def parse_head(head: bytes, body_limit_bytes: int) -> Head | None:
    """None for whatever is not the plain form."""
    text = head.decode("latin-1")
    if _HEAD.fullmatch(text) is None:
        return None
    fields = [line.partition(":") for line in text[len(START) : -len(END)].split("\r\n")]
    headers = {name.lower(): value.strip("\t ") for name, _, value in fields}
    length = headers.get("content-length", "")
    if (
        len(headers) != len(fields)
        or not _GENERAL.isdisjoint(headers)
        or headers.get("connection", "keep-alive").lower() != "keep-alive"
        or "host" not in headers
        or _DIGITS.fullmatch(length) is None
        or int(length) > body_limit_bytes
    ):
        return None
    given = headers.get("x-request-id")
    id_headers = _id_headers(tuple(map(headers.get, _ID_HEADERS)))
    return None if id_headers is None else Head(int(length), headers, given, id_headers)


@functools.lru_cache(MAX_HEADS)
def _id_headers(values: tuple[str | None, ...]) -> list[bytes] | None:
    """The pieces between which the request's id is written; None when the general parser must refuse an id."""
    given = {name: value for name, value in zip(_ID_HEADERS, values, strict=True) if value is not None}
    if "" in given.values():
        return None
    try:
        ids = RequestIds.read({"x-request-id": _ID, **given})
    except ValueError:
        return None
    lines = b"".join(b"%b: %b\r\n" % pair for pair in ids.headers())
    return lines.split(_ID.encode())

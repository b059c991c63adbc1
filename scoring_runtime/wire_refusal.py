"""The answer to what is no HTTP request: the contract's form, where no application has seen anything yet."""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus

from .json_codec import encode
from .request_ids import IdTooLongError, RequestIds


def wire_refusal(status: int, message: str, headers: Iterable[tuple[bytes, bytes]], more: bytes) -> bytes:
    """The whole answer, after which the connection is closed.

    Args:
        status: its number.
        message: for the caller.
        headers: of the request, as far as they were read, names in lower case; their ids come back.
        more: whole header lines, or nothing.
    """
    body = encode({"message": message})
    return (
        b"HTTP/1.1 %d %b\r\n%bcontent-type: application/json\r\nx-ms-run-function-failed: False\r\n%b"
        b"content-length: %d\r\nconnection: close\r\n\r\n%b"
    ) % (status, HTTPStatus(status).phrase.encode(), more, _ids(headers), len(body), body)


def _ids(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    read = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers}
    try:
        ids = RequestIds.read(read).headers()
    except IdTooLongError as error:
        ids = [(name.encode(), value.encode("latin-1")) for name, value in error.headers().items()]
    return b"".join(b"%b: %b\r\n" % pair for pair in ids)

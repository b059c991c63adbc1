"""What a script with `@rawhttp` works with: `AMLRequest` in, `AMLResponse` out, as Azure ML's server has them.

1. `AMLRequest` is the part of Flask's request that entry scripts use: method, path, full_path, url, args, headers,
   get_data(), data, get_json(), json, form, files, cookies. It holds the whole body; nothing is read later.
2. `AMLResponse(None, …)` is an empty JSON object; `json_str=True` writes the message as JSON; bytes, text and
   generators go out as they are, as text/html unless the script says otherwise.
3. Header values are split at commas into one header each, as Azure ML's server does.
4. A header that could end the header block (CR, LF, NUL) is refused where the script sets it.
"""

from __future__ import annotations

import functools
import io
from collections.abc import Callable, Iterable, Iterator, Mapping
from email.message import Message
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote

from .data_plane import Rendered, ScoringRequest
from .errors import BadInputError
from .json_codec import decode, encode

Function = TypeVar("Function", bound=Callable[..., Any])

HTML = "text/html; charset=utf-8"
JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"
MAX_FORM_FIELDS = 1000  # as python-multipart and Starlette have it
_MARK = "_scoring_runtime_rawhttp"
_FAILED = "x-ms-run-function-failed"
# Set by the server on every reply; a script cannot override them.
_SERVERS_OWN = frozenset(
    {
        _FAILED,
        "x-request-id",
        "x-ms-request-id",
        "x-ms-client-request-id",
        "x-ms-run-fn-exec-ms",
        "traceid",
        "traceparent",
        "content-length",
        "transfer-encoding",
        "connection",
    }
)


def rawhttp(run: Function) -> Function:
    """Decorator of `run(request)`: it gets an `AMLRequest` for GET, POST and OPTIONS alike."""
    setattr(run, _MARK, True)
    return run


def is_rawhttp(run: Callable[..., Any]) -> bool:
    """Whether `run`, or a function that it wraps, is decorated."""
    function: Any = run
    while function is not None:
        if getattr(function, _MARK, False):
            return True
        function = getattr(function, "__wrapped__", None)
    return False


class Headers:
    """Ordered headers; names are looked up without regard to case, and may repeat."""

    def __init__(self, pairs: Iterable[tuple[str, str]] = ()) -> None:
        self._pairs: list[tuple[str, str]] = []
        for name, value in pairs:
            self.add(name, value)

    def add(self, name: str, value: object) -> None:
        """Append, keeping what is there.

        Raises:
            ValueError: the name or the value holds CR, LF or NUL, or the name is empty or no token.
        """
        text = str(value)
        if not name or any(c in "\r\n\0" for c in name + text) or any(c in name for c in " :\t"):
            raise ValueError(f"the header {name!r}: {text!r} cannot be sent")
        self._pairs.append((name, text))

    add_header = add

    def get(self, name: str, default: Any = None) -> Any:
        wanted = name.lower()
        return next((value for key, value in self._pairs if key.lower() == wanted), default)

    def getlist(self, name: str) -> list[str]:
        return [value for key, value in self._pairs if key.lower() == name.lower()]

    def remove(self, name: str) -> None:
        self._pairs = [pair for pair in self._pairs if pair[0].lower() != name.lower()]

    def items(self) -> list[tuple[str, str]]:
        return list(self._pairs)

    def keys(self) -> list[str]:
        return [name for name, _ in self._pairs]

    def __getitem__(self, name: str) -> str:
        value = self.get(name)
        if value is None:
            raise KeyError(name)
        return str(value)

    def __setitem__(self, name: str, value: object) -> None:
        self.remove(name)
        self.add(name, value)

    def __delitem__(self, name: str) -> None:
        self.remove(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self.get(name) is not None

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._pairs)

    def __len__(self) -> int:
        return len(self._pairs)


class Values(dict[str, Any]):
    """A dict of each name's first value that still knows the others: `getlist(name)`."""

    def __init__(self, pairs: Iterable[tuple[str, Any]] = ()) -> None:
        self._lists: dict[str, list[Any]] = {}
        for name, value in pairs:
            self._lists.setdefault(name, []).append(value)
        super().__init__({name: values[0] for name, values in self._lists.items()})

    def getlist(self, name: str) -> list[Any]:
        return list(self._lists.get(name, []))

    def get(self, key: str, default: Any = None, type: Callable[[str], Any] | None = None) -> Any:
        """As Flask's `args.get("n", 1, type=int)`: a value that does not convert is the default."""
        if key not in self:
            return default
        try:
            return type(self[key]) if type is not None else self[key]
        except ValueError:
            return default


class UploadedFile:
    """A file of a multipart form; reads like a file object."""

    def __init__(self, name: str, filename: str, content_type: str, content: bytes) -> None:
        self.name = name
        self.filename = filename
        self.content_type = self.mimetype = content_type
        self.stream = io.BytesIO(content)

    def read(self, size: int = -1) -> bytes:
        return self.stream.read(size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self.stream.seek(offset, whence)

    def save(self, destination: str) -> None:
        Path(destination).write_bytes(self.stream.getvalue())


class AMLRequest:
    """One request as a raw script sees it; everything is computed when it is asked for."""

    def __init__(self, request: ScoringRequest) -> None:
        self._request = request
        self.method = request.method
        self.headers = Headers(request.headers.items())

    def get_data(self, cache: bool = True, as_text: bool = False, parse_form_data: bool = False) -> Any:
        return str(self._request.body, "utf-8", "replace") if as_text else self._request.body

    @property
    def data(self) -> bytes:
        return self._request.body

    @property
    def stream(self) -> io.BytesIO:
        return io.BytesIO(self._request.body)

    @property
    def path(self) -> str:
        return unquote(self._request.target.partition("?")[0])

    @property
    def query_string(self) -> bytes:
        return self._request.target.partition("?")[2].encode("latin-1")

    @property
    def full_path(self) -> str:
        """Path and query with a `?` between them even when there is no query, as in Flask."""
        return f"{self.path}?{self.query_string.decode('latin-1')}"

    @property
    def host(self) -> str:
        return str(self.headers.get("host", ""))

    @property
    def base_url(self) -> str:
        return f"http://{self.host}{self.path}"

    @property
    def url(self) -> str:
        return f"http://{self.host}{self._request.target}"

    @functools.cached_property
    def args(self) -> Values:
        query = self._request.target.partition("?")[2]
        return Values(_pairs(query))

    @property
    def content_type(self) -> str | None:
        found: str | None = self.headers.get("content-type")
        return found

    @property
    def mimetype(self) -> str:
        return self._request.content_type

    @property
    def content_length(self) -> int:
        return len(self._request.body)

    @property
    def is_json(self) -> bool:
        kind = self.mimetype
        return kind == JSON or (kind.startswith("application/") and kind.endswith("+json"))

    def get_json(self, force: bool = False, silent: bool = False, cache: bool = True) -> Any:
        """The body as JSON; None when it is not declared as JSON, unless forced.

        Raises:
            BadInputError: it is not JSON; the client is answered 400.
        """
        if not (force or self.is_json):
            return None
        try:
            return decode(self._request.body)
        except BadInputError:
            if silent:
                return None
            raise

    @property
    def json(self) -> Any:
        return self.get_json()

    @functools.cached_property
    def form(self) -> Values:
        if self.mimetype == FORM:
            return Values(_pairs(str(self._request.body, "utf-8", "replace")))
        return Values((name, value) for name, value in self._parts if isinstance(value, str))

    @functools.cached_property
    def files(self) -> Values:
        return Values((name, value) for name, value in self._parts if isinstance(value, UploadedFile))

    @property
    def values(self) -> Values:
        return Values([*self.args.items(), *self.form.items()])

    @functools.cached_property
    def cookies(self) -> dict[str, str]:
        try:
            return {
                name: morsel.value for name, morsel in SimpleCookie(self.headers.get("cookie", "")).items()
            }
        except CookieError:
            return {}

    @functools.cached_property
    def _parts(self) -> list[tuple[str, str | UploadedFile]]:
        if self.mimetype != MULTIPART:
            return []
        return _multipart(self._request.body, self.content_type or "")


class AMLResponse:
    """What a script answers with when a JSON value is not enough."""

    def __init__(
        self,
        message: Any,
        status_code: int,
        response_headers: Mapping[str, str] | None = None,
        json_str: bool = False,
        run_function_failed: bool = False,
    ) -> None:
        if not isinstance(status_code, int) or not 200 <= status_code <= 599:
            raise ValueError(f"status_code must be a number from 200 to 599, not {status_code!r}")
        self.status_code = status_code
        self.run_function_failed = bool(run_function_failed)
        given = [(n, v.strip()) for n, text in (response_headers or {}).items() for v in str(text).split(",")]
        self.headers = Headers()
        if message is None or json_str:
            # Rendered here, so that a value that JSON cannot hold fails in the script's own line.
            self._body: bytes | Iterable[bytes | str] = b"{}" if message is None else encode(message)
            self.headers.add("Content-Type", JSON)
            given = [(name, value) for name, value in given if name.lower() != "content-type"]
        else:
            self._body = message.encode() if isinstance(message, str) else message
            if not any(name.lower() == "content-type" for name, _ in given):
                self.headers.add("Content-Type", HTML)
        if not isinstance(self._body, bytes | bytearray | memoryview) and not hasattr(self._body, "__iter__"):
            raise TypeError(
                "message must be bytes, text or an iterable of them, or be written as JSON with json_str=True,"
                f" not {type(message).__name__}"
            )
        for name, value in given:
            self.headers.add(name, value)

    def get_data(self, as_text: bool = False) -> Any:
        body = self._whole()
        return body.decode() if as_text else body

    @property
    def data(self) -> bytes:
        return self._whole()

    def render(self) -> Rendered:
        """The reply for the server: the script's headers without those that are the server's own."""
        failed = self.run_function_failed or self.status_code >= 500
        pairs = tuple(
            (name.lower(), value) for name, value in self.headers if name.lower() not in _SERVERS_OWN
        )
        if isinstance(self._body, bytes | bytearray | memoryview):
            return Rendered(bytes(self._body), self.status_code, pairs, failed)
        return Rendered(b"", self.status_code, pairs, failed, _chunks(self._body))

    def _whole(self) -> bytes:
        if not isinstance(self._body, bytes | bytearray | memoryview):
            self._body = b"".join(_chunks(self._body))
        return bytes(self._body)


def _chunks(parts: Iterable[bytes | str]) -> Iterator[bytes]:
    for part in parts:
        yield part.encode() if isinstance(part, str) else bytes(part)


def _pairs(query: str) -> list[tuple[str, str]]:
    try:
        return parse_qsl(query, keep_blank_values=True, max_num_fields=MAX_FORM_FIELDS)
    except ValueError:
        raise BadInputError(f"expected at most {MAX_FORM_FIELDS} fields in a query or form") from None


def _multipart(body: bytes, content_type: str) -> list[tuple[str, str | UploadedFile]]:
    """The parts of a multipart form (RFC 7578).

    Raises:
        BadInputError: no boundary, a part without a name, or too many parts.
    """
    boundary = _parameters(content_type).get("boundary", "")
    if not boundary:
        raise BadInputError(f"expected '{MULTIPART}; boundary=…', found no boundary")
    # The delimiter is CRLF--boundary; the first one may lack the CRLF, so the body gets one.
    pieces = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("latin-1"))[1:]
    if len(pieces) > MAX_FORM_FIELDS:
        raise BadInputError(f"expected at most {MAX_FORM_FIELDS} parts in a form, found {len(pieces)}")
    found: list[tuple[str, str | UploadedFile]] = []
    for piece in pieces:
        if piece.startswith(b"--"):
            return found
        head, separator, content = piece.partition(b"\r\n\r\n")
        if separator:
            found.append(_part(head, content))
    raise BadInputError("the form's closing boundary is missing")


def _part(head: bytes, content: bytes) -> tuple[str, str | UploadedFile]:
    lines = (line.partition(":") for line in head.decode("utf-8", "replace").split("\r\n") if ":" in line)
    headers = {name.strip().lower(): value.strip() for name, _, value in lines}
    disposition = _parameters(headers.get("content-disposition", ""))
    name = disposition.get("name")
    if name is None:
        raise BadInputError("a part of the form has no name; expected Content-Disposition: form-data; name=…")
    if "filename" not in disposition:
        return name, content.decode("utf-8", "replace")
    kind = headers.get("content-type", "application/octet-stream")
    return name, UploadedFile(name, disposition["filename"], kind, content)


def _parameters(value: str) -> dict[str, str]:
    """`form-data; name="a"; filename="b"` → {"name": "a", "filename": "b"}."""
    message = Message()
    message["content-disposition"] = value
    found = message.get_params(header="content-disposition", failobj=[])[1:]
    return {str(name).lower(): str(text) for name, text in found}


__all__ = ["AMLRequest", "AMLResponse", "Headers", "UploadedFile", "Values", "is_rawhttp", "rawhttp"]

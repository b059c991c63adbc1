"""What a fuzzer may send: bodies from a JSON Schema, the same ones damaged, and HTTP heads put together by chance."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from typing import Any

from hypothesis import strategies as st

# Within float32, so that what the schema allows is what the model takes: a schema cannot say more than "number".
_NUMBERS = st.floats(-(2.0**120), 2.0**120, width=32, allow_subnormal=False)
_MOST_ITEMS = 4

JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.just(10**400),
    st.just([[[[]]]]),
    st.lists(st.floats(), min_size=1, max_size=5),
)


def bodies(schema: Mapping[str, Any]) -> st.SearchStrategy[Any]:
    """Values that the schema allows, for the keywords that the swagger documents use.

    Raises:
        ValueError: the schema has a type of which nothing is known.
    """
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        required = set(schema.get("required", ()))
        fields = {name: bodies(each) for name, each in schema.get("properties", {}).items()}
        optional = {name: each for name, each in fields.items() if name not in required}
        return st.fixed_dictionaries({name: fields[name] for name in sorted(required)}, optional=optional)
    if kind == "array":
        low = schema.get("minItems", 1)
        return st.lists(
            bodies(schema["items"]), min_size=low, max_size=schema.get("maxItems", low + _MOST_ITEMS)
        )
    scalars = {
        "number": _NUMBERS,
        "integer": st.integers(schema.get("minimum", -(2**62)), schema.get("maximum", 2**62)),
        "boolean": st.booleans(),
        "string": st.text(max_size=8),
    }
    if kind not in scalars:
        raise ValueError(f"no values are known for the schema {schema}")
    return scalars[kind]


@st.composite
def damaged_documents(draw: st.DrawFn, documents: st.SearchStrategy[Any]) -> Any:
    """A document with one to three of its values replaced, removed, doubled or wrapped."""
    holder = [copy.deepcopy(draw(documents))]
    for _ in range(draw(st.integers(1, 3))):
        place, key = draw(st.sampled_from(_places(holder)))
        change: Callable[[Any, Any, Any], None] = draw(st.sampled_from([_put, _wrap, _remove, _double]))
        # A copy: the next change may be inside it, and a strategy's value must stay as it is.
        change(place, key, copy.deepcopy(draw(JUNK)))
    return holder[0] if holder else None


def _places(holder: Any) -> list[tuple[Any, Any]]:
    keys = holder.keys() if isinstance(holder, dict) else range(len(holder))
    found = [(holder, key) for key in keys]
    for _, key in list(found):
        if isinstance(holder[key], list | dict):
            found += _places(holder[key])
    return found or [([None], 0)]


def _put(place: Any, key: Any, value: Any) -> None:
    place[key] = value


def _wrap(place: Any, key: Any, _value: Any) -> None:
    place[key] = [place[key]]


def _remove(place: Any, key: Any, _value: Any) -> None:
    del place[key]


def _double(place: Any, key: Any, value: Any) -> None:
    if isinstance(place, list):
        place.insert(key, copy.deepcopy(place[key]))
    else:
        place[str(value)] = copy.deepcopy(place[key])


@st.composite
def damaged_bytes(draw: st.DrawFn, documents: st.SearchStrategy[Any]) -> bytes:
    """The JSON of a document, cut, with bytes put in, or with a piece twice."""
    data = json.dumps(draw(documents)).encode()
    at = draw(st.integers(0, len(data)))
    to = draw(st.integers(at, len(data)))
    return draw(
        st.sampled_from([data[:at], data[:at] + data[to:], data[:to] + data[at:], data + data])
        | st.binary(min_size=1, max_size=6).map(lambda more: data[:at] + more + data[at:])
    )


_METHODS = st.sampled_from(
    [b"GET", b"POST", b"PUT", b"OPTIONS", b"DELETE", b"PATCH", b"post", b"BREW", b"", b"PRI"]
)
_TARGETS = st.sampled_from(
    [b"/", b"/score", b"/score?data=[1]", b"/metrics", b"/swagger.json", b"//score", b"/score%00", b"*", b"", b"/\xff",
     b"http://x/score", b"/score HTTP/1.1", b"/" + b"a" * 3000, b"/v2/models/m/infer"]
)  # fmt: skip
_VERSIONS = st.sampled_from(
    [b"HTTP/1.1"] * 6 + [b"HTTP/1.0", b"HTTP/2.0", b"HTTP/9", b"http/1.1", b"", b"HTTP/1.1 x"]
)
_NAMES = st.sampled_from(
    [b"Host", b"Content-Length", b"content-length", b"Transfer-Encoding", b"Content-Type", b"Connection", b"Upgrade",
     b"Expect", b"x-request-id", b"x-ms-request-id", b"traceparent", b"Origin", b"Trailer", b"Content-Length ", b" x", b""]
)  # fmt: skip
_VALUES = st.one_of(
    st.sampled_from(
        [b"0", b"2", b"+2", b"-1", b"2, 2", b"0x2", b"99999999999999999999", b"chunked", b"chunked, identity", b"gzip",
         b"xchunked", b"close", b"keep-alive", b"upgrade", b"websocket", b"h2c", b"100-continue", b"application/json",
         b"application/octet-stream", b"", b"x" * 101, b"x" * 9000, b"a\x00b", b"a\rb", b"\xff\xfe"]
    ),
    st.binary(max_size=12),
)  # fmt: skip
_ENDS = st.sampled_from([b"\r\n"] * 8 + [b"\n", b"\r", b"\r\n\r\n", b"\r\n "])
_BODIES = st.sampled_from(
    [b"", b"{}", b"2\r\n{}\r\n0\r\n\r\n", b"ffffffffffffffff\r\n", b"-1\r\n", b"0\r\nx: y\r\n\r\n"]
)


@st.composite
def raw_requests(draw: st.DrawFn) -> bytes:
    """A request of parts that each mean something to an HTTP parser, in any combination, or just bytes."""
    if draw(st.integers(0, 9)) == 0:
        return draw(st.binary(min_size=1, max_size=80))
    start = b" ".join([draw(_METHODS), draw(_TARGETS), draw(_VERSIONS)])
    lines = draw(st.lists(st.tuples(_NAMES, _VALUES, _ENDS), max_size=6))
    head = b"".join(b"%b: %b%b" % line for line in lines)
    return b"%b%b%b\r\n%b" % (start, draw(_ENDS), head, draw(_BODIES))

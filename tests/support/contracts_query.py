"""A second, slow reading of IoT Hub's query language, to hold the real one against.

A condition is a tree of tuples, made at random: `render` spells it, `holds` says of what documents it is true, by cases and
with sets of possible values in the place of three-valued logic: an undefined value is no value at all.
"""

from __future__ import annotations

import json
import math
from typing import Any

from hypothesis import strategies as st

Tree = tuple[Any, ...]
ROOT = 0
# How tight each form binds, by the grammar; a weaker form inside a tighter one needs parentheses.
_TIGHTNESS = {"or": 1, "and": 2, "not": 3, "compare": 4, "in": 4, "sum": 5, "product": 6, "minus": 7}

_NAMES = st.sampled_from(["a", "A", "from", "odd name"])
_SCALARS = st.one_of(
    st.booleans(),
    st.integers(-2, 3),
    st.sampled_from([0.5, -2.25]),
    st.sampled_from(["", "a", "A", "it's", '\\ "q"', "\ufb00", "\U0001f600"]),
)
CONSTANTS = st.one_of(_SCALARS, st.none())
_VALUES = st.one_of(
    _SCALARS, _SCALARS, st.just([1]), st.fixed_dictionaries({"a": _SCALARS, "from": _SCALARS})
)
_SECTIONS = st.fixed_dictionaries(
    {"a": _SCALARS, "from": _VALUES}, optional={"A": _VALUES, "odd name": _VALUES}
)
DOCUMENTS = st.fixed_dictionaries(
    {
        "deviceId": st.sampled_from(["a", "b", "ab"]),
        "capabilities": st.fixed_dictionaries({"iotEdge": st.booleans()}),
        "tags": _SECTIONS,
        "properties": st.fixed_dictionaries(
            {"desired": _SECTIONS, "reported": st.just({"$version": 3, "a": 1})}
        ),
    }
)
_ROOTS = st.sampled_from(
    [
        ("deviceId",),
        ("capabilities", "iotEdge"),
        ("properties", "reported", "$version"),
        ("nothing",),
        ("tags",),
    ]
)
_BELOW = st.tuples(
    st.sampled_from([("tags",), ("properties", "desired"), ("properties", "reported")]),
    st.lists(_NAMES, min_size=1, max_size=2).filter(lambda names: len(names) == 1 or names[0] == "from"),
).map(lambda pair: (*pair[0], *pair[1]))
PATHS = st.one_of(_BELOW, _ROOTS)

_OPERANDS = st.one_of(
    PATHS.map(lambda path: ("path", path)),
    CONSTANTS.map(lambda value: ("constant", value)),
    st.just(("undefined",)),
)


def _sums(leaves: Any) -> Any:
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.tuples(st.just("sum"), st.sampled_from("+-"), inner, inner),
            st.tuples(st.just("product"), st.sampled_from("*/%"), inner, inner),
            st.tuples(st.just("minus"), inner),
        ),
        max_leaves=4,
    )


def sums_of(numbers: Any) -> Any:
    """Arithmetic of constants."""
    return _sums(numbers.map(lambda value: ("constant", value)))


ARITHMETIC = _sums(_OPERANDS)
_TESTS = st.one_of(
    st.tuples(
        st.just("compare"), st.sampled_from(["=", "!=", "<>", "<", "<=", ">", ">="]), ARITHMETIC, ARITHMETIC
    ),
    st.tuples(
        st.just("in"),
        st.sampled_from(["IN", "NIN"]),
        ARITHMETIC,
        st.lists(CONSTANTS, min_size=1, max_size=3),
    ),
    st.tuples(
        st.just("is"),
        st.sampled_from(["defined", "null", "bool", "number", "string", "array", "object", "primitive"]),
        ARITHMETIC,
    ),
    ARITHMETIC,
)
CONDITIONS = st.recursive(
    _TESTS,
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["and", "or"]), inner, inner), st.tuples(st.just("not"), inner)
    ),
    max_leaves=6,
)


def render(tree: Tree, tightness: int = ROOT) -> str:
    """The condition as text with no parenthesis that is not needed; both sides of an operator bind to the left."""
    own = _TIGHTNESS.get(tree[0], 9)
    text = _spelled(tree, own)
    return f"({text})" if own < tightness else text


def _spelled(tree: Tree, own: int) -> str:
    match tree:
        case ("path", path):
            return render_path(path)
        case ("constant", value):
            return render_constant(value)
        case ("undefined",):
            return "Undefined"
        case ("minus", inner):
            return f"- {render(inner, own)}"
        case ("not", inner):
            return f"not {render(inner, own)}"
        case ("and" | "or" as word, left, right):
            return f"{render(left, own)} {word} {render(right, own + 1)}"
        case ("in", word, left, constants):
            return f"{render(left, own)} {word} [{', '.join(map(render_constant, constants))}]"
        case ("is", kind, inner):
            return f"IS_{kind}({render(inner)})"
        case (_, symbol, left, right):
            return f"{render(left, own)}{symbol}{render(right, own + 1)}"
    raise AssertionError(tree)


def render_path(path: tuple[str, ...]) -> str:
    return ".".join(step if step.isidentifier() or step == "$version" else f"[[{step}]]" for step in path)


def render_constant(value: Any) -> str:
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
    return json.dumps(value)


def holds(tree: Tree, document: Any) -> bool:
    """Whether the condition is true of the document."""
    return any(value is True for value in values_of(tree, document))


def values_of(tree: Tree, document: Any) -> list[Any]:
    """The one value of an expression, or none."""
    match tree:
        case ("path", path):
            return values_at(document, path)
        case ("constant", value):
            return [value]
        case ("undefined",):
            return []
        case ("minus", inner):
            return [-float(value) for value in values_of(inner, document) if _kind(value) == "number"]
        case ("not", inner):
            return [not value for value in values_of(inner, document) if _kind(value) == "bool"]
        case ("and" | "or" as word, left, right):
            return _connected(word == "or", *(values_of(side, document) for side in (left, right)))
        case ("in", word, left, constants):
            found = [value for value in values_of(left, document) if _kind(value) not in ("object", "array")]
            return [(_among(value, constants)) == (word == "IN") for value in found]
        case ("is", kind, inner):
            return [_is(kind, values_of(inner, document))]
        case ("compare", symbol, left, right):
            return [
                answer
                for one in values_of(left, document)
                for other in values_of(right, document)
                for answer in _compared(symbol, one, other)
            ]
        case (_, symbol, left, right):
            return [
                answer
                for one in values_of(left, document)
                for other in values_of(right, document)
                for answer in _calculated(symbol, one, other)
            ]
    raise AssertionError(tree)


def values_at(document: Any, path: tuple[str, ...]) -> list[Any]:
    if not path:
        return [document]
    if isinstance(document, dict) and path[0] in document:
        return values_at(document[path[0]], path[1:])
    return []


def _kind(value: Any) -> str:
    kinds = {bool: "bool", int: "number", float: "number", str: "string", list: "array", dict: "object"}
    return "null" if value is None else kinds[type(value)]


def _among(value: Any, constants: list[Any]) -> bool:
    return any(_kind(value) == _kind(constant) and value == constant for constant in constants)


def _is(kind: str, values: list[Any]) -> bool:
    if kind == "defined":
        return bool(values)
    if kind == "primitive":
        return any(_kind(value) not in ("array", "object") for value in values)
    return any(_kind(value) == kind for value in values)


def _connected(strong: bool, *sides: list[Any]) -> list[bool]:
    """AND and OR: one side that decides does so alone (`strong`); else both must be known."""
    known = [[value for value in side if isinstance(value, bool)] for side in sides]
    if any(strong in side for side in known):
        return [strong]
    return [not strong] if all(known) else []


def _compared(symbol: str, one: Any, other: Any) -> list[bool]:
    if {_kind(one), _kind(other)} & {"array", "object"}:
        return []
    same = _kind(one) == _kind(other)
    if symbol in ("=", "!=", "<>"):
        return [(same and one == other) == (symbol == "=")]
    if not same:
        return []
    if one == other:
        return [symbol in ("<=", ">=")]
    smaller = one is not None and min(one, other, key=_in_order) == one
    return [smaller == (symbol in ("<", "<="))]


def _in_order(value: Any) -> Any:
    """Strings in the order of their UTF-16 units."""
    if not isinstance(value, str):
        return value
    units = value.encode("utf-16-be")
    return [int.from_bytes(units[at : at + 2], "big") for at in range(0, len(units), 2)]


def _calculated(symbol: str, one: Any, other: Any) -> list[float]:
    if _kind(one) != "number" or _kind(other) != "number":
        return []
    left, right = float(one), float(other)
    if right == 0 and symbol in "/%":
        # As doubles: 1 / 0 is infinite; 0 / 0 and every remainder by 0 are no numbers.
        return [left * math.copysign(math.inf, right)] if left != 0 and symbol == "/" else []
    if math.isinf(left) and symbol == "%":
        return []
    results = {
        "+": lambda: left + right,
        "-": lambda: left - right,
        "*": lambda: left * right,
        "/": lambda: left / right,
        "%": lambda: (
            math.copysign(abs(left) - abs(right) * int(abs(left) / abs(right)), left)
            if math.isfinite(right)
            else left
        ),
    }
    result = results[symbol]()
    return [] if math.isnan(result) else [result]

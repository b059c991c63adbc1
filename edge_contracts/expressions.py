"""Expressions that routes and queries share: values, constants, operators and functions.

- Undefined spreads through operators and functions; `false AND undefined` is false, `true OR undefined` is true; only
  `is_*` looks at it.
- Numbers are doubles; one that is not a number is undefined. Strings count by UTF-16 units, as .NET does.
- An array or an object has no operator and no function but `is_*`: it counts as undefined for all others.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, Protocol, TypeAlias, TypeGuard

DEPTH_LIMIT = 100
"""Levels of nesting: an expression comes from a document, and both parser and evaluator recurse."""


class Undefined(Enum):
    """The value of what a message or a twin does not have."""

    UNDEFINED = "undefined"


UNDEFINED: Final = Undefined.UNDEFINED

Value: TypeAlias = str | float | bool | Undefined | None
"""A value of a condition; None is JSON's null."""


class ValueType(Enum):
    """The type of an expression, as far as it is known without a message or twin; ANY is a member of it."""

    BOOLEAN = "boolean"
    NUMBER = "number"
    STRING = "string"
    NULL = "null"
    UNDEFINED = "undefined"
    ARRAY = "array"
    OBJECT = "object"
    ANY = "any"


class Expression(Protocol):
    """A node; what `scope` is, the leaves know: a message, a twin."""

    @property
    def type(self) -> ValueType: ...

    @property
    def depth(self) -> int: ...

    def evaluate(self, scope: Any) -> Value: ...


@dataclass(frozen=True, slots=True)
class Literal:
    """A constant."""

    value: Value
    type: ValueType
    depth: int = 1

    def evaluate(self, scope: Any) -> Value:
        return self.value


@dataclass(frozen=True, slots=True)
class Apply:
    """An operator or a function on its operands."""

    name: str
    compute: Callable[..., Value]
    operands: tuple[Expression, ...]
    type: ValueType
    depth: int

    def evaluate(self, scope: Any) -> Value:
        return self.compute(*[operand.evaluate(scope) for operand in self.operands])


# ---- values


_TYPES: dict[type, ValueType] = {
    Undefined: ValueType.UNDEFINED,
    type(None): ValueType.NULL,
    bool: ValueType.BOOLEAN,
    int: ValueType.NUMBER,
    float: ValueType.NUMBER,
    str: ValueType.STRING,
    list: ValueType.ARRAY,
    dict: ValueType.OBJECT,
}


def type_of(value: Any) -> ValueType:
    """The type of a JSON value or UNDEFINED."""
    return _TYPES[type(value)]


def is_number(value: Any) -> TypeGuard[float]:
    return type_of(value) is ValueType.NUMBER


def _defined(number: float) -> Value:
    return UNDEFINED if math.isnan(number) else number


def utf16_units(text: str) -> bytes:
    """UTF-16 units, whose order is the order of the bytes."""
    return text.encode("utf-16-be", "surrogatepass")


def from_utf16_units(units: bytes) -> str:
    return units.decode("utf-16-be", "surrogatepass")


# ---- operators


def _arithmetic(compute: Callable[[float, float], float]) -> Callable[[Value, Value], Value]:
    def apply(left: Value, right: Value) -> Value:
        if is_number(left) and is_number(right):
            return _guarded(compute, left, right)
        return UNDEFINED

    return apply


def _guarded(compute: Callable[..., float], *numbers: Value) -> Value:
    """IEEE 754 where Python raises: an overflow is infinite, what has no value is not a number, hence undefined."""
    try:
        return _defined(float(compute(*numbers)))
    except OverflowError:
        return math.inf
    except ValueError:
        return UNDEFINED


def _divide(left: float, right: float) -> float:
    if right == 0:
        return (
            math.nan
            if left == 0 or math.isnan(left)
            else math.copysign(math.inf, left) * math.copysign(1, right)
        )
    return left / right


def negate(value: Value) -> Value:
    return -value if is_number(value) else UNDEFINED


def logical_not(value: Value) -> Value:
    return not value if isinstance(value, bool) else UNDEFINED


def logical_and(left: Value, right: Value) -> Value:
    if left is False or right is False:
        return False
    return True if left is True and right is True else UNDEFINED


def logical_or(left: Value, right: Value) -> Value:
    if left is True or right is True:
        return True
    return False if left is False and right is False else UNDEFINED


def concat(*parts: Value) -> Value:
    texts = [part for part in parts if isinstance(part, str)]
    return "".join(texts) if len(texts) == len(parts) else UNDEFINED


@dataclass(frozen=True, slots=True)
class Operator:
    """A binary operator: higher `power` binds tighter; `operands` None means both of one type, whichever."""

    power: int
    operands: ValueType | None
    result: ValueType | None
    compute: Callable[[Value, Value], Value]


_NUMBER, _STRING, _BOOLEAN = ValueType.NUMBER, ValueType.STRING, ValueType.BOOLEAN
ARITHMETIC: dict[str, Operator] = {
    "*": Operator(70, _NUMBER, _NUMBER, _arithmetic(lambda left, right: left * right)),
    "/": Operator(70, _NUMBER, _NUMBER, _arithmetic(_divide)),
    "%": Operator(70, _NUMBER, _NUMBER, _arithmetic(math.fmod)),
    "+": Operator(60, _NUMBER, _NUMBER, _arithmetic(lambda left, right: left + right)),
    "-": Operator(60, _NUMBER, _NUMBER, _arithmetic(lambda left, right: left - right)),
}


# ---- functions


def _is(*kinds: ValueType) -> Callable[[Value], Value]:
    return lambda value: type_of(value) in kinds


def _on_numbers(compute: Callable[..., float]) -> Callable[..., Value]:
    def apply(*values: Value) -> Value:
        if all(map(is_number, values)):
            return _guarded(compute, *values)
        return UNDEFINED

    return apply


def _on_strings(compute: Callable[..., Value]) -> Callable[..., Value]:
    def apply(*values: Value) -> Value:
        return compute(*values) if all(isinstance(value, str) for value in values) else UNDEFINED

    return apply


# double.TryParse(NumberStyles.Any, invariant): white space, sign, thousands, fraction, exponent.
_NUMBER_TEXT = re.compile(r"\s*([+-]?)((?:\d[\d,]*)?(?:\.\d*)?(?:[eE][+-]?\d+)?)\s*", re.ASCII)


def _as_number(value: Value) -> Value:
    if not isinstance(value, str):
        return value if is_number(value) else UNDEFINED
    match = _NUMBER_TEXT.fullmatch(value)
    if match is None:
        return UNDEFINED
    try:
        return float(match[1] + match[2].replace(",", ""))
    except ValueError:
        return UNDEFINED


def _sign(number: float) -> float:
    return float((number > 0) - (number < 0))


def _integral(rounded: Callable[[float], int]) -> Callable[[float], float]:
    return lambda number: float(rounded(number)) if math.isfinite(number) else number


def _substring(text: Value, start: Value, length: Value = None) -> Value:
    if not isinstance(text, str) or not is_number(start):
        return UNDEFINED
    units = utf16_units(text)
    available = len(units) // 2
    if length is None:
        return from_utf16_units(units[2 * int(start) :]) if 0 <= start <= available else UNDEFINED
    if not is_number(length) or not (0 <= start < available and 0 <= length <= available - start):
        return UNDEFINED
    return from_utf16_units(units[2 * int(start) : 2 * (int(start) + int(length))])


def _index_of(text: str, part: str) -> Value:
    index = text.find(part)
    return float(index if index < 0 else len(utf16_units(text[:index])) // 2)


@dataclass(frozen=True, slots=True)
class Function:
    """A function: one of `signatures` must fit; ANY takes every type; `repeats` lets the last parameter repeat."""

    signatures: tuple[tuple[ValueType, ...], ...]
    result: ValueType
    compute: Callable[..., Value]
    repeats: bool = False

    def accepts(self, given: Sequence[ValueType]) -> bool:
        return any(self._fits(signature, given) for signature in self.signatures)

    def _fits(self, signature: tuple[ValueType, ...], given: Sequence[ValueType]) -> bool:
        if self.repeats and len(given) > len(signature):
            signature = signature + signature[-1:] * (len(given) - len(signature))
        return len(given) == len(signature) and all(map(fits, signature, given))

    def shown(self, name: str) -> str:
        """As an error message spells the call."""
        tail = ", …" if self.repeats else ""
        return " or ".join(
            f"{name}({', '.join(kind.value for kind in types)}{tail})" for types in self.signatures
        )


def fits(wanted: ValueType, given: ValueType) -> bool:
    return wanted is given or ValueType.ANY in (wanted, given) or given is ValueType.UNDEFINED


_ONE_NUMBER = ((_NUMBER,),)
_ONE_STRING = ((_STRING,),)
_TWO_STRINGS = ((_STRING, _STRING),)
_ONE_OF_ANY = ((ValueType.ANY,),)

FUNCTIONS: dict[str, Function] = {
    "abs": Function(_ONE_NUMBER, _NUMBER, _on_numbers(abs)),
    "exp": Function(_ONE_NUMBER, _NUMBER, _on_numbers(math.exp)),
    "power": Function(((_NUMBER, _NUMBER),), _NUMBER, _on_numbers(math.pow)),
    "square": Function(_ONE_NUMBER, _NUMBER, _on_numbers(lambda number: number * number)),
    "ceiling": Function(_ONE_NUMBER, _NUMBER, _on_numbers(_integral(math.ceil))),
    "floor": Function(_ONE_NUMBER, _NUMBER, _on_numbers(_integral(math.floor))),
    "sign": Function(_ONE_NUMBER, _NUMBER, _on_numbers(_sign)),
    "sqrt": Function(_ONE_NUMBER, _NUMBER, _on_numbers(math.sqrt)),
    "as_number": Function(((_STRING,), (_NUMBER,)), _NUMBER, _as_number),
    "is_bool": Function(_ONE_OF_ANY, _BOOLEAN, _is(ValueType.BOOLEAN)),
    "is_defined": Function(_ONE_OF_ANY, _BOOLEAN, lambda value: value is not UNDEFINED),
    "is_null": Function(_ONE_OF_ANY, _BOOLEAN, _is(ValueType.NULL)),
    "is_number": Function(_ONE_OF_ANY, _BOOLEAN, _is(ValueType.NUMBER)),
    "is_string": Function(_ONE_OF_ANY, _BOOLEAN, _is(ValueType.STRING)),
    "concat": Function(_TWO_STRINGS, _STRING, concat, repeats=True),
    "length": Function(_ONE_STRING, _NUMBER, _on_strings(lambda text: float(len(utf16_units(text)) // 2))),
    "lower": Function(_ONE_STRING, _STRING, _on_strings(str.lower)),
    "upper": Function(_ONE_STRING, _STRING, _on_strings(str.upper)),
    "substring": Function(((_STRING, _NUMBER), (_STRING, _NUMBER, _NUMBER)), _STRING, _substring),
    "index_of": Function(_TWO_STRINGS, _NUMBER, _on_strings(_index_of)),
    "starts_with": Function(_TWO_STRINGS, _BOOLEAN, _on_strings(str.startswith)),
    "ends_with": Function(_TWO_STRINGS, _BOOLEAN, _on_strings(str.endswith)),
    "contains": Function(_TWO_STRINGS, _BOOLEAN, _on_strings(lambda text, part: part in text)),
}


def _number_literal(convert: Callable[[str], float]) -> Callable[[str], Literal]:
    def literal(text: str) -> Literal:
        try:
            return Literal(convert(text), ValueType.NUMBER)
        except (ValueError, OverflowError):
            return Literal(UNDEFINED, ValueType.UNDEFINED)

    return literal


def _unescape(text: str) -> str:
    text = re.sub(r"\\[Uu]([0-9A-Fa-f]{4})", lambda match: chr(int(match[1], 16)), text[1:-1])
    # Two escapes may make one character beyond the basic plane.
    text = from_utf16_units(utf16_units(text))
    return re.sub(r"\\([\"'\\])", r"\1", text)


LITERALS: dict[str, Callable[[str], Literal]] = {
    "string": lambda text: Literal(_unescape(text), ValueType.STRING),
    "integer": _number_literal(float),
    "hex": _number_literal(lambda text: float(int(text, 16))),
    "real": _number_literal(float),
    "true": lambda text: Literal(True, ValueType.BOOLEAN),
    "false": lambda text: Literal(False, ValueType.BOOLEAN),
    "null": lambda text: Literal(None, ValueType.NULL),
    "undefined": lambda text: Literal(UNDEFINED, ValueType.UNDEFINED),
}

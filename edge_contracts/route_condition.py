"""Conditions of routes: parsed with types, evaluated in three-valued logic.

Rules (IoT Edge: `Condition.g4`, `ConditionVisitor.cs`, `query/builtins/`, `QueryValue.cs`):
- Operators, tightest first: unary `-` and NOT; `* / %`; `+ - ||`; `< <= > >=`; `= != <>`; AND; OR; `??`. All bind to the
  left. So `NOT a = b` is `(NOT a) = b`.
- Application properties (`name`) and system properties (`$name`) are strings, the names without case. An application
  property called `$name` hides the system property; `{$name}` means the system property all the same.
- `$body.path[0].to` reads a JSON body: content type application/json and content encoding utf-8, utf-16 or utf-32;
  anything else, an object, an array and a missing member are undefined.
- Operands must have one type, known before any message comes (members of the body take any): `temperature > 20` is an
  error, `as_number(temperature) > 20` is meant.
- Undefined spreads through operators and functions; `false AND undefined` is false, `true OR undefined` is true; only
  `is_*` and `??` look at it. A message matches when the condition is true, neither false nor undefined.
- Members of the body of different types are unequal, and ordered by type: boolean, number, string, null.
- Strings compare and count by UTF-16 units, as .NET does; a number that is not a number is undefined.

>>> from edge_contracts.messages import Message
>>> condition = parse_condition("as_number(level) > 3 AND $body.kind = 'img'")
>>> condition.matches(Message(b'{"kind": "img"}', content_type="application/json", content_encoding="utf-8",
...                           properties={"level": "4"}))
True
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from edge_contracts.errors import ContractError
from edge_contracts.expressions import (
    ARITHMETIC,
    DEPTH_LIMIT,
    FUNCTIONS,
    LITERALS,
    UNDEFINED,
    Apply,
    Expression,
    Operator,
    Value,
    ValueType,
    concat,
    fits,
    logical_and,
    logical_not,
    logical_or,
    negate,
    type_of,
    utf16_units,
)
from edge_contracts.messages import Message
from edge_contracts.route_tokens import Token, tokenize

_ORDER = (ValueType.BOOLEAN, ValueType.NUMBER, ValueType.STRING, ValueType.NULL)


class Scope:
    """A message as a condition sees it; the body is read once, when it is first asked for."""

    __slots__ = ("_body", "_properties", "message")

    def __init__(self, message: Message) -> None:
        self.message = message
        self._properties: dict[str, str] | None = None
        self._body: Any = _UNREAD

    def application_property(self, name: str) -> Value:
        if self._properties is None:
            self._properties = {key.lower(): value for key, value in self.message.properties.items()}
        return self._properties.get(name.lower(), UNDEFINED)

    def system_property(self, name: str) -> Value:
        field_name = _SYSTEM_PROPERTIES.get(name.lower())
        value = None if field_name is None else getattr(self.message, field_name)
        return UNDEFINED if value is None else str(value)

    def body_member(self, path: tuple[str | int, ...]) -> Value:
        if self._body is _UNREAD:
            self._body = _read_body(self.message)
        value = self._body
        for step in path:
            value = _child(value, step)
        return UNDEFINED if isinstance(value, dict | list) else value


_UNREAD: Final = object()

_SYSTEM_PROPERTIES = {
    "connectiondeviceid": "connection_device_id",
    "connectionmoduleid": "connection_module_id",
    "outputname": "output_name",
    "inputname": "input_name",
    "messageid": "message_id",
    "correlationid": "correlation_id",
    "userid": "user_id",
    "contenttype": "content_type",
    "contentencoding": "content_encoding",
    "to": "to",
    "expirytimeutc": "expiry",
    "ack": "ack",
    "interfaceid": "interface_id",
}
_ENCODINGS = {"utf-8": "utf-8-sig", "utf-16": "utf-16", "utf-32": "utf-32"}


def _read_body(message: Message) -> Any:
    encoding = _ENCODINGS.get((message.content_encoding or "").lower())
    if (message.content_type or "").lower() != "application/json" or encoding is None:
        return UNDEFINED
    try:
        # Every number is a double to the conditions of IoT Edge.
        return json.loads(message.body.decode(encoding), parse_int=float)
    except (ValueError, RecursionError):
        return UNDEFINED


def _child(value: Any, step: str | int) -> Any:
    if isinstance(step, str):
        return value.get(step, UNDEFINED) if isinstance(value, dict) else UNDEFINED
    return value[step] if isinstance(value, list) and step < len(value) else UNDEFINED


@dataclass(frozen=True, slots=True)
class Property:
    """`name`, `$name` or `{$name}`."""

    name: str
    escaped: bool = False
    type: ValueType = ValueType.STRING
    depth: int = 1

    def evaluate(self, scope: Scope) -> Value:
        value = UNDEFINED if self.escaped else scope.application_property(self.name)
        if value is UNDEFINED and self.name.startswith("$"):
            return scope.system_property(self.name[1:])
        return value


@dataclass(frozen=True, slots=True)
class BodyMember:
    """`$body.path` or `{$body.path}`; `name` is the whole of it, for an application property of that name."""

    name: str
    path: tuple[str | int, ...]
    escaped: bool = False
    type: ValueType = ValueType.ANY
    depth: int = 1

    def evaluate(self, scope: Scope) -> Value:
        value = UNDEFINED if self.escaped else scope.application_property(self.name)
        return scope.body_member(self.path) if value is UNDEFINED else value


@dataclass(frozen=True, slots=True)
class TwinChangeIncludes:
    """`twin_change_includes(path)`: whether a twin change holds the member; null counts as no."""

    path: tuple[str | int, ...]
    type: ValueType = ValueType.BOOLEAN
    depth: int = 1

    def evaluate(self, scope: Scope) -> Value:
        value: Any = _read_body(scope.message)
        for step in self.path:
            value = _child(value, step)
        return UNDEFINED if value is UNDEFINED else value is not None


@dataclass(frozen=True, slots=True)
class Condition:
    """A parsed condition with its text."""

    text: str
    expression: Expression

    def matches(self, message: Message) -> bool:
        """Whether the condition is true of `message`; undefined is no."""
        return self.expression.evaluate(Scope(message)) is True


def parse_condition(text: str, *, where: str = "condition", twin_changes: bool = False) -> Condition:
    """Read the text behind WHERE; `twin_changes` says that the route's source is twin changes.

    Raises:
        ContractError: code `route`, with position, what was expected and what was found.
    """
    parser = ConditionParser(text, tokenize(text), where=where, twin_changes=twin_changes)
    condition = parser.condition()
    parser.expect("end", "an operator or the end")
    return condition


def _sort_key(value: Value) -> tuple[int, Any]:
    kind = type_of(value)
    rank = _ORDER.index(kind)
    if isinstance(value, str):
        return rank, utf16_units(value)
    return rank, 0 if value is None else value


def _comparison(holds: Callable[[Any, Any], bool]) -> Callable[[Value, Value], Value]:
    def apply(left: Value, right: Value) -> Value:
        if left is UNDEFINED or right is UNDEFINED:
            return UNDEFINED
        return holds(_sort_key(left), _sort_key(right))

    return apply


def _coalesce(left: Value, right: Value) -> Value:
    return right if left is UNDEFINED else left


_NUMBER, _STRING, _BOOLEAN = ValueType.NUMBER, ValueType.STRING, ValueType.BOOLEAN
UNARY_POWER = 80
OPERATORS: dict[str, Operator] = {
    **ARITHMETIC,
    "||": Operator(60, _STRING, _STRING, concat),
    "<": Operator(50, None, _BOOLEAN, _comparison(lambda left, right: left < right)),
    "<=": Operator(50, None, _BOOLEAN, _comparison(lambda left, right: left <= right)),
    ">": Operator(50, None, _BOOLEAN, _comparison(lambda left, right: left > right)),
    ">=": Operator(50, None, _BOOLEAN, _comparison(lambda left, right: left >= right)),
    "=": Operator(40, None, _BOOLEAN, _comparison(lambda left, right: left == right)),
    "!=": Operator(40, None, _BOOLEAN, _comparison(lambda left, right: left != right)),
    "<>": Operator(40, None, _BOOLEAN, _comparison(lambda left, right: left != right)),
    "AND": Operator(30, _BOOLEAN, _BOOLEAN, logical_and),
    "OR": Operator(20, _BOOLEAN, _BOOLEAN, logical_or),
    "??": Operator(10, None, None, _coalesce),
}


TWIN_CHANGE_INCLUDES = "twin_change_includes"


# ---- parser


class ConditionParser:
    """A Pratt parser over the tokens of a route, from the token at `position` on."""

    def __init__(
        self, text: str, tokens: Sequence[Token], *, where: str, twin_changes: bool, position: int = 0
    ) -> None:
        self.position = position
        self._text = text
        self._tokens = tokens
        self._where = where
        self._twin_changes = twin_changes
        self._nesting = 0

    @property
    def token(self) -> Token:
        """The next token."""
        return self._tokens[self.position]

    def expect(self, kind: str, expected: str) -> Token:
        """Take a token of this kind."""
        if self.token.kind != kind:
            raise self.error(self.token, expected)
        self.position += 1
        return self._tokens[self.position - 1]

    def error(self, token: Token, expected: str) -> ContractError:
        """What to raise where `token` stands instead of what was expected."""
        if token.kind == "unterminated string":
            expected = "a closing quote (escapes are \\\" \\' \\\\ \\uXXXX)"
        return self._refuse(token, f"expected {expected}, found {token.shown()}")

    def condition(self) -> Condition:
        """A whole condition; what follows it is left to the caller."""
        first = self.token
        expression = self._expression(0)
        if not fits(ValueType.BOOLEAN, expression.type):
            raise self._refuse(
                first, f"expected a condition that is true or false, found a {expression.type.value}"
            )
        last = self._tokens[self.position - 1]
        return Condition(self._text[first.start : last.end], expression)

    def _expression(self, minimum_power: int) -> Expression:
        self._nesting += 1
        if self._nesting > DEPTH_LIMIT:
            raise self._refuse(self.token, f"expected at most {DEPTH_LIMIT} levels of nesting, found more")
        left = self._operand()
        while (operator := OPERATORS.get(self.token.kind)) is not None and operator.power > minimum_power:
            token = self.token
            self.position += 1
            left = self._binary(token, operator, left, self._expression(operator.power))
        self._nesting -= 1
        return left

    def _operand(self) -> Expression:
        token = self.token
        self.position += 1
        if token.kind in LITERALS:
            return LITERALS[token.kind](token.text)
        if token.kind == "(":
            inner = self._expression(0)
            self.expect(")", "')'")
            return inner
        if token.kind in ("-", "NOT"):
            return self._unary(token, self._expression(UNARY_POWER))
        if token.kind == "{":
            name = self.expect("system-property", "a system property, as in {$messageId}")
            self.expect("}", "'}'")
            return self._system_property(name, escaped=True)
        if token.kind == "system-property":
            return self._system_property(token, escaped=False)
        if token.kind == "name":
            return self._call(token) if self.token.kind == "(" else Property(token.text)
        raise self.error(token, "a property, a literal, a function or '('")

    def _unary(self, token: Token, operand: Expression) -> Expression:
        wanted, compute = (_NUMBER, negate) if token.kind == "-" else (_BOOLEAN, logical_not)
        allowed = fits(wanted, operand.type) or (token.kind == "NOT" and operand.type is ValueType.NULL)
        if not allowed:
            raise self._refuse(
                token, f"{token.text} needs a {wanted.value}, found a {operand.type.value}{_hint(wanted)}"
            )
        return self._apply(token, compute, (operand,), wanted)

    def _binary(self, token: Token, operator: Operator, left: Expression, right: Expression) -> Expression:
        wanted = operator.operands or _common_type(left.type, right.type)
        logical = token.kind in ("AND", "OR")
        for operand in (left, right):
            if not (fits(wanted, operand.type) or (logical and operand.type is ValueType.NULL)):
                raise self._refuse(
                    token,
                    f"{token.text} needs operands of one type ({wanted.value}), found a {left.type.value} "
                    f"and a {right.type.value}{_hint(ValueType.NUMBER)}",
                )
        return self._apply(token, operator.compute, (left, right), operator.result or wanted)

    def _call(self, name: Token) -> Expression:
        self.expect("(", "'('")
        if name.text.lower() == TWIN_CHANGE_INCLUDES and self._twin_changes:
            return self._twin_change_includes()
        function = FUNCTIONS.get(name.text.lower())
        if function is None:
            raise self._refuse(
                name, f"expected one of the functions {', '.join(FUNCTIONS)}, found {name.text!r}"
            )
        arguments = self._arguments()
        if not function.accepts([argument.type for argument in arguments]):
            given = ", ".join(argument.type.value for argument in arguments)
            raise self._refuse(
                name, f"expected {function.shown(name.text.lower())}, found {name.text}({given})"
            )
        return self._apply(name, function.compute, arguments, function.result)

    def _arguments(self) -> tuple[Expression, ...]:
        arguments: list[Expression] = []
        while self.token.kind != ")":
            if arguments:
                self.expect(",", "',' or ')'")
            arguments.append(self._expression(0))
        self.expect(")", "')'")
        return tuple(arguments)

    def _twin_change_includes(self) -> Expression:
        path = self.expect("name", "the path of a member, as in properties.reported.tags")
        self.expect(")", "')'")
        return TwinChangeIncludes(self._path(path, path.text))

    def _system_property(self, token: Token, *, escaped: bool) -> Expression:
        if token.text.lower().startswith("$body."):
            return BodyMember(token.text, self._path(token, token.text[len("$body.") :]), escaped)
        if "[" in token.text or "]" in token.text:
            raise self._refuse(token, f"expected a system property or $body.path[0], found {token.text!r}")
        return Property(token.text, escaped)

    def _path(self, token: Token, text: str) -> tuple[str | int, ...]:
        steps: list[str | int] = []
        for part in text.split("."):
            match = _PATH_PART.fullmatch(part)
            if match is None:
                raise self._refuse(token, f"expected a path of names and [index], found {token.text!r}")
            steps.append(match[1])
            if match[2] is not None:
                steps.append(int(match[2]))
        return tuple(steps)

    def _apply(
        self, token: Token, compute: Callable[..., Value], operands: tuple[Expression, ...], result: ValueType
    ) -> Expression:
        depth = 1 + max((operand.depth for operand in operands), default=0)
        if depth > DEPTH_LIMIT:
            raise self._refuse(token, f"expected at most {DEPTH_LIMIT} operators in a row, found more")
        return Apply(token.text, compute, operands, result, depth)

    def _refuse(self, token: Token, problem: str) -> ContractError:
        return ContractError(
            f"'{self._where}' at character {token.start + 1}: {problem}", code="route", where=self._where
        )


_PATH_PART = re.compile(r"([^\[\]]+)(?:\[([0-9]{1,9})\])?")


def _common_type(left: ValueType, right: ValueType) -> ValueType:
    return right if left in (ValueType.ANY, ValueType.UNDEFINED) else left


def _hint(wanted: ValueType) -> str:
    return "; as_number(…) makes a number of a property" if wanted is ValueType.NUMBER else ""

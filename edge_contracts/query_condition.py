"""Conditions of queries: the part behind WHERE, parsed to expressions over a twin's document.

Rules (Azure, "IoT Hub query language", and where that is silent what the comment "Ours" names):
- Operators, tightest first: unary `-`; `* / %`; `+ -`; `= != <> < <= > >= IN NIN`; NOT; AND; OR. All bind to the left.
- Keywords, functions and the names of what the hub itself keeps (`deviceId`, `tags`, `properties.reported`,
  `capabilities.iotEdge`) are without case; names below them, and all values, are with case.
- A missing member is undefined and so is every comparison with it; a condition holds when it is true, neither false nor
  undefined: `tags.a != 1` does not hold for a twin without `tags.a`.
- Only primitive values compare: an object or an array is undefined to a comparison.
- Ours: values of different types are unequal, and `<` between them is undefined.

>>> condition = parse_condition("tags.site IN ['north', 'south'] AND properties.reported.level > 3")
>>> condition.evaluate({"tags": {"site": "north"}, "properties": {"reported": {"level": 4}}})
True
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edge_contracts.errors import ContractError, shown
from edge_contracts.expressions import (
    ARITHMETIC,
    DEPTH_LIMIT,
    FUNCTIONS,
    LITERALS,
    UNDEFINED,
    Apply,
    Expression,
    Function,
    Literal,
    Operator,
    Value,
    ValueType,
    logical_not,
    negate,
    type_of,
    utf16_units,
)
from edge_contracts.query_tokens import tokenize_query
from edge_contracts.route_tokens import Token

LENGTH_LIMIT = 8192
"""Characters of a query: more than any console or SDK sends, little enough to read in a millisecond."""

Document = Mapping[str, Any]
"""A twin, or another document of the hub, as its service API shows it."""


@dataclass(frozen=True, slots=True)
class Path:
    """A member of the document: `tags.site`."""

    steps: tuple[str, ...]
    type: ValueType = ValueType.ANY
    depth: int = 1

    def evaluate(self, scope: Any) -> Any:
        value = scope
        for step in self.steps:
            if not isinstance(value, dict):
                return UNDEFINED
            value = value.get(step, UNDEFINED)
        return value

    @property
    def name(self) -> str:
        """What the member is called in a row."""
        return self.steps[-1]

    def __str__(self) -> str:
        return ".".join(self.steps)


@dataclass(frozen=True, slots=True)
class Junction:
    """`a OR b OR …`, which the first true decides, or with AND, the first false; what follows that is not looked at."""

    decider: bool
    operands: tuple[Expression, ...]
    depth: int
    type: ValueType = ValueType.BOOLEAN

    def evaluate(self, scope: Any) -> Value:
        result: Value = not self.decider
        for operand in self.operands:
            value = operand.evaluate(scope)
            if value is self.decider:
                return value
            if not isinstance(value, bool):
                result = UNDEFINED
        return result


# ---- operators

_COMPARED = frozenset({ValueType.BOOLEAN, ValueType.NUMBER, ValueType.STRING, ValueType.NULL})


def _equal(left: Value, right: Value) -> Value:
    kind, other = type_of(left), type_of(right)
    if kind not in _COMPARED or other not in _COMPARED:
        return UNDEFINED
    return kind is other and left == right


def _ordered(holds: Callable[[Any, Any], bool]) -> Callable[[Value, Value], Value]:
    def apply(left: Value, right: Value) -> Value:
        kind = type_of(left)
        if kind not in _COMPARED or type_of(right) is not kind:
            return UNDEFINED
        return holds(_sort_key(left), _sort_key(right))

    return apply


def _sort_key(value: Value) -> Any:
    if isinstance(value, str):
        return utf16_units(value)
    return 0 if value is None else value


def _is_in(value: Value, *constants: Value) -> Value:
    if type_of(value) not in _COMPARED:
        return UNDEFINED
    return any(_equal(value, constant) is True for constant in constants)


def _is_not_in(value: Value, *constants: Value) -> Value:
    return logical_not(_is_in(value, *constants))


_ANY, _BOOLEAN = ValueType.ANY, ValueType.BOOLEAN
_COMPARISON_POWER, _NOT_POWER, _UNARY_POWER = 50, 40, 80
OPERATORS: dict[str, Operator] = {
    **ARITHMETIC,
    **{
        symbol: Operator(_COMPARISON_POWER, _ANY, _BOOLEAN, compute)
        for symbol, compute in {
            "=": _equal,
            "!=": lambda left, right: logical_not(_equal(left, right)),
            "<>": lambda left, right: logical_not(_equal(left, right)),
            "<": _ordered(lambda left, right: left < right),
            "<=": _ordered(lambda left, right: left <= right),
            ">": _ordered(lambda left, right: left > right),
            ">=": _ordered(lambda left, right: left >= right),
            "IN": _is_in,
            "NIN": _is_not_in,
        }.items()
    },
}
# What decides a junction, and how tight it binds.
_JUNCTIONS = {"AND": (False, 30), "OR": (True, 20)}


# ---- functions


def _is_a(*kinds: ValueType) -> Function:
    return Function(((ValueType.ANY,),), _BOOLEAN, lambda value: type_of(value) in kinds)


QUERY_FUNCTIONS: dict[str, Function] = {
    **FUNCTIONS,
    "is_array": _is_a(ValueType.ARRAY),
    "is_object": _is_a(ValueType.OBJECT),
    "is_primitive": _is_a(*_COMPARED),
    # Azure's pages spell these both ways.
    "startswith": FUNCTIONS["starts_with"],
    "endswith": FUNCTIONS["ends_with"],
}

# ---- names

_HUB_NAMES = {
    name.lower(): name
    for name in (
        *("deviceId", "moduleId", "etag", "deviceEtag", "status", "statusReason", "statusUpdatedTime"),
        *("connectionState", "connectionStateUpdatedTime", "lastActivityTime", "cloudToDeviceMessageCount"),
        *("authenticationType", "x509Thumbprint", "version", "tags", "properties", "capabilities"),
        *("deviceScope", "parentScopes", "configurations", "modelId", "managedBy"),
        *(
            "jobId",
            "jobType",
            "startTimeUtc",
            "endTimeUtc",
            "createdTimeUtc",
            "createdDateTimeUtc",
            "lastUpdatedDateTimeUtc",
        ),
    )
}
_NAMES_BELOW = {
    "properties": {"desired": "desired", "reported": "reported"},
    "capabilities": {"iotedge": "iotEdge"},
}
_PREFIXES = (("devices", "modules"), ("devices", "jobs"), ("devices",))


def _hub_steps(steps: tuple[str, ...]) -> tuple[str, ...]:
    """A path as the document spells it: `devices.jobs.DeviceID` is `deviceId`."""
    lowered = tuple(step.lower() for step in steps)
    prefix = next((prefix for prefix in _PREFIXES if lowered[: len(prefix)] == prefix), ())
    steps, lowered = (
        (steps[len(prefix) :], lowered[len(prefix) :]) if len(prefix) < len(steps) else (steps, lowered)
    )
    first = _HUB_NAMES.get(lowered[0], steps[0])
    below = _NAMES_BELOW.get(first, {})
    return (first, *(below.get(lowered[1], step) for step in steps[1:2]), *steps[2:])


# ---- parser

_CONSTANTS = {"string": "string", "number": "real", "hex": "hex"}
_WORDS = frozenset({"TRUE", "FALSE", "NULL", "UNDEFINED"})
RESERVED = frozenset(
    {"SELECT", "FROM", "WHERE", "GROUP", "BY", "AS", "AND", "OR", "NOT", "IN", "NIN"} | _WORDS
)


class QueryParser:
    """A Pratt parser over a query's tokens: expressions and paths here, clauses in who uses it.

    Attributes:
        members: the members of the document that the paths read so far begin with.
    """

    def __init__(self, text: str, *, where: str) -> None:
        self.members: set[str] = set()
        self._where = where
        self._position = 0
        self._nesting = 0
        if len(text) > LENGTH_LIMIT:
            raise ContractError(
                f"'{where}' must have at most {LENGTH_LIMIT} characters, not {len(text)}",
                code="query",
                where=where,
            )
        self._tokens: Sequence[Token] = tokenize_query(text)

    @property
    def token(self) -> Token:
        """The next token."""
        return self._tokens[self._position]

    def take(self) -> Token:
        """The next token, behind which parsing goes on."""
        token = self.token
        self._position += 1
        return token

    def is_at(self, *words: str) -> bool:
        """Whether these keywords or symbols come next."""
        following = self._tokens[self._position : self._position + len(words)]
        return tuple(_word(token) for token in following) == words

    def accept(self, *words: str) -> bool:
        """Take these keywords or symbols if they come next."""
        if not self.is_at(*words):
            return False
        self._position += len(words)
        return True

    def expect(self, word: str, expected: str) -> None:
        if not self.accept(word):
            raise self.error(self.token, expected)

    def expect_end(self, expected: str) -> None:
        if self.token.kind != "end":
            raise self.error(self.token, expected)

    def error(self, token: Token, expected: str) -> ContractError:
        """What to raise where `token` stands instead of what was expected."""
        if token.kind == "unterminated string":
            expected = "a string with a closing quote (escapes are \\\" \\' \\\\ \\uXXXX)"
        found = "the end of the query" if token.kind == "end" else shown(token.text)
        return self._refuse(token, f"expected {expected}, found {found}")

    def expression(self, minimum_power: int = 0) -> Expression:
        """An expression whose operators bind tighter than `minimum_power`."""
        self._nesting += 1
        if self._nesting > DEPTH_LIMIT:
            raise self._refuse(self.token, f"expected at most {DEPTH_LIMIT} levels of nesting, found more")
        left = self._operand(minimum_power)
        while (power := _power(self.token)) > minimum_power:
            left = (
                self._joined(left, power) if _word(self.token) in _JUNCTIONS else self._applied(left, power)
            )
        self._nesting -= 1
        return left

    def _joined(self, first: Expression, power: int) -> Expression:
        """All operands of a row of ANDs or of ORs."""
        word = _word(self.token)
        operands = [first]
        while self.accept(word):
            operands.append(self.expression(power))
        depth = 1 + max(operand.depth for operand in operands)
        return Junction(_JUNCTIONS[word][0], tuple(operands), depth)

    def _applied(self, left: Expression, power: int) -> Expression:
        takes_list = self.is_at("IN") or self.is_at("NIN")
        operator = OPERATORS[_word(self.token)]
        token = self.take()
        right = self._constants() if takes_list else (self.expression(power),)
        return self._apply(token, operator.compute, (left, *right), operator.result or _BOOLEAN)

    def path(self, expected: str = "the path of a property, as in tags.site") -> Path:
        """`name.name`, of which any may stand in `[[…]]`."""
        if _word(self.token) in RESERVED:
            raise self.error(self.token, expected)
        steps = [self.name(expected)]
        while self.accept("."):
            steps.append(self.name("a name (a special one as [[a-b]])"))
        path = Path(_hub_steps(tuple(steps)))
        self.members.add(path.steps[0])
        return path

    def name(self, expected: str) -> str:
        """One name, plain or in `[[…]]`."""
        if self.token.kind not in ("name", "bracketed"):
            raise self.error(self.token, expected)
        token = self.take()
        return token.text if token.kind == "name" else token.text[2:-2]

    def _operand(self, minimum_power: int) -> Expression:
        token = self.token
        if self._is_constant():
            return self._constant()
        if self.accept("("):
            inner = self.expression()
            self.expect(")", "an operator or ')'")
            return inner
        if self.accept("-"):
            return self._apply(token, negate, (self.expression(_UNARY_POWER),), ValueType.NUMBER)
        # NOT binds weaker than a comparison, so it cannot be the operand of one.
        if minimum_power <= _NOT_POWER and self.accept("NOT"):
            return self._apply(token, logical_not, (self.expression(_NOT_POWER),), _BOOLEAN)
        if (
            token.kind == "name"
            and self._tokens[self._position + 1].kind == "("
            and _word(token) not in RESERVED
        ):
            return self._call(self.take())
        return self.path("a property, a constant, a function or '('")

    def _is_constant(self) -> bool:
        return self.token.kind in _CONSTANTS or _word(self.token) in _WORDS

    def _constant(self) -> Literal:
        token = self.take()
        return LITERALS[_CONSTANTS.get(token.kind, token.text.lower())](token.text)

    def _constants(self) -> tuple[Expression, ...]:
        self.expect("[", "'[' and constants, as in ['a', 'b']")
        constants = [self._signed_constant()]
        while self.accept(","):
            constants.append(self._signed_constant())
        self.expect("]", "',' or ']'")
        return tuple(constants)

    def _signed_constant(self) -> Literal:
        is_negative = self.accept("-")
        if not self._is_constant() or (is_negative and self.token.kind not in ("number", "hex")):
            raise self.error(
                self.token, "a number" if is_negative else "a constant: a string, a number, true, false, null"
            )
        constant = self._constant()
        return Literal(negate(constant.value), constant.type) if is_negative else constant

    def _call(self, name: Token) -> Expression:
        function = QUERY_FUNCTIONS.get(name.text.lower())
        if function is None:
            raise self.error(name, f"one of the functions {', '.join(QUERY_FUNCTIONS)}")
        arguments = self._arguments()
        if not function.accepts([argument.type for argument in arguments]):
            given = ", ".join(argument.type.value for argument in arguments)
            raise self._refuse(name, f"expected {function.shown(name.text)}, found {name.text}({given})")
        return self._apply(name, function.compute, arguments, function.result)

    def _arguments(self) -> tuple[Expression, ...]:
        self.expect("(", "'('")
        arguments: list[Expression] = []
        while not self.accept(")"):
            if arguments:
                self.expect(",", "an operator, ',' or ')'")
            arguments.append(self.expression())
        return tuple(arguments)

    def _apply(
        self, token: Token, compute: Callable[..., Value], operands: tuple[Expression, ...], result: ValueType
    ) -> Expression:
        depth = 1 + max((operand.depth for operand in operands), default=0)
        if depth > DEPTH_LIMIT:
            raise self._refuse(
                token,
                f"expected at most {DEPTH_LIMIT} operators in a row, found more",
            )
        return Apply(token.text, compute, operands, result, depth)

    def _refuse(self, token: Token, problem: str) -> ContractError:
        return ContractError(
            f"'{self._where}' at character {token.start + 1}: {problem}", code="query", where=self._where
        )


def _word(token: Token) -> str:
    """A keyword in capitals, a symbol as it is; of other tokens what is neither."""
    return token.text.upper() if token.kind == "name" else token.kind


def _power(token: Token) -> int:
    """How tight the operator binds; 0 for what is none."""
    word = _word(token)
    if word in _JUNCTIONS:
        return _JUNCTIONS[word][1]
    return OPERATORS[word].power if word in OPERATORS else 0


def parse_condition(text: str, *, where: str = "condition") -> Expression:
    """Read the text behind WHERE.

    Raises:
        ContractError: code `query`, with position, what was expected and what was found.
    """
    parser = QueryParser(text, where=where)
    expression = parser.expression()
    parser.expect_end("an operator or the end")
    return expression

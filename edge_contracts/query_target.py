"""Target conditions: which twins an automatic configuration or deployment is for.

Rules (Azure, "Automatic device management"):
- The text is what stands behind WHERE of a query over device twins; `*` is every device, an empty text none.
- `FROM devices.modules WHERE …` is for module twins; without WHERE, all of them.
- The highest priority wins among those whose condition holds; that is for who asks here to decide.

>>> parse_target_condition("tags.site = 'north' AND NOT deviceId = 'd9'").matches({"deviceId": "d1", "tags": {"site": "north"}})
True
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from edge_contracts.expressions import Expression, Literal, ValueType
from edge_contracts.query import Source, parse_source
from edge_contracts.query_condition import QueryParser

_ALL = Literal(True, ValueType.BOOLEAN)
_NONE = Literal(False, ValueType.BOOLEAN)


@dataclass(frozen=True, slots=True)
class TargetCondition:
    """A parsed target condition; `source` says whether it is asked of the twins of devices or of modules."""

    text: str
    source: Source
    expression: Expression

    def matches(self, twin_document: dict[str, Any]) -> bool:
        """Whether the condition is true of a twin as the service API shows it; undefined is no."""
        return self.expression.evaluate(twin_document) is True


def parse_target_condition(text: str, *, where: str = "targetCondition") -> TargetCondition:
    """Read a target condition.

    Raises:
        ContractError: code `query`, with position, what was expected and what was found.
    """
    parser = QueryParser(text, where=where)
    if parser.token.kind == "end":
        return TargetCondition(text, Source.DEVICES, _NONE)
    source, start = Source.DEVICES, parser.token
    has_source = parser.accept("FROM")
    if has_source:
        source = parse_source(parser)
    if source is Source.JOBS:
        raise parser.error(start, "FROM devices.modules or a condition on device twins")
    expression = _expression(parser, has_source)
    parser.expect_end("an operator or the end")
    return TargetCondition(text, source, expression)


def _expression(parser: QueryParser, has_source: bool) -> Expression:
    if has_source:
        return parser.expression() if parser.accept("WHERE") else _ALL
    return _ALL if parser.accept("*") else parser.expression()

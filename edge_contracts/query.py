"""IoT Hub's query language: what `SELECT … FROM … WHERE … GROUP BY …` asks for, and the rows that answer it.

Rules (Azure, "IoT Hub query language"; conditions are in `query_condition.py`):
- `SELECT [TOP n] * | element [AS alias], … FROM devices | devices.modules | devices.jobs [WHERE condition] [GROUP BY path]`.
- An element is a path or an aggregate: COUNT(), COUNT(*), SUM, AVG, MIN, MAX of a path. Beside an aggregate only the path
  of GROUP BY may stand. `devices.jobs` is for `SELECT *` only.
- A row holds what is defined: a missing property makes no member.
- Ours: a path without alias is called by its last name, an aggregate without one `$1`, `$2`, … by its place among those.
- Ours: SUM and AVG take the numbers and pass over the rest, MIN and MAX take numbers or strings, numbers before strings;
  with none of them there is no member.

>>> query = parse_query("SELECT tags.site AS site, COUNT() AS n FROM devices GROUP BY tags.site")
>>> groups = Groups(query)
>>> for site in ("north", "south", "north"):
...     groups.add({"tags": {"site": site}})
>>> groups.rows()
[{'site': 'north', 'n': 2}, {'site': 'south', 'n': 1}]
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from edge_contracts.expressions import UNDEFINED, Expression, is_number, utf16_units
from edge_contracts.query_condition import Path, QueryParser
from edge_contracts.route_tokens import Token


class Source(Enum):
    """The collection a query goes over."""

    DEVICES = "devices"
    MODULES = "devices.modules"
    JOBS = "devices.jobs"


@dataclass(frozen=True, slots=True)
class Element:
    """What one member of a row holds: a path, or an aggregate of one; COUNT has no path."""

    name: str
    path: Path | None
    aggregate: str | None = None


@dataclass(frozen=True, slots=True)
class Query:
    """A parsed query; without elements it is `SELECT *`.

    Attributes:
        members: the members of a document that `matches`, `Groups` and, unless it is `SELECT *`, `row` look at.
    """

    text: str
    source: Source
    elements: tuple[Element, ...] = ()
    condition: Expression | None = None
    group_by: Path | None = None
    top: int | None = None
    members: frozenset[str] = frozenset()

    @property
    def is_grouped(self) -> bool:
        """Whether rows stand for many documents (`Groups`), not for one each (`row`)."""
        return self.group_by is not None or any(element.aggregate for element in self.elements)

    def matches(self, document: dict[str, Any]) -> bool:
        """Whether the condition is true of the document; undefined is no."""
        return self.condition is None or self.condition.evaluate(document) is True

    def row(self, document: dict[str, Any]) -> dict[str, Any]:
        """The row of one document: the document itself, or the members asked for."""
        if not self.elements:
            return document
        values = (
            (element.name, element.path.evaluate(document)) for element in self.elements if element.path
        )
        return {name: value for name, value in values if value is not UNDEFINED}


class Groups:
    """The rows of a query with aggregates; documents come one by one, already matched."""

    def __init__(self, query: Query) -> None:
        self._query = query
        self._groups: dict[str, _Group] = {}
        if query.group_by is None:
            self._groups[""] = _Group(query.elements, UNDEFINED)

    def add(self, document: dict[str, Any]) -> None:
        """Count a document in."""
        value = UNDEFINED if self._query.group_by is None else self._query.group_by.evaluate(document)
        key = _group_key(value)
        if key not in self._groups:
            self._groups[key] = _Group(self._query.elements, value)
        self._groups[key].add(document)

    def rows(self) -> list[dict[str, Any]]:
        """One row per group, always in the same order."""
        return [self._groups[key].row() for key in sorted(self._groups)]


def _group_key(value: Any) -> str:
    """Text, because True and 1 are one key in Python, and an object is none; 1 and 1.0 are one number."""
    if value is UNDEFINED:
        return ""
    return json.dumps(float(value) if is_number(value) else value, sort_keys=True)


class _Group:
    def __init__(self, elements: Sequence[Element], value: Any) -> None:
        self._elements = elements
        self._value = value
        self._count = 0
        self._values: dict[str, list[Any]] = {
            element.name: [] for element in elements if element.aggregate and element.path
        }

    def add(self, document: dict[str, Any]) -> None:
        self._count += 1
        for element in self._elements:
            if element.aggregate and element.path:
                value = element.path.evaluate(document)
                if is_number(value) or isinstance(value, str):
                    self._values[element.name].append(value)

    def row(self) -> dict[str, Any]:
        members = {element.name: self._member(element) for element in self._elements}
        return {name: value for name, value in members.items() if value is not UNDEFINED}

    def _member(self, element: Element) -> Any:
        if element.aggregate is None:
            return self._value
        if element.path is None:
            return self._count
        return _AGGREGATES[element.aggregate](self._values[element.name])


def _of_numbers(compute: Callable[[list[float]], float]) -> Callable[[list[Any]], Any]:
    def aggregate(values: list[Any]) -> Any:
        numbers = [value for value in values if is_number(value)]
        result = compute(numbers) if numbers else math.nan
        # JSON has neither.
        return result if math.isfinite(result) else UNDEFINED

    return aggregate


def _mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def _extreme(pick: Callable[..., Any]) -> Callable[[list[Any]], Any]:
    return lambda values: pick(values, key=_rank) if values else UNDEFINED


def _rank(value: Any) -> tuple[bool, Any]:
    return (True, utf16_units(value)) if isinstance(value, str) else (False, value)


_AGGREGATES: dict[str, Callable[[list[Any]], Any]] = {
    "SUM": _of_numbers(sum),
    "AVG": _of_numbers(_mean),
    "MIN": _extreme(min),
    "MAX": _extreme(max),
}
_COUNT = "COUNT"


# ---- parser


def parse_query(text: str, *, where: str = "query") -> Query:
    """Read a query.

    Raises:
        ContractError: code `query`, with position, what was expected and what was found.
    """
    return _ClauseParser(text, where=where).query()


def parse_source(parser: QueryParser) -> Source:
    """What stands behind FROM."""
    if not parser.accept("DEVICES"):
        raise parser.error(parser.token, "devices, devices.modules or devices.jobs")
    if parser.accept("."):
        for name, source in (("MODULES", Source.MODULES), ("JOBS", Source.JOBS)):
            if parser.accept(name):
                return source
        raise parser.error(parser.token, "modules or jobs, as in devices.modules")
    return Source.DEVICES


class _ClauseParser(QueryParser):
    """The clauses of a query, in their order."""

    def __init__(self, text: str, *, where: str) -> None:
        super().__init__(text, where=where)
        self._text = text
        self._starts: dict[str, Token] = {}

    def query(self) -> Query:
        self.expect("SELECT", "SELECT")
        top = self._top()
        select = self.token
        elements = self._elements()
        self.expect("FROM", "',', AS or FROM" if elements else "FROM")
        source = parse_source(self)
        condition = self.expression() if self.accept("WHERE") else None
        group = self.token
        group_by = self.path() if self.accept("GROUP", "BY") else None
        self.expect_end(self._continuation(condition, group_by))
        query = Query(self._text, source, elements, condition, group_by, top, frozenset(self.members))
        self._check_jobs(query, select, group)
        self._check_groups(query, select)
        return query

    @staticmethod
    def _continuation(condition: Expression | None, group_by: Path | None) -> str:
        if group_by is not None:
            return "'.' or the end"
        return "WHERE, GROUP BY or the end" if condition is None else "an operator, GROUP BY or the end"

    def _top(self) -> int | None:
        if not self.accept("TOP"):
            return None
        token = self.token
        if token.kind != "number" or not token.text.isdigit() or len(token.text) > 9 or int(token.text) == 0:
            raise self.error(token, "a number of rows, as in TOP 10")
        return int(self.take().text)

    def _elements(self) -> tuple[Element, ...]:
        if self.accept("*"):
            return ()
        elements: list[Element] = []
        while not elements or self.accept(","):
            start = self.token
            element = self._element(1 + sum(each.aggregate is not None for each in elements))
            if element.name in self._starts:
                raise self.error(
                    start, f"another name than {element.name!r}, which the row has already (AS gives one)"
                )
            self._starts[element.name] = start
            elements.append(element)
        return tuple(elements)

    def _element(self, number: int) -> Element:
        if self.accept(_COUNT, "("):
            expected = "')'" if self.accept("*") else "'*' or ')', as COUNT counts rows"
            self.expect(")", expected)
            return Element(self._alias() or f"${number}", None, _COUNT)
        for aggregate in _AGGREGATES:
            if self.accept(aggregate, "("):
                of = self.path()
                self.expect(")", "'.' or ')'")
                return Element(self._alias() or f"${number}", of, aggregate)
        path = self.path("*, the path of a property or an aggregate (COUNT, SUM, AVG, MIN, MAX)")
        return Element(self._alias() or path.name, path)

    def _alias(self) -> str | None:
        return self.name("a name for the row's member") if self.accept("AS") else None

    def _check_jobs(self, query: Query, select: Token, group: Token) -> None:
        if query.source is not Source.JOBS:
            return
        if query.elements:
            raise self.error(select, "'*', which is all that devices.jobs answers")
        if query.group_by is not None:
            raise self.error(group, "no GROUP BY, which devices.jobs does not know")

    def _check_groups(self, query: Query, select: Token) -> None:
        if not query.is_grouped:
            return
        if not query.elements:
            raise self.error(select, "the path of GROUP BY or aggregates")
        for element in query.elements:
            if element.aggregate is None and element.path != query.group_by:
                allowed = f"aggregates or {query.group_by}" if query.group_by else "aggregates only"
                raise self.error(self._starts[element.name], f"{allowed}, as rows stand for groups")

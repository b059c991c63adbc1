from __future__ import annotations

import itertools
import json
import statistics
from typing import Any

import contracts_query as slow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_contracts.errors import ContractError
from edge_contracts.expressions import UNDEFINED
from edge_contracts.query import Groups, Query, Source, parse_query
from edge_contracts.query_condition import LENGTH_LIMIT, QUERY_FUNCTIONS, parse_condition
from edge_contracts.query_target import parse_target_condition

TWIN = {
    "deviceId": "d1",
    "capabilities": {"iotEdge": True},
    "tags": {"site": "north", "from": 1, "a-b": {"x": 2}, "list": [1], "n": 5, "s": "héllo"},
    "properties": {
        "desired": {"$version": 4, "level": 3, "on": False},
        "reported": {"$version": 4, "level": 2.5, "list": []},
    },
    "configurations": {"dep-1": {"status": "Applied"}},
}


def holds(condition: str, document: Any = TWIN) -> bool:
    return parse_condition(condition).evaluate(document) is True


@pytest.mark.parametrize(
    "condition",
    [
        "tags.site = 'north'",
        'tags.site="north"',
        "NOT tags.site = 'south'",
        "not not tags.site = 'north' and deviceId = 'd1'",
        "tags.site = 'south' OR tags.n = 5 AND tags.n = 5",
        "tags.n = 2 + 3 AND tags.n * 2 - 1 = 9 AND tags.n % 3 = 2 AND 10 / 4 = 2.5",
        "10 - 2 - 3 = tags.n",
        "tags.n = 0x5 AND tags.n > -1 AND tags.n > - 1 and tags.n=5e0",
        "tags.from = 1 AND tags.[[a-b]].x = 2",
        "configurations.[[dep-1]].status = 'Applied'",
        "capabilities.iotEdge = true and CAPABILITIES.iotedge=TRUE and DeviceID='d1' and devices.deviceId = 'd1'",
        "properties.desired.$version = properties.reported.$version",
        "Properties.Reported.level < properties.desired.level",
        "tags.n IN [1, -2, 5] AND tags.n NIN ['5', null, true]",
        "tags.missing = 1 OR true",
        "NOT (tags.missing = 1 AND false)",
        "is_defined(tags.site) AND NOT is_defined(tags.missing) AND is_defined(properties.desired.on)",
        "is_array(tags.list) AND is_object(tags) AND is_primitive(tags.n) AND NOT is_primitive(tags.list)",
        "is_bool(properties.desired.on) AND is_number(tags.n) AND is_string(tags.site) AND is_null(null)",
        "startswith(tags.site, 'no') AND STARTS_WITH(tags.site, 'n') AND endswith(tags.site, 'th')",
        "contains(tags.site, 'ort') AND length(tags.s) = 5 AND upper(tags.site) = 'NORTH'",
        "substring(tags.site, 1, 2) = 'or' AND index_of(tags.site, 'r') = 2 AND concat(tags.site, '-', 'x') = 'north-x'",
        "abs(-2) = 2 AND power(tags.n, 2) = 25 AND square(3) = 9 AND ceiling(properties.reported.level) = 3",
        "floor(2.5) = 2 AND sign(-3) = -1 AND sqrt(4) = 2 AND exp(0) = 1 AND as_number('5') = tags.n",
        "tags.site != 5",
        # By UTF-16 units the ligature comes behind the emoji, by code points before it.
        "'\ufb00' > '\U0001f600' AND 'a' < 'b' AND 'B' < 'a'",
        "'\\u0041\\'' = \"A'\"",
    ],
)
def test_condition_holds(condition: str) -> None:
    assert holds(condition)


@pytest.mark.parametrize(
    "condition",
    [
        "tags.missing != 1",
        "NOT tags.missing = 1",
        "tags.missing = undefined",
        "tags.missing NIN [1]",
        "tags.Site = 'north'",
        "tags.site = 'North'",
        "tags.n = '5'",
        "tags.site < 5 OR tags.site >= 5",
        "tags.list = tags.list",
        "tags = tags",
        "tags.site",
        "5",
        "null",
        "tags.n AND true",
        "true = 1",
        "length(tags.n) = 1",
        "tags.site.deeper = 1",
        "property.reported.level = 2.5",
    ],
)
def test_condition_does_not_hold(condition: str) -> None:
    assert not holds(condition)


def same_value(found: Any, expected: list[Any]) -> bool:
    """Undefined is no value; 1 and 1.0 are one number; true is none."""
    wanted = expected[0] if expected else UNDEFINED
    return found == wanted and isinstance(found, bool) == isinstance(wanted, bool)


@settings(max_examples=400, deadline=None)
@given(slow.CONDITIONS, slow.DOCUMENTS)
def test_conditions_as_the_slow_evaluator(tree: slow.Tree, document: Any) -> None:
    text = slow.render(tree)
    assert same_value(parse_condition(text).evaluate(document), slow.values_of(tree, document)), text


@settings(max_examples=200, deadline=None)
@given(st.sampled_from(["=", "!=", "<>", "<", "<=", ">", ">="]), slow.CONSTANTS, slow.CONSTANTS)
def test_comparisons_as_the_slow_evaluator(symbol: str, one: Any, other: Any) -> None:
    tree = ("compare", symbol, ("constant", one), ("constant", other))
    text = slow.render(tree)
    assert same_value(parse_condition(text).evaluate({}), slow.values_of(tree, {})), text


@settings(max_examples=200, deadline=None)
@given(slow.sums_of(st.integers(-2, 3)))
def test_arithmetic_as_the_slow_evaluator(tree: slow.Tree) -> None:
    text = slow.render(tree)
    assert same_value(parse_condition(text).evaluate({}), slow.values_of(tree, {})), text


@settings(max_examples=200, deadline=None)
@given(st.text("abtgs.'\"[]()=<>!*,$\\ 01ANDORINT-\n", max_size=40))
def test_any_text_is_a_condition_or_an_error_that_names_its_place(text: str) -> None:
    try:
        parse_condition(text)
    except ContractError as error:
        assert error.code == "query"
        assert "'condition' at character " in str(error)
        assert ": expected " in str(error)


# ---- whole queries


def rows_of(query: Query, documents: list[Any]) -> list[Any]:
    matched = [document for document in documents if query.matches(document)]
    if not query.is_grouped:
        return [query.row(document) for document in matched]
    groups = Groups(query)
    for document in matched:
        groups.add(document)
    return groups.rows()


@settings(max_examples=150, deadline=None)
@given(slow.CONDITIONS, st.lists(slow.DOCUMENTS, max_size=6), slow.PATHS, slow.PATHS, st.booleans())
def test_groups_as_the_slow_evaluator(
    tree: slow.Tree, documents: list[Any], by: tuple[str, ...], of: tuple[str, ...], grouped: bool
) -> None:
    by_text, of_text = slow.render_path(by), slow.render_path(of)
    text = (
        f"SELECT {f'{by_text} AS [[the group]], ' if grouped else ''}count() AS n, SUM({of_text}) AS total, "
        f"avg({of_text}) AS mean, MIN({of_text}) AS least, max({of_text}) AS most FROM devices "
        f"WHERE {slow.render(tree)}{f' GROUP BY {by_text}' if grouped else ''}"
    )

    def key(document: Any) -> str:
        return json.dumps(slow.values_at(document, by) if grouped else [], sort_keys=True)

    matched = sorted((each for each in documents if slow.holds(tree, each)), key=key)
    expected = [
        _expected_row(by if grouped else None, of, list(members))
        for _, members in itertools.groupby(matched, key)
    ] or ([] if grouped else [{"n": 0}])
    found = rows_of(parse_query(text), documents)
    assert sorted(map(_text, found)) == sorted(map(_text, expected)), text


def _expected_row(by: tuple[str, ...] | None, of: tuple[str, ...], members: list[Any]) -> dict[str, Any]:
    row: dict[str, Any] = {"n": len(members)}
    if by is not None and slow.values_at(members[0], by):
        row["the group"] = slow.values_at(members[0], by)[0]
    values = [value for member in members for value in slow.values_at(member, of)]
    numbers = [value for value in values if type(value) in (int, float)]
    strings = sorted(
        (value for value in values if type(value) is str), key=lambda text: text.encode("utf-16-be")
    )
    if numbers:
        row |= {"total": sum(numbers), "mean": statistics.fmean(numbers)}
    if numbers or strings:
        row["least"] = min(numbers) if numbers else strings[0]
        row["most"] = strings[-1] if strings else max(numbers)
    return row


def _text(row: dict[str, Any]) -> str:
    # 1 and 1.0 are one number; true is none.
    return repr(sorted((name, float(value) if type(value) is int else value) for name, value in row.items()))


def test_rows_hold_what_is_defined() -> None:
    query = parse_query(
        "select top 2 deviceid, tags.site AS where_, properties.reported.nothing From devices"
    )
    assert query.top == 2
    assert query.row(TWIN) == {"deviceId": "d1", "where_": "north"}
    assert parse_query("SELECT * FROM devices").row(TWIN) is TWIN


def test_aggregates_without_alias_are_numbered() -> None:
    assert rows_of(parse_query("SELECT COUNT(*), MAX(tags.n) FROM devices.modules"), [TWIN]) == [
        {"$1": 1, "$2": 5}
    ]


def test_sources() -> None:
    for name, source in (
        ("devices", Source.DEVICES),
        ("Devices.Modules", Source.MODULES),
        ("devices.jobs", Source.JOBS),
    ):
        assert parse_query(f"SELECT * FROM {name}").source is source


def test_true_is_another_group_than_1_but_1_0_is_not() -> None:
    documents: list[Any] = [{"tags": {"v": value}} for value in (1, True, 1.0, {"a": 1}, {"a": 1})]
    rows = rows_of(parse_query("SELECT COUNT() AS n, tags.v FROM devices GROUP BY tags.v"), documents)
    assert sorted(row["n"] for row in rows) == [1, 2, 2]


def test_least_and_most_of_numbers_and_strings() -> None:
    values = ["b", True, 3, "\ufb00", -2, "\U0001f600", [9], "a"]
    documents: list[Any] = [{"tags": {"v": value}} for value in values]
    least_and_most = parse_query("SELECT MIN(tags.v) AS least, MAX(tags.v) AS most FROM devices")
    assert rows_of(least_and_most, documents) == [{"least": -2, "most": "\ufb00"}]
    strings = [{"tags": {"v": value}} for value in ("b", "a", "c")]
    assert rows_of(least_and_most, strings) == [{"least": "a", "most": "c"}]


def test_aggregates_that_json_cannot_hold_are_left_out() -> None:
    documents = [{"tags": {"n": 1e308}}, {"tags": {"n": 1e308}}]
    assert rows_of(parse_query("SELECT SUM(tags.n) AS s, MAX(tags.n) AS m FROM devices"), documents) == [
        {"m": 1e308}
    ]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "at character 1: expected SELECT, found the end of the query"),
        ("SELECT", "at character 7: expected *, the path of a property or an aggregate"),
        (
            "SELECT * FROM device",
            "at character 15: expected devices, devices.modules or devices.jobs, found 'device'",
        ),
        ("SELECT * FROM devices.twins", "at character 23: expected modules or jobs"),
        ("SELECT * devices", "at character 10: expected FROM, found 'devices'"),
        ("SELECT deviceId status FROM devices", "at character 17: expected ',', AS or FROM, found 'status'"),
        ("SELECT TOP 0 * FROM devices", "at character 12: expected a number of rows"),
        (
            "SELECT * FROM devices HAVING x",
            "at character 23: expected WHERE, GROUP BY or the end, found 'HAVING'",
        ),
        (
            "SELECT * FROM devices WHERE",
            "at character 28: expected a property, a constant, a function or '('",
        ),
        ("SELECT * FROM devices WHERE tags.a =", "at character 37: expected a property"),
        ("SELECT * FROM devices WHERE tags.a == 1", "at character 37: expected a property"),
        (
            "SELECT * FROM devices WHERE tags.a = 'x",
            "at character 38: expected a string with a closing quote",
        ),
        ("SELECT * FROM devices WHERE (tags.a = 1", "at character 40: expected an operator or ')'"),
        (
            "SELECT * FROM devices WHERE tags.a = 1 tags.b",
            "at character 40: expected an operator, GROUP BY or the end",
        ),
        ("SELECT * FROM devices WHERE tags.a IN 'x'", "at character 39: expected '[' and constants"),
        ("SELECT * FROM devices WHERE tags.a IN [tags.b]", "at character 40: expected a constant"),
        ("SELECT * FROM devices WHERE tags.a IN []", "at character 40: expected a constant"),
        (
            "SELECT * FROM devices WHERE tags.a-b. = 1",
            "at character 39: expected a name (a special one as [[a-b]])",
        ),
        ("SELECT * FROM devices WHERE tags.1a = 1", "at character 34: expected a name"),
        ("SELECT * FROM devices WHERE nope(tags.a)", "at character 29: expected one of the functions abs,"),
        (
            "SELECT * FROM devices WHERE length(5) = 1",
            "at character 29: expected length(string), found length(number)",
        ),
        (
            "SELECT * FROM devices WHERE is_defined()",
            "at character 29: expected is_defined(any), found is_defined()",
        ),
        (
            "SELECT * FROM devices GROUP BY tags.a",
            "at character 8: expected the path of GROUP BY or aggregates",
        ),
        ("SELECT COUNT(), tags.a FROM devices", "at character 17: expected aggregates only"),
        (
            "SELECT tags.b, COUNT() FROM devices GROUP BY tags.a",
            "at character 8: expected aggregates or tags.a, as rows stand for groups, found 'tags'",
        ),
        ("SELECT tags.a, x.a FROM devices", "at character 16: expected another name than 'a'"),
        ("SELECT COUNT(tags.a) FROM devices", "at character 14: expected '*' or ')', as COUNT counts rows"),
        ("SELECT SUM() FROM devices", "at character 12: expected the path of a property"),
        ("SELECT deviceId FROM devices.jobs", "at character 8: expected '*'"),
        ("SELECT * FROM devices.jobs GROUP BY jobId", "at character 28: expected no GROUP BY"),
        ("SELECT * FROM devices;", "at character 22: expected WHERE, GROUP BY or the end, found ';'"),
        (
            "SELECT * FROM devices WHERE " + "(" * 101,
            "at character 129: expected at most 100 levels of nesting",
        ),
        (
            "SELECT * FROM devices WHERE " + " + ".join(["1"] * 101),
            "at character 427: expected at most 100 operators in a row",
        ),
    ],
)
def test_errors_name_place_expectation_and_finding(text: str, problem: str) -> None:
    with pytest.raises(ContractError) as caught:
        parse_query(text)
    assert f"'query' {problem}" in str(caught.value)
    assert caught.value.code == "query"


def test_long_query_is_refused() -> None:
    with pytest.raises(ContractError, match=f"at most {LENGTH_LIMIT} characters"):
        parse_query("SELECT * FROM devices WHERE tags.a = '" + "x" * LENGTH_LIMIT + "'")


def test_ors_and_ands_go_on_as_long_as_the_query() -> None:
    ors = " OR ".join(f"deviceId = 'd{number}'" for number in range(300))
    assert holds(ors)
    assert holds(" AND ".join(["tags.n = 5"] * 500))
    assert not holds(" AND ".join(["tags.n = 5"] * 500 + ["tags.missing = 1"]))


def test_query_names_the_members_it_looks_at() -> None:
    query = parse_query(
        "SELECT DeviceId, MAX(tags.n) FROM devices WHERE status = 'enabled' GROUP BY deviceId"
    )
    assert query.members == {"deviceId", "tags", "status"}


@pytest.mark.parametrize("filler", ["[[a", "1", "'\\q", "((", "a.", "- "])
def test_hostile_query_ends_soon(filler: str) -> None:
    with pytest.raises(ContractError):
        parse_query("SELECT * FROM devices WHERE " + filler * 2000 + "x y")


def test_every_function_of_the_page_is_there() -> None:
    names = "abs exp power square ceiling floor sign sqrt as_number is_array is_bool is_defined is_null is_number is_object"
    names += (
        " is_primitive is_string concat length lower upper substring index_of starts_with ends_with contains"
    )
    assert set(names.split()) <= set(QUERY_FUNCTIONS)


# ---- target conditions


@pytest.mark.parametrize(
    ("text", "source", "matches"),
    [
        ("*", Source.DEVICES, True),
        (" * ", Source.DEVICES, True),
        ("", Source.DEVICES, False),
        ("  ", Source.DEVICES, False),
        ("tags.site='north' AND deviceId='d1'", Source.DEVICES, True),
        ("tags.site='south'", Source.DEVICES, False),
        ("from devices.modules where moduleId='m' or tags.n = 5", Source.MODULES, True),
        ("FROM devices.modules", Source.MODULES, True),
    ],
)
def test_target_condition(text: str, source: Source, matches: bool) -> None:
    condition = parse_target_condition(text)
    assert (condition.source, condition.matches(TWIN)) == (source, matches)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("tags.site = ", "'targetCondition' at character 13: expected a property"),
        (
            "* AND tags.a = 1",
            "'targetCondition' at character 3: expected an operator or the end, found 'AND'",
        ),
        (
            "FROM devices.jobs WHERE jobId = 'x'",
            "'targetCondition' at character 1: expected FROM devices.modules",
        ),
        ("SELECT * FROM devices", "'targetCondition' at character 1: expected a property"),
        ("tags.a = 1 GROUP BY tags.a", "'targetCondition' at character 12: expected an operator or the end"),
    ],
)
def test_bad_target_condition_names_its_place(text: str, problem: str) -> None:
    with pytest.raises(ContractError) as caught:
        parse_target_condition(text)
    assert problem in str(caught.value)

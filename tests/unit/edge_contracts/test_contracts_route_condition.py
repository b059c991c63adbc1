from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_contracts.errors import ContractError
from edge_contracts.expressions import FUNCTIONS, UNDEFINED
from edge_contracts.messages import Message
from edge_contracts.route_condition import Scope, parse_condition
from edge_contracts.route_tokens import tokenize

BODY = {
    "kind": "img",
    "size": 5,
    "on": True,
    "off": False,
    "none": None,
    "list": [{"x": "first"}, 7],
    "deep": {"er": {"est": -1.5}},
}
MESSAGE = Message(
    json.dumps(BODY).encode(),
    message_id="m-1",
    content_type="application/json",
    content_encoding="utf-8",
    connection_device_id="d",
    connection_module_id="scorer",
    output_name="out",
    properties={
        "level": "4",
        "kind": "img",
        "Empty": "",
        "$body.kind": "hidden?",
        "$messageId": "own",
        "a-1": "dash",
    },
)


def value_of(expression: str, message: Message = MESSAGE) -> Any:
    """The value of any expression: is_defined makes a condition of it, whose operand is what is asked for."""
    condition = parse_condition(f"is_defined({expression})")
    return condition.expression.operands[0].evaluate(Scope(message))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        # unary - and NOT, then * / %, then + -, then comparison, equality, AND, OR, ??
        ("1 + 2 * 3", 7.0),
        ("( 1 + 2 ) * 3", 9.0),
        ("10 - 2 - 3", 5.0),
        ("100 / 10 / 5", 2.0),
        ("7 % 4 * 2", 6.0),
        ("-7 % 4", -3.0),
        ("2 * - 3", -6.0),
        ("1 + 2 < 4", True),
        ("1 < 2 = true", True),
        ("true = 1 < 2", True),
        ("1 < 2 != 2 > 3", True),
        ("NOT true = false", True),
        ("NOT ( true = true )", False),
        ("NOT NOT true", True),
        ("true OR false AND false", True),
        ("( true OR false ) AND false", False),
        ("false AND true OR true", True),
        ("'a' || 'b' = 'ab'", True),
        ("undefined ?? 'x' || 'y'", "xy"),
        ("true AND false ?? true", False),
        ("undefined ?? undefined ?? 3", 3.0),
        ("missing ?? kind", "img"),
    ],
)
def test_precedence(expression: str, value: Any) -> None:
    assert value_of(expression) == value
    assert type(value_of(expression)) is type(value)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("'a\\'b'", "a'b"),
        ('"a\\"b"', 'a"b'),
        ("'\\\\'", "\\"),
        ("'\\u00e9\\ud83d\\ude00'", "é😀"),
        ('"it\'s"', "it's"),
        ("12", 12.0),
        ("-12", -12.0),
        ("0xFf", 255.0),
        (".5", 0.5),
        ("-1.5e2", -150.0),
        ("2e3", 2000.0),
        ("1e999", math.inf),
        ("true", True),
        ("false", False),
        ("null", None),
        ("undefined", UNDEFINED),
        # The reader of real numbers takes a bare exponent, which then is no number.
        ("e5", UNDEFINED),
        # Only lower-case literals: this is the name of a property.
        ("TRUE", UNDEFINED),
    ],
)
def test_literals(expression: str, value: Any) -> None:
    assert value_of(expression) == value


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("kind", "img"),
        ("KIND", "img"),
        ("empty", ""),
        ("missing", UNDEFINED),
        ("a-1", "dash"),
        ("$outputName", "out"),
        ("$OUTPUTNAME", "out"),
        ("$connectionModuleId", "scorer"),
        ("$connectionDeviceId", "d"),
        ("$contentType", "application/json"),
        ("$contentEncoding", "utf-8"),
        ("$correlationId", UNDEFINED),
        ("$userId", UNDEFINED),
        ("$nonsense", UNDEFINED),
        # An application property of that name comes first, braces ask for the system property.
        ("$messageId", "own"),
        ("{$messageId}", "m-1"),
        ("$body.kind", "hidden?"),
        ("{$body.kind}", "img"),
        ("$body.size", 5.0),
        ("$BODY.on", True),
        ("$body.none", None),
        ("$body.list[0].x", "first"),
        ("$body.list[1]", 7.0),
        ("$body.list[9]", UNDEFINED),
        ("$body.list", UNDEFINED),
        ("$body.deep.er.est", -1.5),
        ("$body.deep.er", UNDEFINED),
        ("$body.kind.x", UNDEFINED),
        ("$body.missing", UNDEFINED),
        ("$body.Size", UNDEFINED),
    ],
)
def test_names(expression: str, value: Any) -> None:
    assert value_of(expression) == value
    assert type(value_of(expression)) is type(value)


@pytest.mark.parametrize(
    ("content_type", "encoding", "body", "readable"),
    [
        ("application/json", "utf-8", b'{"a":1}', True),
        ("Application/JSON", "UTF-8", b'\xef\xbb\xbf{"a":1}', True),
        ("application/json", "utf-16", '{"a":1}'.encode("utf-16"), True),
        ("application/json", "utf-32", '{"a":1}'.encode("utf-32"), True),
        ("application/json", None, b'{"a":1}', False),
        ("text/plain", "utf-8", b'{"a":1}', False),
        (None, "utf-8", b'{"a":1}', False),
        ("application/json", "latin-1", b'{"a":1}', False),
        ("application/json", "utf-8", b'{"a":', False),
        ("application/json", "utf-8", b"\xff", False),
        ("application/json", "utf-8", b"[" * 100_000, False),
        ("application/json", "utf-8", b"", False),
    ],
)
def test_body_is_read_only_as_declared(
    content_type: str | None, encoding: str | None, body: bytes, readable: bool
) -> None:
    message = Message(body, content_type=content_type, content_encoding=encoding)
    assert parse_condition("$body.a = 1").matches(message) is readable
    assert parse_condition("NOT ( $body.a = 1 )").matches(message) is False


T, F, U = "( 1 = 1 )", "( 1 = 2 )", "( missing = 'x' )"


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (f"{T} AND {U}", UNDEFINED),
        (f"{F} AND {U}", False),
        (f"{U} AND {F}", False),
        (f"{U} AND {U}", UNDEFINED),
        (f"{T} OR {U}", True),
        (f"{U} OR {T}", True),
        (f"{F} OR {U}", UNDEFINED),
        (f"NOT {U}", UNDEFINED),
        ("missing = missing", UNDEFINED),
        ("missing != 'x'", UNDEFINED),
        ("undefined = 1", UNDEFINED),
        ("null = null", True),
        ("null < null", False),
        ("NOT null", UNDEFINED),
        ("true AND null", UNDEFINED),
        ("false < true", True),
        ("as_number(kind) + 1", UNDEFINED),
        ("- as_number(kind)", UNDEFINED),
        ("kind || missing", UNDEFINED),
        ("1 / 0", math.inf),
        ("-1 / 0", -math.inf),
        ("0 / 0", UNDEFINED),
        ("1 % 0", UNDEFINED),
        ("0 / 0 = 0 / 0", UNDEFINED),
    ],
)
def test_undefined_spreads(expression: str, value: Any) -> None:
    assert value_of(expression) == value


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("$body.size = 5", True),
        ("$body.size = '5'", False),
        ("$body.size != '5'", True),
        ("$body.on = true", True),
        ("$body.none = null", True),
        ("$body.size = null", False),
        # boolean < number < string < null
        ("$body.on < $body.size", True),
        ("$body.size < 'x'", True),
        ("'x' < $body.none", True),
        ("$body.missing < $body.size", UNDEFINED),
        ("$body.size + 1 > 5", True),
        ("$body.on + 1", UNDEFINED),
        ("$body.on AND true", True),
        ("$body.off OR $body.on", True),
        ("$body.size AND true", UNDEFINED),
        ("NOT $body.off", True),
    ],
)
def test_members_of_the_body_take_any_type(expression: str, value: Any) -> None:
    assert value_of(expression) == value


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("abs(-1.5)", 1.5),
        ("exp(0)", 1.0),
        ("exp(1000)", math.inf),
        ("power(2, 10)", 1024.0),
        ("power(-1, 0.5)", UNDEFINED),
        ("square(-3)", 9.0),
        ("square(1e300)", math.inf),
        ("ceiling(1.2)", 2.0),
        ("ceiling(-1.2)", -1.0),
        ("floor(1.8)", 1.0),
        ("floor(1e999)", math.inf),
        ("sign(-5)", -1.0),
        ("sign(0)", 0.0),
        ("sqrt(9)", 3.0),
        ("sqrt(-1)", UNDEFINED),
        ("as_number(level)", 4.0),
        ("as_number(' -1,234.5e1 ')", -12345.0),
        ("as_number('1.')", 1.0),
        ("as_number('')", UNDEFINED),
        ("as_number('0x10')", UNDEFINED),
        ("as_number('4 5')", UNDEFINED),
        ("as_number(3)", 3.0),
        ("as_number($body.on)", UNDEFINED),
        ("is_bool(true)", True),
        ("is_bool('true')", False),
        ("is_bool(missing = 'x')", False),
        ("is_bool($body.on)", True),
        ("is_defined(missing)", False),
        ("is_defined(empty)", True),
        ("is_defined($connectionModuleId)", True),
        ("is_defined(null)", True),
        ("is_null(null)", True),
        ("is_null($body.none)", True),
        ("is_null(missing)", False),
        ("is_number(1)", True),
        ("is_number(level)", False),
        ("is_number(as_number(kind))", False),
        ("is_number($body.size)", True),
        ("is_string(kind)", True),
        ("is_string(missing)", False),
        ("is_string($body.size)", False),
        ("concat(kind, '-', 'x', level)", "img-x4"),
        ("concat(kind, missing)", UNDEFINED),
        ("length(kind)", 3.0),
        ("length('é😀')", 3.0),
        ("lower('ÄbC')", "äbc"),
        ("upper('äbC')", "ÄBC"),
        ("substring('abcdef', 2)", "cdef"),
        ("substring('abc', 3)", ""),
        ("substring('abc', 4)", UNDEFINED),
        ("substring('abc', -1)", UNDEFINED),
        ("substring('abcdef', 1, 3)", "bcd"),
        ("substring('abcdef', 1.9, 3.9)", "bcd"),
        ("substring('abc', 1, 2)", "bc"),
        ("substring('abc', 1, 3)", UNDEFINED),
        ("substring('abc', 3, 0)", UNDEFINED),
        ("substring('a😀b', 3)", "b"),
        ("index_of('abcabc', 'ca')", 2.0),
        ("index_of('abc', 'x')", -1.0),
        ("index_of('😀b', 'b')", 2.0),
        ("starts_with(kind, 'im')", True),
        ("starts_with(kind, 'IM')", False),
        ("ends_with(kind, 'mg')", True),
        ("contains(kind, 'm')", True),
        ("contains(missing, 'm')", UNDEFINED),
        ("IS_DEFINED(kind) = Is_String(kind)", True),
    ],
)
def test_functions(expression: str, value: Any) -> None:
    assert value_of(expression) == value
    assert type(value_of(expression)) is type(value)


def test_the_24_functions_are_there() -> None:
    assert len(FUNCTIONS) + len(["twin_change_includes"]) == 24


@pytest.mark.parametrize(
    ("member", "included"),
    [(b'{"rate":5}', True), (b'{"rate":{"a":1}}', True), (b'{"rate":null}', False), (b"{}", False)],
)
def test_twin_changes_have_a_function_of_their_own(member: bytes, included: bool) -> None:
    condition = parse_condition("twin_change_includes(properties.desired.rate)", twin_changes=True)
    body = b'{"properties":{"desired":' + member + b"}}"
    change = Message(body, content_type="application/json", content_encoding="utf-8")
    assert condition.matches(change) is included


def test_function_of_twin_changes_is_unknown_to_other_sources() -> None:
    with pytest.raises(ContractError, match="found 'twin_change_includes'"):
        parse_condition("twin_change_includes(properties.desired.rate)")


def test_longest_word_wins() -> None:
    def words(text: str) -> list[str]:
        return [token.text for token in tokenize(text)[:-1]]

    assert words("a-1 = 'x'") == ["a-1", "=", "'x'"]
    assert words("a - 1") == ["a", "-", "1"]
    assert words("a != 'x'") == ["a", "!=", "'x'"]
    assert words("a!='x'") == ["a!", "=", "'x'"]
    assert words("a<>'x'") == ["a", "<>", "'x'"]
    assert words("'a'||'b'") == ["'a'||'b'"]
    assert words("android OR nothing") == ["android", "OR", "nothing"]
    assert words("a /* b */ c") == ["a", "c"]
    assert words("a /* b") == ["a", "/", "*", "b"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "at character 1: expected a property, a literal, a function or '(', found the end of the route"),
        (
            "a =",
            "at character 4: expected a property, a literal, a function or '(', found the end of the route",
        ),
        ("a = 'x' b", "at character 9: expected an operator or the end, found 'b'"),
        ("(a = 'x'", "at character 9: expected ')', found the end of the route"),
        ("a = 'x')", "at character 8: expected an operator or the end, found ')'"),
        (
            "a = 'x",
            'at character 5: expected a closing quote (escapes are \\" \\\' \\\\ \\uXXXX), found "\'x"',
        ),
        ("a = 'x\\n'", "at character 5: expected a closing quote"),
        ("a == 'x'", "at character 4: expected a property, a literal, a function or '(', found '='"),
        ("a = ;", "at character 5: expected a property, a literal, a function or '(', found ';'"),
        (
            "temperature > 20",
            "at character 13: > needs operands of one type (string), found a string and a number",
        ),
        (
            "kind = true",
            "at character 6: = needs operands of one type (string), found a string and a boolean",
        ),
        ("NOT a = 'b'", "at character 1: NOT needs a boolean, found a string"),
        (
            "- kind = 1",
            "at character 1: - needs a number, found a string; as_number(…) makes a number of a property",
        ),
        (
            "kind AND true",
            "at character 6: AND needs operands of one type (boolean), found a string and a boolean",
        ),
        ("kind", "at character 1: expected a condition that is true or false, found a string"),
        ("1 + 1", "at character 1: expected a condition that is true or false, found a number"),
        ("sizeof(a) = 1", "at character 1: expected one of the functions abs, exp, power,"),
        ("length(1) = 1", "at character 1: expected length(string), found length(number)"),
        ("abs() = 1", "at character 1: expected abs(number), found abs()"),
        ("concat(a) = 'x'", "at character 1: expected concat(string, string, …), found concat(string)"),
        (
            "substring(a) = 'x'",
            "expected substring(string, number) or substring(string, number, number), found",
        ),
        ("contains(a 'b')", "at character 12: expected ',' or ')', found \"'b'\""),
        ("contains(a,)", "at character 12: expected a property, a literal, a function or '(', found ')'"),
        (
            "{messageId} = 'x'",
            "at character 2: expected a system property, as in {$messageId}, found 'messageId'",
        ),
        ("{$messageId = 'x'", "at character 13: expected '}', found '='"),
        ("$body.a..b = 1", "at character 1: expected a path of names and [index], found '$body.a..b'"),
        ("$body.a[x] = 1", "at character 1: expected a path of names and [index], found '$body.a[x]'"),
        (
            "$messageId[0] = 'a'",
            "at character 1: expected a system property or $body.path[0], found '$messageId[0]'",
        ),
        ("(" * 200 + "true" + ")" * 200, "expected at most 100 levels of nesting, found more"),
        (" AND ".join(["true"] * 200), "expected at most 100 operators in a row, found more"),
    ],
)
def test_bad_condition_says_where_what_was_expected_and_found(text: str, message: str) -> None:
    with pytest.raises(ContractError) as caught:
        parse_condition(text, where="routes.r")
    assert caught.value.code == "route"
    assert caught.value.where == "routes.r"
    assert caught.value.message.startswith("'routes.r' at character ")
    assert message in caught.value.message


WORDS = """
a kind $body.size $messageId { } ( ) , + - * / % || < <= = != <> AND OR NOT ?? 'x' "y" 1 -2 .5 0x1 true false null
undefined length abs concat is_defined as_number ; @ 'open
"""


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(WORDS.split()), max_size=12))
def test_any_words_are_evaluated_or_refused(parts: list[str]) -> None:
    try:
        condition = parse_condition(" ".join(parts))
    except ContractError as error:
        assert error.code == "route"
    else:
        assert condition.matches(MESSAGE) in (True, False)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_words_cover_the_text_in_order(text: str) -> None:
    tokens = tokenize(text)
    assert [token.start for token in tokens] == sorted(token.start for token in tokens)
    assert all(text[token.start : token.end] == token.text for token in tokens)
    assert tokens[-1].kind == "end"


numbers = st.floats(allow_nan=False, allow_infinity=False, width=32)


@settings(max_examples=40, deadline=None)
@given(numbers, numbers)
def test_arithmetic_and_comparison_agree_with_doubles(left: float, right: float) -> None:
    message = Message(b"", properties={"l": repr(left), "r": repr(right)})

    def number(operator: str) -> Any:
        return value_of(f"as_number(l) {operator} as_number(r)", message)

    assert (number("+"), number("-"), number("*")) == (left + right, left - right, left * right)
    assert (number("<"), number(">="), number("=")) == (left < right, left >= right, left == right)

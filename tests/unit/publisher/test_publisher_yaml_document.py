"""YAML of others: plain values with their lines, bounded, no objects."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from publisher.errors import DocumentError
from publisher.yaml_document import parse_yaml, read_yaml


def test_values_are_plain_and_keep_what_was_written() -> None:
    text = b"a: 3.10\nb: [1, -2, true, null, 0x10, 007, 1:30]\nc: 2024-01-02\nd: 'x'\n"
    assert parse_yaml(text, "f").value == {
        "a": "3.10",
        "b": [1, -2, True, None, "0x10", "007", "1:30"],
        "c": "2024-01-02",
        "d": "x",
    }


def test_a_part_is_found_by_its_line_and_a_missing_one_by_what_is_around_it() -> None:
    document = parse_yaml(b"a:\n  - x\n  - b:\n      c: 1\n", "f.yml")
    assert document.where("a", 1, "b", "c") == "f.yml:4"
    assert document.where("a", 1, "nothing") == "f.yml:3"
    assert document.where() == "f.yml:1"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            b"a: !!python/object/apply:os.system [ls]",
            r"f:1 has a tag that is not taken: tag:yaml.org,2002:python",
        ),
        (b"a: 1\nb: !x y", "f:2 has a tag that is not taken: !x"),
        (b"a: !!binary aGk=", "f:1 has a tag that is not taken"),
        (b"a: 1\nb: 2\na: 3", "f:3 has the key 'a' twice"),
        (b"a: &x {b: 1}\nc:\n  <<: *x", "f:3 has a key that is not plain text"),
        (b"? [a]\n: 1", "f:1 has a key that is not plain text"),
        (b"a: [1", "f:1 is not valid YAML"),
        (b"a: 1\n---\nb: 2", "f:2 is not valid YAML"),
        (b"a: *nothing", "f:1 is not valid YAML"),
        (b"\xff\xfe", "f is not UTF-8"),
        (b"a: \x00", "f is not valid YAML"),
        (b"[" * 10_000, "f:1 is nested deeper than 32"),
        (b"a: &a [*a]", "f:1 has more than"),
        (b"x" * ((1 << 20) + 1), "f is larger than 1 MiB"),
    ],
)
def test_what_is_not_taken_is_refused_with_its_line(text: bytes, message: str) -> None:
    with pytest.raises(DocumentError, match=message):
        parse_yaml(text, "f")


def test_aliases_that_multiply_are_refused_before_they_fill_the_memory() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    with pytest.raises(DocumentError, match="counting repeated ones"):
        parse_yaml("\n".join(lines).encode(), "f")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DocumentError, match=r"none\.yml cannot be read: No such file"):
        read_yaml(tmp_path / "none.yml")


@given(
    st.binary(max_size=200) | st.text(alphabet="ab:-[]{}&*!?|>'\"#%,\n \t<~01", max_size=200).map(str.encode)
)
def test_any_bytes_are_a_value_or_a_document_error(data: bytes) -> None:
    try:
        parse_yaml(data, "f")
    except DocumentError as error:
        assert error.where is not None and error.where.startswith("f")

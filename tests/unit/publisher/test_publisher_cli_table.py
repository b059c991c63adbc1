"""The committed table of commands, the reference page and the two programs say the same."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer

from edge_agent.cli import _parser as edge_agent_parser
from publisher.cli.main import COMMANDS

PAGE = Path(__file__).resolve().parents[3] / "docs" / "reference" / "cli.md"


def programs() -> dict[str, set[str]]:
    """Every command that can be typed, `edgewright hub start`, with the options it takes."""
    commands = dict(_argparse("edge-agent", edge_agent_parser()))
    for name, row in COMMANDS.items():
        group = typer.main.get_group(import_module(row.module).app)
        commands |= _click(f"edgewright {name}", group if row.is_group else group.commands[name])
    return commands


def _click(name: str, command: Any) -> dict[str, set[str]]:
    children = getattr(command, "commands", None)
    if children is None:
        options = [each for each in command.params if each.param_type_name == "option"]
        return {name: {spelled for each in options for spelled in (*each.opts, *each.secondary_opts)}}
    found: dict[str, set[str]] = {}
    for child, below in children.items():
        found |= _click(f"{name} {child}", below)
    return found


def _argparse(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, set[str]]]:
    groups = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    if not groups:
        shown = [each for each in parser._actions if each.help != argparse.SUPPRESS]
        yield name, {spelled for each in shown for spelled in each.option_strings}
    for group in groups:
        for child, below in group.choices.items():
            yield from _argparse(f"{name} {child}", below)


def table(page: str) -> set[str]:
    """The commands planned: `edgewright hub start`, `edge-agent messages`, …"""
    lines = page.split("```")[1].strip().splitlines()
    planned: set[str] = set()
    for line in lines:
        words = re.sub(r"\(.*?\)|\[.*?\]", "", line)  # arguments, options, other names
        start = re.match(r"(?:edgewright|edge-agent) ", words)
        program = start[0].strip() if start else "edgewright"
        if start:
            prefix, row = program, words[start.end() :]
        else:
            group, _, row = words.strip().partition(" ")
            prefix = f"{program} {group}"
        for entry in row.split(" | "):
            *before, last = prefix, *(word for word in entry.split() if not word.isupper())
            planned |= {" ".join([*before, each]) for each in last.split("|")}
    return planned


def sections(page: str) -> dict[str, str]:
    """What the page says under each command's heading."""
    parts = re.split(r"^### (.+)$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture(scope="module")
def page() -> str:
    return PAGE.read_text(encoding="utf-8")


def test_every_command_has_its_heading_and_every_heading_its_command(page: str) -> None:
    headings = re.findall(r"^### (.+)$", page, flags=re.MULTILINE)
    assert len(headings) == len(set(headings))
    assert set(headings) == programs().keys()


def test_every_option_is_described_under_its_command(page: str) -> None:
    described = sections(page)
    missing = [
        f"{command} {option}"
        for command, options in programs().items()
        for option in sorted(options - {"--help", "-h"})
        if not re.search(rf"(?<![\w-]){re.escape(option)}(?![\w-])", described.get(command, ""))
    ]
    assert missing == []


def test_every_command_built_is_one_that_was_planned(page: str) -> None:
    planned = table(page)
    built = programs().keys()
    # `messages` in the table stands for what is below it.
    assert [name for name in built if not any(f"{name} ".startswith(f"{each} ") for each in planned)] == []


def test_table_is_read_as_it_is_meant(page: str) -> None:
    planned = table(page)
    assert {
        "edgewright demo",
        "edgewright hub start",
        "edgewright dashboard",
        "edgewright device create",
    } <= planned
    assert {"edgewright image base create", "edgewright manifest apply", "edge-agent config set"} <= planned
    assert all(re.fullmatch(r"[a-z -]+", each) for each in planned)

"""Readers of option values that several commands take."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from edge_contracts.redact import Secret
from publisher.errors import UsageError

PASSWORD_VARIABLE = "EDGEWRIGHT_REGISTRY_PASSWORD"
MODULE_PREFIX = re.compile(r"[A-Za-z0-9_-]+")


FilterOption = Annotated[
    list[str] | None,
    typer.Option("--tag", metavar="KEY[=VALUE]", help="Only with this tag. May be repeated; all must hold."),
]
PropertyFilterOption = Annotated[
    list[str] | None,
    typer.Option(
        "--property", metavar="KEY[=VALUE]", help="Only with this property. May be repeated; all must hold."
    ),
]


def labels_of(pairs: Sequence[str] | None, option: str) -> dict[str, str]:
    """`KEY=VALUE` options as a dict.

    Raises:
        UsageError: one of them has no `=` or no key.
    """
    found: dict[str, str] = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"{option} must be KEY=VALUE, not {pair!r}", where=option)
        if key in found:
            raise UsageError(f"{option} names {key!r} twice", where=option)
        found[key] = value
    return found


def per_module(
    values: Sequence[str] | None, modules: Sequence[str], option: str, *, only_one: bool = False
) -> dict[str, list[str]]:
    """`[MODULE::]VALUE` options by module; a value without a module is for every one.

    Args:
        only_one: whether a module takes one value at most.

    Raises:
        UsageError: a module that is not among `modules`, or two values where one is taken.
    """
    found: dict[str, list[str]] = {module: [] for module in modules}
    for text in values or ():
        module, colons, value = text.partition("::")
        if not colons or not MODULE_PREFIX.fullmatch(module):
            module, value = "", text
        elif module not in found:
            known = ", ".join(modules)
            raise UsageError(f"{option} names module {module!r}, and the modules are {known}", where=option)
        for name in [module] if module else modules:
            found[name].append(value)
    for module, given in found.items():
        if only_one and len(given) > 1:
            raise UsageError(f"{option} is given {len(given)} times for module {module!r}", where=option)
    return found


def filter_of(labels: Sequence[str] | None) -> list[str | list[str]]:
    """`KEY` and `KEY=VALUE` options as a filter of tags or properties."""
    return [each.split("=", 1) if "=" in each else each for each in labels or ()]


def password_of(*, from_stdin: bool) -> Secret:
    """A password from stdin or from the environment: never an argument, which every user of the machine can read.

    Raises:
        UsageError: there is none.
    """
    text = sys.stdin.readline().rstrip("\r\n") if from_stdin else os.environ.get(PASSWORD_VARIABLE, "")
    if not text:
        source = "the first line of stdin is empty" if from_stdin else f"{PASSWORD_VARIABLE} is not set"
        raise UsageError(
            f"a registry's user needs a password, but {source}; give --password-stdin or set {PASSWORD_VARIABLE}"
        )
    return Secret(text)

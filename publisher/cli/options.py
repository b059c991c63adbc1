"""Readers of option values that several commands take."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from edge_contracts.redact import Secret
from publisher.errors import UsageError

PASSWORD_VARIABLE = "EDGEWRIGHT_REGISTRY_PASSWORD"


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

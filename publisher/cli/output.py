"""What the user of the command line sees: rows and documents, progress, errors.

Rules:
- Results go to stdout, everything else to stderr, so that `-o json` can be piped.
- An error is its message, then `next: COMMAND` where one is known; never a traceback, unless EDGEWRIGHT_DEBUG=1.
- Exit 0 done, 1 failed, 2 usage, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, Any

import typer

from edge_contracts.errors import ContractError, EdgewrightError
from edge_contracts.redact import redact_text
from publisher.errors import ConfigError, UsageError

EXIT_CODES: tuple[tuple[type[EdgewrightError], int], ...] = (
    (UsageError, 2),
    (ConfigError, 2),
    (ContractError, 2),
    (EdgewrightError, 1),
)
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells count
DEBUG_VARIABLE = "EDGEWRIGHT_DEBUG"

# Whatever is over sooner needs no line of its own.
PROGRESS_AFTER_S = 1.0
PROGRESS_EVERY_S = 0.2
# Wide enough for a digest and its neighbours; a terminal gives its own width.
PIPE_WIDTH = 240


class Format(StrEnum):
    """How a read is printed."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


OutputOption = Annotated[Format, typer.Option("--output", "-o", help="How to print the result.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Short for -o json.")]


def command_group(description: str) -> typer.Typer:
    """A Typer app for one file of commands."""
    return typer.Typer(
        help=description,
        no_args_is_help=True,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )


def chosen(output: Format, as_json: bool) -> Format:
    """The format meant by `-o` and `--json` together."""
    return Format.JSON if as_json else output


def show_rows(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], output: Format) -> None:
    """Print rows; a table shows `columns` (key → heading), the other formats everything."""
    if output is not Format.TABLE:
        print(_dumped(list(rows), output))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for heading in columns.values():
        table.add_column(heading, no_wrap=True)
    for row in rows:
        table.add_row(*(_cell(row.get(key)) for key in columns))
    _console().print(table)


def show_document(document: Mapping[str, Any], output: Format) -> None:
    """Print one thing; a table has a line for each key."""
    if output is not Format.TABLE:
        print(_dumped(document, output))
        return
    width = max(len(key) for key in document)
    for key, value in document.items():
        for number, line in enumerate(_lines(value)):
            print(f"{key if number == 0 else '':{width}}  {line}".rstrip())


def note(text: str) -> None:
    """A line for the reader that is no result."""
    print(text, file=sys.stderr)


def size_text(size_bytes: float) -> str:
    """Bytes for reading: `4.0 MB`."""
    for unit in ("B", "kB", "MB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} {unit}" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} GB"


@contextmanager
def progress(label: str) -> Iterator[ProgressLine]:
    """Show `label` if the block takes more than a second, and how long it took in the end."""
    line = ProgressLine(label)
    try:
        yield line
    except BaseException:
        line.end("failed" if not isinstance(sys.exception(), KeyboardInterrupt) else "interrupted")
        raise
    line.end("done")


class ProgressLine:
    """One line of progress on stderr; called with bytes done and in all. Safe to call from any thread."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._started = self._printed = time.monotonic()
        self._lock = threading.Lock()
        self._shown = False
        self._ended = False
        self._timer = threading.Timer(PROGRESS_AFTER_S, self._show)
        self._timer.daemon = True
        self._timer.start()

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        with self._lock:
            now = time.monotonic()
            if not self._shown or not sys.stderr.isatty() or now - self._printed < PROGRESS_EVERY_S:
                return
            self._printed = now
            rate = size_text(done_bytes / max(now - self._started, 0.001))
            note(f"{self._label}: {size_text(done_bytes)} of {size_text(total_bytes)}, {rate}/s")

    def end(self, how: str) -> None:
        """Print how it ended, if it was shown at all."""
        self._timer.cancel()
        with self._lock:
            self._ended = True
            if self._shown:
                note(f"{self._label}: {how} after {time.monotonic() - self._started:.1f} s")

    def _show(self) -> None:
        with self._lock:
            if not self._ended:
                self._shown = True
                note(f"{self._label} …")


def report_error(error: BaseException) -> int:
    """Print a failure for the user; returns the exit code."""
    if os.environ.get(DEBUG_VARIABLE) == "1":
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        note("interrupted")
        return EXIT_INTERRUPTED
    if not isinstance(error, EdgewrightError):
        note(redact_text(f"error: unexpected {type(error).__name__}: {error}"))
        note(f"next: {DEBUG_VARIABLE}=1 with the same command shows where; please report it")
        return 1
    note(redact_text(f"error: {error.message}"))
    if error.next_command:
        note(f"next: {error.next_command}")
    return next(code for kind, code in EXIT_CODES if isinstance(error, kind))


def _console() -> Any:
    from rich.console import Console

    return Console(width=None if sys.stdout.isatty() else PIPE_WIDTH, soft_wrap=False, highlight=False)


def _dumped(value: object, output: Format) -> str:
    if output is Format.JSON:
        return json.dumps(value, indent=2, ensure_ascii=False)
    import yaml

    return str(yaml.safe_dump(value, sort_keys=False, allow_unicode=True)).rstrip()


def _cell(value: object) -> str:
    return ", ".join(_lines(value))


def _lines(value: object) -> list[str]:
    if value is None:
        return [""]
    if isinstance(value, Mapping):
        return [f"{key}={_cell(each)}" for key, each in value.items()] or [""]
    if isinstance(value, list | tuple):
        return [_cell(each) for each in value] or [""]
    return [str(value)]

"""Requirement strings (PEP 508) and `requirements.txt`, read strictly.

A requirement is a name with extras, a version range and a marker. URLs and paths are refused, since a lock must not
depend on a place that only the builder can reach; options are refused with the setting that does the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement

from publisher.errors import RequirementError

SIZE_LIMIT = 1 << 20

_OPTION_ADVICE = (
    (("-i", "--index-url"), "give --index URL or set environment.index in edgewright.toml"),
    (("--extra-index-url",), "give --extra-index URL or set environment.extra_index in edgewright.toml"),
    (("-f", "--find-links"), "set environment.find_links in edgewright.toml"),
    (("--no-index",), "set environment.no_index in edgewright.toml"),
    (("-e", "--editable"), "build a wheel, put it in a folder and set environment.find_links to it"),
)
_HASHES = re.compile(r"\s--hash[=\s]\S+")
_INCLUDE = re.compile(r"(?:-r|--requirement)[\s=]*(\S+)")


def read_text(path: Path, what: str, name: str | None = None) -> str:
    """The text of a small file; `name` stands for the path in messages.

    Raises:
        RequirementError: unreadable, not UTF-8, or no small file; `what` names its kind.
    """
    shown = name or str(path)
    try:
        with path.open("rb") as file:
            data = file.read(SIZE_LIMIT + 1)
    except OSError as error:
        raise RequirementError(f"{what} {shown} cannot be read: {error.strerror}", where=shown) from error
    if len(data) > SIZE_LIMIT:
        raise RequirementError(f"{what} {shown} is larger than {SIZE_LIMIT >> 20} MiB", where=shown)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise RequirementError(
            f"{what} {shown} is not UTF-8 text: byte {error.start}", where=shown
        ) from error


def read_requirements(path: Path, above: tuple[Path, ...] = ()) -> Iterator[str]:
    """The requirements of a file and of those it includes; `above` are the files that include it."""
    for number, line in logical_lines(read_text(path, "requirements file")):
        yield from requirement_lines(line, f"{path}:{number}", path, above)


def requirement_lines(
    line: str, where: str, path: Path | None, above: tuple[Path, ...] = ()
) -> Iterator[str]:
    """What one line of `path` asks for: a requirement, or those of the file it includes; without a path it may not."""
    included = _INCLUDE.match(line)
    if included is None or path is None:
        yield checked_requirement(line, where)
        return
    other = path.parent / included[1]
    if other.resolve() in (each.resolve() for each in (*above, path)):
        raise RequirementError(f"{where} includes {other}, which includes it", where=where)
    yield from read_requirements(other, (*above, path))


def checked_requirement(line: str, where: str) -> str:
    """A requirement as it was written, without its hashes.

    Raises:
        RequirementError: an option, a URL, a path, or no requirement at all.
    """
    # Hashes of a file made for one platform say nothing about the others; ours are made for each.
    text = _HASHES.sub("", f" {line}").strip()
    option = (text.split("=")[0].split() or [""])[0]
    for names, advice in _OPTION_ADVICE:
        if option in names:
            raise RequirementError(f"option {option} in {where} is not taken: {advice}", where=where)
    if "@" in text.split(";")[0] or text.startswith((".", "/")) or "://" in text:
        raise RequirementError(
            f"expected NAME[EXTRAS][VERSION RANGE] in {where}, not a URL or path: put the wheel in a folder and set "
            "environment.find_links in edgewright.toml",
            where=where,
        )
    try:
        Requirement(text)
    except InvalidRequirement as error:
        found = text if len(text) <= 120 else f"{text[:120]}…"
        raise RequirementError(
            f"expected NAME[EXTRAS][VERSION RANGE] in {where}, not {found!r}", where=where
        ) from error
    return text


def logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines without comments, with `\\` continuations joined, numbered by their first line."""
    pending, start = "", 0
    for number, raw in enumerate(text.splitlines(), start=1):
        start = start if pending else number
        pending += re.sub(r"(^|\s)#.*", "", raw)
        if pending.endswith("\\"):
            pending = pending[:-1] + " "
            continue
        if pending.strip():
            yield start, pending.strip()
        pending = ""
    if pending.strip():
        yield start, pending.strip()

"""Environments: requirements, locked per target platform, installed as the files of a layer.

Rules:
- The scoring runtime's own requirements are added to the user's; a bare ONNX model adds numpy and onnxruntime.
- Only wheels are taken, for the target's platform and Python, never the builder's. What has no wheel is refused by
  name, since building it would need the target's compiler.
- A lock names every package by version and by the hashes of its files, and holds no index URL and no path.
- A lock is kept in the workspace and used again for the same requirements until `upgrade` is asked for: a rebuild
  needs no network, and two builds a month apart are the same image.

    environment = Environment.from_file(Path("requirements.txt"), python="3.11").for_scoring(bare_onnx=False)
    lock = EnvironmentLocks(cache, uv).resolve(environment, Platform.parse("linux/arm64"), upgrade=False)
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from edge_containers.image_model import Platform, canonical_json
from edge_contracts.image_ref import ImageDigest
from publisher.builders.layer import LayerFile
from publisher.errors import (
    ConflictError,
    EnvironmentResolveError,
    IndexUnreachableError,
    NoVersionError,
    NoWheelError,
    RequirementError,
    UnknownPackageError,
    UsageError,
)
from publisher.uv_runner import UvResult, UvRunner
from publisher.workspace import now_text

RUNTIME_REQUIREMENTS = ("httptools>=0.6.4", "orjson>=3.10", "starlette>=0.41", "uvicorn>=0.32")
BARE_ONNX_REQUIREMENTS = ("numpy>=1.26", "onnxruntime>=1.19")

# manylinux_2_28: the oldest glibc with wheels of current numpy and onnxruntime, found in every Debian from 11 on.
UV_PLATFORMS: Mapping[str, str] = {
    "linux/amd64": "x86_64-manylinux_2_28",
    "linux/arm64": "aarch64-manylinux_2_28",
}

RESOLVE_TIMEOUT_S = 300.0
INSTALL_TIMEOUT_S = 1800.0

LOCK_NAME = "edgewright.lock"
LOCK_FORMAT = 1
"""Counts up when the same inputs would be locked differently; older cache entries are then passed over."""

# PEP 508, without `@ URL`: a lock must not depend on a place that only the builder can reach.
_REQUIREMENT = re.compile(
    r"([A-Za-z0-9][A-Za-z0-9._-]*)\s*(\[[A-Za-z0-9._,\s-]*\])?\s*([(<>=!~][^;@]*)?\s*(;.*)?"
)
_OPTION_ADVICE = (
    (("-i", "--index-url"), "set environment.index in edgewright.toml"),
    (("--extra-index-url",), "set environment.extra_index in edgewright.toml"),
    (("-f", "--find-links"), "set environment.find_links in edgewright.toml"),
    (("--no-index",), "set environment.no_index in edgewright.toml"),
    (("-e", "--editable"), "build a wheel, put it in a folder and set environment.find_links to it"),
)
_HASHES = re.compile(r"\s--hash[=\s]\S+")


@dataclass(frozen=True, slots=True)
class Environment:
    """What an image needs installed: requirement strings (PEP 508), sorted, and the Python they are for."""

    requirements: tuple[str, ...]
    python: str

    @classmethod
    def from_list(cls, requirements: Iterable[str], python: str, where: str = "requirements") -> Self:
        """Take requirement strings.

        Raises:
            RequirementError: one of them is none; `where` and its number are in the message.
        """
        lines = enumerate(requirements, start=1)
        return cls(_unique(_requirement(line, f"{where}, line {number}") for number, line in lines), python)

    @classmethod
    def from_file(cls, path: Path, python: str) -> Self:
        """Read a `requirements.txt`: requirements, comments, continued lines and `-r OTHER`.

        Raises:
            RequirementError: unreadable, or a line this version does not take.
        """
        return cls(_unique(_read_requirements(path, ())), python)

    def for_scoring(self, *, bare_onnx: bool) -> Self:
        """With what the scoring runtime itself imports."""
        added = RUNTIME_REQUIREMENTS + (BARE_ONNX_REQUIREMENTS if bare_onnx else ())
        return replace(self, requirements=_unique([*self.requirements, *added]))


@dataclass(frozen=True, slots=True)
class EnvironmentLock:
    """An environment resolved for one platform.

    Attributes:
        text: requirements file with hashes, as `uv pip compile` writes it.
        resolved_at: when, UTC; not part of the lock's identity.
        reused: whether it was found in the workspace rather than resolved now.
    """

    platform: Platform
    python: str
    text: str
    resolved_at: str
    reused: bool

    @property
    def digest(self) -> ImageDigest:
        """Of the lock file's bytes."""
        return ImageDigest.of(self.text.encode())

    @property
    def packages(self) -> tuple[str, ...]:
        """`name==version` of everything in the lock."""
        return tuple(re.findall(r"(?m)^([A-Za-z0-9][^\s;\\]*==[^\s;\\]+)", self.text))


class EnvironmentLocks:
    """Resolves environments with uv and keeps the locks in a folder of the workspace's cache."""

    def __init__(self, folder: Path, uv: UvRunner) -> None:
        self._folder = folder
        self._uv = uv

    def resolve(
        self, environment: Environment, platform: Platform, *, upgrade: bool, work: Path
    ) -> EnvironmentLock:
        """The lock of `environment` for `platform`; `work` is a folder for uv's files.

        Raises:
            EnvironmentResolveError: one of its leaves, naming the package.
        """
        target = uv_platform(platform)
        entry = self._folder / f"{_lock_key(environment, target)}.json"
        if not upgrade and (kept := _read_lock(entry, environment, platform)) is not None:
            return kept
        text = self._compile(environment, platform, target, work)
        lock = EnvironmentLock(platform, environment.python, text, now_text(), reused=False)
        _write_lock(entry, environment, lock)
        return lock

    def install(self, lock: EnvironmentLock, target: Path, *, work: Path) -> None:
        """Install the wheels of `lock`, each verified by its hash, into the folder `target`.

        Raises:
            EnvironmentResolveError: uv could not; `target` is then in no useful state.
        """
        lock_file = work / LOCK_NAME
        lock_file.write_text(lock.text, encoding="utf-8")
        options = ("--target", str(target), "--require-hashes", "--no-deps", "--requirements", str(lock_file))
        arguments = ("pip", "install", *options, *_target_options(lock.python, uv_platform(lock.platform)))
        result = self._uv.run(arguments, timeout_s=INSTALL_TIMEOUT_S)
        if result.exit_code != 0:
            raise resolve_error(result, lock.platform, self._uv.log_path)

    def _compile(self, environment: Environment, platform: Platform, target: str, work: Path) -> str:
        source, output = work / "requirements.in", work / "requirements.lock"
        source.write_text("".join(f"{each}\n" for each in environment.requirements), encoding="utf-8")
        output.unlink(missing_ok=True)
        options = ("--generate-hashes", "--no-header", "--no-annotate", "--output-file", str(output))
        arguments = ("pip", "compile", str(source), *options, *_target_options(environment.python, target))
        result = self._uv.run(arguments, timeout_s=RESOLVE_TIMEOUT_S)
        if result.exit_code != 0:
            raise resolve_error(result, platform, self._uv.log_path)
        return output.read_text(encoding="utf-8")


def uv_platform(platform: Platform) -> str:
    """uv's name of a target platform.

    Raises:
        UsageError: none of the platforms images are built for.
    """
    name = str(platform)
    if name not in UV_PLATFORMS:
        reason = " (neither numpy nor ONNX Runtime has wheels for it)" if name == "linux/arm/v7" else ""
        known = ", ".join(UV_PLATFORMS)
        raise UsageError(f"images are not built for {name}{reason}; platforms are {known}", where=name)
    return UV_PLATFORMS[name]


def installed_files(target: Path, lock: EnvironmentLock, prefix: str) -> list[LayerFile]:
    """The files of an installed environment as those of a layer, the same whoever installed it, and the lock.

    Left out is what names the builder or only serves an installer: scripts (their first line is the builder's Python),
    byte code, INSTALLER, REQUESTED, direct_url.json and uv's own notes; RECORD is rewritten to match.
    """
    files = [LayerFile(f"{prefix}/{LOCK_NAME}", lock.text.encode())]
    for path in _walk(target):
        name = path.relative_to(target).as_posix()
        if _is_dropped(name):
            continue
        source: Path | bytes = path
        if name.endswith(".dist-info/RECORD"):
            source = _normal_record(path.read_text(encoding="utf-8"))
        files.append(LayerFile(f"{prefix}/{name}", source, executable=os.access(path, os.X_OK)))
    return files


_DROPPED_TOP = frozenset({"bin", ".lock"})
_DROPPED_METADATA = frozenset({"INSTALLER", "REQUESTED", "direct_url.json", "uv_cache.json", "uv_build.json"})


def _is_dropped(name: str) -> bool:
    parts = name.split("/")
    in_metadata = len(parts) == 2 and parts[0].endswith(".dist-info") and parts[1] in _DROPPED_METADATA
    return parts[0] in _DROPPED_TOP or "__pycache__" in parts or name.endswith(".pyc") or in_metadata


def _normal_record(text: str) -> bytes:
    # RECORD's grammar is CSV (PyPA, "Recording installed projects").
    rows = [row for row in csv.reader(io.StringIO(text)) if row and not _is_dropped(_record_path(row[0]))]
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(sorted(rows))
    return out.getvalue().encode()


def _record_path(name: str) -> str:
    # Scripts are recorded relative to the packages: `../../bin/x` in a prefix, `bin/x` in a target folder.
    return re.sub(r"^(?:\.\./)+", "", name)


def _walk(folder: Path) -> Iterator[Path]:
    for parent, _, names in os.walk(folder):
        yield from (Path(parent, name) for name in names)


def _target_options(python: str, target: str) -> tuple[str, ...]:
    return ("--only-binary", ":all:", "--python-version", python, "--python-platform", target)


def _read_requirements(path: Path, above: tuple[Path, ...]) -> Iterator[str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise RequirementError(
            f"requirements file {path} cannot be read: {error}", where=str(path)
        ) from error
    for number, line in _logical_lines(text):
        where = f"{path}:{number}"
        included = re.match(r"(?:-r|--requirement)[\s=]*(\S+)", line)
        if included is None:
            yield _requirement(line, where)
            continue
        other = path.parent / included[1]
        if other.resolve() in (each.resolve() for each in (*above, path)):
            raise RequirementError(f"{where} includes {other}, which includes it", where=where)
        yield from _read_requirements(other, (*above, path))


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
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


def _requirement(line: str, where: str) -> str:
    # Hashes of a file made for one platform say nothing about the others; ours are made for each.
    text = _HASHES.sub("", f" {line}").strip()
    for names, advice in _OPTION_ADVICE:
        if text.split("=")[0].split()[:1] and text.split("=")[0].split()[0] in names:
            raise RequirementError(
                f"option {text.split()[0].split('=')[0]} in {where} is not taken: {advice}", where=where
            )
    if "@" in text.split(";")[0] or text.startswith((".", "/")) or "://" in text:
        raise RequirementError(
            f"expected NAME[EXTRAS][VERSION RANGE] in {where}, not a URL or path: put the wheel in a folder and set "
            "environment.find_links in edgewright.toml",
            where=where,
        )
    if not _REQUIREMENT.fullmatch(text):
        raise RequirementError(f"expected NAME[EXTRAS][VERSION RANGE] in {where}, not {text!r}", where=where)
    return text


def _unique(requirements: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(requirements)))


def _lock_key(environment: Environment, target: str) -> str:
    inputs = [LOCK_FORMAT, environment.python, target, list(environment.requirements)]
    return hashlib.sha256(canonical_json({"inputs": inputs})).hexdigest()


def _read_lock(entry: Path, environment: Environment, platform: Platform) -> EnvironmentLock | None:
    try:
        document = json.loads(entry.read_bytes())
        return EnvironmentLock(
            platform, environment.python, document["lock"], document["resolvedAt"], reused=True
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write_lock(entry: Path, environment: Environment, lock: EnvironmentLock) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "requirements": list(environment.requirements),
        "resolvedAt": lock.resolved_at,
        "lock": lock.text,
    }
    part = entry.with_name(f".{entry.name}.{secrets.token_hex(4)}")
    part.write_bytes(canonical_json(document))
    part.replace(entry)


# uv's sentences (pubgrub's report), joined to one line. A name ends where its version range begins.
_NAME = r"([A-Za-z0-9][A-Za-z0-9._-]*)"
_UNKNOWN = re.compile(rf"{_NAME} was not found in the (?:package registry|provided package locations|cache)")
_NO_WHEEL = re.compile(
    rf"(?:all versions of |all of: )?{_NAME}(?:[=<>!~][^ ]*)?"
    r" (?:has|have) no (?:usable wheels|(?:source distribution or )?(?:compatible )?wheels|wheels with a matching)"
)
_HINT_NO_WHEEL = re.compile(rf"Wheels are (?:required|available) for `{_NAME}`")
_NO_VERSION = re.compile(rf"there (?:is no version|are no versions) of {_NAME}((?:[=<>!~][^ ]*)?)")
_WRONG_HASH = re.compile(r"Hash mismatch for `([^`]+)`")
_AVAILABLE = re.compile(
    r"Wheels are available for `([^`]+)` \(v([^)]+)\) on the following platforms: ([^\n]+)"
)
_UNREACHABLE = re.compile(r"Failed to (?:fetch|download)|error sending request|dns error|timed out|Connect")
_CAUSE = re.compile(r"cause: (.+?)(?=\s+hint:|\s+cause:|$)")
SHOWN_CAUSE_CHARACTERS = 400


def resolve_error(result: UvResult, platform: Platform, log: Path) -> EnvironmentResolveError:
    """uv's report as one error that names the package; the whole report is in the log."""
    text = " ".join(result.output.split())
    seen = f"(log: {log})"
    if found := _UNKNOWN.search(text):
        name = found[1]
        return UnknownPackageError(
            f"package {name!r} was not found in the package index; check the spelling in the requirements {seen}",
            package=name,
            where=name,
        )
    if found := _NO_WHEEL.search(text) or _HINT_NO_WHEEL.search(text):
        return _no_wheel(found[1], result.output, platform, seen)
    if found := _NO_VERSION.search(text):
        wanted = f"{found[1]}{found[2]}".rstrip(",.")
        return NoVersionError(
            f"the package index has no version that satisfies {wanted!r} for {platform} {seen}",
            where=found[1],
        )
    if found := _WRONG_HASH.search(text):
        return EnvironmentResolveError(
            f"the wheel of {found[1]!r} is not the one in the lock: its hash differs; if the index replaced it on purpose, "
            f"build with --upgrade {seen}",
            code="wheel-hash",
            where=found[1],
        )
    cause = _CAUSE.search(text)
    shown = (cause[1] if cause else text)[:SHOWN_CAUSE_CHARACTERS]
    if _UNREACHABLE.search(text):
        return IndexUnreachableError(f"the package index cannot be reached: {shown} {seen}", where=str(log))
    if "No solution found" in text:
        return ConflictError(
            f"the requirements cannot be met together for {platform}: {shown} {seen}", where=str(log)
        )
    return EnvironmentResolveError(f"uv failed for {platform}: {shown} {seen}", where=str(log))


def _no_wheel(name: str, output: str, platform: Platform, seen: str) -> NoWheelError:
    available = [each for each in _AVAILABLE.finditer(output) if each[1] == name]
    has = f"; {name} {available[0][2]} has wheels for {available[0][3].replace('`', '')}" if available else ""
    others = " ".join(f"--platform {each}" for each in UV_PLATFORMS if each != str(platform))
    return NoWheelError(
        f"package {name!r} has no wheel for {platform}{has}; ask for a version that has one, put a wheel of it in a "
        f"folder named by environment.find_links in edgewright.toml, or leave the platform out with {others} {seen}",
        package=name,
        platform=str(platform),
        where=name,
    )

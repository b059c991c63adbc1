"""What uv reports when it fails, as one error that names the package."""

from __future__ import annotations

import re
from pathlib import Path

from edge_containers.image_model import Platform
from publisher.errors import (
    ConflictError,
    EnvironmentResolveError,
    IndexUnreachableError,
    NotCachedError,
    NoVersionError,
    NoWheelError,
    UnknownPackageError,
)
from publisher.target_platforms import UV_PLATFORMS
from publisher.uv_runner import UvResult

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
_NOT_CACHED = re.compile(r"[Nn]etwork (?:connectivity is|was) disabled")
CONDA_ADVICE = "build with conda, which may have it, by --builder docker"
SHOWN_CAUSE_CHARACTERS = 400


def resolve_error(
    result: UvResult, platform: Platform, log: Path, *, from_conda: bool = False
) -> EnvironmentResolveError:
    """uv's report as one error that names the package; the whole report is in the log.

    `from_conda` adds the way out that a conda environment has.
    """
    text = " ".join(result.output.split())
    seen = f"(log: {log})"
    if _NOT_CACHED.search(text):
        named = _UNKNOWN.search(text)
        what = f"package {named[1]!r}" if named else "a wheel"
        return NotCachedError(
            f"{what} of the lock for {platform} is not on this machine, and --locked asks no index; build once without "
            f"--locked {seen}",
            where=str(platform),
        )
    if found := _UNKNOWN.search(text):
        name = found[1]
        advice = f", or {CONDA_ADVICE}" if from_conda else ""
        return UnknownPackageError(
            f"package {name!r} was not found in the package index; check the spelling in the requirements{advice} {seen}",
            package=name,
            where=name,
        )
    if found := _NO_WHEEL.search(text) or _HINT_NO_WHEEL.search(text):
        return _no_wheel(found[1], result.output, platform, seen, from_conda)
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


def _no_wheel(name: str, output: str, platform: Platform, seen: str, from_conda: bool) -> NoWheelError:
    available = [each for each in _AVAILABLE.finditer(output) if each[1] == name]
    has = f"; {name} {available[0][2]} has wheels for {available[0][3].replace('`', '')}" if available else ""
    others = " ".join(f"--platform {each}" for each in UV_PLATFORMS if each != str(platform))
    last = CONDA_ADVICE if from_conda else f"leave the platform out with {others}"
    return NoWheelError(
        f"package {name!r} has no wheel for {platform}{has}; ask for a version that has one, put a wheel of it in a "
        f"folder named by environment.find_links in edgewright.toml, or {last} {seen}",
        package=name,
        platform=str(platform),
        where=name,
    )

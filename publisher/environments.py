"""Environments: requirements, locked per target platform, installed as the files of a layer.

Rules:
- The scoring runtime's own requirements are added to the user's; a bare ONNX model adds numpy and onnxruntime.
- Only wheels are taken, for the target's platform and Python, never the builder's. What has no wheel is refused by
  name, since building it would need the target's compiler.
- A lock names every package by version and by the hashes of its files, and holds no index URL and no path.
- A lock is kept in the workspace and used again for the same requirements and index until `upgrade` is asked for: a
  rebuild needs no network, and two builds a month apart are the same image. With `locked` there must be one.

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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from edge_containers.image_model import Platform, canonical_json
from edge_contracts.image_ref import ImageDigest
from publisher.builders.layer import LayerFile
from publisher.errors import LockedError, UsageError
from publisher.old_names import replace_old_names
from publisher.project_file import PROJECT_FILE, read_project
from publisher.requirements import checked_requirement, read_requirements
from publisher.target_platforms import uv_platform
from publisher.uv_report import resolve_error
from publisher.uv_runner import UvRunner
from publisher.workspace import now_text

if TYPE_CHECKING:
    from publisher.conda_file import CondaEnvironment

RUNTIME_REQUIREMENTS = ("httptools>=0.6.4", "orjson>=3.10", "starlette>=0.41", "uvicorn>=0.32")
BARE_ONNX_REQUIREMENTS = ("numpy>=1.26", "onnxruntime>=1.19")

RESOLVE_TIMEOUT_S = 300.0
INSTALL_TIMEOUT_S = 1800.0

CONDA_SUFFIXES = frozenset({".yml", ".yaml"})

LOCK_NAME = "edgewright.lock"
LOCK_FORMAT = 1
"""Counts up when the same inputs would be locked differently; older cache entries are then passed over."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What an image needs installed.

    Attributes:
        requirements: requirement strings (PEP 508), sorted.
        python: minor version they are for.
        notes: what a user should know of how they were read: names replaced, things left out.
        conda: the conda environment they come from, which a build by conda takes whole.
    """

    requirements: tuple[str, ...]
    python: str
    notes: tuple[str, ...] = field(default=(), compare=False)
    conda: CondaEnvironment | None = field(default=None, compare=False)

    @classmethod
    def from_list(cls, requirements: Iterable[str], python: str, where: str = "requirements") -> Self:
        """Take requirement strings.

        Raises:
            RequirementError: one of them is none; `where` and its number are in the message.
        """
        lines = enumerate(requirements, start=1)
        return cls._of(
            (checked_requirement(line, f"{where}, line {number}") for number, line in lines), python
        )

    @classmethod
    def from_file(cls, path: Path, python: str, *, extras: Sequence[str] = ()) -> Self:
        """Read a `requirements.txt`, a `pyproject.toml` (with `extras` of it) or a conda environment, `*.yml`.

        Raises:
            RequirementError: unreadable, or something this version does not take.
            DocumentError: a conda environment that is not YAML.
            UsageError: extras of a file that has none.
        """
        if path.name == PROJECT_FILE:
            project = read_project(path, extras)
            return cls._of(project.requirements, python, project.python_note(python))
        if extras:
            raise UsageError(
                f"extras are those of a {PROJECT_FILE}, not of {path}: give --requirements {PROJECT_FILE}",
                where=str(path),
            )
        if path.suffix in CONDA_SUFFIXES:
            from publisher.conda_file import read_conda  # and YAML, which most commands do without

            return cls.from_conda(read_conda(path), python)
        return cls._of(read_requirements(path), python)

    @classmethod
    def from_conda(cls, conda: CondaEnvironment, python: str) -> Self:
        """What the package index has of a conda environment; `check_wheels` of it says whether that is all."""
        notes = (*conda.notes, *conda.python_note(python))
        return replace(cls._of(conda.requirements, python, notes), conda=conda)

    @classmethod
    def _of(cls, requirements: Iterable[str], python: str, notes: Iterable[str] = ()) -> Self:
        kept, replaced = replace_old_names(requirements)
        return cls(_unique(kept), python, (*notes, *replaced))

    def joined(self, other: Environment) -> Self:
        """Both, for the same Python."""
        return replace(
            self,
            requirements=_unique([*self.requirements, *other.requirements]),
            notes=(*self.notes, *other.notes),
            conda=self.conda or other.conda,
        )

    def for_scoring(self, *, bare_onnx: bool) -> Self:
        """With what the scoring runtime itself imports."""
        added = RUNTIME_REQUIREMENTS + (BARE_ONNX_REQUIREMENTS if bare_onnx else ())
        return replace(self, requirements=_unique([*self.requirements, *added]))


def read_environment(
    requirements: Path | None, conda_file: Path | None, python: str, *, extras: Sequence[str] = ()
) -> Environment:
    """What two optional files ask for together; `extras` are those of a `pyproject.toml`."""
    if extras and requirements is None:
        raise UsageError(f"extras are those of a {PROJECT_FILE}: give --requirements {PROJECT_FILE} too")
    found = Environment((), python)
    if requirements is not None:
        found = found.joined(Environment.from_file(requirements, python, extras=extras))
    if conda_file is not None:
        from publisher.conda_file import read_conda

        found = found.joined(Environment.from_conda(read_conda(conda_file), python))
    return found


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
        self, environment: Environment, platform: Platform, *, upgrade: bool, work: Path, locked: bool = False
    ) -> EnvironmentLock:
        """The lock of `environment` for `platform`; `work` is a folder for uv's files.

        Raises:
            LockedError: `locked`, and the workspace has no lock of exactly this.
            EnvironmentResolveError: one of its leaves, naming the package.
        """
        target = uv_platform(platform)
        entry = self._folder / f"{_lock_key(environment, target, self._uv.package_sources)}.json"
        if not upgrade and (kept := _read_lock(entry, environment, platform)) is not None:
            return kept
        if locked:
            raise self._would_change(environment, platform)
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

    def _would_change(self, environment: Environment, platform: Platform) -> LockedError:
        """What keeps `environment` from being built as locked, by the lock that is nearest to it."""
        wanted = set(environment.requirements)
        kept = [
            set(each["requirements"])
            for each in map(_read_document, self._folder.glob("*.json"))
            if (each.get("platform"), each.get("python")) == (str(platform), environment.python)
        ]
        nearest = min(kept, key=lambda each: len(each ^ wanted), default=None)
        if nearest is None:
            change = f"the workspace has no lock for {platform} and Python {environment.python}"
        elif nearest == wanted:
            change = "the same requirements were locked from another package index"
        else:
            signs = [f"+{each}" for each in sorted(wanted - nearest)] + [
                f"-{each}" for each in sorted(nearest - wanted)
            ]
            change = f"the requirements differ from those locked: {' '.join(signs)}"
        return LockedError(
            f"--locked: the lock for {platform} would change: {change}; build once without --locked",
            where=str(platform),
        )

    def _compile(self, environment: Environment, platform: Platform, target: str, work: Path) -> str:
        source, output = work / "requirements.in", work / "requirements.lock"
        source.write_text("".join(f"{each}\n" for each in environment.requirements), encoding="utf-8")
        output.unlink(missing_ok=True)
        options = ("--generate-hashes", "--no-header", "--no-annotate", "--output-file", str(output))
        arguments = ("pip", "compile", str(source), *options, *_target_options(environment.python, target))
        result = self._uv.run(arguments, timeout_s=RESOLVE_TIMEOUT_S)
        if result.exit_code != 0:
            from_conda = environment.conda is not None
            raise resolve_error(result, platform, self._uv.log_path, from_conda=from_conda)
        return output.read_text(encoding="utf-8")


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


def _unique(requirements: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(requirements)))


def _lock_key(environment: Environment, target: str, sources: Sequence[str]) -> str:
    inputs = [LOCK_FORMAT, environment.python, target, list(environment.requirements), *sources]
    return hashlib.sha256(canonical_json({"inputs": inputs})).hexdigest()


def _read_lock(entry: Path, environment: Environment, platform: Platform) -> EnvironmentLock | None:
    document = _read_document(entry)
    text, resolved_at = document.get("lock"), document.get("resolvedAt")
    if not isinstance(text, str) or not isinstance(resolved_at, str):
        return None
    return EnvironmentLock(platform, environment.python, text, resolved_at, reused=True)


def _read_document(entry: Path) -> dict[str, Any]:
    """A kept lock's document; empty for what is none."""
    try:
        document = json.loads(entry.read_bytes())
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _write_lock(entry: Path, environment: Environment, lock: EnvironmentLock) -> None:
    entry.parent.mkdir(parents=True, exist_ok=True)
    document = {
        "requirements": list(environment.requirements),
        "platform": str(lock.platform),
        "python": lock.python,
        "resolvedAt": lock.resolved_at,
        "lock": lock.text,
    }
    part = entry.with_name(f".{entry.name}.{secrets.token_hex(4)}")
    part.write_bytes(canonical_json(document))
    part.replace(entry)

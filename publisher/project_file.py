"""`pyproject.toml` as an environment: `[project]` dependencies and the extras asked for.

The project itself is not installed: an image holds its entry script and what lies beside it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet
from packaging.utils import canonicalize_name

from publisher.errors import RequirementError
from publisher.requirements import checked_requirement, read_text

PROJECT_FILE = "pyproject.toml"


@dataclass(frozen=True, slots=True)
class ProjectFile:
    """What a project asks for, its extras expanded."""

    requirements: tuple[str, ...]
    requires_python: str

    def python_note(self, python: str) -> tuple[str, ...]:
        """A warning where images of `python` are not what the project was made for."""
        if not self.requires_python or SpecifierSet(self.requires_python).contains(f"{python}.99"):
            return ()
        return (
            f"the project requires Python {self.requires_python}, images have Python {python}; "
            "set environment.python in edgewright.toml",
        )


def read_project(path: Path, extras: Sequence[str] = ()) -> ProjectFile:
    """Read `[project]` and the named extras.

    Raises:
        RequirementError: unreadable, dynamic dependencies, an unknown extra, or a dependency that
            `[tool.uv.sources]` takes from a place of its own.
    """
    try:
        document = tomllib.loads(read_text(path, "project file"))
    except tomllib.TOMLDecodeError as error:
        raise RequirementError(f"{path} is not valid TOML: {error}", where=str(path)) from error
    project = _table(document.get("project"), "[project]", path)
    for dynamic in ("dependencies", "optional-dependencies"):
        if dynamic in project.get("dynamic", ()):
            raise RequirementError(
                f"{path} leaves {dynamic} to its build backend, which is not run: export them to a requirements.txt",
                where=str(path),
            )
    found = _strings(project.get("dependencies", []), "project.dependencies", path)
    optional = _table(project.get("optional-dependencies", {}), "[project.optional-dependencies]", path)
    groups = {
        canonicalize_name(name): _strings(group, f"project.optional-dependencies.{name}", path)
        for name, group in optional.items()
    }
    own = canonicalize_name(str(project.get("name", "")))
    requirements = _with_extras(found, groups, own, extras, path)
    _refuse_sources(document, requirements, path)
    return ProjectFile(tuple(requirements), _requires_python(project, path))


def _with_extras(
    requirements: list[str],
    groups: Mapping[str, list[str]],
    own: str,
    extras: Sequence[str],
    path: Path,
) -> list[str]:
    """The requirements with those of `extras`; an extra may name others as `OWN[EXTRA]`."""
    kept: list[str] = []
    done: set[str] = set()
    waiting = list(requirements)
    names = [canonicalize_name(each) for each in extras]
    while waiting or names:
        if not waiting:
            name = names.pop()
            if name not in groups:
                known = ", ".join(sorted(groups)) or "none"
                raise RequirementError(f"{path} has no extra {name!r}; it has {known}", where=str(path))
            if name not in done:
                done.add(name)
                waiting += groups[name]
            continue
        text = waiting.pop()
        requirement = Requirement(text)
        if own and canonicalize_name(requirement.name) == own:
            names += [canonicalize_name(each) for each in requirement.extras]
        else:
            kept.append(text)
    return kept


def _refuse_sources(document: Mapping[str, Any], requirements: Sequence[str], path: Path) -> None:
    # Installing a package of that name from the index instead could be anybody's.
    tool = document.get("tool")
    uv = tool.get("uv") if isinstance(tool, dict) else None
    sources = uv.get("sources") if isinstance(uv, dict) else None
    named = {canonicalize_name(each) for each in sources} if isinstance(sources, dict) else set()
    for text in requirements:
        if canonicalize_name(Requirement(text).name) in named:
            name = Requirement(text).name
            raise RequirementError(
                f"{path} takes {name!r} from [tool.uv.sources], not from the package index: build a wheel of it, put it "
                "in a folder and set environment.find_links in edgewright.toml",
                where=str(path),
            )


def _requires_python(project: Mapping[str, Any], path: Path) -> str:
    text = project.get("requires-python", "")
    try:
        return str(SpecifierSet(text))
    except (InvalidSpecifier, AttributeError, TypeError) as error:
        raise RequirementError(
            f"requires-python in {path} is no version range: {text!r}", where=str(path)
        ) from error


def _table(value: object, name: str, path: Path) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    raise RequirementError(f"{path} has no table {name}: expected a project's dependencies", where=str(path))


def _strings(value: object, name: str, path: Path) -> list[str]:
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return [
            checked_requirement(each, f"{name}, entry {number}, of {path}")
            for number, each in enumerate(value, 1)
        ]
    raise RequirementError(f"{name} in {path} must be a list of strings", where=str(path))

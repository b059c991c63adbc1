"""Where workspaces are when they are asked for by name, as Azure ML's SDK v1 asks: beside the current directory.

A workspace of a name is the nearest one of that name at or above a folder, else one in a folder directly below it.
`config.json` names one, in the original's places: `.azureml/`, `aml_config/` or the folder itself, at or above the
current directory. Ours also says where it is; one written by Azure names a workspace to be found here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from publisher.config import CONFIG_NAME, load_settings
from publisher.errors import WorkspaceError
from publisher.private_file import write_private

CONFIG_FOLDERS = (".azureml", "aml_config", "")
CONFIG_FILE = "config.json"


@dataclass(frozen=True, slots=True)
class NamedWorkspace:
    """What a `config.json` says; `path` is the workspace's folder where the file is one of ours."""

    name: str
    subscription_id: str
    resource_group: str
    path: Path | None
    file: Path


def find_roots(start: Path) -> Iterator[Path]:
    """Folders of the workspaces at, above and directly below `start`, nearest first."""
    for folder in (start, *start.parents):
        if (folder / CONFIG_NAME).is_file():
            yield folder
    below = sorted(start.iterdir()) if start.is_dir() else []
    yield from (folder for folder in below if (folder / CONFIG_NAME).is_file())


def root_of(name: str, start: Path) -> Path:
    """The folder of the workspace `name`.

    Raises:
        WorkspaceError: there is none; those there are, are named.
    """
    known = {}
    for root in find_roots(start):
        known.setdefault(load_settings(root / CONFIG_NAME, os.environ).workspace.name, root)
    if name not in known:
        there = f"; there are {', '.join(sorted(known))}" if known else ""
        raise WorkspaceError(
            f"no workspace {name!r} at, above or directly below {start}{there}",
            where=name,
            next_command=f"edgewright init {name}",
        )
    return known[name]


def find_config(start: Path, file_name: str | None = None) -> NamedWorkspace | Path:
    """What the nearest `config.json` names, or the nearest workspace's folder where that is nearer.

    Raises:
        WorkspaceError: there is neither.
    """
    if start.is_file():
        return read_config(start)
    for folder in (start, *start.parents):
        if (folder / CONFIG_NAME).is_file():
            return folder
        for place in CONFIG_FOLDERS:
            file = folder / place / (file_name or CONFIG_FILE)
            # A file of that name in the folder itself may be anybody's.
            if file.is_file() and (place or "workspace_name" in _read(file)):
                return read_config(file)
    raise WorkspaceError(
        f"neither {CONFIG_NAME} nor {file_name or CONFIG_FILE} in {start} or above it",
        where=str(start),
        next_command="edgewright init",
    )


def read_config(file: Path) -> NamedWorkspace:
    """Read a `config.json`.

    Raises:
        WorkspaceError: it names no workspace.
    """
    document = _read(file)
    name, path = document.get("workspace_name"), document.get("workspace_path")
    if not isinstance(name, str) or not name:
        raise WorkspaceError(
            f"{file} must be a JSON object with workspace_name, as Workspace.write_config() writes it",
            where=str(file),
        )
    return NamedWorkspace(
        name,
        str(document.get("subscription_id") or ""),
        str(document.get("resource_group") or ""),
        Path(path) if isinstance(path, str) and path else None,
        file,
    )


def write_config(file: Path, document: Mapping[str, str]) -> None:
    """Write a `config.json`; it appears whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    write_private(file, json.dumps(document, indent=4) + "\n")


def _read(file: Path) -> Mapping[str, object]:
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}

"""Which files of a served script or model have changed, by asking for their times: no watcher of any kind is needed.

Rules:
- Watched are the served file and the model folder whole, and whatever lies beside a script and reads like source or
  settings (`SOURCE_SUFFIXES`): what a script writes itself, logs and databases, must not start it again.
- Hidden entries, `__pycache__`, virtual environments and node_modules are left out, as are files beyond `MOST_FILES`.
- A change counts once two looks in a row agree, so that a half-written file is not taken for the new one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

SOURCE_SUFFIXES = frozenset({".py", ".json", ".yaml", ".yml", ".toml", ".txt"})
# A look at so many takes about 20 ms; a script's folder with more is most likely somebody's home.
MOST_FILES = 5000
_LEFT_OUT = frozenset({"__pycache__", "node_modules"})

Snapshot = Mapping[Path, tuple[int, int, int]]


class FileWatch:
    """Looks at files when asked; `script_folders` by their source files, `wholes` (files or folders) by everything."""

    def __init__(self, script_folders: Sequence[Path], wholes: Sequence[Path]) -> None:
        self._sources = tuple(script_folders)
        self._wholes = tuple(wholes)
        self._known = self._last = self._look()

    def changed(self) -> list[Path]:
        """Paths that differ since the last `accept`, once they are at rest; [] before."""
        now = self._look()
        at_rest, self._last = now == self._last, now
        if not at_rest:
            return []
        paths = now.keys() | self._known.keys()
        return sorted(path for path in paths if now.get(path) != self._known.get(path))

    def accept(self) -> None:
        """What was last seen is what is served from now on."""
        self._known = self._last

    def _look(self) -> Snapshot:
        found: dict[Path, tuple[int, int, int]] = {}
        for path in self._paths():
            try:
                status = path.stat()
            except OSError:  # gone between listing and looking, or a dangling link
                continue
            # The inode too: an editor may put a new file in the old one's place within one tick of the clock.
            found[path] = (status.st_mtime_ns, status.st_size, status.st_ino)
            if len(found) >= MOST_FILES:
                break
        return found

    def _paths(self) -> Iterator[Path]:
        for whole in self._wholes:
            yield from _below(whole) if whole.is_dir() else [whole]
        for folder in self._sources:
            yield from (path for path in _below(folder) if path.suffix in SOURCE_SUFFIXES)


def _below(folder: Path) -> Iterator[Path]:
    for name, folders, files in os.walk(folder):
        parent = Path(name)
        folders[:] = sorted(each for each in folders if _is_watched(parent / each))
        yield from (parent / each for each in sorted(files) if not each.startswith("."))


def _is_watched(folder: Path) -> bool:
    left_out = folder.name.startswith(".") or folder.name in _LEFT_OUT
    return not left_out and not (folder / "pyvenv.cfg").exists()

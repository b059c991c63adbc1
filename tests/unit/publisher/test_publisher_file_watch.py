"""Which changes beside a script count, and when."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from publisher.file_watch import FileWatch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "lib").mkdir()
    for name in ("score.py", "lib/helper.py", "notes.md"):
        (tmp_path / name).write_text("1")
    return tmp_path


def settled(watch: FileWatch) -> list[str]:
    """Names changed, after a look that may find the change still going on."""
    watch.changed()
    return [path.name for path in watch.changed()]


def test_nothing_changed_is_nothing(folder: Path) -> None:
    assert settled(FileWatch([folder], [])) == []


def test_a_change_counts_once_two_looks_agree(folder: Path) -> None:
    watch = FileWatch([folder], [])
    (folder / "score.py").write_text("22")
    assert watch.changed() == []
    (folder / "score.py").write_text("333")
    assert watch.changed() == []
    assert watch.changed() == [folder / "score.py"]


def test_an_accepted_change_is_no_change_any_more(folder: Path) -> None:
    watch = FileWatch([folder], [])
    (folder / "score.py").write_text("22")
    assert settled(watch) == ["score.py"]
    watch.accept()
    assert settled(watch) == []


def test_files_below_new_removed_and_replaced_ones_count(folder: Path) -> None:
    watch = FileWatch([folder], [])
    (folder / "lib/helper.py").unlink()
    (folder / "new.py").write_text("1")
    status = (folder / "score.py").stat()
    (folder / "other").write_text("2")
    os.utime(folder / "other", ns=(status.st_atime_ns, status.st_mtime_ns))
    (folder / "other").replace(folder / "score.py")
    assert settled(watch) == ["helper.py", "new.py", "score.py"]


def test_what_a_script_writes_or_an_environment_holds_does_not_count(folder: Path) -> None:
    watch = FileWatch([folder], [])
    for name in ("out.log", "state.db", ".hidden.py", ".git/x.py", "__pycache__/x.py", "venv/lib.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("1")
    (folder / "venv/pyvenv.cfg").write_text("")
    assert settled(watch) == []


def test_a_model_counts_whatever_it_is_called(folder: Path, tmp_path: Path) -> None:
    watch = FileWatch([], [tmp_path / "lib", tmp_path / "notes.md"])
    (folder / "lib/weights.bin").write_bytes(b"1")
    (folder / "notes.md").write_text("22")
    (folder / "score.py").write_text("22")
    assert settled(watch) == ["weights.bin", "notes.md"]

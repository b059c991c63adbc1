"""Layers are compiled once, in the background, and a module reads what was compiled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from edge_containers.bytecode import MARK, Compiler


def layer(folder: Path, text: str = "VALUE = __file__\n") -> Path:
    package = folder / "opt" / "dependencies"
    package.mkdir(parents=True)
    (package / "thing.py").write_text(text)
    return folder


def compiled(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.pyc"))


def compile_now(*folders: Path) -> None:
    compiler = Compiler()
    compiler.start(sys.executable, folders)
    compiler.wait(30)


def test_a_compiled_layer_is_used_and_knows_its_own_path(tmp_path: Path) -> None:
    folder = layer(tmp_path / "layer")
    compile_now(folder)
    assert (folder / MARK).exists()
    source = folder / "opt" / "dependencies" / "thing.py"
    # Unchecked bytecode is what runs, even beside another source: so it is really the bytecode that is read.
    source.write_text("VALUE = 'source'\n")
    code = f"import sys; sys.path.append({str(source.parent)!r}); import thing; print(thing.VALUE)"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-B", "-c", code], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.strip() == str(source)


def test_a_layer_is_compiled_once(tmp_path: Path) -> None:
    folder = layer(tmp_path / "layer")
    compile_now(folder)
    before = [path.stat().st_mtime_ns for path in compiled(folder)]
    compile_now(folder)
    assert [path.stat().st_mtime_ns for path in compiled(folder)] == before


def test_source_that_does_not_compile_is_passed_over(tmp_path: Path) -> None:
    bad, good = layer(tmp_path / "bad", "def broken(\n"), layer(tmp_path / "good")
    compile_now(bad, good)
    assert compiled(bad) == []
    assert len(compiled(good)) == 1


def test_a_layer_that_is_gone_does_not_come_back(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    compile_now(gone)
    assert not gone.exists()

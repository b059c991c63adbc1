"""Entry scripts are checked by reading, before anything is built."""

from __future__ import annotations

from pathlib import Path

import pytest
from publisher_workspaces import write_score

from publisher.entry_script import check_entry_script
from publisher.errors import ScriptError

GOOD = {
    "functions": "def init(): pass\ndef run(data): pass\n",
    "async": "def init(): pass\nasync def run(data): pass\n",
    "imported": "from common import init, run\n",
    "renamed import": "from common import start as init\nimport scoring as run\n",
    "star import": "from common import *\n",
    "assigned": "init = lambda: None\nrun: object = print\n",
    "unpacked": "init, run = make()\n",
    "guarded": "try:\n    from fast import run\nexcept ImportError:\n    def run(x): pass\nif True:\n    def init(): pass\n",
    "keyword only": "def init(): pass\ndef run(*, data): pass\n",
    "varargs": "def init(): pass\ndef run(*a): pass\n",
    "init with defaults": "def init(path='x'): pass\ndef run(a, b): pass\n",
    "decorated": "@d\ndef init(): pass\n@input_schema('data', 1)\ndef run(data): pass\n",
    "encoded": "# -*- coding: latin-1 -*-\ndef init(): pass\ndef run(data): return 'x'\n",
}

BAD = {
    "no run": (
        "def init(): pass\ndef score(x): pass\n",
        r"score\.py must define run\(data\).*found init, score",
    ),
    "no init": ("def run(x): pass\n", r"must define init\(\) at its top level; found run"),
    "empty": ("", r"must define init\(\).*found no function"),
    "only inside a class": (
        "class S:\n    def init(self): pass\n    def run(self, x): pass\n",
        "must define init",
    ),
    "run without parameter": (
        "def init(): pass\n\ndef run(): pass\n",
        r"score\.py:3 must take at least one parameter",
    ),
    "init with parameter": (
        "def init(x): pass\ndef run(x): pass\n",
        r"score\.py:1 must take no parameters, found init\(x\)",
    ),
    "syntax": ("def init(): pass\ndef run(x)\n", r"not valid Python at .*score\.py:2: expected ':'"),
    "null byte": ("def init(): pass\n\0", "score.py"),
}


@pytest.mark.parametrize("text", GOOD.values(), ids=GOOD)
def test_what_the_runtime_could_start_passes(tmp_path: Path, text: str) -> None:
    check_entry_script(write_score(tmp_path, text))


@pytest.mark.parametrize(("text", "message"), BAD.values(), ids=BAD)
def test_what_it_could_not_start_is_one_message(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ScriptError, match=message):
        check_entry_script(write_score(tmp_path, text))


def test_a_missing_script_is_named(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=r"entry script .*/nothere\.py does not exist"):
        check_entry_script(tmp_path / "nothere.py")


def test_a_script_of_another_language_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ScriptError, match=r"score\.R must be a Python file ending in \.py"):
        check_entry_script(write_score(tmp_path, name="score.R"))


def test_the_script_is_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "ran"
    text = f"open({str(marker)!r}, 'w')\ndef init(): pass\ndef run(x): pass\n"
    check_entry_script(write_score(tmp_path, text))
    assert not marker.exists()

"""`pyproject.toml` as an environment, and old package names."""

from __future__ import annotations

from pathlib import Path

import pytest

from publisher.environments import Environment
from publisher.errors import RequirementError, UsageError
from publisher.old_names import OLD_NAMES, replace_old_names

PROJECT = """\
[project]
name = "My.App"
requires-python = ">=3.10"
dependencies = ["numpy>=1.26", "my-app[serve]"]
[project.optional-dependencies]
serve = ["onnxruntime"]
Train_All = ["scikit-learn", "my_app[plots]"]
plots = ["matplotlib", "my-app[train-all]"]
"""


def project(tmp_path: Path, text: str, *extras: str) -> Environment:
    path = tmp_path / "pyproject.toml"
    path.write_text(text, encoding="utf-8")
    return Environment.from_file(path, "3.11", extras=extras)


def test_dependencies_are_taken_with_the_extras_they_name(tmp_path: Path) -> None:
    assert project(tmp_path, PROJECT).requirements == ("numpy>=1.26", "onnxruntime")


def test_extras_asked_for_are_added_with_those_inside_them(tmp_path: Path) -> None:
    expected = ("matplotlib", "numpy>=1.26", "onnxruntime", "scikit-learn")
    assert project(tmp_path, PROJECT, "train-all").requirements == expected


def test_another_python_is_a_warning(tmp_path: Path) -> None:
    assert not project(tmp_path, PROJECT).notes
    [note] = project(tmp_path, PROJECT.replace(">=3.10", "<3.11")).notes
    assert "requires Python <3.11, images have Python 3.11" in note


@pytest.mark.parametrize(
    ("text", "extras", "message"),
    [
        (PROJECT, ("nothing",), "has no extra 'nothing'; it has plots, serve, train-all"),
        ("[tool.x]\n", (), r"has no table \[project\]"),
        ("[project\n", (), "is not valid TOML"),
        ("[project]\ndynamic = ['dependencies']\n", (), "leaves dependencies to its build backend"),
        ("[project]\ndependencies = 'numpy'\n", (), "project.dependencies .* must be a list of strings"),
        (
            "[project]\ndependencies = ['a', 'b @ https://x/b.whl']\n",
            (),
            "project.dependencies, entry 2, of .*not a URL",
        ),
        ("[project]\nrequires-python = 'new'\n", (), "requires-python in .* is no version range: 'new'"),
        (
            "[project]\ndependencies = ['our_lib']\n[tool.uv.sources]\nour-lib = {git = 'https://x'}\n",
            (),
            r"takes 'our_lib' from \[tool.uv.sources\], not from the package index",
        ),
    ],
)
def test_what_is_not_taken_says_why(tmp_path: Path, text: str, extras: tuple[str, ...], message: str) -> None:
    with pytest.raises(RequirementError, match=message):
        project(tmp_path, text, *extras)


def test_extras_of_a_plain_list_are_refused(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("numpy\n")
    with pytest.raises(UsageError, match=r"extras are those of a pyproject\.toml"):
        Environment.from_file(tmp_path / "requirements.txt", "3.11", extras=["x"])


@pytest.mark.parametrize(
    ("old", "now"),
    [
        ("sklearn", ["scikit-learn"]),
        ("SKLearn==0.0", ["scikit-learn"]),
        ("sklearn==0.0.post12", ["scikit-learn"]),
        ("sklearn>=1.3; python_version > '3'", ['scikit-learn>=1.3; python_version > "3"']),
        ("azureml_defaults==1.0.6", ["inference-schema"]),
        ("azureml-core", []),
        ("tensorflow-gpu==2.4", ["tensorflow==2.4"]),
        ("inference-schema[numpy-support]", ["inference-schema[numpy-support]"]),
    ],
)
def test_an_old_name_becomes_todays_with_a_note(old: str, now: list[str]) -> None:
    kept, notes = replace_old_names([old])
    assert kept == now
    assert len(notes) == (kept != [old])


def test_old_names_are_written_as_the_index_writes_names() -> None:
    assert all(name == name.lower() and "_" not in name for name in OLD_NAMES)

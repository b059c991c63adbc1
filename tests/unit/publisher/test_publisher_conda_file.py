"""Conda environments: what the package index has of them, what is refused, what is only noted."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from publisher.conda_file import CondaEnvironment, read_conda
from publisher.environments import Environment, read_environment
from publisher.errors import CondaPackageError, EnvironmentResolveError, RequirementError, UsageError

# The file that Azure ML's documentation of 2018 shows, with the packages of its example.
ORIGINAL = """\
name: project_environment
channels:
  - conda-forge
dependencies:
  - python=3.6.2
  - pip:
    - azureml-defaults
    - azureml-monitoring
    - inference-schema[numpy-support]
  - scikit-learn
  - numpy=1.16.*
"""


def conda(tmp_path: Path, text: str) -> CondaEnvironment:
    path = tmp_path / "environment.yml"
    path.write_text(text, encoding="utf-8")
    return read_conda(path)


def spec(tmp_path: Path, text: str) -> str:
    """The one requirement that a specification becomes."""
    quoted = text.replace("'", "''")
    [requirement] = conda(tmp_path, f"dependencies:\n  - '{quoted}'\n").requirements
    return requirement


def test_the_original_file_is_read_with_a_note_for_what_it_cannot_have(tmp_path: Path) -> None:
    found = conda(tmp_path, ORIGINAL)
    environment = Environment.from_conda(found, "3.11")
    assert environment.requirements == (
        "inference-schema",
        "inference-schema[numpy-support]",
        "numpy==1.16.*",
        "scikit-learn",
    )
    notes = "\n".join(environment.notes)
    assert "asks for python 3.6.2, the image has Python 3.11" in notes
    assert "channels conda-forge are not asked" in notes
    assert "azureml-defaults is Azure ML's scoring server" in notes
    assert "azureml-monitoring is not installed" in notes
    assert found.name == "project_environment"


@pytest.mark.parametrize(
    ("text", "requirement"),
    [
        ("numpy", "numpy"),
        ("NumPy", "numpy"),
        ("numpy=1.26", "numpy==1.26.*"),
        ("numpy=1.26.*", "numpy==1.26.*"),
        ("numpy=1.26*", "numpy==1.26.*"),
        ("numpy==1.26.4", "numpy==1.26.4"),
        ("numpy==1.26.*", "numpy==1.26.*"),
        ("numpy 1.26.4", "numpy==1.26.4"),
        ("numpy 1.26.*", "numpy==1.26.*"),
        ("numpy 1.26.4 py311h64a7726_0", "numpy==1.26.4"),
        ("numpy=1.26.4=py311h64a7726_0", "numpy==1.26.4.*"),
        ("numpy>=1.20,<2", "numpy<2,>=1.20"),
        ("numpy >=1.20, <2", "numpy<2,>=1.20"),
        ("numpy!=1.25.*", "numpy!=1.25.*"),
        ("numpy>=1.20.*", "numpy>=1.20"),
        ("numpy~=1.20", "numpy~=1.20"),
        ("numpy=*", "numpy"),
        ("numpy=*=*openblas*", "numpy"),
        ("numpy[version='>=1.20,<2']", "numpy<2,>=1.20"),
        ("conda-forge::numpy=1.26", "numpy==1.26.*"),
        ("pytorch=2.2", "torch==2.2.*"),
        ("py-opencv", "opencv-python-headless"),
        ("librosa", "librosa"),
        ("libcst", "libcst"),
    ],
)
def test_condas_version_syntax_becomes_the_indexs(tmp_path: Path, text: str, requirement: str) -> None:
    assert spec(tmp_path, text) == requirement


@pytest.mark.parametrize(
    "name",
    ["cudatoolkit=11.8", "libgcc", "libgcc-ng", "_openmp_mutex", "r-base", "openjdk=8", "gcc_linux-64"],
)
def test_what_is_no_python_package_is_refused_by_name_with_the_way_out(tmp_path: Path, name: str) -> None:
    found = conda(tmp_path, f"dependencies:\n  - numpy\n  - {name}\n")
    assert found.requirements == ("numpy",)
    with pytest.raises(CondaPackageError, match=r"environment\.yml:3.*--builder docker") as caught:
        found.check_wheels()
    assert caught.value.packages == (name.split("=")[0],)


@pytest.mark.parametrize(
    ("python", "warned"),
    [("3.11", False), ("3.11.4", False), ("3", False), ("3.6.2", True), ("3.1", True)],
)
def test_another_python_is_a_warning(tmp_path: Path, python: str, warned: bool) -> None:
    found = conda(tmp_path, f"dependencies:\n  - python={python}\n")
    assert bool(found.python_note("3.11")) is warned
    assert not conda(tmp_path, "dependencies: ['python>=3.8,<3.12']\n").python_note("3.11")
    assert conda(tmp_path, "dependencies: ['python<3.11']\n").python_note("3.11")


def test_pip_lines_are_requirements_and_may_include_a_file_beside_it(tmp_path: Path) -> None:
    (tmp_path / "more.txt").write_text("onnx>=1.16\n")
    found = conda(tmp_path, "dependencies:\n  - pip<=23\n  - pip:\n    - -r more.txt\n    - flask==3.0\n")
    assert found.requirements == ("onnx>=1.16", "flask==3.0")
    with pytest.raises(
        RequirementError, match=r"--extra-index-url in .*environment\.yml:3 is not taken: give --extra-index"
    ):
        conda(tmp_path, "dependencies:\n  - pip:\n    - --extra-index-url https://u:p@x/simple\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- numpy\n", "yml:1 has no list 'dependencies'"),
        ("dependencies: numpy\n", "yml:1 has no list 'dependencies'"),
        ("dependencies: []\nchanels: [x]\n", "yml:2 has the unknown key 'chanels'; known are"),
        ("dependencies:\n  - {numpy: 1}\n", "yml:2 must be a package or a list 'pip:'"),
        ("dependencies:\n  - pip: [{a: 1}]\n", "yml:2 must be a requirement"),
        ("dependencies:\n  - numpy=1.2|1.3\n", r"yml:2 has 'numpy=1.2\|1.3': 'or'"),
        ("dependencies:\n  - numpy=abc\n", "yml:2 has 'numpy=abc', which is no version range"),
        ("dependencies:\n  - '***'\n", r"yml:2 has '\*\*\*': expected NAME"),
        ("dependencies:\n  - numpy[build=x]\n", "yml:2 has .*only .version="),
        ("channels: conda-forge\ndependencies: []\n", "yml:1 must have a list of names in 'channels'"),
    ],
)
def test_what_is_not_taken_names_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RequirementError, match=message):
        conda(tmp_path, text)


def test_a_channels_token_is_not_shown(tmp_path: Path) -> None:
    found = conda(tmp_path, "channels: ['https://u:s3cret@host/t/tok3n/x']\ndependencies: []\n")
    assert "s3cret" not in str(found.notes) and "tok3n" not in str(found.notes)


def test_a_conda_file_stands_beside_requirements(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").write_text("onnx\n")
    (tmp_path / "conda.yaml").write_text("dependencies: [numpy]\n")
    found = read_environment(tmp_path / "requirements.txt", tmp_path / "conda.yaml", "3.11")
    assert found.requirements == ("numpy", "onnx")
    assert found.conda is not None and found.conda.path.name == "conda.yaml"
    assert Environment.from_file(tmp_path / "conda.yaml", "3.11").requirements == ("numpy",)
    with pytest.raises(UsageError, match=r"extras are those of a pyproject\.toml"):
        read_environment(None, tmp_path / "conda.yaml", "3.11", extras=["x"])


@given(st.text(alphabet="abz019=<>!~.,|*[]': \t_-:+@/#", max_size=40))
def test_any_specification_is_read_or_refused_by_its_line(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    folder = tmp_path_factory.getbasetemp()
    quoted = text.replace("'", "''")
    try:
        conda(folder, f"dependencies:\n  - '{quoted}'\n")
    except EnvironmentResolveError as error:
        assert "environment.yml:2" in error.message

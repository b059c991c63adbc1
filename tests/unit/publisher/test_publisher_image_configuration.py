"""`image_configuration` as the original's: what it accepts, the order it checks in, what it says."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from publisher_workspaces import write_score

from edge_contracts.errors import EdgewrightError
from publisher.errors import ScriptError, UsageError
from publisher.images import ContainerImage, IotContainerImage


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a script and the files a configuration may name."""
    monkeypatch.chdir(tmp_path)
    write_score(tmp_path)
    write_score(tmp_path / "code")
    for name in ("score.txt", "schema.json", "Dockerfile", "env.yml", "labels.txt"):
        (tmp_path / name).touch()
    return tmp_path


def configuration(**given: Any) -> Any:
    return ContainerImage.image_configuration(**{"execution_script": "score.py", "runtime": "python"} | given)


# In the order of the checks: a call with several faults reports the first.
FAULTS: list[tuple[dict[str, Any], type[EdgewrightError], str]] = [
    ({"execution_script": "/score.py"}, ScriptError, "must be a path relative to the current directory"),
    ({"execution_script": "code/score.py"}, ScriptError, "must be in the current directory, not in code"),
    ({"execution_script": "nothere.txt"}, ScriptError, r"Execution script nothere.txt doesn't exist"),
    ({"execution_script": "score.txt"}, ScriptError, "Invalid driver type: .*score.txt must end in .py"),
    ({"runtime": "r"}, UsageError, r"Possible runtimes are: spark-py\|python; found 'r'"),
    ({"conda_file": "no.yml"}, UsageError, "conda_file no.yml doesn't exist"),
    ({"docker_file": "no.docker"}, UsageError, "docker_file no.docker doesn't exist"),
    ({"dependencies": ["labels.txt", "no.txt"]}, ScriptError, "dependency no.txt doesn't exist"),
    ({"schema_file": "no.json"}, UsageError, "schema_file no.json doesn't exist"),
    ({"base_image_registry": SimpleNamespace(address="r.io")}, UsageError, "all or none"),
]


@pytest.mark.parametrize("number", range(len(FAULTS)))
def test_faults_are_reported_in_the_originals_order(number: int) -> None:
    given: dict[str, Any] = {}
    for fault, _, _ in reversed(FAULTS[number:]):
        given |= fault
    _, kind, message = FAULTS[number]
    with pytest.raises(kind, match=message):
        configuration(**given)


@pytest.mark.parametrize("runtime", ["python", "Python", "SPARK-PY", "python-slim"])
def test_runtimes_are_named_in_any_case(runtime: str) -> None:
    assert configuration(runtime=runtime).runtime in {"python", "spark-py"}


def test_paths_are_held_absolutely(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = configuration(execution_script="./score.py", dependencies=["labels.txt"])
    monkeypatch.chdir("/")
    assert (found.execution_script, found.dependencies) == (folder / "score.py", (folder / "labels.txt",))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"schema_file": "schema.json"}, "schema_file is not supported: .*inference_schema"),
        ({"enable_gpu": True}, "enable_gpu is not supported"),
        ({"cuda_version": "10.0"}, "cuda_version is not supported"),
        ({"dependencies": "labels.txt"}, "dependencies must be a list of paths"),
        ({"dependencies": ["https://h.example/x"]}, "is a URL: download it"),
        ({"schema_file": "/etc/hostname"}, r"must be in the folder of score.py or below it"),
        ({"base_image": "debian", "runtime": "spark-py"}, "base_image goes with runtime python only"),
        ({"requirements_file": "no.txt"}, "requirements_file no.txt doesn't exist"),
        ({"tags": ["a"]}, "tags must be a dict"),
    ],
)
def test_what_is_not_taken_is_refused_by_name(given: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgewrightError, match=message):
        configuration(**given)


def test_a_script_elsewhere_names_the_way_there() -> None:
    with pytest.raises(ScriptError) as caught:
        configuration(execution_script="code/score.py")
    assert caught.value.next_command == "cd code"


def test_an_image_for_a_device_is_asked_for_by_architecture(folder: Path) -> None:
    (folder / "requirements.txt").write_text("numpy\n")
    found = IotContainerImage.image_configuration("score.py", "ARM64v8", requirements="requirements.txt")
    assert [str(each) for each in found.platforms or ()] == ["linux/arm64"]
    assert found.requirements_file == folder / "requirements.txt"
    with pytest.raises(UsageError, match="not built for linux/arm/v7"):
        IotContainerImage.image_configuration("score.py", "arm32v7")

"""Azure ML v2 deployment files: what an image takes of them, what is left out, what is refused."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from publisher_workspaces import make_runtime_wheels, make_workspace, write_score

from edge_containers.image_model import Platform
from edge_contracts.errors import EdgewrightError
from publisher.build_request import BuildRequest, check_request
from publisher.deployment_file import DeploymentFile, FileModel, read_deployment
from publisher.deployment_request import deployment_model, deployment_request
from publisher.environments import Environment
from publisher.errors import DocumentError, UsageError
from publisher.models import Model
from publisher.steps import no_steps
from publisher.workspace import Workspace

# The file of Azure's tutorial "Deploy and score a machine learning model by using an online endpoint".
TUTORIAL = """\
$schema: https://azuremlschemas.azureedge.net/latest/managedOnlineDeployment.schema.json
name: blue
endpoint_name: my-endpoint
model:
  path: ../model-1/model/
code_configuration:
  code: ../model-1/onlinescoring/
  scoring_script: score.py
environment:
  conda_file: ../model-1/environment/conda.yaml
  image: mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu20.04:latest
instance_type: Standard_DS3_v2
instance_count: 1
environment_variables:
  GREETING: hello
  LEVEL: 1.10
tags: {area: digits}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The tutorial's folders."""
    root = tmp_path / "cli"
    (root / "model-1" / "model").mkdir(parents=True)
    (root / "model-1" / "model" / "sklearn.pkl").write_bytes(b"weights")
    write_score(root / "model-1" / "onlinescoring")
    (root / "model-1" / "onlinescoring" / "helper.py").write_text("x = 1\n")
    (root / "model-1" / "onlinescoring" / ".secret").write_text("hidden\n")
    (root / "model-1" / "environment").mkdir()
    (root / "model-1" / "environment" / "conda.yaml").write_text(
        "channels: [conda-forge]\ndependencies:\n  - python=3.11\n  - pip:\n    - numpy\n    - azureml-defaults\n"
    )
    (root / "endpoints").mkdir()
    return root / "endpoints"


def deployment(folder: Path, text: str = TUTORIAL) -> DeploymentFile:
    path = folder / "deployment.yml"
    path.write_text(text, encoding="utf-8")
    return read_deployment(path)


def request_of(workspace: Workspace, folder: Path, text: str = TUTORIAL) -> BuildRequest:
    found = deployment(folder, text)
    model = deployment_model(workspace, found, no_steps)
    platforms = (Platform.parse("linux/amd64"),)
    plain = BuildRequest(model.name, (model,), None, Environment((), "3.11"), platforms=platforms)
    return deployment_request(plain, found, folder / "deployment.yml").with_own_script()


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path / "w", make_runtime_wheels(tmp_path / "wheels"))


def test_the_tutorials_file_is_taken_with_a_note_for_what_an_image_has_not(folder: Path) -> None:
    found = deployment(folder)
    assert isinstance(found.model, FileModel)
    assert found.script is not None and found.script.name == "score.py"
    assert found.conda is not None and found.conda.requirements == ("numpy", "azureml-defaults")
    assert found.variables == {"GREETING": "hello", "LEVEL": "1.10"}
    assert found.tags == {"area": "digits"}
    assert found.base is None
    assert found.notes == (
        "deployment.yml: not part of an image, left out: endpoint_name, instance_count, instance_type",
        "deployment.yml: environment.image mcr.microsoft.com/azureml/openmpi4.1.0-ubuntu20.04:latest is made for conda, left "
        "out; --base names another",
    )


def test_an_image_is_asked_for_with_everything_in_place(workspace: Workspace, folder: Path) -> None:
    request = request_of(workspace, folder)
    check_request(request)
    names = sorted(file.path for file in request.script_files())
    assert names == ["var/azureml-app/helper.py", "var/azureml-app/score.py"]
    assert request.models[0].id == "model:1"
    assert request.environment.requirements == ("inference-schema", "numpy")
    assert request.plan().variables == {"GREETING": "hello", "LEVEL": "1.10"}


def test_the_same_model_is_registered_once(workspace: Workspace, folder: Path) -> None:
    assert request_of(workspace, folder).models[0].id == "model:1"
    assert request_of(workspace, folder).models[0].id == "model:1"
    (folder.parent / "model-1" / "model" / "sklearn.pkl").write_bytes(b"other weights")
    assert request_of(workspace, folder).models[0].id == "model:2"
    named = TUTORIAL.replace("model:\n  path", "model:\n  name: digits\n  path")
    assert request_of(workspace, folder, named).models[0].id == "digits:1"


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("azureml:digits:3", "digits:3"),
        ("azureml:digits@latest", "digits"),
        ("azureml:digits", "digits"),
        ("{name: digits, version: 3}", "digits:3"),
        ("{name: digits}", "digits"),
    ],
)
def test_a_registered_model_is_named(folder: Path, model: str, expected: str) -> None:
    assert deployment(folder, f"model: {model}\n").model == expected


def test_a_registered_model_that_is_not_here_is_not_found(workspace: Workspace, folder: Path) -> None:
    found = deployment(folder, "model: azureml:digits:3\n")
    with pytest.raises(EdgewrightError, match="digits"):
        deployment_model(workspace, found, no_steps)
    (folder / "m.pkl").write_bytes(b"x")
    Model.register(workspace, folder / "m.pkl", "digits")
    assert (
        deployment_model(workspace, deployment(folder, "model: azureml:digits\n"), no_steps).id == "digits:1"
    )


def test_an_inline_environment_and_another_base_are_taken(folder: Path) -> None:
    text = "model: azureml:digits\nenvironment:\n  image: registry.example.com/base:1\n  conda_file:\n    dependencies:\n      - numpy=1.26\n      - gcc\n"
    found = deployment(folder, text)
    assert found.base == "registry.example.com/base:1"
    assert found.conda is not None and found.conda.requirements == ("numpy==1.26.*",)
    assert found.conda.unavailable[0].where.endswith("deployment.yml:7")
    assert found.conda.text == b"dependencies:\n- numpy=1.26\n- gcc\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\n", "yml:1 has no model"),
        ("- x\n", "yml:1 must be a mapping"),
        ("model: azureml:m\nmodels: x\n", "yml:2 has the unknown key 'models'; known are .*model"),
        ("model: {path: x, file: y}\n", "yml:1 has the unknown key 'model.file'"),
        ("model: nothere.pkl\n", "yml:1 names 'nothere.pkl' in model, which does not exist"),
        ("model:\n  path: nothere.pkl\n", "yml:2 names 'nothere.pkl' in model.path, which does not exist"),
        ("model: {version: 1}\n", "yml:1 must have a path, or the name"),
        (
            "model: azureml://datastores/x?sig=s3cret\n",
            "yml:1 names a remote asset in model: 'azureml://datastores/x'",
        ),
        ("model:\n  path: https://host/x?sig=s3cret\n", "yml:2 names a remote asset in model.path"),
        ("model: azureml:m\nenvironment: azureml:sklearn@latest\n", "yml:2 names the registered environment"),
        (
            "model: azureml:m\nenvironment: {build: {path: x}}\n",
            "yml:2 has the unknown key 'environment.build'",
        ),
        (
            "model: azureml:m\ncode_configuration: {code: .}\n",
            "yml:2 must name a file in code_configuration.scoring_script",
        ),
        (
            "model: azureml:m\ncode_configuration: {code: ../model-1, scoring_script: onlinescoring/score.py}\n",
            "must be directly in",
        ),
        (
            "model: azureml:m\ncode_configuration: {code: deployment.yml, scoring_script: s.py}\n",
            "must name a folder in code",
        ),
        (
            "model: azureml:m\nenvironment_variables: {LD_PRELOAD: x}\n",
            "yml:2 has 'LD_PRELOAD' .*which an image cannot set",
        ),
        (
            "model: azureml:m\nenvironment_variables: {A: [1]}\n",
            "yml:2 must be a text in environment_variables.A",
        ),
        (
            "model: azureml:m\nenvironment_variables: [A]\n",
            "yml:2 must be a mapping in environment_variables",
        ),
        ("model: !!python/name:os.system x\n", "yml:1 has a tag that is not taken"),
        ("model: [\n", "not valid YAML"),
    ],
)
def test_what_is_not_taken_names_file_line_and_key(folder: Path, text: str, message: str) -> None:
    with pytest.raises(DocumentError, match=message) as caught:
        deployment(folder, text)
    assert "s3cret" not in caught.value.message


def test_an_image_sets_no_variable_of_the_runtime(workspace: Workspace, folder: Path) -> None:
    from dataclasses import replace

    request = replace(request_of(workspace, folder), variables={"PYTHONPATH": "/x"})
    with pytest.raises(UsageError, match="'PYTHONPATH' cannot be set by an image"):
        check_request(request)


KEYS = st.sampled_from(
    ["model", "path", "code_configuration", "environment", "conda_file", "image", "tags", "x"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(alphabet="ab:/.\0-", max_size=12),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_any_document_is_read_or_refused_by_its_line(
    tmp_path_factory: pytest.TempPathFactory, document: dict[str, object]
) -> None:
    import yaml

    folder = tmp_path_factory.getbasetemp()
    try:
        deployment(folder, yaml.safe_dump(document))
    except EdgewrightError as error:
        assert re.search(r"deployment\.yml", error.message)

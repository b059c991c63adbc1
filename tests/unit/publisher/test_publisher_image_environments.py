"""Images from conda files, MLflow folders and deployment files, from the command or call to the layers."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from publisher_workspaces import make_runtime_wheels, make_wheel, make_workspace, write_score
from typer.testing import CliRunner

from edge_containers.image_model import ImageConfig, ImageIndex, ImageManifest
from publisher.cli.main import app
from publisher.errors import CondaPackageError
from publisher.images import ContainerImage, Image
from publisher.models import Model
from publisher.workspace import Workspace

CONDA = "dependencies:\n  - python=3.6.2\n  - numpy=1.26\n  - pip:\n    - azureml-core\nvariables:\n  MODE: fast\n"


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    wheels = make_runtime_wheels(tmp_path / "wheels")
    for name, version in {"numpy": "1.26.4", "pandas": "2.2", "scikit-learn": "1.5.0"}.items():
        make_wheel(wheels, name, version)
    made = make_workspace(tmp_path / "w", wheels)
    (made.root / "model.bin").write_bytes(b"weights")
    (made.root / "environment.yml").write_text(CONDA)
    write_score(made.root)
    monkeypatch.chdir(made.root)
    return made


def parts(image: Image) -> tuple[ImageConfig, dict[str, dict[str, bytes]]]:
    """The first platform's config, and the files of its layers by role."""
    store = image.workspace.store
    entry = ImageIndex.from_bytes(store.read_bytes(image.digest)).manifests[0]
    manifest = ImageManifest.from_bytes(store.read_bytes(entry.digest))
    layers: dict[str, dict[str, bytes]] = {}
    for layer in manifest.layers:
        data = store.path(layer.digest).read_bytes()
        plain = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
        with tarfile.open(fileobj=io.BytesIO(plain)) as tar:
            files = {each.name: tar.extractfile(each) for each in tar.getmembers() if each.isfile()}
            read = {name: file.read() for name, file in files.items() if file is not None}
        layers[layer.annotations["edgewright.layer"]] = read
    return ImageConfig.from_bytes(store.read_bytes(manifest.config.digest)), layers


def edgewright(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["image", "build", "--platform", "linux/amd64", *arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_the_original_call_takes_a_conda_file_and_warns_of_its_python(workspace: Workspace) -> None:
    model = Model.register(workspace, "model.bin", "digits")
    config = ContainerImage.image_configuration("score.py", "python", conda_file="environment.yml")
    with pytest.warns(UserWarning) as warned:
        image = ContainerImage.create(workspace, "digits", [model], config)
    told = [str(each.message) for each in warned]
    assert any("asks for python 3.6.2, the image has Python 3.11" in each for each in told)
    assert any("azureml-core is not installed" in each for each in told)
    found, layers = parts(image)
    assert "opt/edgewright/dependencies/numpy-1.26.4.dist-info/METADATA" in layers["dependencies"]
    assert "MODE=fast" in found.env
    assert json.loads(dict(found.labels)["edgewright.environment"]) == {"MODE": "fast"}
    assert "asks for python 3.6.2" in Path(image.image_build_log_uri).read_text()


def test_what_only_conda_has_is_refused_before_any_work(workspace: Workspace) -> None:
    model = Model.register(workspace, "model.bin", "digits")
    Path("environment.yml").write_text("dependencies: [numpy, cudatoolkit=11.8]\n")
    config = ContainerImage.image_configuration("score.py", "python", conda_file="environment.yml")
    with pytest.raises(CondaPackageError, match=r"cudatoolkit in .*environment"):
        ContainerImage.create(workspace, "digits", [model], config)
    assert not Image.list(workspace)


def test_the_command_takes_conda_files_and_keeps_to_the_lock(workspace: Workspace) -> None:
    Model.register(workspace, "model.bin", "digits")
    given = ("-m", "digits", "-s", "score.py", "--conda-file", "environment.yml")
    assert "asks for python 3.6.2" in edgewright(*given)
    assert "digits:2" in edgewright(*given, "--locked")
    Path("environment.yml").write_text("dependencies: [numpy, pandas]\n")
    refused = CliRunner().invoke(app, ["image", "build", "--platform", "linux/amd64", *given, "--locked"])
    assert refused.exit_code == 1
    assert "would change" in refused.output and "+pandas" in refused.output
    both = CliRunner().invoke(app, ["image", "build", *given, "--locked", "--upgrade"])
    assert both.exit_code == 2 and "give one of them" in both.output


def test_an_mlflow_folder_is_an_image_without_more(workspace: Workspace) -> None:
    folder = workspace.root / "classifier"
    folder.mkdir()
    (folder / "model.pkl").write_bytes(b"x")
    (folder / "requirements.txt").write_text("mlflow==2.9.2\nscikit-learn==1.5.0\n")
    (folder / "MLmodel").write_text(
        "flavors:\n  python_function: {loader_module: mlflow.sklearn, model_path: model.pkl, python_version: 3.11.2}\n"
        "  sklearn: {pickled_model: model.pkl, serialization_format: cloudpickle}\n"
    )
    Model.register(workspace, folder, "digits")
    edgewright("-m", "digits")
    found, layers = parts(Image(workspace, name="digits"))
    assert {"var/azureml-app/sklearn_score.py", "var/azureml-app/mlflow_model.json"} == set(layers["script"])
    assert "AZUREML_ENTRY_SCRIPT=sklearn_score.py" in found.env
    lock = layers["dependencies"]["opt/edgewright/dependencies/edgewright.lock"].decode()
    assert "scikit-learn==1.5.0" in lock and "pandas==2.2" in lock and "mlflow" not in lock


def test_a_deployment_file_is_an_image_without_more(workspace: Workspace) -> None:
    Path("deployment.yml").write_text(
        "name: blue\nmodel: {name: digits, path: model.bin}\ninstance_type: Standard_F2s_v2\n"
        "code_configuration: {code: ., scoring_script: score.py}\nenvironment: {conda_file: environment.yml}\n"
        "environment_variables: {GREETING: hello}\ntags: {area: digits}\n"
    )
    assert "left out: instance_type" in edgewright("-f", "deployment.yml", "-t", "blue")
    image = Image(workspace, name="blue")
    found, layers = parts(image)
    assert image.model_ids == ["digits:1"]
    assert image.tags == {"area": "digits"}
    assert {"GREETING=hello", "MODE=fast"} <= set(found.env)
    assert "var/azureml-app/score.py" in layers["script"]
    assert "var/azureml-app/model.bin" not in layers["script"]
    both = CliRunner().invoke(app, ["image", "build", "-f", "deployment.yml", "-m", "digits"])
    assert both.exit_code == 2 and "is said by the deployment file" in both.output

"""Golden cases: answers recorded from the finished image, carried in it, checked by the runtime before it is ready."""

from __future__ import annotations

import json
import sys
import tarfile
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import pytest
from scoring_models import doubler

from edge_containers.image_model import ImageConfig, ImageIndex, ImageManifest, Platform
from publisher.build_request import BuildRequest
from publisher.environments import Environment
from publisher.errors import GoldenError
from publisher.images import ContainerImage
from publisher.models import Model
from publisher.workspace import Workspace

HOST = Platform.host()
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
SCRIPT = """
import os
from inference_schema.parameter_types.standard_py_parameter_type import StandardPythonParameterType
from inference_schema.schema_decorators import input_schema

def init():
    global factor
    factor = float(open(os.environ["AZUREML_MODEL_DIR"] + "/factor.txt").read())

@input_schema("data", StandardPythonParameterType([1.0, 2.5]))
def run(data):
    return [factor * each for each in data]
"""


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    workspace = Workspace.init(tmp_path_factory.mktemp("golden"))
    config = workspace.root / "edgewright.toml"
    config.write_text(f'[workspace]\nname = "golden"\n[environment]\npython = "{PYTHON}"\n')
    return Workspace.open(workspace.root)


@pytest.fixture(scope="module")
def bare(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> BuildRequest:
    model = Model.register(workspace, doubler(tmp_path_factory.mktemp("model")), "doubler")
    return BuildRequest("doubler", (model,), None, Environment((), PYTHON), platforms=(HOST,))


def write(folder: Path, **cases: object) -> Path:
    folder.mkdir(exist_ok=True)
    for name, document in cases.items():
        (folder / f"{name}.json").write_text(json.dumps(document))
    return folder


def script_layer(image: ContainerImage) -> dict[str, bytes]:
    store = image.workspace.store
    [entry] = ImageIndex.from_bytes(store.read_bytes(image.digest)).manifests
    manifest = ImageManifest.from_bytes(store.read_bytes(entry.digest))
    config = ImageConfig.from_bytes(store.read_bytes(manifest.config.digest))
    assert config.labels["edgewright.golden"] == "golden"
    assert "EDGEWRIGHT_GOLDEN=golden" in config.env
    with tarfile.open(fileobj=BytesIO(store.path(manifest.layers[-1].digest).read_bytes())) as tar:
        files = [member for member in tar if member.isfile()]
        return {member.name: tar.extractfile(member).read() for member in files}


def test_answers_of_a_bare_model_are_recorded_with_tolerances(
    workspace: Workspace, bare: BuildRequest, tmp_path: Path
) -> None:
    golden = write(tmp_path / "g", a={"data": [[1, 2, 3]]}, b={"request": {"x": [[4, 5, 6]]}, "rtol": 0.5})
    image = ContainerImage.from_request(workspace, replace(bare, golden=golden))
    files = {name: json.loads(data) for name, data in script_layer(image).items()}
    assert files == {
        "var/azureml-app/golden/a.json": {
            "request": {"data": [[1, 2, 3]]},
            "response": {"y": [[2.0, 4.0, 6.0]]},
            "rtol": 1e-4,
            "atol": 1e-6,
        },
        "var/azureml-app/golden/b.json": {
            "request": {"x": [[4, 5, 6]]},
            "response": {"y": [[8.0, 10.0, 12.0]]},
            "rtol": 0.5,
            "atol": 1e-6,
        },
    }
    again = ContainerImage.from_request(workspace, replace(bare, golden=golden))
    assert again.digest == image.digest
    assert all(layer.reused for layer in again.build.platforms[0].layers)


@pytest.mark.parametrize(
    ("case", "says"),
    [
        (
            {"request": {"data": [[1, 2, 3]]}, "response": {"y": [[2, 4, 7]]}},
            r"response\.y\[0\]\[2\]: expected 7, found 6",
        ),
        ({"request": {"data": "text"}}, "was answered 400"),
        ({"request": {}, "answer": 1}, "unknown key 'answer'"),
        ({"requestBase64": "%%"}, "must be base64"),
    ],
)
def test_what_the_image_answers_otherwise_is_no_image(
    workspace: Workspace, bare: BuildRequest, tmp_path: Path, case: dict[str, object], says: str
) -> None:
    golden = write(tmp_path / "g", a=case)
    before = [image.id for image in ContainerImage.list(workspace)]
    with pytest.raises(GoldenError, match=says):
        ContainerImage.from_request(workspace, replace(bare, golden=golden))
    assert [image.id for image in ContainerImage.list(workspace)] == before


def test_an_image_for_other_platforms_alone_is_refused_before_work(
    workspace: Workspace, bare: BuildRequest, tmp_path: Path
) -> None:
    other = Platform("linux", "arm64" if HOST.architecture == "amd64" else "amd64")
    golden = write(tmp_path / "g", a={"data": [[1, 2, 3]]})
    with pytest.raises(GoldenError, match=f"add --platform {HOST}"):
        ContainerImage.from_request(workspace, replace(bare, golden=golden, platforms=(other,)))
    with pytest.raises(GoldenError, match="no golden requests"):
        ContainerImage.from_request(workspace, replace(bare, golden=write(tmp_path / "empty")))


def test_a_scripts_own_sample_is_taken(workspace: Workspace, tmp_path: Path) -> None:
    (tmp_path / "factor.txt").write_text("3")
    (tmp_path / "score.py").write_text(SCRIPT)
    model = Model.register(workspace, tmp_path / "factor.txt", "factor")
    environment = Environment(("inference-schema",), PYTHON)
    request = BuildRequest(
        "factor", (model,), tmp_path / "score.py", environment, platforms=(HOST,), golden=Path("schema")
    )
    files = script_layer(ContainerImage.from_request(workspace, request))
    assert json.loads(files["var/azureml-app/golden/sample.json"])["request"] == {"data": [1.0, 2.5]}
    assert json.loads(files["var/azureml-app/golden/sample.json"])["response"] == [3.0, 7.5]
    (tmp_path / "score.py").write_text(
        "def init():\n    raise RuntimeError('no factor today')\n\n\ndef run(data): ...\n"
    )
    with pytest.raises(GoldenError, match="no factor today"):
        ContainerImage.from_request(workspace, request)

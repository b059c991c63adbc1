"""The original document's snippets for models and images, with only their imports changed; real packages, real scores.

What cannot hold is in docs/reference/original-api.md: here the stray brace is left out, and `python=3.6.2` is a warning.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import joblib
import pytest
from registry_servers import PASSWORD, USER, debian_registry
from sklearn.linear_model import LogisticRegression

from edge_containers.image_model import Platform
from edge_containers.registry_client import BasicCredentials, RegistryClient
from edge_contracts.redact import Secret
from publisher import ContainerImage, Image, Model, Workspace
from publisher.errors import InUseError, NotFoundError, ScriptError, UnknownPackageError, UsageError
from publisher.local_run import LocalRunError

SCORE = """\
import json
import numpy as np
import os
import pickle
from sklearn.externals import joblib
from sklearn.linear_model import LogisticRegression

from azureml.core.model import Model

def init():
    global model
    # retrieve the path to the model file using the model name
    model_path = Model.get_model_path('sklearn_mnist')
    model = joblib.load(model_path)

def run(raw_data):
    data = np.array(json.loads(raw_data)['data'])
    # make prediction
    y_hat = model.predict(data)
    return json.dumps(y_hat.tolist())
"""
MYENV = """\
# Conda environment specification. The dependencies defined in this file will
# be automatically provisioned for runs with userManagedDependencies=False.
name: project_environment
dependencies:
  # The python interpreter version.
- python=3.6.2
- pip:
  - azureml-defaults
- scikit-learn
"""
BOTH = """\
import os
from azureml.core.model import Model

def init():
    pass

def run(data):
    folder = os.environ["AZUREML_MODEL_DIR"]
    found = {name: sorted(os.listdir(os.path.join(folder, name))) for name in sorted(os.listdir(folder))}
    return {"folders": found, "a": open(Model.get_model_path("a")).read(), "b": open(Model.get_model_path("b", 1)).read()}
"""


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The registry a workspace pushes to, in the document's folder and with its workspace's settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEWRIGHT_IMAGE_PLATFORMS", str(Platform.host()))
    Path("score.py").write_text(SCORE)
    Path("myenv.yml").write_text(MYENV)
    Path("outputs").mkdir()
    joblib.dump(LogisticRegression().fit([[0, 0], [9, 9]], [3, 8]), "outputs/sklearn_mnist_model.pkl")
    (tmp_path / "registry").mkdir()
    with debian_registry(tmp_path / "registry") as running:
        monkeypatch.setenv("EDGEWRIGHT_AZURE_CONTAINER_REGISTRY", running.address)
        monkeypatch.setenv("EDGEWRIGHT_REGISTRY_LOGINS", f"{running.address} {USER} env:DOCUMENT_PASSWORD")
        monkeypatch.setenv("DOCUMENT_PASSWORD", PASSWORD)
        yield running.address


@pytest.mark.timeout(400)
def test_the_document_from_workspace_to_deletion(registry: str) -> None:
    ws = Workspace.create(
        name="myworkspace",
        subscription_id="<azure-subscription-id>",
        resource_group="myresourcegroup",
        create_resource_group=True,
        location="eastus2",
    )
    ws.write_config()
    ws = Workspace.from_config()

    model = Model.register(
        model_path="outputs/sklearn_mnist_model.pkl",
        model_name="sklearn_mnist",
        tags={"key": "0.1"},
        description="test",
        workspace=ws,
    )
    assert (model.id, Model(ws, "sklearn_mnist").description) == ("sklearn_mnist:1", "test")
    assert [each.id for each in Model.list(ws, tags=[["key", "0.1"]])] == ["sklearn_mnist:1"]
    assert Model.list(ws, tags=[["key", "0.2"]]) == []

    image_config = ContainerImage.image_configuration(
        execution_script="score.py", runtime="python", conda_file="myenv.yml"
    )
    with pytest.warns(UserWarning) as warned:
        image = ContainerImage.create(name="myimage", models=[model], image_config=image_config, workspace=ws)
    image.wait_for_creation(show_output=True)
    for part in ("3.6.2", "azureml-defaults"):
        assert any(part in str(each.message) for each in warned)
    assert (image.id, image.creation_state) == ("myimage:1", "Succeeded")
    assert "scikit-learn" in Path(image.image_build_log_uri).read_text()

    test_sample = json.dumps({"data": [[9, 8], [0, 1]]})
    test_sample = bytes(test_sample, encoding="utf8")
    assert json.loads(image.run(input_data=test_sample)) == [8, 3]

    # The credentials script, up to ws._auth.
    container_reg = ws.get_details()["containerRegistry"]
    reg_name = container_reg.split("/")[-1]
    container_url = '"' + image.image_location + '",'
    assert reg_name == registry
    assert container_url == f'"{registry}/myimage@{image.digest}",'
    assert ws.subscription_id == "<azure-subscription-id>"
    with RegistryClient(registry, credentials=BasicCredentials(USER, Secret(PASSWORD))) as client:
        found = client.head_manifest("myimage", "1")
    assert found is not None and found.digest == image.digest

    # A new script is a new version that installs nothing.
    Path("score.py").write_text(SCORE + "# changed\n")
    with pytest.warns(UserWarning):
        second = ContainerImage.create(ws, "myimage", [model.id], image_config)
    assert (second.id, Image(ws, "myimage").version, Image(ws, id="myimage:1").version) == ("myimage:2", 2, 1)
    log = Path(second.image_build_log_uri).read_text()
    assert "reused" in next(line for line in log.splitlines() if " dependencies " in line)
    assert second.build_seconds * 5 < image.build_seconds
    assert {name: each.id for name, each in ws.images.items()} == {"myimage": "myimage:2"}

    with pytest.raises(InUseError, match="used by image myimage:1, myimage:2"):
        model.delete()
    for each in Image.list(workspace=ws, model_id=model.id):
        each.delete()
    model.delete()
    with pytest.raises(NotFoundError, match=r"^ModelNotFound: no model 'sklearn_mnist'"):
        Model(ws, "sklearn_mnist")
    ws.delete()
    assert not Path("myworkspace").exists()


def test_what_the_document_gets_wrong_is_refused_before_any_build(registry: str) -> None:
    ws = Workspace.create("w")
    model = Model.register(ws, "outputs/sklearn_mnist_model.pkl", "sklearn_mnist")
    with pytest.raises(ScriptError, match=r"Execution script nothere\.py doesn't exist"):
        ContainerImage.image_configuration(execution_script="nothere.py", runtime="python")
    with pytest.raises(UsageError, match=r"Possible runtimes are: spark-py\|python"):
        ContainerImage.image_configuration(execution_script="score.py", runtime="r")
    Path("myenv.yml").write_text("dependencies:\n- pip:\n  - no-such-package-of-anybody-7\n")
    config = ContainerImage.image_configuration("score.py", "python", conda_file="myenv.yml")
    with pytest.raises(UnknownPackageError, match="'no-such-package-of-anybody-7' was not found"):
        ContainerImage.create(ws, "myimage", [model], config)
    assert "no-such-package-of-anybody-7" in (ws.logs / "image-myimage.log").read_text()
    assert Image.list(ws) == []


@pytest.mark.timeout(300)
def test_two_models_in_one_image_are_both_found(registry: str) -> None:
    ws = Workspace.create("w")
    for name in ("a", "b"):
        Path(name).write_text(f"model {name}")
        Model.register(ws, name, name)
    Path("score.py").write_text(BOTH)
    config = ContainerImage.image_configuration("score.py", "python")
    image = ContainerImage.create(ws, "both", ["a", "b"], config)
    assert image.run("{}") == {
        "folders": {"a": ["1"], "b": ["1"]},
        "a": "model a",
        "b": "model b",
    }


@pytest.mark.timeout(300)
def test_a_local_run_that_fails_says_why_and_leaves_nothing(registry: str) -> None:
    ws = Workspace.create("w")
    Path("a").write_text("model")
    model = Model.register(ws, "a", "a")
    Path("score.py").write_text(
        "def init():\n    raise OSError('no weights')\n\ndef run(data):\n    return data\n"
    )
    config = ContainerImage.image_configuration("score.py", "python")
    image = ContainerImage.create(ws, "failing", [model], config)
    with pytest.raises(
        LocalRunError, match=r"(?s)failing:1 ended before it was ready; it printed:.*no weights"
    ):
        image.run("{}")
    Path("score.py").write_text("def init():\n    pass\n\ndef run(data):\n    return 1 / 0\n")
    image = ContainerImage.create(ws, "failing", [model], config)
    with pytest.raises(LocalRunError, match=r"(?s)failing:2 answered 500: .*ZeroDivisionError"):
        image.run("{}")
    with pytest.raises(UsageError, match="input_data must be text or bytes, and not empty"):
        image.run("")
    assert list((ws.cache / "work").iterdir()) == []
    assert not [each for each in os.listdir("/proc") if each.isdigit() and _runs_in(each, str(ws.root))]


def _runs_in(process: str, folder: str) -> bool:
    try:
        return folder in Path(f"/proc/{process}/cmdline").read_text()
    except OSError:
        return False

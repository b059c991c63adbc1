"""MLflow models score in an image's runtime as MLflow's own scoring server scores them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_models import COLUMNS, RECORDS, REQUESTS, ROWS, TABLE
from publisher_workspaces import make_runtime_wheels, make_workspace
from scoring_server import ScoringServer, call

from edge_containers.image_model import Platform
from publisher.build_request import BuildRequest, check_request
from publisher.environments import Environment
from publisher.models import Model

SUPPORT = Path(__file__).parents[1] / "support"
APP, MODEL_ROOT = "var/azureml-app", "azureml-models"
STARTS_WITHIN_S = 90.0

# MLflow takes 15 s of a core to save and answer, which a busy machine stretches.
pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models saved by MLflow and its answers. It copies a project file of the current folder into the models."""
    folder = tmp_path_factory.mktemp("mlflow")
    command = [sys.executable, "-W", "ignore", str(SUPPORT / "mlflow_models.py"), str(folder)]
    made = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300, check=False)
    assert made.returncode == 0, made.stderr
    return folder


@pytest.fixture(scope="module")
def requests_(saved: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, BuildRequest]:
    """The request of an image for each model, with nothing given but the model."""
    folder = tmp_path_factory.mktemp("workspace")
    workspace = make_workspace(folder / "w", make_runtime_wheels(folder / "wheels"))
    platforms = (Platform.parse("linux/amd64"),)
    found = {}
    for name in REQUESTS:
        model = Model.register(workspace, saved / name, name)
        request = BuildRequest(name, (model,), None, Environment((), "3.11"), platforms=platforms)
        found[name] = request.with_own_script()
        check_request(found[name])
    return found


@pytest.fixture(scope="module")
def expected(saved: Path) -> dict[str, dict[str, tuple[int, Any]]]:
    document: dict[str, dict[str, tuple[int, Any]]] = json.loads((saved / "answers.json").read_bytes())
    return document


def serve(request: BuildRequest, folder: Path) -> ScoringServer:
    """The image's script and model laid out as in the image, and the runtime over them."""
    [model] = request.models
    root = folder / APP / MODEL_ROOT / model.name / str(model.version)
    root.mkdir(parents=True)
    model.download(root)
    for file in request.script_files():
        data = file.source if isinstance(file.source, bytes) else file.source.read_bytes()
        (folder / file.path).write_bytes(data)
    assert request.script is not None
    return ScoringServer(
        folder,
        AML_APP_ROOT=str(folder / APP),
        AZUREML_ENTRY_SCRIPT=request.script.name,
        AZUREML_MODEL_DIR=str(root),
    )


class Servers:
    """A server per model, started when it is first asked for: loading takes a core for seconds."""

    def __init__(self, requests: dict[str, BuildRequest], folder: Path) -> None:
        self._requests = requests
        self._folder = folder
        self.running: dict[str, ScoringServer] = {}

    def __getitem__(self, name: str) -> ScoringServer:
        if name not in self.running:
            self.running[name] = serve(self._requests[name], self._folder / name)
            wait_ready(self.running[name])
        return self.running[name]


@pytest.fixture(scope="module")
def servers(
    requests_: dict[str, BuildRequest], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Servers]:
    found = Servers(requests_, tmp_path_factory.mktemp("servers"))
    try:
        yield found
    finally:
        for server in found.running.values():
            server.__exit__()


def test_the_flavour_decides_what_an_image_needs(requests_: dict[str, BuildRequest]) -> None:
    scripts = {name: request.script.name for name, request in requests_.items() if request.script}
    assert scripts == {
        "probabilities": "sklearn_score.py",
        "pipeline": "sklearn_score.py",
        "unsigned": "sklearn_score.py",
        "onnx": "onnx_score.py",
        "free": "pyfunc_score.py",
    }
    assert requests_["onnx"].environment.requirements == ("numpy", "onnxruntime")
    assert requests_["pipeline"].environment.requirements == (
        "cloudpickle",
        "numpy",
        "pandas",
        "scikit-learn",
    )
    assert any(each.startswith("mlflow-skinny==") for each in requests_["free"].environment.requirements)


@pytest.mark.parametrize("name", REQUESTS)
def test_scores_equal_those_of_mlflows_server(
    name: str, servers: Servers, expected: dict[str, dict[str, tuple[int, Any]]]
) -> None:
    for title, body in REQUESTS[name].items():
        status, document = expected[name][title]
        reply = servers[name].score(body)
        assert reply.status == status, (title, reply.body)
        if status == 200:
            assert reply.json() == document, title
        else:
            assert reply.message, title


@pytest.mark.parametrize(
    ("name", "data", "like"),
    [
        ("pipeline", TABLE["data"], "split"),
        ("pipeline", RECORDS, "records"),
        ("pipeline", COLUMNS, "inputs by column"),
        ("unsigned", ROWS, "inputs"),
        ("onnx", ROWS, "inputs"),
        ("onnx", {"X": ROWS}, "inputs by name"),
        ("free", TABLE["data"], "split"),
        ("free", RECORDS, "split"),
    ],
)
def test_data_is_taken_as_in_every_image(
    name: str,
    data: object,
    like: str,
    servers: Servers,
    expected: dict[str, dict[str, tuple[int, Any]]],
) -> None:
    reply = servers[name].score({"data": data})
    assert [reply.status, reply.json()] == expected[name][like]


def test_what_is_no_json_is_the_callers_mistake(servers: Servers) -> None:
    for name in ("pipeline", "onnx", "free"):
        reply = call(servers[name].address, "POST", "/score", b"{", {"content-type": "application/json"})
        assert reply.status == 400
        assert "not JSON" in reply.message


def wait_ready(server: ScoringServer) -> None:
    end = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < end:
        assert server.process.poll() is None, server.log
        try:
            if server.health().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise AssertionError(f"not ready: {server.log}")

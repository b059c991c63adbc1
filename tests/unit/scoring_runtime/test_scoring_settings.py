"""Arguments and environment of the scoring runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scoring_runtime.errors import SettingsError
from scoring_runtime.settings import VARIABLES, Settings, parse_message_routes

EDGE = {
    "IOTEDGE_IOTHUBHOSTNAME": "hub.test",
    "IOTEDGE_DEVICEID": "d1",
    "IOTEDGE_MODULEID": "scorer",
    "IOTEDGE_GATEWAYHOSTNAME": "127.0.0.2",
    "IOTEDGE_MODULEGENERATIONID": "1",
    "IOTEDGE_WORKLOADURI": "unix:///run/edgewright/workload.sock",
    "IOTEDGE_APIVERSION": "2022-08-03",
}


def read(cwd: Path, environment: dict[str, str] | None = None, **arguments: Any) -> Settings:
    return Settings.read(environment or {}, cwd=cwd, **arguments)


def test_a_script_argument_is_relative_to_the_working_directory(tmp_path: Path) -> None:
    settings = read(tmp_path, {"AML_APP_ROOT": "/elsewhere"}, entry_script="src/score.py")
    assert (settings.served, settings.is_script) == (tmp_path / "src/score.py", True)
    assert settings.app_root == tmp_path


def test_a_script_of_the_environment_is_relative_to_the_app_root(tmp_path: Path) -> None:
    settings = read(tmp_path, {"AML_APP_ROOT": "/var/azureml-app", "AZUREML_ENTRY_SCRIPT": "score.py"})
    assert settings.served == Path("/var/azureml-app/score.py")


def test_an_argument_wins_over_the_environment(tmp_path: Path) -> None:
    settings = read(tmp_path, {"AZUREML_ENTRY_SCRIPT": "score.py"}, model="model.onnx")
    assert (settings.served, settings.is_script) == (tmp_path / "model.onnx", False)


def test_a_script_wins_over_a_model_file_in_the_environment(tmp_path: Path) -> None:
    environment = {
        "AZUREML_ENTRY_SCRIPT": "score.py",
        "EDGEWRIGHT_MODEL_FILE": "m.onnx",
        "AZUREML_MODEL_DIR": str(tmp_path),
    }
    assert read(tmp_path, environment).is_script


def test_the_labelled_model_file_lies_in_the_model_folder(tmp_path: Path) -> None:
    environment = {
        "EDGEWRIGHT_MODEL_FILE": "m.onnx",
        "AZUREML_MODEL_DIR": str(tmp_path),
        "EDGEWRIGHT_MODEL": "digits:1",
    }
    settings = read(Path("/"), environment)
    assert (settings.served, settings.model) == (tmp_path / "m.onnx", "digits:1")


def test_the_only_onnx_file_of_the_model_folder_is_found(tmp_path: Path) -> None:
    (tmp_path / "only.onnx").touch()
    assert read(Path("/"), model_dir=str(tmp_path)).served == tmp_path / "only.onnx"


def test_nothing_to_serve_says_what_to_give(tmp_path: Path) -> None:
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / name).touch()
    with pytest.raises(SettingsError, match=r"--entry-script score\.py or --model .*2 \.onnx files"):
        read(tmp_path, model_dir=".")


def test_a_script_and_a_model_are_not_both_served(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="not both"):
        read(tmp_path, entry_script="score.py", model="m.onnx")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("EDGEWRIGHT_HTTP_FD", "x", "must be a number from 0 to"),
        ("EDGEWRIGHT_THREADS", "0", "must be a number from 1 to 64, not '0'"),
        ("EDGEWRIGHT_THREADS", "²", "must be a number"),
        ("EDGEWRIGHT_MAX_BODY_BYTES", "-1", "must be a number"),
        ("EDGEWRIGHT_HOLD", "maybe", "must be 1 or 0, not 'maybe'"),
        ("AZUREML_LOG_LEVEL", "loud", "must be one of DEBUG, INFO"),
        ("AZUREML_MODEL_DIR", "absent", "the model folder does not exist"),
    ],
)
def test_a_bad_variable_is_named_with_what_it_takes(tmp_path: Path, name: str, value: str, text: str) -> None:
    with pytest.raises(SettingsError, match=text) as caught:
        read(tmp_path, {name: value}, entry_script="score.py")
    assert caught.value.exit_code == 2


def test_a_bad_port_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="--port must be 0 to 65535, not 70000"):
        read(tmp_path, entry_script="s.py", port=70000)


def test_outside_of_iot_edge_there_are_no_messages(tmp_path: Path) -> None:
    assert read(tmp_path, {"EDGEWRIGHT_MESSAGES": "a=b"}, entry_script="s.py").edge is None


def test_on_iot_edge_input1_goes_to_output1_unless_told_otherwise(tmp_path: Path) -> None:
    edge = read(tmp_path, EDGE, entry_script="s.py").edge
    assert edge is not None
    assert (edge.client_id, edge.routes) == ("d1/scorer", {"input1": "output1"})
    assert read(tmp_path, {**EDGE, "EDGEWRIGHT_MESSAGES": ""}, entry_script="s.py").edge is None


def test_an_incomplete_edge_environment_names_what_is_missing(tmp_path: Path) -> None:
    environment = {
        name: value for name, value in EDGE.items() if name not in ("IOTEDGE_DEVICEID", "IOTEDGE_APIVERSION")
    }
    with pytest.raises(SettingsError, match="not IOTEDGE_DEVICEID, IOTEDGE_APIVERSION"):
        read(tmp_path, environment, entry_script="s.py")


def test_message_routes_are_pairs() -> None:
    assert parse_message_routes(" in1 = out1 , in2=out2 ") == {"in1": "out1", "in2": "out2"}


@pytest.mark.parametrize("text", ["in1", "in1=", "=out", "a=b,a=c", "a/b=c"])
def test_bad_message_routes_are_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="EDGEWRIGHT_MESSAGES must be"):
        parse_message_routes(text)


def test_every_variable_has_its_place_in_the_reference() -> None:
    folder = Path(__file__).resolve().parents[3] / "docs" / "reference"
    pages = "".join((folder / name).read_text() for name in ("serving.md", "image.md"))
    # Two pages write some names together: EDGEWRIGHT_HTTP_FD, EDGEWRIGHT_HEALTH_FD, …
    assert [name for name in VARIABLES if name not in pages] == []

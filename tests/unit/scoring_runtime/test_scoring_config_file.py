"""Settings and logging from files, and access lines: what the contract's table does not reach."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest
from scoring_asgi import AppUnderTest

from scoring_runtime.config_file import apply_config_file
from scoring_runtime.errors import SettingsError
from scoring_runtime.log_format import JsonFormatter, configure_by_file
from scoring_runtime.version import VERSION


def apply(folder: Path, environment: dict[str, str], given: str | None = None) -> list[str]:
    return apply_config_file(environment, given=given, entry_script="score.py", cwd=folder)


def test_what_is_set_wins_and_values_become_text(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"SERVICE_NAME": "f", "WORKER_COUNT": 2, "EDGEWRIGHT_HOLD": false}'
    )
    environment = {"SERVICE_NAME": "set"}
    assert apply(tmp_path, environment) == []
    assert environment["SERVICE_NAME"] == "set"
    assert environment["EDGEWRIGHT_HOLD"] == "false"


def test_names_that_mean_nothing_here_are_a_warning(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"SERVICE_NAME": "f", "b": 1, "a": 1}')
    (warning,) = apply(tmp_path, {})
    assert warning.endswith("config.json holds what is no setting of this server: a, b")


def test_somebody_elses_config_json_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"hidden_size": 768, "architectures": ["x"]}')
    environment: dict[str, str] = {}
    assert (apply(tmp_path, environment), environment) == ([], {})


def test_a_found_file_that_is_not_json_is_a_warning_and_a_named_one_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    (warning,) = apply(tmp_path, {})
    assert "config.json is not JSON" in warning and warning.endswith("it is not used")
    with pytest.raises(SettingsError, match=r"config\.json is not JSON"):
        apply(tmp_path, {}, given="config.json")
    with pytest.raises(SettingsError, match=r"none\.json cannot be read: No such file"):
        apply(tmp_path, {"AZUREML_CONFIG_FILE": "none.json"})


@pytest.mark.parametrize(
    ("text", "found"), [("[]", "must be a JSON object"), ('{"SERVICE_NAME": []}', "SERVICE_NAME in")]
)
def test_values_of_another_kind_are_refused(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "own.json").write_text(text)
    with pytest.raises(SettingsError, match=found):
        apply(tmp_path, {}, given="own.json")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"version": 3}', '{"version": 1, "handlers": {"h": {"class": "no.such"}}}']
)
def test_a_logging_file_that_cannot_be_used_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "logging.json").write_text(text)
    with pytest.raises(SettingsError, match=r"logging\.json cannot be used: "):
        configure_by_file([tmp_path])


def test_an_access_line_has_its_parts_as_keys_in_json(caplog: pytest.LogCaptureFixture) -> None:
    app = AppUnderTest(access_log=True)
    with caplog.at_level(logging.INFO, logger="scoring_runtime.access"):
        app.call("POST", "/score?q=1\n", b"7", {"x-request-id": "R"})
        app.call("GET", "/metrics")
        app.call("GET", "/nothing")
    scored, refused = (json.loads(JsonFormatter().format(record)) for record in caplog.records)
    assert (scored["method"], scored["status"], scored["bytes"], scored["requestId"]) == (
        "POST",
        200,
        "1",
        "R",
    )
    assert scored["message"] == f"POST {scored['path']} 200 {scored['ms']:.3f}ms 1"
    assert "\n" not in scored["path"]
    assert (refused["path"], refused["status"]) == ("/nothing", 404)


def test_the_version_is_the_distributions() -> None:
    project = Path(__file__).resolve().parents[3] / "pyproject.toml"
    assert f'\nversion = "{VERSION}"\n' in project.read_text()

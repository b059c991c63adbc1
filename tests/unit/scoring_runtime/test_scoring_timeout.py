"""Runs that take too long, bodies that come too slowly, and how the log looks."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from scoring_asgi import AppUnderTest

from scoring_runtime.errors import SettingsError
from scoring_runtime.log_format import JsonFormatter, TextFormatter
from scoring_runtime.run_timer import RunTimer, ScoringTimeout
from scoring_runtime.settings import Settings

JSON = {"content-type": "application/json"}


def busy(seconds: float) -> None:
    """Computes in Python, so that it can be stopped, and shields itself as scripts do."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(Exception):
            sum(range(100))


def test_a_run_that_computes_too_long_is_stopped_and_the_next_one_runs() -> None:
    timer = RunTimer(50)
    started = time.monotonic()
    with pytest.raises(ScoringTimeout):
        timer.run(busy, 10.0)
    assert time.monotonic() - started < 2
    assert timer.run(lambda value: value + 1, 1) == 2
    assert timer.overdue == 0


def test_what_could_not_be_stopped_does_not_hit_the_next_run() -> None:
    timer = RunTimer(20)
    with pytest.raises(ScoringTimeout):
        timer.run(lambda _: (time.sleep(0.1), busy(5)), None)
    for _ in range(20):
        try:
            timer.run(time.sleep, 0.05)
        except ScoringTimeout:
            pass
        assert timer.run(lambda value: value, 3) == 3


def test_runs_of_several_threads_are_stopped_each_by_itself() -> None:
    timer = RunTimer(100)
    ended: list[str] = []

    def run(seconds: float) -> None:
        try:
            timer.run(busy, seconds)
            ended.append("done")
        except ScoringTimeout:
            ended.append("stopped")

    threads = [threading.Thread(target=run, args=(seconds,)) for seconds in (0.01, 5.0, 5.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(ended) == ["done", "stopped", "stopped"]


def test_the_client_is_answered_in_time_and_the_next_request_served(caplog: pytest.LogCaptureFixture) -> None:
    app = AppUnderTest(lambda value: busy(20) if value == "slow" else value, timeout_ms=100)
    started = time.monotonic()
    reply = app.call("POST", "/score", b'"slow"', {**JSON, "x-request-id": "late-1"})
    assert time.monotonic() - started < 5
    assert (reply.status, reply.message) == (500, "Scoring timeout after 100 ms")
    assert reply.headers["x-ms-run-function-failed"] == "True"
    assert app.call("POST", "/score", b"1", JSON).body == b"1"
    assert "late-1: run() exceeded its time" in caplog.text and "in busy" in caplog.text
    assert 'outcome="timed_out"} 1' in app.call("GET", "/metrics").body.decode()


def test_a_client_is_answered_in_time_though_the_run_cannot_be_stopped(
    caplog: pytest.LogCaptureFixture,
) -> None:
    app = AppUnderTest(time.sleep, timeout_ms=100)
    started = time.monotonic()
    reply = app.call("POST", "/score", b"1.2", JSON)
    assert time.monotonic() - started < 0.8
    assert reply.message == "Scoring timeout after 100 ms"
    assert "has not stopped yet" in caplog.text
    assert app.call("POST", "/score", b"0", JSON).status == 200


def test_a_body_that_comes_too_slowly_is_refused() -> None:
    reply = AppUnderTest(body_timeout_s=0.05).call("POST", "/score", b"[1]", JSON, chunk=1, pause_s=0.04)
    assert (reply.status, reply.message) == (408, "the body did not arrive within 0.05 s")
    assert reply.headers["connection"] == "close"


def record(message: str) -> logging.LogRecord:
    try:
        raise RuntimeError("why")
    except RuntimeError:
        return logging.LogRecord("a.b", logging.ERROR, __file__, 1, message, None, sys.exc_info())


def test_json_logs_are_one_object_a_line() -> None:
    line = JsonFormatter().format(record('two\nlines "å"'))
    found = json.loads(line)
    assert "\n" not in line
    assert (found["level"], found["logger"], found["message"]) == ("ERROR", "a.b", 'two\nlines "å"')
    assert found["traceback"].endswith("RuntimeError: why")
    assert found["time"].endswith("Z")


def test_text_logs_begin_with_the_time() -> None:
    first, *_ = TextFormatter().format(record("text")).splitlines()
    assert first.endswith("Z ERROR a.b text")


def read(folder: Path, **environment: str) -> Settings:
    return Settings.read(environment, entry_script="score.py", cwd=folder)


def test_azures_variables_are_read(tmp_path: Path) -> None:
    settings = read(
        tmp_path,
        SCORING_TIMEOUT_MS="250",
        AML_CORS_ORIGINS="https://a, https://b",
        SEPERATE_HEALTH_ENDPOINT="true",
        HEALTH_PORT="5005",
        EDGEWRIGHT_LOG_FORMAT="JSON",
    )
    assert (settings.scoring_timeout_ms, settings.health_port, settings.log_format) == (250, 5005, "json")
    assert settings.cors_origins == ("https://a", "https://b")
    assert read(tmp_path, SEPERATE_HEALTH_ENDPOINT="1").health_port == 5000
    assert read(tmp_path, HEALTH_PORT="5005").health_port is None


def test_defaults_are_azures(tmp_path: Path) -> None:
    settings = read(tmp_path)
    found: tuple[Any, ...] = (settings.scoring_timeout_ms, settings.cors_origins, settings.health_port)
    assert found == (3_600_000, (), None)
    assert settings.warnings == ()


def test_application_insights_is_refused_by_name_in_a_warning(tmp_path: Path) -> None:
    settings = read(tmp_path, AML_APP_INSIGHTS_ENABLED="true", AML_APP_INSIGHTS_KEY="the-key")
    assert [warning.split()[0] for warning in settings.warnings] == [
        "AML_APP_INSIGHTS_ENABLED",
        "AML_APP_INSIGHTS_KEY",
    ]
    assert not any("the-key" in warning for warning in settings.warnings)
    assert read(tmp_path, AML_APP_INSIGHTS_ENABLED="false").warnings == ()


@pytest.mark.parametrize(
    "variable",
    [
        {"SCORING_TIMEOUT_MS": "0"},
        {"EDGEWRIGHT_LOG_FORMAT": "xml"},
        {"AML_CORS_ORIGINS": "a b"},
        {"HEALTH_PORT": "x", "SEPERATE_HEALTH_ENDPOINT": "1"},
    ],
)
def test_a_value_that_cannot_be_used_is_named(tmp_path: Path, variable: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match=next(iter(variable))):
        read(tmp_path, **variable)

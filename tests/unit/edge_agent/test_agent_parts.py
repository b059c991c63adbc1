"""Back-off, store, configuration, log lines, last words, what the resident agent loads, and the command line."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_agent import release as transitions
from edge_agent.backoff import RestartRecord, connect_delay_s, restart_delay_s, retry_delay_s
from edge_agent.checks import Outcome, all_checks, clock, disk_space
from edge_agent.cli import main
from edge_agent.config import FIELDS, ConfigError, load_config
from edge_agent.desired import instance_id, manifest_of, read_desired
from edge_agent.logs import LineFormatter
from edge_agent.observe import last_words
from edge_agent.release import Failure, ModuleGoal, Phase, Release, ReleaseRecord
from edge_agent.store import AlreadyRunningError, Store, StoreError, record_from_document, record_to_document
from edge_contracts.image_ref import ImageDigest, ImageRef
from edge_contracts.manifest import DeploymentManifest, DesiredStatus, ModuleSettings, RestartPolicy
from edge_contracts.release import ErrorClass

ROOT = Path(__file__).resolve().parents[3]
IMAGE = ImageRef("registry.example:5000", "digits", None, ImageDigest.of(b"1"))
DEVICE = "HostName=hub.example;DeviceId=d;SharedAccessKey=a2V5"


@given(st.integers(0, 1000), st.floats(0, 1, exclude_max=True))
def test_no_delay_exceeds_its_cap_with_jitter(count: int, random: float) -> None:
    assert 0 <= restart_delay_s(count, random) <= 330
    assert 9 <= retry_delay_s(count, random) <= 330
    assert 0.9 <= connect_delay_s(count, random) <= 66
    if count < 30:
        assert connect_delay_s(count, random) <= 11


def test_the_first_restart_is_immediate_and_health_clears_the_count() -> None:
    record = RestartRecord().seen_running(0)
    assert record.seen_exited(5, 0.5).due == 5
    crashing = record.seen_exited(5, 0.5).seen_running(5).seen_exited(6, 0.5)
    assert crashing.due == 16
    assert crashing.seen_exited(9, 0.9) == crashing
    healthy = crashing.seen_running(16).seen_running(700)
    assert healthy.seen_exited(701, 0.5).due == 701


def a_record() -> ReleaseRecord:
    goal = ModuleGoal("a", "a1", "r/a@sha256:" + "0" * 64, True, "on-failure", 7)
    first, second, third = (Release(name, number, (goal,), "{}") for number, name in enumerate("xyz", 1))
    record = transitions.begin(ReleaseRecord(), first)
    record = transitions.advance(transitions.advance(record, Phase.STARTING), Phase.SWITCHING)
    record = transitions.commit(record)
    record = transitions.advance(transitions.begin(record, second), Phase.STARTING)
    record = transitions.fail(record, Failure(ErrorClass.CRASH, "died"))
    return transitions.begin(transitions.rolled_back(record), third)


def test_a_record_survives_the_disk(tmp_path: Path) -> None:
    store = Store(tmp_path / "state")
    store.prepare()
    store.save_record(a_record())
    assert store.load_record() == a_record()
    assert record_from_document(json.loads(json.dumps(record_to_document(a_record())))) == a_record()


@pytest.mark.parametrize("content", ["", "{", "[]", '{"format": 2}', '{"format": 1}'])
def test_a_damaged_record_is_an_error_that_names_its_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "release.json").write_text(content)
    with pytest.raises(StoreError, match=r"release\.json"):
        Store(tmp_path).load_record()


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    def full(name: str) -> None:
        if name.endswith(":written"):
            raise OSError(28, "No space left on device")

    Store(tmp_path).write("f", 1)
    with pytest.raises(StoreError, match="No space left"):
        Store(tmp_path, full).write("f", 2)
    assert Store(tmp_path).read("f") == 1


def test_a_second_agent_in_the_same_folder_is_refused_by_pid(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.locked(), pytest.raises(AlreadyRunningError, match=r"pid \d+"), Store(tmp_path).locked():
        pass
    with store.locked():
        pass


def test_illegal_transitions_are_refused() -> None:
    release = Release("x", 1, ())
    begun = transitions.begin(ReleaseRecord(), release)
    for broken in (
        lambda: transitions.begin(begun, release),
        lambda: transitions.commit(begun),
        lambda: transitions.advance(begun, Phase.SWITCHING),
        lambda: transitions.rolled_back(begun),
        lambda: transitions.supersede(begun, release),
        lambda: transitions.settle(begun, release),
        lambda: transitions.advance(ReleaseRecord(), Phase.STARTING),
    ):
        with pytest.raises(ValueError, match=r"\w"):
            broken()


# Configuration.


def write(folder: Path, text: str) -> Path:
    path = folder / "config.toml"
    path.write_text(text)
    return path


def test_defaults_and_relative_paths(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "[hub]\nca_file = 'ca.pem'\n"), {})
    assert config.ca_file == tmp_path / "ca.pem"
    assert config.state_dir == tmp_path / "state"
    assert str(config.python) == "/usr/bin/python3"
    assert (config.https_port, config.edge_hub_host, config.edge_hub_port) == (443, "127.0.0.2", 8883)


def test_the_environment_wins(tmp_path: Path) -> None:
    path = write(tmp_path, "[hub]\nhttps_port = 8443\n")
    variables = {
        "EDGE_AGENT_HUB_HTTPS_PORT": "9443",
        "EDGE_AGENT_PROCESS_ALLOW_UNISOLATED": "true",
        "EDGE_AGENT_AGENT_READY_TIMEOUT_S": "2.5",
    }
    config = load_config(path, variables)
    assert (config.https_port, config.allow_unisolated, config.ready_timeout_s) == (9443, True, 2.5)


@pytest.mark.parametrize(
    ("text", "variables", "words"),
    [
        (
            "[hub]\nhtps_port = 1\n",
            {},
            r"unknown key 'hub.htps_port' in .*config.toml; expected one of .*https_port",
        ),
        ("[hbu]\n", {}, r"unknown key 'hbu' in .*agent, edge_hub, hub, process"),
        ("[hub]\nhttps_port = 'x'\n", {}, r"'hub.https_port' in .* must be a whole number, not 'x'"),
        ("[hub]\nhttps_port = true\n", {}, r"must be a whole number, not True"),
        ("[hub]\nhttps_port = 70000\n", {}, r"between 1 and 65535, not 70000"),
        ("[agent]\nstate_dir = ''\n", {}, r"'agent.state_dir' in .* must be not empty"),
        ("hub = 1\n", {}, r"'hub' in .* must be a table"),
        ("[hub\n", {}, r"config.toml is not TOML"),
        ("", {"EDGE_AGENT_HUB_PORT": "1"}, r"unknown environment variable EDGE_AGENT_HUB_PORT"),
        ("", {"EDGE_AGENT_HUB_HTTPS_PORT": "x"}, r"'EDGE_AGENT_HUB_HTTPS_PORT' must be a number, not 'x'"),
        ("[process]\nfirst_port = 5\nlast_port = 4\n", {}, r"'process.last_port' in .* at least"),
    ],
)
def test_what_the_configuration_cannot_be_is_named(
    tmp_path: Path, text: str, variables: dict[str, str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        load_config(write(tmp_path, text), variables)


def test_a_connection_string_open_to_others_is_refused(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, ""), {})
    with pytest.raises(ConfigError, match="cannot read the connection string"):
        config.connection_string()
    secret = tmp_path / "connection-string"
    secret.write_text(DEVICE)
    secret.chmod(0o644)
    with pytest.raises(ConfigError, match="mode 600, not 644"):
        config.connection_string()
    secret.chmod(0o600)
    assert config.connection_string().device_id == "d"
    secret.write_text("HostName=h;SharedAccessKeyName=iothubowner;SharedAccessKey=a2V5")
    with pytest.raises(ConfigError, match="must hold a device's connection string") as caught:
        config.connection_string()
    assert "a2V5" not in str(caught.value)


def test_every_field_is_described_where_the_table_says(tmp_path: Path) -> None:
    import edge_agent.config

    for section, fields in FIELDS.items():
        for name in fields:
            assert f"| {section}.{name} " in str(edge_agent.config.__doc__)


# Lines and words.


def test_log_lines_are_single_and_without_secrets() -> None:
    record = logging.LogRecord("edge_agent", logging.INFO, "", 0, "SharedAccessKey=abc\nsecond", None, None)
    line = LineFormatter().format(record)
    assert "\n" not in line
    assert "abc" not in line
    assert line.endswith("INFO edge_agent: SharedAccessKey=***\\nsecond")


def test_last_words_are_the_exception_of_the_last_traceback() -> None:
    log = (
        'x\nTraceback (most recent call last):\n  File "/a/score.py", line 3, in init\n    f()\nKeyError: 1\n'
    )
    assert last_words(log) == "KeyError: 1 (score.py line 3)"
    assert last_words("one\ntwo\n") == "two"
    assert last_words("") == ""


# What the resident agent loads.


def test_the_resident_agent_loads_nothing_heavy() -> None:
    program = (
        "import sys, edge_agent.agent, edge_agent.run\n"
        "heavy = {'cryptography','fastapi','starlette','pydantic','typer','rich','httpx','numpy','kubernetes','onnx',"
        "'onnxruntime','uvicorn','yaml','publisher','docker'}\n"
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"


# The command line.


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = write(tmp_path, "[hub]\n")
    secret = tmp_path / "connection-string"
    secret.write_text(DEVICE.replace("hub.example", "127.0.0.1"))
    secret.chmod(0o600)
    return path


def test_a_missing_configuration_names_the_next_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(tmp_path / "none.toml"), "list"]) == 1
    error = capsys.readouterr().err
    assert "cannot read the configuration" in error
    assert "next: edge-agent" in error


def test_commands_without_an_agent(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--config", str(config_file)]
    assert main([*options, "list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == []
    assert main([*options, "status"]) == 1
    assert "not running" in capsys.readouterr().out
    assert main([*options, "restart", "scorer"]) == 1
    assert "next: edge-agent run" in capsys.readouterr().err
    assert main([*options, "logs", "scorer"]) == 1
    assert "no module 'scorer' has run on this device; modules: none" in capsys.readouterr().err
    assert main([*options, "messages", "send", "--property", "novalue", "-"]) == 2
    assert "--property must be K=V" in capsys.readouterr().err


def test_usage_errors_exit_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fly"])
    assert caught.value.code == 2


def test_check_runs_everything_and_fails_on_an_unreachable_hub(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--config", str(config_file), "check", "-o", "json"]) == 1
    results = {entry["id"]: entry for entry in json.loads(capsys.readouterr().out)}
    assert set(results) == {check.id for check in all_checks()}
    assert results["config-well-formed"]["result"] == "ok"
    assert results["connection-string"]["result"] == "ok"
    assert results["hub-https"]["result"] == "error"
    assert results["hub-https"]["mend"]
    assert results["state-dir"]["result"] == "ok"


def test_check_names_the_unknown_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path, "[agent]\nstatedir = 'x'\n")
    assert main(["--config", str(path), "check", "--json"]) == 1
    first, *others = json.loads(capsys.readouterr().out)
    assert first["result"] == "error"
    assert "'agent.statedir'" in first["detail"]
    assert {entry["result"] for entry in others} == {"skipped"}


def test_every_check_says_what_it_verifies_under_its_own_id() -> None:
    checks = list(all_checks())
    assert len({check.id for check in checks}) == len(checks)
    assert all(check.verifies for check in checks)


def test_implausible_clocks_and_full_disks_are_errors_with_a_way_out() -> None:
    from datetime import UTC, datetime

    assert clock.judge(datetime(1970, 1, 1, tzinfo=UTC)).outcome is Outcome.ERROR
    assert clock.judge(datetime(2026, 1, 1, tzinfo=UTC)).outcome is Outcome.OK
    assert disk_space.judge(10**6, "/x").outcome is Outcome.ERROR
    assert disk_space.judge(200 * 2**20, "/x").outcome is Outcome.WARNING
    assert disk_space.judge(10**10, "/x").outcome is Outcome.OK


# Desired properties.

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
PATHS = st.sampled_from(
    [
        (),
        ("schemaVersion",),
        ("runtime",),
        ("runtime", "settings"),
        ("runtime", "settings", "registryCredentials"),
        ("systemModules",),
        ("systemModules", "edgeHub"),
        ("modules",),
        ("modules", "scorer"),
        ("modules", "scorer", "settings"),
        ("modules", "scorer", "settings", "image"),
        ("modules", "scorer", "settings", "createOptions"),
        ("modules", "scorer", "env"),
        ("modules", "scorer", "startupOrder"),
    ]
)


@given(PATHS, JSON_VALUES)
def test_any_desired_properties_get_a_verdict(path: tuple[str, ...], value: object) -> None:
    manifest = DeploymentManifest.assemble([ModuleSettings("scorer", IMAGE)], {}).dump()
    desired = manifest["modulesContent"]["$edgeAgent"]["properties.desired"]
    place = desired
    for key in path[:-1]:
        place = place[key]
    if path:
        place[path[-1]] = value
    elif isinstance(value, dict):
        desired = value
    verdict = read_desired(desired, 7)
    assert (verdict.release is None) == (verdict.code != 200)
    assert verdict.release is not None or verdict.description
    if verdict.release is not None:
        assert manifest_of(verdict.release).modules.keys() == {goal.name for goal in verdict.release.modules}


def test_only_what_needs_a_new_process_makes_a_new_instance() -> None:
    base = ModuleSettings("scorer", IMAGE, env={"A": "1"})
    same = replace(base, status=DesiredStatus.STOPPED, restart_policy=RestartPolicy.NEVER, startup_order=3)
    assert instance_id(same) == instance_id(base)
    for other in (
        replace(base, env={"A": "2"}),
        replace(base, version="2"),
        replace(base, create_options={"HostConfig": {}}),
        replace(base, image=IMAGE.with_digest(ImageDigest.of(b"2"))),
    ):
        assert instance_id(other) != instance_id(base)

"""Status and down: each part by itself, so that one that is not well hides or keeps no other."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from publisher_workspaces import make_workspace

from edge_contracts.errors import PublishError
from publisher.agents import local_agents, stop_device
from publisher.embedded_hub import CONNECTION_STRING_VARIABLE
from publisher.overview import DEMO_MARK, TornDown, overview, tear_down
from publisher.processes import ProcessRecordError, is_alive, process_id, write_record
from publisher.workspace import Workspace

Start = Callable[[Path], Path]


@pytest.fixture
def workspace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    monkeypatch.delenv(CONNECTION_STRING_VARIABLE, raising=False)
    return make_workspace(tmp_path / "w", tmp_path / "wheels")


@pytest.fixture
def start(workspace: Workspace) -> Iterator[Start]:
    """Starts what is recorded as an agent on a configuration; returns the record."""
    processes: list[subprocess.Popen[bytes]] = []

    def starter(config_file: Path) -> Path:
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        processes.append(process)
        record = workspace.run / "agents" / f"{process.pid}.json"
        record.parent.mkdir(exist_ok=True)
        write_record(record, process_id(process.pid), config=str(config_file))
        return record

    yield starter
    for process in processes:
        process.kill()
        process.wait(10)


def config(folder: Path) -> Path:
    folder.mkdir()
    path = folder / "config.toml"
    path.write_text('[process]\npython = "/usr/bin/python3"\n')
    return path


def test_agents_of_a_workspace_are_shown_and_ended(
    workspace: Workspace, start: Start, tmp_path: Path
) -> None:
    start(config(tmp_path / "a"))
    start(config(tmp_path / "b"))
    agents = local_agents(workspace)
    assert overview(workspace)["agents"] == [f"pid {agent.process.pid}" for agent in agents]
    assert tear_down(workspace) == TornDown(agents=2, modules=0, hub=False, removed=None)
    assert not any(is_alive(agent.process) for agent in agents)
    assert overview(workspace)["agents"] == []
    assert tear_down(workspace) == TornDown(0, 0, False, None)


def test_device_is_stopped_alone(workspace: Workspace, start: Start, tmp_path: Path) -> None:
    first, second = config(tmp_path / "a"), config(tmp_path / "b")
    start(first)
    start(second)
    stop_device(workspace, first)
    assert [agent.config_file for agent in local_agents(workspace)] == [second]
    assert local_agents(workspace)[0].is_running


def test_agent_whose_folder_is_gone_is_ended(workspace: Workspace, start: Start, tmp_path: Path) -> None:
    start(tmp_path / "gone" / "config.toml")
    assert tear_down(workspace).agents == 1


def test_settings_that_cannot_be_read_are_named_and_the_other_agents_end(
    workspace: Workspace, start: Start, tmp_path: Path
) -> None:
    broken, good = config(tmp_path / "a"), config(tmp_path / "b")
    broken.write_text("[process\n")
    start(broken)
    start(good)
    with pytest.raises(PublishError, match=str(broken)):
        tear_down(workspace)
    assert local_agents(workspace) == []


def test_damaged_record_of_an_agent_is_named(workspace: Workspace, start: Start, tmp_path: Path) -> None:
    record = start(config(tmp_path / "a"))
    for text in ("{", '{"process": {"pid": 1, "start_ticks": 1}}'):
        record.write_text(text)
        assert str(record) in overview(workspace)["agents"]
        with pytest.raises(ProcessRecordError) as caught:
            tear_down(workspace)
        assert caught.value.next_command == f"rm {record}"


def test_only_a_folder_that_the_demo_made_is_removed_and_only_when_all_has_ended(
    workspace: Workspace, tmp_path: Path
) -> None:
    assert tear_down(workspace).removed is None
    (workspace.state / DEMO_MARK).touch()
    hub_record = workspace.run / "hub.json"
    hub_record.write_text("{")
    with pytest.raises(ProcessRecordError):
        tear_down(workspace)
    assert workspace.root.exists()
    hub_record.unlink()
    assert tear_down(workspace).removed == workspace.root
    assert not workspace.root.exists()


def test_hub_of_the_environment_that_is_away_does_not_hide_the_rest(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "HostName=127.0.0.1:1;SharedAccessKeyName=n;SharedAccessKey=c2VjcmV0"
    monkeypatch.setenv(CONNECTION_STRING_VARIABLE, text)
    document = overview(workspace)
    assert document["hub"] == "127.0.0.1:1, by the environment"
    assert "cannot be reached" in document["devices"]
    assert (document["models"], document["agents"]) == (0, [])

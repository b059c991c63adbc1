"""Background processes: told apart by start time, ended politely and then firmly, remembered in records."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from edge_contracts.errors import PublishError
from publisher.processes import (
    ProcessId,
    ProcessRecordError,
    is_alive,
    module_command,
    process_id,
    read_record,
    terminate,
    write_record,
)

Start = Callable[[str], "subprocess.Popen[str]"]

POLITE = "import time; print('up', flush=True); time.sleep(60)"
DEAF = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"


@pytest.fixture
def start() -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def starter(code: str) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        return process

    yield starter
    for process in processes:
        process.kill()
        process.wait(10)
        assert process.stdout is not None
        process.stdout.close()


def test_process_is_itself_while_it_runs(start: Start) -> None:
    process = start(POLITE)
    identity = process_id(process.pid)
    assert is_alive(identity)
    assert identity == process_id(process.pid)


def test_id_given_to_another_process_is_not_the_old_one_and_is_never_signalled(start: Start) -> None:
    process = start(POLITE)
    gone = replace(process_id(process.pid), start_ticks=process_id(process.pid).start_ticks - 1)
    assert not is_alive(gone)
    started = time.monotonic()
    assert terminate(gone, timeout_s=5)
    assert time.monotonic() - started < 1
    assert process.poll() is None


def test_ended_process_is_not_alive_although_nobody_has_waited_for_it(start: Start) -> None:
    process = start(POLITE)
    identity = process_id(process.pid)
    process.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 5
    while is_alive(identity):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        process_id(process.pid)


def test_asked_process_ends(start: Start) -> None:
    process = start(POLITE)
    identity = process_id(process.pid)
    assert terminate(identity, timeout_s=5)
    assert not is_alive(identity)
    assert terminate(identity, timeout_s=5), "ending what has ended is no failure"


def test_process_that_does_not_listen_is_ended_all_the_same(start: Start) -> None:
    process = start(DEAF)
    started = time.monotonic()
    assert terminate(process_id(process.pid), timeout_s=0.2)
    assert 0.2 <= time.monotonic() - started < 3


def test_process_of_no_one_is_not_found() -> None:
    with pytest.raises(ProcessLookupError):
        process_id(2**22 + 1)  # above the largest pid of Linux
    assert not is_alive(ProcessId(2**22 + 1, 0))


def test_own_modules_are_run_whatever_lies_in_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the user has a json.py')")
    done = subprocess.run(
        module_command("iot_hub", "--help"),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


# Records.


def test_record_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "hub.json"
    write_record(path, ProcessId(7, 99), address={"port": 1})
    found = read_record(path)
    assert found is not None
    process, record = found
    assert process == ProcessId(7, 99)
    assert record["address"] == {"port": 1}
    assert path.stat().st_mode & 0o777 == 0o600


def test_no_record_is_no_process(tmp_path: Path) -> None:
    assert read_record(tmp_path / "hub.json") is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "{}",
        '{"process": {"pid": 1}}',
        '{"process": {"pid": 1, "start_ticks": 2, "more": 3}}',
        '{"process": {"pid": "1", "start_ticks": 2}}',
        '{"process": 3}',
        '\udc80{"process": {"pid": 1, "start_ticks": 2}}',
    ],
)
def test_damaged_record_names_its_file_and_how_to_go_on(tmp_path: Path, text: str) -> None:
    path = tmp_path / "hub.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ProcessRecordError) as caught:
        read_record(path)
    assert str(path) in caught.value.message
    assert caught.value.next_command == f"rm {path}"


def test_record_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "hub.json"
    write_record(path, ProcessId(7, 99))
    before = path.read_bytes()
    (tmp_path / ".hub.json.new").mkdir()
    with pytest.raises(PublishError, match=r"hub\.json cannot be written"):
        write_record(path, ProcessId(8, 99))
    assert path.read_bytes() == before

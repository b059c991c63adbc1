"""`edgewright score serve` as an author uses it: serve, save, see the mistake, go on, end."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import scoring_models as models
from scoring_server import TIMEOUT_S, call, environment

SCRIPT = """
import json, os
from helper import FACTOR
def init():
    global offset
    folder = os.environ.get("AZUREML_MODEL_DIR")
    offset = int(open(os.path.join(folder, "offset.bin")).read()) if folder else 0
def run(data):
    return json.loads(data) * FACTOR + offset
"""


class Author:
    """One `edgewright score serve` and what it has printed."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self._log = folder / "terminal.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "publisher.cli", "score", "serve", *arguments],
                cwd=folder,
                env=environment(),
                stdout=log,
                stderr=log,
            )

    @property
    def printed(self) -> str:
        return self._log.read_text()

    def until(self, text: str, times: int = 1) -> str:
        deadline = time.monotonic() + TIMEOUT_S
        while self.printed.count(text) < times:
            assert self.process.poll() is None and time.monotonic() < deadline, self.printed
            time.sleep(0.02)
        return self.printed

    @property
    def address(self) -> tuple[str, int]:
        found = re.search(r"scoring URI: http://([\d.]+):(\d+)/score", self.until("scoring URI"))
        assert found is not None
        return found[1], int(found[2])

    def score(self, value: Any) -> Any:
        reply = call(self.address, "POST", "/score", json.dumps(value).encode())
        assert reply.status == 200, reply.body
        return reply.json()

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        self.process.send_signal(number)
        return self.process.wait(TIMEOUT_S)


def write(folder: Path, *, factor: object = 2, script: str = SCRIPT) -> None:
    (folder / "score.py").write_text(script)
    (folder / "helper.py").write_text(f"FACTOR = {factor}\n")


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.fixture
def author(tmp_path: Path) -> Iterator[Author]:
    write(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model/offset.bin").write_text("1")
    author = Author(tmp_path, "--script", "score.py", "--model-dir", "model", "--port", "0")
    yield author
    if author.process.poll() is None:
        author.end(signal.SIGTERM)


def test_each_save_is_served_and_a_mistake_is_shown_while_the_last_good_one_serves_on(author: Author) -> None:
    assert author.score(10) == 21

    write(author.folder, factor=3)  # a file beside the script
    author.until("\nreloaded", 1)
    assert author.score(10) == 31

    write(author.folder, factor=3, script=SCRIPT.replace("def run(data):", "def run(data:"))
    printed = author.until("serves on")
    assert "SyntaxError" in printed and 'score.py", line 8' in printed
    assert author.score(10) == 31

    write(author.folder, factor=3, script=SCRIPT.replace("* FACTOR", "* FACTOR * 10"))
    author.until("\nreloaded", 2)
    assert author.score(10) == 301

    (author.folder / "model/offset.bin").write_text("5")
    author.until("\nreloaded", 3)
    assert author.score(10) == 305
    assert len(children(author.process.pid)) == 1

    assert author.end() == 0
    assert "Traceback" not in author.printed.split("\nreloaded")[-1]
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(author.address, timeout=1)


def test_no_request_fails_while_servers_take_turns(author: Author) -> None:
    address, done, found = author.address, threading.Event(), []

    def ask() -> None:
        while not done.is_set():
            found.append(call(address, "POST", "/score", b"10").json())

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        for number in (3, 4):
            write(author.folder, factor=number)
            author.until("\nreloaded", number - 2)
    finally:
        done.set()
        asking.join(TIMEOUT_S)
    assert set(found) == {21, 31, 41} and found == sorted(found)
    assert author.score(10) == 41


def test_an_init_that_hangs_is_given_up_on_the_next_save(author: Author) -> None:
    assert author.score(1) == 3
    write(author.folder, script=SCRIPT.replace("    global offset", "    import time; time.sleep(600)"))
    author.until("starting again", 1)
    time.sleep(0.5)
    write(author.folder, factor=7)
    author.until("\nreloaded")
    assert author.score(1) == 8


def test_ctrl_c_lets_a_request_finish(tmp_path: Path) -> None:
    write(
        tmp_path,
        script="import time\ndef init(): pass\ndef run(data):\n    time.sleep(1.5)\n    return 'done'\n",
    )
    author = Author(tmp_path, "--script", "score.py", "--port", "0", "--no-reload")
    address, found = author.address, []
    asking = threading.Thread(target=lambda: found.append(call(address, "POST", "/score", b"1").json()))
    asking.start()
    time.sleep(0.5)
    assert author.end() == 0
    asking.join(TIMEOUT_S)
    assert found == ["done"]
    assert author.printed.endswith("stopped\n")


def test_without_reload_a_save_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path)
    author = Author(tmp_path, "--script", "score.py", "--port", "0", "--no-reload")
    assert author.score(10) == 20
    write(tmp_path, factor=5)
    time.sleep(1.0)
    assert author.score(10) == 20
    assert author.end(signal.SIGTERM) == 0


def test_a_model_is_served_without_a_script_and_again_when_it_changes(tmp_path: Path) -> None:
    models.doubler(tmp_path)
    author = Author(tmp_path, "--model", "model.onnx", "--port", "0")
    assert author.score({"data": [[1, 2, 3]]}) == {"y": [[2, 4, 6]]}
    models.copier(tmp_path, models.FLOAT, ("N", 3))
    author.until("\nreloaded")
    assert author.score({"data": [[1, 2, 3]]}) == {"y": [[1, 2, 3]]}
    assert author.end() == 0


def test_a_first_start_that_fails_shows_why_and_ends(tmp_path: Path) -> None:
    write(tmp_path, script="import no_such_package_of_anyone\n")
    author = Author(tmp_path, "--script", "score.py", "--port", "0")
    assert author.process.wait(TIMEOUT_S) == 1
    assert "ModuleNotFoundError" in author.printed
    assert "error: the scoring server could not start; the reason is above" in author.printed


def test_a_server_that_ends_by_itself_is_told(tmp_path: Path) -> None:
    kill = "os.kill(os.getppid(), 6), time.sleep(20)"  # its supervisor, which would replace the script's own process
    write(tmp_path, script=f"import os, time\ndef init(): pass\ndef run(data): {kill}\n")
    author = Author(tmp_path, "--script", "score.py", "--port", "0")
    with pytest.raises(OSError):
        call(author.address, "POST", "/score", b"1")
    assert author.process.wait(TIMEOUT_S) == 1
    assert "has ended by itself (signal 6)" in author.printed


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "give one of --script"),
        (["--script", "score.py", "--model", "m.onnx"], "give one of --script"),
        (["--script", "none.py"], "--script must be a file, and there is none at none.py"),
        (["--script", "score.py", "--model-dir", "none"], "--model-dir must be a folder"),
        (["--script", "score.py", "--provider", "cuda"], "--provider goes with --model"),
    ],
)
def test_arguments_that_cannot_work_are_refused(tmp_path: Path, arguments: list[str], text: str) -> None:
    write(tmp_path)
    author = Author(tmp_path, *arguments)
    assert author.process.wait(TIMEOUT_S) == 2
    assert text in author.printed


def test_a_required_provider_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    models.doubler(tmp_path)
    author = Author(tmp_path, "--model", "model.onnx", "--require-provider", "cuda", "--port", "0")
    assert author.process.wait(TIMEOUT_S) == 1
    assert "required provider 'cuda' is not installed" in author.printed


def test_a_taken_address_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        author = Author(tmp_path, "--script", "score.py", "--port", str(port))
        assert author.process.wait(TIMEOUT_S) == 1
    assert f"cannot listen on 127.0.0.1 port {port}" in author.printed and "--port" in author.printed

"""The runtime as a process: starts, failures, signals, shared sockets."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import scoring_models as models
from scoring_server import TIMEOUT_S, ScoringServer, call, environment, listen, run_to_end

SCRIPT = """
import json, os, time
from azureml.core.model import Model

def init():
    global factor
    with open(Model.get_model_path("factor")) as file:
        factor = float(file.read())
    print("init in", os.getcwd())

def run(data):
    values = json.loads(data)["data"]
    if values == "fail":
        raise RuntimeError("the secret detail")
    if values == "sleep":
        time.sleep(1.0)
        return "slept"
    return [value * factor for value in values]
"""


def write_script(folder: Path, source: str = SCRIPT) -> None:
    (folder / "score.py").write_text(source)
    model = folder / "azureml-models/factor/3"
    model.mkdir(parents=True, exist_ok=True)
    (model / "factor.txt").write_text("3")


def start(folder: Path, public: socket.socket | None = None, **variables: str) -> ScoringServer:
    write_script(folder)
    defaults = {
        "AML_APP_ROOT": str(folder),
        "AZUREML_ENTRY_SCRIPT": "score.py",
        "AZUREML_MODEL_DIR": str(folder / "azureml-models/factor/3"),
        "EDGEWRIGHT_MODEL": "factor:3",
    }
    return ScoringServer(folder, public=public, **(defaults | variables))


def eventually(condition: Callable[[], bool], what: str, timeout_s: float = TIMEOUT_S) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def read_to_end(client: socket.socket) -> bytes:
    return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ScoringServer]:
    with start(tmp_path_factory.mktemp("script")) as server:
        yield server


def test_a_script_finds_its_model_and_scores(served: ScoringServer) -> None:
    reply = served.score({"data": [1, 2.5]})
    assert (reply.status, reply.json()) == (200, [3, 7.5])
    assert served.get("/").body == b"Healthy"


def test_a_failure_is_in_the_log_and_not_in_the_answer(served: ScoringServer) -> None:
    reply = served.score({"data": "fail"}, **{"x-request-id": "failing-1"})
    assert (reply.status, b"secret" in reply.body) == (500, False)
    log = served.log
    assert "request failing-1: run() raised" in log
    assert 'score.py", line 14, in run' in log and "the secret detail" in log
    assert "data_plane.py" not in log


def test_what_a_script_prints_is_in_the_log_at_once(served: ScoringServer) -> None:
    served.health()
    assert "init in" in served.log


def test_an_error_of_the_runtime_itself_is_answered_in_the_contracts_form(served: ScoringServer) -> None:
    (served.folder / "swagger3.json").write_text("{")
    reply = served.get("/swagger.json?version=3")
    assert (reply.status, reply.message) == (
        500,
        "An unexpected error occurred. The module's log has the reason.",
    )
    eventually(lambda: "the body is not JSON" in served.log, "the log has the reason")


def test_health_is_answered_while_run_computes(served: ScoringServer) -> None:
    slow = threading.Thread(target=served.score, args=({"data": "sleep"},))
    slow.start()
    started = time.monotonic()
    assert served.get("/ready").status == 200
    assert time.monotonic() - started < 0.8
    slow.join(TIMEOUT_S)


def test_both_sockets_and_the_metrics_name_the_model(served: ScoringServer) -> None:
    assert served.health("/ready?verbose=1").json()["model"] == "factor:3"
    assert 'model="factor:3"' in served.get("/metrics").body.decode()


def test_a_kept_alive_connection_carries_several_requests_in_one_packet(served: ScoringServer) -> None:
    """Pipelined and split anywhere: answered in order."""
    one = b'POST /score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"data": [%d]}'
    with socket.create_connection(served.address, timeout=TIMEOUT_S) as client:
        stream = one % 1 + one % 2 + one % 3
        client.sendall(stream[:70])
        time.sleep(0.05)
        client.sendall(stream[70:])
        received = b""
        while received.count(b"HTTP/1.1 200") < 3 or not received.endswith(b"[9.0]"):
            received += client.recv(65536)
    bodies = [part.partition(b"\r\n\r\n")[2] for part in received.split(b"HTTP/1.1 200 OK")[1:]]
    assert bodies == [b"[3.0]", b"[6.0]", b"[9.0]"]


def test_a_bare_onnx_model_is_served_without_a_script(tmp_path: Path) -> None:
    models.doubler(tmp_path)
    variables = {"AZUREML_MODEL_DIR": str(tmp_path), "EDGEWRIGHT_MODEL_FILE": "model.onnx"}
    with ScoringServer(tmp_path, **variables) as server:
        assert server.score({"data": [[1, 2, 3]]}).json() == {"y": [[2, 4, 6]]}
        assert (
            server.score({"data": [[1, 2]]}).message == "input 'x' expects float32 [N, 3], found shape [1, 2]"
        )
        assert server.get("/swagger.json").json()["definitions"]["ServiceInput"]["required"] == ["data"]
        assert server.stop() == 0


def test_init_that_raises_ends_the_process_with_its_traceback_first(tmp_path: Path) -> None:
    write_script(tmp_path, "def init():\n    raise RuntimeError('no licence')\ndef run(data): pass\n")
    ended = run_to_end(tmp_path, "--entry-script", "score.py", "--port", "0")
    lines = ended.stderr.splitlines()
    assert ended.returncode == 3
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1] == f'  File "{tmp_path / "score.py"}", line 2, in init'
    assert lines[-1] == f"scoring_runtime: init() of {tmp_path / 'score.py'} raised RuntimeError: no licence"


def test_a_failed_start_ends_though_the_script_left_a_thread(tmp_path: Path) -> None:
    source = "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\n1 / 0\n"
    write_script(tmp_path, source)
    assert run_to_end(tmp_path, "--entry-script", "score.py", "--port", "0").returncode == 3


def test_a_script_without_run_is_refused_in_one_line(tmp_path: Path) -> None:
    write_script(tmp_path, "def init(): pass\n")
    ended = run_to_end(tmp_path, "--entry-script", "score.py", "--port", "0")
    assert ended.returncode == 3
    expected = (
        f"scoring_runtime: {tmp_path / 'score.py'} has no run(); expected 'def init():' and 'def run(data):'"
    )
    assert ended.stderr.splitlines() == [expected]


def test_a_taken_port_is_one_line_before_init_runs(tmp_path: Path) -> None:
    write_script(tmp_path, "def init(): print('init ran')\ndef run(data): pass\n")
    with listen() as taken:
        port = str(taken.getsockname()[1])
        ended = run_to_end(tmp_path, "--entry-script", "score.py", "--port", port)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.splitlines() == [
        f"scoring_runtime: cannot listen on 127.0.0.1 port {port}: Address already in use; choose another with --port"
    ]


def test_a_descriptor_that_is_no_listening_socket_is_refused(tmp_path: Path) -> None:
    write_script(tmp_path)
    ended = run_to_end(tmp_path, "--entry-script", "score.py", EDGEWRIGHT_HTTP_FD="0")
    assert ended.returncode == 2
    assert "EDGEWRIGHT_HTTP_FD=0 is" in ended.stderr


def test_without_descriptors_it_binds_where_it_is_told(tmp_path: Path) -> None:
    write_script(tmp_path, "def init(): pass\ndef run(data): return 1\n")
    command = [sys.executable, "-m", "scoring_runtime", "--entry-script", "score.py", "--port", "0"]
    process = subprocess.Popen(command, cwd=tmp_path, env=environment(), stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        line = next(line for line in process.stderr if "scoring on" in line)
        port = int(line.rpartition(":")[2].removesuffix("/score\n"))
        assert (
            call(("127.0.0.1", port), "POST", "/score", b"{}", {"content-type": "application/json"}).body
            == b"1"
        )
        process.terminate()
        assert process.wait(TIMEOUT_S) == 0
    finally:
        process.kill()
        process.wait(TIMEOUT_S)
        process.stderr.close()


def test_a_held_module_answers_health_alone_until_it_is_activated(tmp_path: Path) -> None:
    with start(tmp_path, EDGEWRIGHT_HOLD="1") as server:
        assert server.health().status == 200
        assert not server.health("/ready?verbose=1").json()["servingPublic"]
        with socket.create_connection(server.address, timeout=0.3) as waiting:
            waiting.sendall(b"GET / HTTP/1.0\r\n\r\n")
            with pytest.raises(TimeoutError):
                waiting.recv(1)
            server.send(signal.SIGUSR1)
            waiting.settimeout(TIMEOUT_S)
            assert read_to_end(waiting).endswith(b"Healthy")


def test_a_held_module_can_be_stopped(tmp_path: Path) -> None:
    with start(tmp_path, EDGEWRIGHT_HOLD="1") as server:
        assert server.health().status == 200
        assert server.stop() == 0


def test_an_early_activation_is_remembered_and_an_early_stop_obeyed(tmp_path: Path) -> None:
    slow = {"SCRIPT_SLEEP": "0.5"}
    source = "import os, time\ndef init():\n print('init'); time.sleep(float(os.environ['SCRIPT_SLEEP']))\ndef run(data): return 1\n"
    write_script(tmp_path, source)
    with ScoringServer(tmp_path, "--entry-script", "score.py", EDGEWRIGHT_HOLD="1", **slow) as server:
        eventually(lambda: "init" in server.log, "init() has begun")
        server.send(signal.SIGUSR1)
        assert server.get("/").status == 200
    with ScoringServer(tmp_path, "--entry-script", "score.py", SCRIPT_SLEEP="30") as server:
        eventually(lambda: "init" in server.log, "init() has begun")
        assert server.stop() == 0


def test_sigterm_finishes_what_was_accepted(tmp_path: Path) -> None:
    """A slow request in hand, a connection that has not spoken yet, and an idle kept-alive one."""
    with start(tmp_path) as server:
        assert server.score({"data": []}).status == 200
        answers: list[object] = []
        slow = threading.Thread(target=lambda: answers.append(server.score({"data": "sleep"}).json()))
        slow.start()
        silent = socket.create_connection(server.address, timeout=TIMEOUT_S)
        eventually(lambda: _connections(server) >= 2, "both connections are accepted")
        started = time.monotonic()
        server.send(signal.SIGTERM)
        eventually(lambda: server.health().status == 503, "health says that it stops", 5)
        silent.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        reply = read_to_end(silent)
        silent.close()
        slow.join(TIMEOUT_S)
        assert answers == ["slept"]
        assert reply.endswith(b"Healthy") and b"connection: close" in reply
        assert server.process.wait(TIMEOUT_S) == 0
        assert time.monotonic() - started < 5


def _connections(server: ScoringServer) -> int:
    """Established connections that the worker has accepted, by its open sockets."""
    [worker] = server.workers
    links = [fd for fd in Path(f"/proc/{worker}/fd").iterdir() if "socket:" in str(_target(fd))]
    return len(links) - _IDLE_SOCKETS


# Public and health listeners, and asyncio's own wake-up pair.
_IDLE_SOCKETS = 4


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def test_a_switch_between_two_modules_on_one_socket_loses_no_request(tmp_path: Path) -> None:
    """Clients with a connection per request, while one module takes over from another, three times."""
    old_folder, new_folder = tmp_path / "old", tmp_path / "new"
    public = listen()
    failures: list[str] = []
    answered = [0]
    switching = threading.Event()
    switching.set()

    def client() -> None:
        body = json.dumps({"data": [1]}).encode()
        while switching.is_set():
            try:
                reply = call(
                    public.getsockname(), "POST", "/score", body, {"content-type": "application/json"}
                )
                if (reply.status, reply.body) != (200, b"[3.0]"):
                    failures.append(f"{reply.status} {reply.body!r}")
                answered[0] += 1
            except OSError as error:
                failures.append(repr(error))

    for folder in (old_folder, new_folder):
        folder.mkdir()
    servers = [start(old_folder, public.dup())]
    clients = [threading.Thread(target=client) for _ in range(4)]
    try:
        assert servers[0].health().status == 200
        for thread in clients:
            thread.start()
        for folder in (new_folder, old_folder, new_folder):
            servers.append(start(folder, public.dup(), EDGEWRIGHT_HOLD="1"))
            assert servers[-1].health().status == 200
            servers[-1].send(signal.SIGUSR1)
            eventually(
                lambda: servers[-1].health("/ready?verbose=1").json()["servingPublic"], "the new one serves"
            )
            before = answered[0]
            assert servers[-2].stop() == 0
            eventually(lambda mark=before: answered[0] > mark + 20, "requests go on")  # type: ignore[misc]
    finally:
        switching.clear()
        for thread in clients:
            if thread.ident is not None:
                thread.join(TIMEOUT_S)
        for server in servers:
            server.__exit__()
        public.close()
    assert failures == []

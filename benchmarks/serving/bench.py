"""How fast the scoring runtime is beside its peers: `python benchmarks/serving/bench.py`.

1. Every server runs in a virtual environment of its own, made here with pinned versions, from the same model files.
2. In one round every server of a case is started, answers a first request (cold start), is measured at each number of
   connections, and is ended; the rounds follow each other, so that a busy minute hits all of them. Medians are shown, and
   the lowest and highest beside them.
3. Load is wrk with one thread. A checker asks beside it, some 20 times a second, and compares each answer with bare
   onnxruntime's; one wrong answer, one error of wrk, and the measurement counts as failed.
4. For the short models the server is pinned to the first processor and wrk to the second; the CNN has both.
5. CPU per request is user and system time of the server's whole process tree.

Absolute numbers are one machine's on one day; ratios within a run and CPU per request are what holds.
"""

from __future__ import annotations

import argparse
import datetime
import http.client
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import psutil
from models import IMAGE_SHAPE, write_models

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
WORK = ROOT / "build" / "serving"
HOST = "127.0.0.1"
FIRST_PORT = 18100  # below the ephemeral ports, in which connections of earlier servers linger
START_TIMEOUT_S = 60.0

RUNTIME = ("onnxruntime==1.31.1", "numpy==2.4.6")
ENVIRONMENTS: Mapping[str, tuple[str, ...]] = {
    "edgewright": (*RUNTIME, "uvicorn==0.54.0", "httptools==0.9.0", "starlette==1.10.0", "orjson==3.13.0"),
    "azureml": (*RUNTIME, "azureml-inference-server-http==1.5.1"),
    "fastapi": (*RUNTIME, "fastapi==0.165.0", "uvicorn==0.54.0", "httptools==0.9.0", "uvloop==0.22.1"),
    "granian": (*RUNTIME, "fastapi==0.165.0", "granian==2.8.7"),
    "mlserver": (*RUNTIME, "mlserver==1.7.1", "uvloop==0.21.0", "setuptools"),
    "bentoml": (*RUNTIME, "bentoml==1.4.39"),
    "litserve": (*RUNTIME, "litserve==0.2.19"),
}


@dataclass(frozen=True)
class Case:
    """One model and what is sent to it."""

    name: str
    model: str
    content_type: str
    connections: tuple[int, ...]
    unique_headers: bool = False
    pinned: bool = True


CASES = (
    Case("tab-unique", "tab.onnx", "application/json", (64,), unique_headers=True),
    Case("tab", "tab.onnx", "application/json", (1, 8, 64)),
    Case("img", "img.onnx", "application/octet-stream", (8,)),
    Case("cnn", "cnn.onnx", "application/octet-stream", (1, 8), pinned=False),
)


def _as_it_is(document: Any) -> Any:
    return document


@dataclass(frozen=True)
class Dialect:
    """How a server is asked, when not by `POST /score` with `{"data": rows}` and an answer by output names."""

    path: str = "/score"
    question: Callable[[Any], Any] = _as_it_is
    answer: Callable[[Any], Any] = _as_it_is


def _v2_question(document: Any) -> Any:
    rows = document["data"]
    tensor = {"name": "input", "datatype": "FP32", "shape": [len(rows), len(rows[0])]}
    return {"inputs": [{**tensor, "data": [value for row in rows for value in row]}]}


def _v2_answer(document: Any) -> Any:
    found = {output["name"]: np.array(output["data"]) for output in document["outputs"]}
    return {"label": found["label"].ravel(), "probabilities": found["probabilities"].reshape(-1, 3)}


OPEN_INFERENCE = Dialect("/v2/models/tab/infer", _v2_question, _v2_answer)


@dataclass(frozen=True)
class Server:
    """How a peer is started for a case, and asked."""

    name: str
    environment: str
    command: Callable[[Case, int], list[str]]
    cases: tuple[str, ...]
    variables: Callable[[int], Mapping[str, str]] = lambda port: {}
    dialect: Dialect = Dialect()
    checked: bool = True


def _python(environment: str) -> str:
    return str(WORK / environment / "bin" / "python")


def _edgewright(case: Case, port: int) -> list[str]:
    model = str(WORK / "models" / case.model)
    return [_python("edgewright"), "-m", "scoring_runtime", "--model", model, "--port", str(port)]


def _edgewright_script(case: Case, port: int) -> list[str]:
    script = str(HERE / "peers" / "score.py")
    return [_python("edgewright"), "-m", "scoring_runtime", "--entry-script", script, "--port", str(port)]


def _azureml(case: Case, port: int) -> list[str]:
    script = HERE / "peers" / ("score.py" if case.model == "tab.onnx" else "score_image.py")
    program = str(WORK / "azureml" / "bin" / "azmlinfsrv")
    return [program, "--entry_script", str(script), "--port", str(port), "--worker_count", "1"]


def _fastapi(case: Case, port: int) -> list[str]:
    options = ["--host", HOST, "--port", str(port), "--loop", "uvloop", "--http", "httptools"]
    app = ["--app-dir", str(HERE / "peers"), "fastapi_app:app"]
    return [_python("fastapi"), "-m", "uvicorn", *app, *options, "--no-access-log", "--log-level", "warning"]


def _granian(case: Case, port: int) -> list[str]:
    options = ["--interface", "asgi", "--host", HOST, "--port", str(port), "--workers", "1", "--no-log"]
    return [str(WORK / "granian" / "bin" / "granian"), *options, "fastapi_app:app"]


def _mlserver(case: Case, port: int) -> list[str]:
    return [str(WORK / "mlserver" / "bin" / "mlserver"), "start", str(HERE / "peers" / "mlserver")]


def _bentoml(case: Case, port: int) -> list[str]:
    program = str(WORK / "bentoml" / "bin" / "bentoml")
    return [program, "serve", "bentoml_service:Tab", "--host", HOST, "--port", str(port)]


def _litserve(case: Case, port: int) -> list[str]:
    return [_python("litserve"), str(HERE / "peers" / "litserve_app.py"), str(port)]


def _floor(case: Case, port: int) -> list[str]:
    return [_python("edgewright"), str(HERE / "peers" / "floor.py"), str(port)]


ALL = tuple(case.name for case in CASES)
TABULAR = ("tab-unique", "tab")
SERVERS = (
    Server("edgewright", "edgewright", _edgewright, ALL),
    Server("edgewright, score.py", "edgewright", _edgewright_script, TABULAR),
    Server("azureml-inference-server-http", "azureml", _azureml, ALL),
    Server("fastapi+uvicorn", "fastapi", _fastapi, ALL),
    Server("fastapi+granian", "granian", _granian, TABULAR),
    Server(
        "mlserver, in process",
        "mlserver",
        _mlserver,
        ("tab",),
        lambda port: {"MLSERVER_HTTP_PORT": str(port), "MLSERVER_HOST": HOST},
        OPEN_INFERENCE,
    ),
    Server("bentoml", "bentoml", _bentoml, ("tab",)),
    Server("litserve", "litserve", _litserve, ("tab",)),
    Server("raw protocol, constant answer", "edgewright", _floor, TABULAR, checked=False),
)


@dataclass
class Measurement:
    """One server at one number of connections in one round; times in microseconds."""

    requests_per_s: float
    p50_us: float
    p99_us: float
    cpu_us: float
    errors: int
    wrong: int
    checked: int


@dataclass
class Round:
    cold_start_s: float
    rss_mb: float
    pss_mb: float
    at: dict[int, Measurement]


# ---- what is sent and what must come back ----


@dataclass(frozen=True)
class Bodies:
    files: tuple[Path, ...]
    answers: tuple[dict[str, Any], ...]


def make_bodies(case: Case, dialect: Dialect) -> Bodies:
    """64 rows of numbers, or 4 images, and what bare onnxruntime makes of each."""
    session = _session(case.model, 1)
    folder = WORK / "bodies" / case.model / dialect.path.replace("/", "_")
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    files, answers = [], []
    for number in range(64 if case.model == "tab.onnx" else 4):
        file = folder / str(number)
        if case.model == "tab.onnx":
            row = [[round(float(value), 3) for value in random.standard_normal(10)]]
            file.write_text(json.dumps(dialect.question({"data": row})))
            given = np.array(row, np.float32)
        else:
            given = random.integers(0, 255, IMAGE_SHAPE, dtype=np.uint8)
            file.write_bytes(given.tobytes())
        result = session.run(None, {session.get_inputs()[0].name: given})
        names = [output.name for output in session.get_outputs()]
        files.append(file)
        answers.append({name: value.tolist() for name, value in zip(names, result, strict=True)})
    return Bodies(tuple(files), tuple(answers))


def is_right(answer: bytes, expected: Mapping[str, Any], dialect: Dialect) -> bool:
    try:
        found = dialect.answer(json.loads(answer))
        return set(found) == set(expected) and all(
            np.allclose(found[name], expected[name], rtol=1e-3, atol=1e-5) for name in expected
        )
    except (ValueError, TypeError, KeyError):
        return False


def _session(model: str, threads: int, *, spinning: bool = False) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    return ort.InferenceSession(str(WORK / "models" / model), options, providers=["CPUExecutionProvider"])


# ---- one server ----


@contextmanager
def running(server: Server, case: Case, port: int, log: Path) -> Iterator[psutil.Process]:
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AZUREML", "EDGEWRIGHT"))
    } | {
        "AZUREML_MODEL_DIR": str(WORK / "models"),
        "MODEL": case.model,
        "IMAGE_MODEL": case.model,
        "ORT_THREADS": "1" if case.pinned else "2",
        "ORT_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": str(ROOT if server.environment == "edgewright" else HERE / "peers"),
        **server.variables(port),
    }
    command = server.command(case, port)
    if case.pinned:
        command = ["taskset", "-c", "0", *command]
    with log.open("ab") as output:
        process = psutil.Popen(command, env=environment, cwd=WORK, stdout=output, stderr=output)
    try:
        yield process
    finally:
        tree = _tree(process)
        process.terminate()
        _, alive = psutil.wait_procs(tree, timeout=5)
        for survivor in alive:
            survivor.kill()
        process.wait(5)


def _tree(process: psutil.Process) -> list[psutil.Process]:
    return [process, *process.children(recursive=True)]


def _cpu_s(process: psutil.Process) -> float:
    total = 0.0
    for member in _tree(process):
        times = member.cpu_times()
        total += times.user + times.system
    return total


def ask(port: int, path: str, body: bytes, content_type: str) -> bytes:
    connection = http.client.HTTPConnection(HOST, port, timeout=10)
    try:
        connection.request("POST", path, body, {"content-type": content_type})
        response = connection.getresponse()
        answer = response.read()
        return answer if response.status == 200 else b""
    finally:
        connection.close()


def wait_for_answer(target: Target) -> None:
    server, bodies = target.server, target.bodies
    body = bodies.files[0].read_bytes()
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            answer = ask(target.port, server.dialect.path, body, target.case.content_type)
            if not server.checked or is_right(answer, bodies.answers[0], server.dialect):
                return
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.01)
    raise SystemExit(f"{server.name}: no right answer within {START_TIMEOUT_S:g} s")


def measure_server(server: Server, case: Case, port: int, seconds: float) -> Round:
    bodies = make_bodies(case, server.dialect)
    target = Target(server, case, bodies, port)
    log = WORK / "logs" / f"{server.environment}-{case.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    with running(server, case, port, log) as process:
        wait_for_answer(target)
        cold_start_s = time.perf_counter() - started
        load(target, case.connections[0], 0.5)  # warms caches, and lets scripts be found short
        at = {}
        for connections in case.connections:
            with Checker(target) as checker:
                before = _cpu_s(process)
                result = load(target, connections, seconds)
                cpu_s = _cpu_s(process) - before
            at[connections] = Measurement(
                result["requests"] / result["seconds"],
                result["p50_us"],
                result["p99_us"],
                cpu_s * 1e6 / max(1, result["requests"]),
                result["errors"],
                checker.wrong,
                checker.asked,
            )
        memory = [member.memory_full_info() for member in _tree(process)]
        return Round(cold_start_s, sum(m.rss for m in memory) / 1e6, sum(m.pss for m in memory) / 1e6, at)


@dataclass(frozen=True)
class Target:
    """A running server and what it is asked."""

    server: Server
    case: Case
    bodies: Bodies
    port: int


class Checker:
    """Asks beside the load and compares."""

    def __init__(self, target: Target) -> None:
        self.asked = self.wrong = 0
        self._target = target
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._check, daemon=True)

    def __enter__(self) -> Checker:
        if self._target.server.checked:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        if self._target.server.checked:
            self._thread.join(15)

    def _check(self) -> None:
        bodies, dialect = self._target.bodies, self._target.server.dialect
        while not self._done.wait(0.05):
            number = self.asked % len(bodies.files)
            self.asked += 1
            try:
                body = bodies.files[number].read_bytes()
                answer = ask(self._target.port, dialect.path, body, self._target.case.content_type)
                self.wrong += not is_right(answer, bodies.answers[number], dialect)
            except (OSError, http.client.HTTPException):
                self.wrong += 1


def load(target: Target, connections: int, seconds: float) -> dict[str, Any]:
    case = target.case
    command = [
        "wrk",
        "-t1",
        f"-c{connections}",
        f"-d{max(1, round(seconds))}s",
        "--latency",
        "--timeout",
        "10s",
    ]
    command += ["-s", str(HERE / "load.lua"), f"http://{HOST}:{target.port}{target.server.dialect.path}"]
    if case.pinned:
        command = ["taskset", "-c", "1", *command]
    environment = os.environ | {
        "BODIES": ",".join(map(str, target.bodies.files)),
        "CONTENT_TYPE": case.content_type,
        "UNIQUE": str(int(case.unique_headers)),
    }
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=seconds + 60, check=True
    )
    return parse_wrk(done.stdout)


_UNITS = {"us": 1.0, "ms": 1e3, "s": 1e6, "m": 6e7}


def parse_wrk(text: str) -> dict[str, Any]:
    requests, seconds, unit = re.search(r"(\d+) requests in ([\d.]+)(m?s)", text).groups()  # type: ignore[union-attr]
    found: dict[str, Any] = {"requests": int(requests), "seconds": float(seconds) * _UNITS[unit] / 1e6}
    for percent in (50, 99):
        value, unit = re.search(rf"{percent}%\s+([\d.]+)(us|ms|s|m)\b", text).groups()  # type: ignore[union-attr]
        found[f"p{percent}_us"] = float(value) * _UNITS[unit]
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    found["errors"] = int(refused[1]) if refused else 0
    if (
        broken
    ):  # azureml's server closes each connection after its answer; wrk counts some of that as read errors
        found["errors"] += int(broken[1]) + int(broken[3]) + int(broken[4])
    return found


# ---- the limit ----


def bare_runs_per_s(case: Case, seconds: float = 1.0) -> dict[str, float]:
    """onnxruntime alone, called from Python."""
    given = {"tab.onnx": {"input": np.zeros((1, 10), np.float32)}}.get(
        case.model, {"image": np.zeros(IMAGE_SHAPE, np.uint8)}
    )
    if case.pinned:
        allowed = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {0})
        try:
            return {"one session": _rate([_session(case.model, 1)], given, seconds)}
        finally:
            os.sched_setaffinity(0, allowed)
    single = _session(case.model, 1)
    return {
        "intra_op=1": _rate([single], given, seconds),
        "intra_op=1, two threads": _rate([single, single], given, seconds),
        "intra_op=2": _rate([_session(case.model, 2)], given, seconds),
        "intra_op=2, spinning": _rate([_session(case.model, 2, spinning=True)], given, seconds),
    }


def _rate(sessions: Sequence[ort.InferenceSession], given: Mapping[str, Any], seconds: float) -> float:
    counts = [0] * len(sessions)
    end = time.perf_counter() + seconds

    def run(number: int) -> None:
        while time.perf_counter() < end:
            sessions[number].run(None, given)
            counts[number] += 1

    threads = [threading.Thread(target=run, args=(number,)) for number in range(len(sessions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / seconds


# ---- the whole run ----


def make_environments(names: Sequence[str]) -> None:
    for name in names:
        folder = WORK / name
        marker = folder / "pinned.txt"
        wanted = "\n".join(ENVIRONMENTS[name])
        if marker.is_file() and marker.read_text() == wanted:
            continue
        print(f"installing {name}: {', '.join(ENVIRONMENTS[name])}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
        subprocess.run([_python(name), "-m", "pip", "install", "-q", *ENVIRONMENTS[name]], check=True)
        marker.write_text(wanted)


def run(options: argparse.Namespace) -> dict[str, Any]:
    cases = [case for case in CASES if not options.case or case.name in options.case]
    make_environments(list(ENVIRONMENTS))
    write_models(WORK / "models")
    rounds: dict[str, dict[str, list[Round]]] = {case.name: {} for case in cases}
    bare: dict[str, list[dict[str, float]]] = {case.name: [] for case in cases}
    port = FIRST_PORT
    for number in range(options.rounds):
        for case in cases:
            bare[case.name].append(bare_runs_per_s(case))
            for server in SERVERS:
                if case.name not in server.cases:
                    continue
                port = port + 1 if port < FIRST_PORT + 900 else FIRST_PORT
                found = measure_server(server, case, port, options.seconds)
                rounds[case.name].setdefault(server.name, []).append(found)
                shown = ", ".join(f"c={c} {m.requests_per_s:,.0f}/s" for c, m in found.at.items())
                print(f"round {number + 1} {case.name:10} {server.name:30} {shown}", flush=True)
    return {
        "about": about(options),
        "bare_runs_per_s": bare,
        "rounds": {
            case: {name: [asdict(found) for found in many] for name, many in servers.items()}
            for case, servers in rounds.items()
        },
    }


def about(options: argparse.Namespace) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "rounds": options.rounds,
        "seconds": options.seconds,
        "load_average_at_end": os.getloadavg(),
        "versions": ENVIRONMENTS,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of load per cell")
    parser.add_argument("--case", action="append", choices=ALL, help="only this case; may be repeated")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "serving.json")
    options = parser.parse_args()
    if shutil.which("wrk") is None:
        raise SystemExit("wrk is not installed; Debian: apt-get install wrk")
    document = run(options)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    from table import bars, table

    print(table(document))
    print(bars(document))


if __name__ == "__main__":
    main()

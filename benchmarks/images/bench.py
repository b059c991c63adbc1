"""How fast images are built and pushed, beside `docker build` and `docker push`: `python benchmarks/images/bench.py`.

1. Both make the same image: a Debian base with Python, the same wheels (numpy, onnxruntime and what they need), one model
   file, one entry script. Ours is for two platforms, Docker's for this machine's alone, since others would be emulated.
   Docker has its own builder (BuildKit needs buildx, which Debian does not bring), two stages, and a Dockerfile in the
   order that rebuilds least.
2. Both run as commands, as a user would, so that starting Python counts; what a build itself takes is reported beside it.
3. One Debian `dockerd` and, in every round, one new Debian `docker-registry`; the two take turns within a round.
4. Package caches are warm on both sides; nothing is downloaded while it is timed.
5. Answers are checked: `docker run` of both images prints the same hash of the model inside, and the bytes pushed are
   counted by the registry's disk.

Needs root, docker.io, docker-registry, apache2-utils and mmdebstrap (scripts/test-tools). Results: results/images.json.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from docker_engine import DockerEngine, running_docker_engine  # noqa: E402
from registry_servers import PASSWORD, USER, debian_registry  # noqa: E402

REQUIREMENTS = "numpy==2.4.6\nonnxruntime==1.31.1\n"
# What Azure ML's base and our runtime layer bring is the server's part; both sides install the same packages for it.
SERVER = "httptools>=0.6.4\norjson>=3.10\nstarlette>=0.41\nuvicorn>=0.32\n"
PLATFORMS = ("linux/amd64", "linux/arm64")
SMALL_MODEL_BYTES = 8_000_000
LARGE_MODEL_BYTES = 256_000_000
SCRIPT = "def init():\n    pass\n\n\ndef run(data):\n    return {version}\n"
DOCKERFILE = """\
FROM base AS dependencies
COPY wheels /wheels
RUN ["/usr/bin/python3", "/wheels/PIP/pip", "install", "-q", "--no-index", "--find-links", "/wheels", \
"--target", "/opt/dependencies", "--no-compile", "--disable-pip-version-check", "-r", "/wheels/requirements.txt"]
FROM base
COPY --from=dependencies /opt/dependencies /opt/dependencies
COPY model.bin /var/azureml-app/azureml-models/bench/1/
COPY score.py /var/azureml-app/
"""
COMMAND_S = 900.0


STEPS = {
    "cold": (SMALL_MODEL_BYTES, 1),
    "model": (SMALL_MODEL_BYTES, 1),
    "script": (None, 2),
    "large model": (LARGE_MODEL_BYTES, 2),
}
"""What changes in each step: the model's size, None when it stays, and the script's version."""

# Printed by both images: what is in the model file they hold.
LOOK = (
    "import glob, hashlib; (file,) = glob.glob('/var/azureml-app/azureml-models/bench/*/model.bin');"
    "print(hashlib.sha256(open(file, 'rb').read()).hexdigest())"
)


@dataclass
class Step:
    """Seconds and bytes of one step in one round; `build_s` is the build without the command around it."""

    register_s: float
    build_s: float
    build_command_s: float
    push_s: float
    pushed_bytes: int
    docker_build_s: float
    docker_push_s: float
    docker_pushed_bytes: int
    copy_s: float


def seconds(call: Callable[[], Any]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def disk_bytes(folder: Path) -> int:
    return sum(each.stat().st_size for each in folder.rglob("*") if each.is_file())


class Ours:
    """A workspace, by the `edgewright` command."""

    def __init__(self, folder: Path, registry: str) -> None:
        self.folder, self.registry = folder, registry

    def run(self, *arguments: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-m", "publisher.cli", *arguments, "--json"],
            cwd=self.folder,
            env=os.environ | {"EDGEWRIGHT_REGISTRY_PASSWORD": PASSWORD},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"edgewright {' '.join(arguments)} failed:\n{done.stderr}")
        return json.loads(done.stdout)

    def register(self) -> None:
        self.run("model", "register", "model.bin", "--name", "bench")

    def model_digest(self, docker: Docker) -> str:
        """Of the model in the image that the registry has now, by Docker."""
        version = self.run("image", "show", "bench")["version"]
        return docker.look(f"{self.registry}/bench:{version}")

    def build(self) -> float:
        """What the build itself took, without the command around it."""
        chosen = [argument for name in PLATFORMS for argument in ("--platform", name)]
        options = [
            "-m",
            "bench",
            "-s",
            "score.py",
            "--requirements",
            "requirements.txt",
            "--base",
            "bookworm",
        ]
        built = self.run("image", "build", *options, *chosen)
        return float(built["buildSeconds"])

    def push(self) -> None:
        self.run("image", "push", "bench", self.registry, "--username", USER)


class Docker:
    """A build context, by the `docker` command."""

    def __init__(self, engine: DockerEngine, folder: Path, registry: str) -> None:
        self.engine, self.folder, self.registry = engine, folder, registry
        self.tag = f"{registry}/docker-bench:1"

    def run(self, *arguments: str) -> str:
        environment = {
            "DOCKER_HOST": self.engine.address,
            "DOCKER_CONFIG": str(self.engine.folder),
            "DOCKER_BUILDKIT": "0",
        }
        done = subprocess.run(
            ["docker", *arguments],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )
        if done.returncode:
            raise SystemExit(f"docker {' '.join(arguments)} failed:\n{done.stderr}")
        return done.stdout

    def build(self) -> None:
        self.run("build", "-q", "-t", self.tag, str(self.folder))

    def push(self) -> None:
        self.run("push", "-q", self.tag)

    def look(self, image: str) -> str:
        return self.run("run", "--rm", "--entrypoint", "/usr/bin/python3", image, "-c", LOOK).strip()


def make_wheels(folder: Path, python: str) -> str:
    """What Docker's `pip install` finds; the name of pip's own wheel."""
    folder.mkdir()
    (folder / "requirements.txt").write_text(REQUIREMENTS + SERVER)
    steps = ("manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
    chosen = [argument for step in steps for argument in ("--platform", f"{step}_x86_64")]
    options = ["-q", "-d", str(folder), "--python-version", python, "--only-binary", ":all:", *chosen]
    wanted = ["-r", str(folder / "requirements.txt"), "pip"]
    subprocess.run([sys.executable, "-m", "pip", "download", *options, *wanted], check=True)
    return next(folder.glob("pip-*.whl")).name


def hash_and_copy(source: Path, target: Path) -> None:
    """The least that taking a file into a store can be: read, hash, write, flush."""
    digest = hashlib.sha256()
    with source.open("rb") as file, target.open("wb") as out:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            out.write(chunk)
        out.flush()
        os.fsync(out.fileno())


def prepare(work: Path) -> Path:
    """A workspace with the bases; beside it the build context with the wheels."""
    workspace, context = work / "prepared", work / "context"
    workspace.mkdir()
    context.mkdir()
    ours = Ours(workspace, "")
    subprocess.run(
        [sys.executable, "-m", "publisher.cli", "init"], cwd=workspace, check=True, capture_output=True
    )
    bases = {name: work / f"{name}.tar" for name in ("amd64", "arm64")}
    for name, file in bases.items():
        ours.run("image", "base", "create", "--arch", name, "--output-file", str(file))
    python = "3.11"  # bookworm's
    (workspace / "edgewright.toml").write_text(
        (workspace / "edgewright.toml")
        .read_text()
        .replace(f'python = "{_this_python()}"', f'python = "{python}"')
    )
    (workspace / "requirements.txt").write_text(REQUIREMENTS)
    pip = make_wheels(context / "wheels", python)
    (context / "Dockerfile").write_text(DOCKERFILE.replace("PIP", pip))
    return workspace


def _this_python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


class Round:
    """One registry and one workspace, new; `wheels` and `base` are as warm as in every round."""

    def __init__(self, work: Path, workspace: Path, registry: str, data: Path, docker: Docker) -> None:
        self._ours = Ours(workspace, registry)
        self._docker = docker
        self._data = data
        self._work = work

    def step(self, name: str) -> Step:
        model_bytes, script = STEPS[name]
        self._change(model_bytes, script)
        ours, docker = self._ours, self._docker
        model = ours.folder / "model.bin"
        copy_s = seconds(lambda: hash_and_copy(model, self._work / "copied"))
        register_s = seconds(ours.register) if model_bytes else 0.0
        started = time.perf_counter()
        build_s = ours.build()
        build_command_s = time.perf_counter() - started
        push_s, pushed = self._pushed(ours.push)
        docker_build_s = seconds(docker.build)
        docker_push_s, docker_pushed = self._pushed(docker.push)
        expected = hashlib.sha256(model.read_bytes()).hexdigest()
        found = {"ours": ours.model_digest(docker), "docker": docker.look(docker.tag)}
        if set(found.values()) != {expected}:
            raise SystemExit(f"{name}: expected model {expected} in both images, found {found}")
        return Step(
            register_s,
            build_s,
            build_command_s,
            push_s,
            pushed,
            docker_build_s,
            docker_push_s,
            docker_pushed,
            copy_s,
        )

    def _change(self, model_bytes: int | None, script: int) -> None:
        for folder in (self._ours.folder, self._docker.folder):
            (folder / "score.py").write_text(SCRIPT.format(version=script))
        if model_bytes is not None:
            with (self._ours.folder / "model.bin").open("wb") as file:
                for start in range(0, model_bytes, 1 << 24):
                    file.write(os.urandom(min(1 << 24, model_bytes - start)))
            shutil.copyfile(self._ours.folder / "model.bin", self._docker.folder / "model.bin")

    def _pushed(self, push: Callable[[], None]) -> tuple[float, int]:
        before = disk_bytes(self._data)
        return seconds(push), disk_bytes(self._data) - before


def run_round(work: Path, prepared: Path, engine: DockerEngine) -> dict[str, Step]:
    with tempfile.TemporaryDirectory(dir=work) as name, ExitStack() as stack:
        folder = Path(name)
        registry_at = folder / "registry"
        (registry_at / "data").mkdir(parents=True)
        registry = stack.enter_context(debian_registry(registry_at))
        shutil.copytree(prepared, folder / "ours", symlinks=True)
        docker = Docker(engine, work / "context", registry.address)
        docker.run("login", "-u", USER, "-p", PASSWORD, registry.address)
        docker.run("image", "prune", "-af")
        docker.run("import", str(work / "amd64.tar"), "base")
        one = Round(folder, folder / "ours", registry.address, registry_at / "data", docker)
        found = {}
        for step in STEPS:
            found[step] = one.step(step)
            print(f"  {step}: {found[step]}", flush=True)
        return found


# ---- what is printed ----


def median(rounds: list[dict[str, Any]], step: str, name: str) -> tuple[float, float, float]:
    values = [each[step][name] for each in rounds]
    return statistics.median(values), min(values), max(values)


def bars(rounds: list[dict[str, Any]]) -> str:
    def of(step: str, name: str) -> float:
        return median(rounds, step, name)[0]

    def ours_s(step: str) -> float:
        return of(step, "build_command_s") + of(step, "push_s")

    def docker_s(step: str) -> float:
        return of(step, "docker_build_s") + of(step, "docker_push_s")

    large_s = of("large model", "register_s") + of("large model", "build_command_s")
    rows = [
        ("model of 8 MB changed: the build, s", of("model", "build_s"), "≤", 0.5),
        ("model of 8 MB changed: the build command, s", of("model", "build_command_s"), "≤", 0.5),
        (
            "model of 8 MB changed: Docker's build / the build",
            of("model", "docker_build_s") / of("model", "build_s"),
            "≥",
            20,
        ),
        (
            "model of 8 MB changed: Docker's build / the build command",
            of("model", "docker_build_s") / of("model", "build_command_s"),
            "≥",
            20,
        ),
        (
            "model of 8 MB changed: bytes pushed beyond the model, KiB",
            (of("model", "pushed_bytes") - SMALL_MODEL_BYTES) / 1024,
            "≤",
            64,
        ),
        ("script changed: the build, s", of("script", "build_s"), "≤", 0.3),
        ("script changed: the build command, s", of("script", "build_command_s"), "≤", 0.3),
        (
            "model of 256 MB: the build / hashing and copying it",
            of("large model", "build_s") / of("large model", "copy_s"),
            "≤",
            1.5,
        ),
        (
            "model of 256 MB: register and build commands / hashing and copying it",
            large_s / of("large model", "copy_s"),
            "≤",
            1.5,
        ),
        ("cold build and push, two platforms / Docker's, one", ours_s("cold") / docker_s("cold"), "≤", 1.0),
    ]
    lines = ["| bar | must | found | |", "|---|---|---|---|"]
    for text, found, sign, must in rows:
        met = found <= must if sign == "≤" else found >= must
        lines.append(f"| {text} | {sign} {must:g} | {found:.2f} | {'met' if met else 'missed'} |")
    return "\n".join(lines)


def table(rounds: list[dict[str, Any]]) -> str:
    names = list(next(iter(rounds[0].values())))
    lines = ["| step | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for step in rounds[0]:
        cells = []
        for name in names:
            middle, least, most = median(rounds, step, name)
            form = "{:,.0f}" if name.endswith("bytes") else "{:.2f}"
            cells.append(f"{form.format(middle)} ({form.format(least)}–{form.format(most)})")
        lines.append(f"| {step} | {' | '.join(cells)} |")
    return "\n".join(lines)


def about(engine: DockerEngine, rounds: int) -> dict[str, Any]:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "python": platform.python_version(),
        "docker": engine.run("version", "--format", "{{.Server.Version}}"),
        "processors": os.cpu_count(),
        "load_average_at_end": os.getloadavg(),
        "rounds": rounds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "images.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, running_docker_engine() as engine:
        work = Path(name)
        prepared = prepare(work)
        run_round(work, prepared, engine)  # warms uv's cache and the disk's
        rounds = []
        for number in range(options.rounds):
            print(f"round {number + 1}", flush=True)
            rounds.append({step: asdict(found) for step, found in run_round(work, prepared, engine).items()})
        document = {"about": about(engine, options.rounds), "rounds": rounds}
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    print(f"{bars(rounds)}\n\n{table(rounds)}")


if __name__ == "__main__":
    main()

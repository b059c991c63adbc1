"""Builds in processes of their own: under other circumstances, with large models, and interrupted.

Shared by the tests (short) and `scripts/verify images` (long).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from publisher_workspaces import make_runtime_wheels, make_wheel, make_workspace, write_score

from edge_containers.image_model import ImageIndex, ImageManifest
from publisher.garbage import LAYER_CACHE, collect_garbage
from publisher.images import Image
from publisher.models import Model
from publisher.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
BUILD_S = 300.0

# argv: workspace, folder with model and script, shift of the clock in seconds, umask, order of folder listings.
BUILD = """
import os, random, resource, sys, time, json
workspace, source, shift, umask, order = sys.argv[1:6]
os.umask(int(umask, 8))
real_time, real_scandir, real_listdir = time.time, os.scandir, os.listdir
time.time = lambda: real_time() + float(shift)
if order != "as-is":
    shuffled = random.Random(order)
    class Entries:
        def __init__(self, found): self.found = found
        def __iter__(self): return self
        def __next__(self):
            if not self.found: raise StopIteration
            return self.found.pop()
        def __enter__(self): return self
        def __exit__(self, *_): pass
        def close(self): pass
    def scandir(path="."):
        with real_scandir(path) as entries:
            found = list(entries)
        shuffled.shuffle(found)
        return Entries(found)
    def listdir(path="."):
        found = real_listdir(path)
        shuffled.shuffle(found)
        return found
    os.scandir, os.listdir = scandir, listdir
from pathlib import Path
from publisher import ContainerImage, Model
from publisher.workspace import Workspace
from publisher.build_request import BuildRequest
from publisher.environments import Environment
from edge_containers.image_model import Platform
at, folder = Workspace.open(workspace), Path(source)
known = Model.list(at, name="large")
model = known[0] if known else Model.register(at, folder / "model", "large")
request = BuildRequest("large", (model,), folder / "code" / "score.py", Environment(("extra",), "3.11"),
    includes=(folder / "code" / "helpers",), platforms=tuple(map(Platform.parse, ("linux/amd64", "linux/arm64"))))
image = ContainerImage.from_request(at, request)
# Not ru_maxrss of this process: it begins with what the process that started it had, which may be a large test run.
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
own = int(status["VmHWM"].split()[0])
peak = max(own, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) << 10
print(json.dumps({"digest": str(image.digest), "id": image.id, "peakBytes": peak, "seconds": image.build_seconds}))
"""


@dataclass(frozen=True)
class Circumstances:
    """How a build's process differs from others."""

    clock_shift_s: float = 0.0
    umask: str = "022"
    order: str = "as-is"
    environ: Mapping[str, str] = field(default_factory=dict)


CIRCUMSTANCES = (
    Circumstances(),
    Circumstances(3.2e8, "077", "1", {"PYTHONHASHSEED": "1", "LC_ALL": "C", "TZ": "Asia/Tokyo"}),
    Circumstances(
        -1.6e9, "000", "2", {"PYTHONHASHSEED": "4000000000", "LC_ALL": "C.UTF-8", "TZ": "America/Lima"}
    ),
    Circumstances(
        86400, "027", "3", {"PYTHONHASHSEED": "0", "LANG": "de_DE.ISO-8859-1", "SOURCE_DATE_EPOCH": "99"}
    ),
    Circumstances(1e9, "022", "4", {"PYTHONHASHSEED": "77", "PYTHONUTF8": "1", "COLUMNS": "1"}),
)


def make_source(folder: Path, model_bytes: int = 4096) -> Path:
    """A model of a folder with a (sparse) file in it, a script and what goes beside it."""
    (folder / "model" / "deep" / "Ünïcode").mkdir(parents=True)
    with (folder / "model" / "weights.bin").open("wb") as file:
        file.write(b"weights")
        file.truncate(model_bytes)
    for name in ("b", "a", "C"):
        (folder / "model" / "deep" / "Ünïcode" / name).write_text(name)
    write_score(folder / "code")
    helpers = folder / "code" / "helpers"
    helpers.mkdir()
    for name in ("z", "a", "m"):
        (helpers / f"{name}.py").write_text(f"NAME = {name!r}\n")
    return folder


def new_workspace(folder: Path, name: str) -> Workspace:
    """One of its own, with wheels of its own."""
    wheels = make_runtime_wheels(folder / f"{name}-wheels")
    make_wheel(wheels, "extra", scripts=("extra",))
    return make_workspace(folder / name, wheels)


def start_build(
    workspace: Workspace, source: Path, how: Circumstances = CIRCUMSTANCES[0]
) -> subprocess.Popen[str]:
    environ = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}", **how.environ}
    arguments = [str(workspace.root), str(source), str(how.clock_shift_s), how.umask, how.order]
    return subprocess.Popen(
        [sys.executable, "-c", BUILD, *arguments],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def build(workspace: Workspace, source: Path, how: Circumstances = CIRCUMSTANCES[0]) -> dict[str, Any]:
    """What one build says of itself."""
    process = start_build(workspace, source, how)
    out, err = process.communicate(timeout=BUILD_S)
    assert process.returncode == 0, err[-3000:]
    result: dict[str, Any] = json.loads(out)
    return result


def interrupt_builds(folder: Path, count: int, seed: int) -> dict[str, int]:
    """Interrupt builds at random times, and find what is listed whole each time; every third has a neighbour.

    Returns:
        How many builds ended how.
    """
    chance = random.Random(seed)
    source = make_source(folder / "source", 8 << 20)
    workspace = new_workspace(folder, "w")
    # Once: another version of the same files has another path in the image.
    Model.register(workspace, source / "model", "large")
    started = time.monotonic()
    expected = build(new_workspace(folder, "reference"), source)["digest"]
    longest = (time.monotonic() - started) * 0.9
    ends: dict[str, int] = {}
    for number in range(count):
        if number % 2 == 0:
            # Otherwise every layer is found, and hardly anything is left to interrupt.
            shutil.rmtree(workspace.cache / LAYER_CACHE, ignore_errors=True)
        builds = [start_build(workspace, source) for _ in range(2 if number % 3 == 2 else 1)]
        time.sleep(chance.uniform(0.0, longest))
        builds[0].send_signal(signal.SIGINT)
        for process in builds:
            out, err = process.communicate(timeout=BUILD_S)
            end = (
                "built"
                if process.returncode == 0
                else "interrupted"
                if "KeyboardInterrupt" in err
                else "else"
            )
            assert end != "else" or process.returncode == -signal.SIGINT, (process.returncode, err[-3000:])
            ends[end] = ends.get(end, 0) + 1
            assert end != "built" or json.loads(out)["digest"] == expected
        check_whole(workspace, expected)
    last = build(workspace, source)
    assert last["digest"] == expected
    return ends


def check_whole(workspace: Workspace, expected: str) -> None:
    """Every listed image is the expected one with all its blobs, and no work is left lying about for long."""
    images = Image.list(workspace)
    for image in images:
        assert str(image.digest) == expected, image
        for entry in ImageIndex.from_bytes(workspace.store.read_bytes(image.digest)).manifests:
            manifest = ImageManifest.from_bytes(workspace.store.read_bytes(entry.digest))
            assert all(workspace.store.is_whole(blob) for blob in manifest.blobs), image
    collect_garbage(workspace)
    assert set(workspace.store.tags()) == {image.id for image in images}
    for image in images:
        assert workspace.store.find_image(image.digest, image.platforms[0]) is not None

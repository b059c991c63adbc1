"""The tests' own Docker engine runs containers, and leaves nothing behind."""

from __future__ import annotations

import io
import re
import subprocess
import tarfile
from pathlib import Path

import docker
from docker_engine import DockerEngine, running_docker_engine


def shell_root() -> bytes:
    """A root file system with this machine's shell and the libraries it names."""
    listed = subprocess.run(["ldd", "/bin/sh"], capture_output=True, text=True, check=True, timeout=10)
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", dereference=True) as tar:
        for path in ["/bin/sh", *re.findall(r"(/\S+) \(0x", listed.stdout)]:
            tar.add(path)
    return out.getvalue()


def test_a_container_runs_and_its_output_comes_back(docker_engine: DockerEngine) -> None:
    image = docker_engine.run("import", "-", "shell", stdin=shell_root())
    assert (
        docker_engine.run("run", "--rm", "--network=host", image, "/bin/sh", "-c", "echo $((6 * 7))") == "42"
    )
    client = docker.DockerClient(base_url=docker_engine.address, timeout=30)
    try:
        # On the engine's own bridge this time.
        assert client.containers.run(image, ["/bin/sh", "-c", "echo hello"], remove=True) == b"hello\n"
    finally:
        client.close()


def test_a_stopped_engine_leaves_no_process_mount_or_folder() -> None:
    with running_docker_engine() as engine:
        image = engine.run("import", "-", "shell", stdin=shell_root())
        engine.run("run", "-d", "--network=none", image, "/bin/sh", "-c", "while :; do :; done")
    assert not engine.folder.exists()
    assert str(engine.folder) not in Path("/proc/self/mounts").read_text()
    commands = (path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists())
    assert not [command for command in commands if str(engine.folder).encode() in command]

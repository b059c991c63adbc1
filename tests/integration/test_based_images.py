"""Images on a Debian base: made by mmdebstrap, run by a Docker engine, and on arm64 by qemu, with the same scores."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3
from docker_engine import DockerEngine
from registry_servers import PASSWORD, USER, debian_registry, free_port
from scoring_models import doubler

from edge_containers.image_model import ImageConfig, ImageIndex, ImageManifest, Platform
from edge_containers.registry_client import BasicCredentials
from edge_contracts.redact import Secret
from publisher.bases.create import BaseRecipe, create_base
from publisher.build_request import BuildRequest
from publisher.environments import Environment
from publisher.errors import EngineError
from publisher.images import ContainerImage
from publisher.models import Model
from publisher.workspace import Workspace

# Two bases and numpy and ONNX Runtime for two platforms.
pytestmark = pytest.mark.timeout(400)

AMD64, ARM64 = Platform.parse("linux/amd64"), Platform.parse("linux/arm64")
REQUEST, RESPONSE = {"data": [[1.5, 2.0, -3.25]]}, {"y": [[3.0, 4.0, -6.5]]}
START_S = 90.0


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    if shutil.which("mmdebstrap") is None:
        pytest.skip("needs mmdebstrap: scripts/test-tools")
    workspace = Workspace.init(tmp_path_factory.mktemp("based"))
    config = workspace.root / "edgewright.toml"
    config.write_text('[workspace]\nname = "based"\n[environment]\npython = "3.11"\n')
    workspace = Workspace.open(workspace.root)
    for platform in (AMD64, ARM64):
        create_base(workspace, BaseRecipe(platform))
    return workspace


@pytest.fixture(scope="module")
def image(workspace: Workspace, tmp_path_factory: pytest.TempPathFactory) -> ContainerImage:
    model = Model.register(workspace, doubler(tmp_path_factory.mktemp("model")), "doubler")
    environment = Environment((), "3.11")
    request = BuildRequest("doubler", (model,), None, environment, platforms=(AMD64, ARM64), base="bookworm")
    return ContainerImage.from_request(workspace, request)


def documents(image: ContainerImage, platform: Platform) -> tuple[ImageManifest, ImageConfig]:
    store = image.workspace.store
    [entry] = [
        each
        for each in ImageIndex.from_bytes(store.read_bytes(image.digest)).manifests
        if each.platform == platform
    ]
    manifest = ImageManifest.from_bytes(store.read_bytes(entry.digest))
    return manifest, ImageConfig.from_bytes(store.read_bytes(manifest.config.digest))


def test_the_base_is_the_lowest_layer_and_an_engine_knows_how_to_run_it(image: ContainerImage) -> None:
    manifest, config = documents(image, ARM64)
    roles = [layer.annotations["edgewright.layer"] for layer in manifest.layers]
    assert (
        roles
        == ["base", "dependencies", "runtime", "model"]
        == json.loads(config.labels["edgewright.layer-roles"])
    )
    assert config.labels["edgewright.base"].startswith("bookworm@sha256:")
    assert config.user == "65534:65534"
    assert config.cmd[:3] == ("/usr/bin/python3", "-m", "scoring_runtime")
    assert "PYTHONPATH=/opt/edgewright/dependencies:/opt/edgewright/runtime" in config.env


def test_a_base_is_the_same_bytes_again(workspace: Workspace) -> None:
    first = create_base(workspace, BaseRecipe(AMD64))
    assert first.reused
    assert create_base(workspace, BaseRecipe(AMD64), name="again", refresh=True).diff_id == first.diff_id


def test_an_engine_pulls_it_by_digest_and_scores_unprivileged(
    image: ContainerImage, docker_engine: DockerEngine, tmp_path: Path
) -> None:
    with debian_registry(tmp_path) as registry:
        credentials = BasicCredentials(USER, Secret(PASSWORD))
        location = str(image.push(registry.address, credentials=credentials).location)
        docker_engine.run("login", "-u", USER, "--password-stdin", registry.address, stdin=PASSWORD.encode())
        docker_engine.run("pull", location)
    port = free_port()
    options = [
        "--read-only",
        "--cap-drop=ALL",
        "--security-opt=no-new-privileges",
        f"-p=127.0.0.1:{port}:5001",
    ]
    container = docker_engine.run("run", "-d", "--memory=256m", *options, location)
    try:
        assert score(port) == RESPONSE
        assert docker_engine.run("top", container, "-o", "uid,pid").splitlines()[1].split()[0] == "65534"
    except BaseException:
        print(docker_engine.run("logs", container))
        raise
    finally:
        docker_engine.run("rm", "-f", container)


@pytest.fixture
def docker_request(
    image: ContainerImage, docker_engine: DockerEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> BuildRequest:
    """The same model on a base that the engine adds to; it has no shell, so steps are programs."""
    monkeypatch.setenv("DOCKER_HOST", docker_engine.address)
    (tmp_path / "note.txt").write_text("from the folder")
    (tmp_path / "left-out.txt").write_text("x" * 1000)
    (tmp_path / ".dockerignore").write_text("left-out.txt\n")
    (tmp_path / "Dockerfile").write_text(
        "COPY note.txt /etc/note.txt\n"
        "RUN [\"/usr/bin/python3\", \"-c\", \"print('a step runs'); open('/etc/made', 'w').write('made')\"]\n"
        "ENV GREETING=hello\n"
    )
    return BuildRequest(
        "engined",
        tuple(image.models),
        None,
        Environment((), "3.11"),
        platforms=(AMD64,),
        base="bookworm",
        builder="docker",
        docker_file=tmp_path / "Dockerfile",
    )


def test_an_engine_builds_below_the_same_layers(
    image: ContainerImage, docker_request: BuildRequest, docker_engine: DockerEngine
) -> None:
    built = ContainerImage.from_request(image.workspace, docker_request)
    assert "a step runs" in Path(built.image_build_log_uri).read_text()
    below, _ = documents(image, AMD64)
    manifest, config = documents(built, AMD64)
    roles = [layer.annotations["edgewright.layer"] for layer in manifest.layers]
    assert roles == ["base", "base-2", "base-3", "dependencies", "runtime", "model"]
    assert manifest.layers[0] == below.layers[0]
    assert manifest.layers[3:] == below.layers[1:]
    assert "GREETING=hello" in config.env
    assert config.labels["edgewright.base"].startswith("sha256:")
    archive = docker_request.docker_file.parent / "engined.tar"
    built.export(archive)
    docker_engine.run("load", "--input", str(archive))
    program = "print(open('/etc/note.txt').read(), open('/etc/made').read())"
    printed = docker_engine.run("run", "--rm", "--network=none", built.id, "/usr/bin/python3", "-c", program)
    assert printed == "from the folder made"
    again = ContainerImage.from_request(image.workspace, docker_request)
    assert again.digest == built.digest
    again.delete()


@pytest.mark.parametrize(
    ("steps", "says"),
    [
        ('RUN ["/usr/bin/python3", "-c", "raise SystemExit(7)"]', "returned a non-zero code: 7"),
        ("COPY nothere /", "Docker's build failed|Docker refused"),
        ("NOSUCH step", "unknown instruction|Docker refused"),
    ],
)
def test_an_engines_failure_is_no_image(
    image: ContainerImage, docker_request: BuildRequest, steps: str, says: str
) -> None:
    docker_request.docker_file.write_text(f"{steps}\n")
    before = [each.id for each in ContainerImage.list(image.workspace)]
    with pytest.raises(EngineError, match=says):
        ContainerImage.from_request(image.workspace, docker_request)
    assert [each.id for each in ContainerImage.list(image.workspace)] == before


@pytest.fixture
def arm64_root(image: ContainerImage, tmp_path: Path) -> Iterator[Path]:
    """The arm64 image unpacked, with qemu in it."""
    qemu = shutil.which("qemu-aarch64-static")
    if qemu is None:
        pytest.skip("needs qemu-user-static: scripts/test-tools")
    root = tmp_path / "root"
    root.mkdir()
    for layer in documents(image, ARM64)[0].layers:
        blob = image.workspace.store.path(layer.digest)
        subprocess.run(["tar", "-x", "--no-same-owner", "-f", blob, "-C", root], check=True, timeout=60)
    shutil.copy(qemu, root / "qemu")
    yield root
    shutil.rmtree(root)


def test_the_arm64_image_gives_the_same_scores(image: ContainerImage, arm64_root: Path) -> None:
    _, config = documents(image, ARM64)
    port = free_port()
    environment = dict(each.split("=", 1) for each in config.env)
    # qemu is named, so that no binfmt registration is needed; what Python starts from itself would need one.
    command = ["chroot", "--userspec=65534:65534", str(arm64_root), "/qemu", *config.cmd[:3]]
    log = arm64_root.parent / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], env=environment, stdout=out, stderr=out
        )
    try:
        assert score(port) == RESPONSE
    except BaseException:
        print(log.read_text(errors="replace")[-4000:])
        raise
    finally:
        process.terminate()
        process.wait(30)


def score(port: int) -> object:
    """The answer of a module that is starting."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            url = f"http://127.0.0.1:{port}/score"
            answer = urllib3.request("POST", url, json=REQUEST, retries=False, timeout=30)
            assert answer.status == 200, answer.data
            return answer.json()
        except urllib3.exceptions.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)

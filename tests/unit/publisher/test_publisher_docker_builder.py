"""The Docker builder without an engine: its Dockerfiles, its context, what an engine says; and what Spark needs of a base."""

from __future__ import annotations

import gc
import tarfile
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
from publisher_workspaces import make_runtime_wheels, make_workspace, write_score

from edge_containers.image_model import Platform
from publisher.bases.base import BaseImage
from publisher.bases.look import BasePython
from publisher.bases.sources import BroughtBase
from publisher.build_request import BuildRequest, check_request
from publisher.builders.docker import (
    CONDA_FILE,
    DOCKERFILE,
    base_steps,
    conda_dockerfile,
    engine_client,
    stream_lines,
    write_context,
)
from publisher.builders.oci import needed_environment
from publisher.conda_file import read_conda
from publisher.environments import Environment
from publisher.errors import BaseImageError, CondaPackageError, EngineError, UsageError
from publisher.models import Model

CONDA = """\
name: scoring
channels: [conda-forge]
dependencies:
  - python=3.11
  - numpy=1.26
  - cudatoolkit
  - pip:
    - requests
variables:
  GREETING: say "$HOME"
"""
DOCKERFILE_TEXT = """\
FROM docker.io/mambaorg/micromamba:2
USER root
COPY .edgewright-environment.yml /tmp/environment.yml
RUN micromamba create --yes --prefix /opt/edgewright/conda --file /tmp/environment.yml python=3.11 \\
    && micromamba clean --all --yes
ENV PATH=/opt/edgewright/conda/bin:$PATH
ENV GREETING="say \\"\\$HOME\\""
"""


@pytest.fixture
def conda_file(tmp_path: Path) -> Path:
    path = tmp_path / "environment.yml"
    path.write_text(CONDA)
    return path


@pytest.fixture
def request_(tmp_path: Path) -> BuildRequest:
    workspace = make_workspace(tmp_path / "w", make_runtime_wheels(tmp_path / "wheels"))
    (tmp_path / "digits.pkl").write_bytes(b"weights")
    model = Model.register(workspace, tmp_path / "digits.pkl", "digits")
    script = write_score(tmp_path / "code")
    platforms = (Platform.parse("linux/amd64"),)
    return BuildRequest("digits", (model,), script, Environment((), "3.11"), platforms=platforms)


def test_a_conda_environment_becomes_a_dockerfile(conda_file: Path) -> None:
    assert conda_dockerfile(read_conda(conda_file), "3.11") == DOCKERFILE_TEXT


def test_conda_takes_its_file_whole_and_only_the_runtimes_packages_are_wheels(
    request_: BuildRequest, conda_file: Path, tmp_path: Path
) -> None:
    environment = Environment.from_conda(read_conda(conda_file), "3.11")
    with pytest.raises(CondaPackageError, match="cudatoolkit"):
        check_request(replace(request_, environment=environment))
    docker = replace(request_, environment=environment, builder="docker")
    check_request(docker)
    assert not [
        each for each in docker.scoring_environment.requirements if each.startswith(("numpy", "requests"))
    ]
    (tmp_path / "steps").write_text("RUN echo\n")
    assert base_steps(replace(docker, docker_file=tmp_path / "steps")) == f"{DOCKERFILE_TEXT}RUN echo\n"
    (tmp_path / "steps").write_text("# mine\nfrom debian\n")
    with pytest.raises(UsageError, match="leave FROM out"):
        base_steps(replace(docker, docker_file=tmp_path / "steps"))
    write_context(tmp_path / "context.tar", base_steps(docker), docker)
    with tarfile.open(tmp_path / "context.tar") as tar:
        assert tar.getnames() == [DOCKERFILE, CONDA_FILE]
        assert tar.extractfile(CONDA_FILE).read() == CONDA.encode()


def test_a_dockerfile_needs_the_builder_and_must_be_there(request_: BuildRequest, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="add --builder docker"):
        check_request(replace(request_, docker_file=tmp_path / "Dockerfile"))
    with pytest.raises(UsageError, match="Dockerfile does not exist"):
        check_request(replace(request_, docker_file=tmp_path / "Dockerfile", builder="docker"))
    with pytest.raises(UsageError, match="builder must be oci or docker, not 'kaniko'"):
        check_request(replace(request_, builder="kaniko"))


def test_an_engine_tells_errors_in_its_stream() -> None:
    stream = [{"stream": "Step 1/2 : FROM x\n"}, {"stream": "\n"}, {"status": "Pulling"}]
    assert list(stream_lines(stream)) == ["Step 1/2 : FROM x", "Pulling"]
    failing = [*stream, {"errorDetail": {"message": "no space"}, "error": "no space"}]
    with pytest.raises(EngineError, match=r"failed: no space \(after: Step 1/2 : FROM x / Pulling\)"):
        list(stream_lines(failing))


def test_no_engine_is_said_with_its_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    message = f"no Docker engine answers at unix://{tmp_path}/none.sock"
    with pytest.raises(EngineError, match=message), engine_client():
        pass
    # Docker's SDK leaves the socket that did not connect to the garbage collector.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


class TestSpark:
    def test_it_needs_a_base_with_java(self, request_: BuildRequest) -> None:
        with pytest.raises(UsageError, match="needs a base with a Java runtime") as caught:
            check_request(replace(request_, runtime="spark-py"))
        assert caught.value.next_command == "edgewright image base create --with-jre"
        with pytest.raises(UsageError, match="runtime must be python or spark-py, not 'r'"):
            check_request(replace(request_, runtime="r"))
        based = replace(request_, runtime="spark-py", base="bookworm")
        check_request(based)
        with pytest.raises(BaseImageError, match="has no Java runtime"):
            needed_environment(based, self.base())

    def test_pyspark_is_installed_unless_the_base_has_it_or_it_is_asked_for(
        self, request_: BuildRequest
    ) -> None:
        based = replace(request_, runtime="spark-py", base="bookworm")
        usual = based.scoring_environment.requirements
        assert set(needed_environment(based, self.base("/usr/bin/java")).requirements) == {*usual, "pyspark"}
        assert needed_environment(based, self.base("/usr/bin/java", pyspark=True)).requirements == usual
        asked = replace(based, environment=Environment(("pyspark==3.5.1",), "3.11"))
        found = needed_environment(asked, self.base("/usr/bin/java")).requirements
        assert [each for each in found if "pyspark" in each] == ["pyspark==3.5.1"]

    @staticmethod
    def base(java: str = "", *, pyspark: bool = False) -> BaseImage:
        python = BasePython("/usr/bin/python3", "3.11", "glibc", "2.36", "amd64", java, pyspark)
        return BaseImage(Platform.parse("linux/amd64"), BroughtBase("bookworm@sha256:1", ()), python)

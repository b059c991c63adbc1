"""Pushes and pulls through a proxy that breaks one request at a time, before a registry with token authentication."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from publisher_workspaces import make_runtime_wheels, make_workspace, resolved_locks, seed_locks, write_score
from registry_proxy import Fault, FaultProxy
from registry_tokens import TokenRegistry, token_registry
from transfer_sweep import Sweep, sweep_pull, sweep_push

from edge_containers.image_model import Platform
from edge_containers.registry_client import BasicCredentials
from edge_contracts.redact import Secret
from publisher import ContainerImage, Model
from publisher.build_request import BuildRequest
from publisher.environments import Environment
from publisher.image_transfer import Access
from publisher.images import Image

PASSWORD = "correct-horse"
# What one fault may end in, beside success: half a document, and a token refused right after it was got, which a
# client must take for too few rights.
ERRORS = {"whole", "digest-mismatch", "image-format", "registry-auth"}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TokenRegistry]:
    users = {"ci": (PASSWORD, {"pull", "push"})}
    with token_registry(tmp_path_factory.mktemp("registry"), users) as running:
        yield running


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Image:
    return build_image(tmp_path_factory.mktemp("image"))


def build_image(folder: Path) -> Image:
    """An image of one platform, as the builder makes it."""
    folder.mkdir(exist_ok=True)
    (folder / "locks").mkdir()
    workspace = make_workspace(folder / "w", make_runtime_wheels(folder / "wheels"))
    seed_locks(workspace, resolved_locks(folder / "locks"))
    (folder / "m.pkl").write_bytes(b"model" * 1000)
    model = Model.register(workspace, folder / "m.pkl", "m")
    environment = Environment((), "3.11")
    platforms = (Platform.parse("linux/amd64"),)
    request = BuildRequest("m", (model,), write_score(folder), environment, platforms=platforms)
    return ContainerImage.from_request(workspace, request)


@pytest.fixture
def sweep(registry: TokenRegistry, image: Image, tmp_path: Path) -> Iterator[Sweep]:
    access = Access(BasicCredentials("ci", Secret(PASSWORD)), timeout_s=10, sleep=lambda _: None)
    with FaultProxy(registry.address) as proxy:
        yield Sweep(proxy, registry.address, image, access, tmp_path, itertools.count())


def test_every_request_of_a_push_may_fail(sweep: Sweep) -> None:
    outcomes = sweep_push(sweep, Fault, every=False)
    assert sum(outcomes.values()) >= 25, outcomes
    assert set(outcomes) <= ERRORS and outcomes["whole"] >= sum(outcomes.values()) - 4, outcomes


def test_every_request_of_a_pull_may_fail(sweep: Sweep) -> None:
    outcomes = sweep_pull(sweep, Fault, every=False)
    assert sum(outcomes.values()) >= 12, outcomes
    assert set(outcomes) <= ERRORS and outcomes["whole"] >= sum(outcomes.values()) - 4, outcomes

"""Every request of a push and of a pull fails once, in every way: what must hold then, and after the next try.

- The transfer ends whole and right, or with an error of ours that names the registry; nothing half-done is listed.
- The next try, with nothing in its way, finishes.
- No credential reaches another host.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from publisher_workspaces import make_workspace
from registry_proxy import Fault, FaultProxy

from edge_containers.attachments import attachments, pull_attachments
from edge_containers.image_archive import image_parts, manifests_of
from edge_containers.store import ContentStore
from edge_contracts.errors import EdgewrightError
from edge_contracts.image_ref import ImageDigest, ImageRef
from publisher.image_transfer import Access, pull_image, push_image
from publisher.images import Image
from publisher.sbom import CYCLONEDX
from publisher.workspace import Workspace


@dataclass
class Sweep:
    """A registry, directly and through the proxy, and an image to move; `direct` sees what is really there."""

    proxy: FaultProxy
    registry: str
    image: Image
    access: Access
    folder: Path
    numbers: itertools.count[int]

    def push_through(self, index: int, fault: Fault) -> str | None:
        """Push into a fresh repository with one fault; the error's code, or None."""
        target = ImageRef(self.proxy.address, f"sweep/r{next(self.numbers)}", "1")
        self.proxy.arm(index, fault)
        failed = self._failure(lambda: push_image(self.image, target, self.access))
        case = f"push, request {index}, {fault}"
        if failed is not None:
            tag = self._tag_digest(target)
            assert tag in (None, self.image.digest), case
            if tag is not None:
                self._check_registry(target, case)
            self.proxy.arm(-1, fault)
            push_image(self.image, target, self.access)
        self._check_registry(target, case)
        return failed

    def pull_through(self, source: ImageRef, index: int, fault: Fault) -> str | None:
        """Pull into a fresh workspace with one fault; the error's code, or None."""
        workspace = make_workspace(self.folder / f"w{next(self.numbers)}", self.folder)
        self.proxy.arm(index, fault)
        failed = self._failure(lambda: pull_image(workspace, source, self.access))
        case = f"pull, request {index}, {fault}"
        if failed is not None:
            assert Image.list(workspace) == [], case
            assert not workspace.store.has(self.image.digest) or self._is_whole(workspace.store), case
            self.proxy.arm(-1, fault)
            pull_image(workspace, source, self.access)
        (listed,) = Image.list(workspace)
        assert listed.digest == self.image.digest, case
        assert self._is_whole(workspace.store), case
        assert self._sboms(workspace.store) == self._sboms(self.image.workspace.store), case
        return failed

    def requests(self, work: Callable[[], object]) -> int:
        """How many requests it takes when nothing fails."""
        self.proxy.arm(-1, Fault.DELAY)
        work()
        return len(self.proxy.seen)

    def _failure(self, work: Callable[[], object]) -> str | None:
        try:
            work()
        except EdgewrightError as error:
            assert self.proxy.address in error.message, error.message
            assert "correct-horse" not in error.message
            return error.code
        finally:
            assert not any(each.has_credentials for each in self.proxy.seen_elsewhere)
        return None

    def _tag_digest(self, target: ImageRef) -> ImageDigest | None:
        with self.access.client(self.image.workspace, self.registry) as client:
            found = client.head_manifest(target.repository, target.tag or "")
        return found.digest if found is not None else None

    def _check_registry(self, target: ImageRef, case: str) -> None:
        """What the registry itself has under the tag is the image, and its SBOM beside it."""
        store = ContentStore(self.folder / f"s{next(self.numbers)}")
        with self.access.client(self.image.workspace, self.registry) as client:
            found = client.pull_whole(target.repository, target.tag or "", store)
            pull_attachments(client, target.repository, found, store)
        assert found.digest == self.image.digest, case
        assert self._is_whole(store), case
        assert self._sboms(store) == self._sboms(self.image.workspace.store), case

    def _is_whole(self, store: ContentStore) -> bool:
        parts = image_parts(store, self.image.descriptor)
        return all(ImageDigest.of(store.path(each.digest).read_bytes()) == each.digest for each in parts)

    def _sboms(self, store: ContentStore) -> list[list[ImageDigest]]:
        manifests = manifests_of(self.image.workspace.store, self.image.descriptor)
        listed = [[each.digest for each in attachments(store, one.digest, CYCLONEDX)] for one in manifests]
        assert all(listed), "an image without its SBOM"
        return listed


def sweep_push(sweep: Sweep, faults: Iterable[Fault], *, every: bool) -> dict[str, int]:
    """Each request of a push with each fault, or (not `every`) with one of them in turn; counts by outcome."""
    count = sweep.requests(
        lambda: push_image(sweep.image, ImageRef(sweep.proxy.address, "sweep/count", "1"), sweep.access)
    )
    return _counted(count, faults, every, sweep.push_through)


def sweep_pull(sweep: Sweep, faults: Iterable[Fault], *, every: bool) -> dict[str, int]:
    """The same for a pull."""
    source = ImageRef(sweep.proxy.address, "sweep/source", "1")
    push_image(sweep.image, source, sweep.access)
    workspace: Workspace = make_workspace(sweep.folder / "count", sweep.folder)
    count = sweep.requests(lambda: pull_image(workspace, source, sweep.access))
    return _counted(count, faults, every, lambda index, fault: sweep.pull_through(source, index, fault))


def _counted(
    count: int, faults: Iterable[Fault], every: bool, run: Callable[[int, Fault], str | None]
) -> dict[str, int]:
    listed = list(faults)
    cases = (
        itertools.product(range(count), listed)
        if every
        else ((index, listed[index % len(listed)]) for index in range(count))
    )
    outcomes: dict[str, int] = {}
    for index, fault in cases:
        outcome = run(index, fault) or "whole"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes

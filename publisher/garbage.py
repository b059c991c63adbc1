"""Freeing what no model and no image needs any more."""

from __future__ import annotations

import re

from edge_containers.attachments import forget_orphans
from edge_contracts.image_ref import ImageDigest
from publisher.builders.layer import LayerCache
from publisher.errors import BusyError
from publisher.workspace import Workspace

STORE_LOCK = "store"
"""Held shared by whoever writes blobs that nothing refers to yet, exclusively while blobs are removed."""

LAYER_CACHE = "layers"

# Bases are tagged `edgewright-base/NAME`.
_IMAGE_TAG = re.compile(r"[^/:]+:\d+")


def collect_garbage(workspace: Workspace) -> int:
    """Remove unused blobs; returns the bytes freed.

    While a build runs nothing is removed: its blobs are not referred to yet, and the next deletion finds the rest.
    """
    try:
        with workspace.lock(STORE_LOCK, timeout_s=0):
            _forget_unlisted_tags(workspace)
            keep = _models(workspace)
            forget_orphans(workspace.store, keep)
            freed = workspace.store.collect_garbage(keep=keep)
            _forget_lost_layers(workspace)
            return freed
    except BusyError:
        return 0


def _forget_unlisted_tags(workspace: Workspace) -> None:
    """A build that ends between naming its image in the store and in the database leaves a tag that nobody lists."""
    with workspace.database.read() as db:
        rows = db.execute("SELECT name, version FROM images").fetchall()
    listed = {f"{row['name']}:{row['version']}" for row in rows}
    for tag in workspace.store.tags():
        if _IMAGE_TAG.fullmatch(tag) and tag not in listed:
            workspace.store.untag(tag)


def _models(workspace: Workspace) -> list[ImageDigest]:
    with workspace.database.read() as db:
        rows = db.execute(
            "SELECT DISTINCT digest FROM models UNION SELECT DISTINCT digest FROM images"
        ).fetchall()
    return [ImageDigest.parse(row["digest"]) for row in rows]


def _forget_lost_layers(workspace: Workspace) -> None:
    """Cache entries whose blob went away go too; they would only be read and refused at the next build."""
    folder = workspace.cache / LAYER_CACHE
    cache = LayerCache(folder, workspace.store)
    for entry in folder.glob("*.json"):
        if cache.get(entry.stem, "") is None:
            entry.unlink(missing_ok=True)

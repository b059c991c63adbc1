"""What an image stands on, found by its name and looked into.

A base is one of

    none                         no base: the device's own Python runs the layers (process runtime only)
    NAME                         one made here by `edgewright image base create`
    PATH                         an OCI layout or a tar on disk: of a root file system, of an OCI layout, of `docker save`;
                                 `{arch}` in it stands for amd64 or arm64
    HOST[:PORT]/REPOSITORY…      an image in a registry, by tag or by digest

Rules:
- The base's Python, C library and architecture are read from its files, not from its labels, and must fit the
  dependencies: what does not would fail on the device, by an import.
- What was found is remembered by content. A registry's tag is asked once and then means the same image until
  `upgrade` is asked for, as a lock does.
- Layers go into the images as they are. Copied, they are in the workspace's store. Only mounted (`image.base_layers =
  "mount"`), they stay in their registry, and images can be pushed to that registry alone.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_containers.image_model import Descriptor, Platform, canonical_json
from edge_containers.store import ContentStore
from edge_contracts.errors import ContractError
from edge_contracts.image_ref import ImageDigest, ImageRef
from publisher.bases.look import BasePython, look_into
from publisher.bases.sources import (
    BaseCredentials,
    BaseSource,
    BroughtBase,
    DiskSource,
    RegistrySource,
    StoreSource,
    base_tag,
    created_bases,
    docker_logins,
)
from publisher.builders.layer import BuiltLayer
from publisher.errors import BaseImageError
from publisher.image_plan import NO_BASE, PlanBase, base_roles
from publisher.steps import Steps, no_steps
from publisher.workspace import Workspace

COPY, MOUNT = "copy", "mount"

# The oldest glibc of the wheels that environments are resolved for (target_platforms.UV_PLATFORMS: manylinux_2_28).
GLIBC_MINIMUM = (2, 28)


@dataclass(frozen=True, slots=True)
class BaseImage:
    """A base on one platform; `name` is what the image's label says of it."""

    platform: Platform
    brought: BroughtBase
    python: BasePython

    def layers(self) -> tuple[BuiltLayer, ...]:
        """Its layers as those of an image that stands on it."""
        roles = base_roles(len(self.brought.layers))
        return tuple(
            BuiltLayer(role, descriptor.annotated(**{"edgewright.layer": role}), diff_id, True, 0.0)
            for role, (descriptor, diff_id) in zip(roles, self.brought.layers, strict=True)
        )

    def plan(self) -> PlanBase:
        """What the plan of an image needs to know of it."""
        return PlanBase(self.brought.name, len(self.brought.layers), self.python.path, self.brought.env)


class Bases:
    """Finds bases for one workspace."""

    def __init__(
        self, workspace: Workspace, credentials: BaseCredentials | None = None, steps: Steps = no_steps
    ) -> None:
        self._workspace = workspace
        self._folder = workspace.cache / "bases"
        self._credentials = credentials or docker_logins
        self._steps = steps

    def find(
        self, base: str, platforms: Iterable[Platform], python: str, work: Path, *, upgrade: bool = False
    ) -> Mapping[Platform, BaseImage]:
        """The base on every platform, its layers in the store (or known to be in their registry); empty for `none`.

        Raises:
            BaseImageError: there is none such, or it does not fit the platform or Python `python`.
        """
        if base == NO_BASE:
            return {}
        source = self._source(base, upgrade)
        return {platform: self._on(source, platform, python, work) for platform in platforms}

    def _source(self, base: str, upgrade: bool) -> BaseSource:
        if self._workspace.store.resolve(base_tag(base)) is not None:
            return StoreSource(self._workspace.store, base)
        if _looks_like_a_path(base, self._workspace.root):
            return DiskSource(
                base, self._workspace.root, self._workspace.settings.image.dependencies_compression
            )
        try:
            ref = ImageRef.parse(base)
        except ContractError:
            ref = None
        if ref is None or ref.registry is None:
            raise self._unknown(base)
        pinned = self._pinned(ref, upgrade)
        stays = self._workspace.settings.image.base_layers == MOUNT
        return RegistrySource(
            pinned, self._credentials, self._remember_tag, stays_there=stays, steps=self._steps
        )

    def _unknown(self, base: str) -> BaseImageError:
        made = ", ".join(created_bases(self._workspace.store)) or "none yet"
        return BaseImageError(
            f"base {base!r} must be 'none', a base made here ({made}), a path (./FOLDER, ./FILE.tar), or an image with "
            "its registry (HOST/REPOSITORY:TAG)",
            where=base,
            next_command="edgewright image base create",
        )

    def _on(self, source: BaseSource, platform: Platform, python: str, work: Path) -> BaseImage:
        key = source.key(platform)
        found = self._remembered(key, platform) if key else None
        if found is None:
            found = self._bring(source, platform, work)
            self._remember(source.key(platform) or "", found)
        check_fits(found, python)
        return found

    def _bring(self, source: BaseSource, platform: Platform, work: Path) -> BaseImage:
        # What stays in its registry is fetched once to be looked into, and dropped with the work folder.
        store = ContentStore(work / "base") if source.stays_there else self._workspace.store
        with self._steps(f"bringing base {source.label} for {platform}"):
            brought = source.bring(store, platform)
            python = look_into(store, brought, source.label)
        return BaseImage(platform, brought, python)

    def _pinned(self, ref: ImageRef, upgrade: bool) -> ImageRef:
        if ref.is_pinned or upgrade:
            return ref
        try:
            return ref.with_digest(ImageDigest.parse(self._tag_file(ref).read_text(encoding="utf-8")))
        except (OSError, ContractError):
            return ref

    def _remember_tag(self, ref: ImageRef, digest: ImageDigest) -> None:
        self._write(self._tag_file(ref), str(digest).encode())

    def _tag_file(self, ref: ImageRef) -> Path:
        return self._folder / f"tag-{ImageDigest.of(str(ref).encode()).hex}"

    def _remembered(self, key: str, platform: Platform) -> BaseImage | None:
        try:
            entry = json.loads((self._folder / f"{key}.json").read_bytes())
            layers = tuple(_layer_of(each) for each in entry["layers"])
            python = BasePython(**entry["python"])
            brought = BroughtBase(entry["name"], layers, tuple(entry["env"]), entry["source"])
        except (OSError, ValueError, KeyError, TypeError, ContractError):
            return None
        if brought.source is None and not all(self._workspace.store.is_whole(each) for each, _ in layers):
            return None
        return BaseImage(platform, brought, python)

    def _remember(self, key: str, base: BaseImage) -> None:
        entry = {
            "name": base.brought.name,
            "env": list(base.brought.env),
            "source": base.brought.source,
            "layers": [{**layer.to_dict(), "diffId": str(diff_id)} for layer, diff_id in base.brought.layers],
            "python": base.python.to_dict(),
        }
        self._write(self._folder / f"{key}.json", canonical_json(entry))

    def _write(self, path: Path, data: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        part.write_bytes(data)
        part.replace(path)


def _layer_of(entry: dict[str, Any]) -> tuple[Descriptor, ImageDigest]:
    return Descriptor.from_dict(entry), ImageDigest.parse(entry["diffId"])


def _looks_like_a_path(base: str, root: Path) -> bool:
    return (
        base.startswith((".", "/", "~"))
        or base.endswith((".tar", ".tar.gz", ".tgz"))
        or (root / base).is_dir()
    )


def check_fits(base: BaseImage, python: str) -> None:
    """Refuse a base whose Python would not run what is put on it.

    Raises:
        BaseImageError: expected and found.
    """
    found, name = base.python, base.brought.name
    wanted = base.platform.architecture
    if found.architecture != wanted:
        raise BaseImageError(
            f"base {name} must be of architecture {wanted} for {base.platform}, its {found.path} is of "
            f"{found.architecture}",
            where=name,
        )
    if found.version != python:
        raise BaseImageError(
            f"base {name} has Python {found.version} ({found.path}), the environment is for Python {python}: set "
            f'environment.python = "{found.version}" in edgewright.toml, or take another base',
            where=name,
        )
    if found.libc != "glibc":
        raise BaseImageError(
            f"base {name} has the C library {found.libc}, packages are resolved for glibc: take a Debian-like base",
            where=name,
            next_command="edgewright image base create",
        )
    version = tuple(int(part) for part in re.findall(r"\d+", found.libc_version))
    if version and version < GLIBC_MINIMUM:
        least = ".".join(map(str, GLIBC_MINIMUM))
        raise BaseImageError(
            f"base {name} has glibc {found.libc_version}, packages need {least} or newer", where=name
        )

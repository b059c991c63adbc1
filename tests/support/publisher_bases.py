"""Bases for tests: tiny ones written here, with programs that are ELF headers alone."""

from __future__ import annotations

import gzip
import io
import json
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path

from edge_containers.image_model import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_LAYER_GZIP,
    OCI_MANIFEST,
    Descriptor,
    ImageConfig,
    ImageIndex,
    ImageManifest,
    Platform,
)
from edge_containers.store import ContentStore
from edge_contracts.image_ref import ImageDigest

MACHINES = {"amd64": 0x3E, "arm64": 0xB7}
LOADERS = {"amd64": "/lib64/ld-linux-x86-64.so.2", "arm64": "/lib/ld-linux-aarch64.so.1"}


def elf(architecture: str = "amd64", loader: str | None = None) -> bytes:
    """The head of a program: an ELF header, and one PT_INTERP segment that names the loader."""
    name = (loader or LOADERS[architecture]).encode() + b"\0"
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, MACHINES[architecture], 1, 0, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    return header + struct.pack("<IIQQQQQQ", 3, 4, 120, 0, 0, len(name), len(name), 1) + name


def base_files(architecture: str = "amd64", python: str = "3.11", glibc: str = "2.36") -> dict[str, bytes]:
    """A usable base; a value that begins with `->` is a symbolic link."""
    return {
        "usr/bin/python3": f"->python{python}".encode(),
        f"usr/bin/python{python}": elf(architecture),
        "usr/lib/libc.so.6": f"GNU C Library (Debian GLIBC) stable release version {glibc}.\n".encode(),
    }


def tar_of(files: Mapping[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for path, data in files.items():
            entry = tarfile.TarInfo(path)
            if data.startswith(b"->"):
                entry.type, entry.linkname = tarfile.SYMTYPE, data[2:].decode()
                tar.addfile(entry)
                continue
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def put_base(
    store: ContentStore, layers: Mapping[str, list[Mapping[str, bytes]]], env: tuple[str, ...] = ()
) -> Descriptor:
    """Store a base image with these layers (files) by architecture; the descriptor is its index's."""
    entries = []
    for architecture, contents in layers.items():
        tars = [tar_of(files) for files in contents]
        platform = Platform("linux", architecture)
        config = ImageConfig(platform, tuple(map(ImageDigest.of, tars)), env=env)
        blobs = [store.put_bytes(gzip.compress(tar, mtime=0)).describe(OCI_LAYER_GZIP) for tar in tars]
        manifest = ImageManifest(store.put_bytes(config.to_bytes()).describe(OCI_CONFIG), tuple(blobs))
        entries.append(store.put_bytes(manifest.to_bytes()).describe(OCI_MANIFEST, platform=platform))
    return store.put_bytes(ImageIndex(tuple(entries)).to_bytes()).describe(OCI_INDEX)


def docker_archive(path: Path, layers: list[Mapping[str, bytes]], architecture: str = "amd64") -> None:
    """What `docker save` of Docker 20.10 writes."""
    tars = [tar_of(files) for files in layers]
    config = ImageConfig(Platform("linux", architecture), tuple(map(ImageDigest.of, tars))).to_bytes()
    names = [f"{number}/layer.tar" for number in range(len(tars))]
    manifest = [{"Config": "config.json", "RepoTags": ["x:1"], "Layers": names}]
    files = dict(zip(names, tars, strict=True)) | {"config.json": config}
    path.write_bytes(tar_of({**files, "manifest.json": json.dumps(manifest).encode()}))

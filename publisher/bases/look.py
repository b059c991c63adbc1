"""What Python a base has, read from its layers' files without running anything.

The interpreter is the `python3` that the base's PATH finds. Its minor version is that of the file it leads to
(`python3.11`), architecture and C library are those of its ELF header: `e_machine` and the loader it names
(PT_INTERP). glibc's own version is in a sentence of `libc.so.6`.
"""

from __future__ import annotations

import gzip
import re
import struct
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import PurePosixPath
from typing import IO, Any, Protocol, cast

from edge_containers.image_model import OCI_LAYER_GZIP, OCI_LAYER_TAR, Descriptor
from edge_containers.store import ContentStore
from edge_contracts.image_ref import ImageDigest
from publisher.errors import BaseImageError
from publisher.image_plan import DEFAULT_PATH

MACHINES = {0x3E: "amd64", 0xB7: "arm64", 0x28: "arm", 0x03: "386", 0xF3: "riscv64"}

_PYTHON = re.compile(r"python3(?:\.(\d+))?")
_PROGRAM = re.compile(r"python3(?:\.\d+)?|java")
_LIBC_SENTENCE = re.compile(rb"GNU C Library [^\n]{0,80}? version (\d+\.\d+)")
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_HEAD_BYTES = 64 << 10
# Debian 12's is 1.9 MB.
_LIBC_LIMIT_BYTES = 32 << 20
_LINK_LIMIT = 16


@dataclass(frozen=True, slots=True)
class BasePython:
    """A base's interpreter, and what Spark needs beside it.

    Attributes:
        version: minor, as `3.11`.
        libc_version: empty where it was not found.
        java: path of a Java program, empty where there is none.
        pyspark: whether the package is there.
    """

    path: str
    version: str
    libc: str
    libc_version: str
    architecture: str
    java: str
    pyspark: bool

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Layered(Protocol):
    """What is looked into."""

    @property
    def layers(self) -> tuple[tuple[Descriptor, ImageDigest], ...]: ...

    @property
    def env(self) -> tuple[str, ...]: ...


@dataclass(slots=True)
class _Files:
    """The few files that matter: links by target, programs by the start of their bytes."""

    links: dict[str, str]
    heads: dict[str, bytes]
    libc_version: str = ""
    pyspark: bool = False

    def remove(self, path: str) -> None:
        for known in (self.links, self.heads):
            for each in [each for each in known if each == path or each.startswith(f"{path}/")]:
                del known[each]

    def resolve(self, path: str) -> str | None:
        """The file that `path` leads to, links followed inside the image."""
        for _ in range(_LINK_LIMIT):
            if path in self.heads:
                return path
            through = next((each for each in _prefixes(path) if each in self.links), None)
            if through is None:
                return None
            rest = path[len(through) :].lstrip("/")
            path = _normal(PurePosixPath("/", through).parent / self.links[through] / rest)
        return None


def look_into(store: ContentStore, base: Layered, label: str) -> BasePython:
    """Find a base's interpreter; `label` is for messages.

    Raises:
        BaseImageError: it has none, or a layer cannot be read.
    """
    files = _Files({}, {})
    for descriptor, _ in base.layers:
        with _opened(store, descriptor, label) as tar:
            _collect(tar, files)
    variables = dict(each.split("=", 1) for each in base.env if "=" in each)
    folders = variables.get("PATH", DEFAULT_PATH).split(":")
    java_homes = [f"{variables['JAVA_HOME']}/bin"] if "JAVA_HOME" in variables else []
    java = next(
        (f"{each}/java" for each in [*folders, *java_homes] if files.resolve(f"{each.strip('/')}/java")), ""
    )
    for folder in folders:
        found = files.resolve(f"{folder.strip('/')}/python3")
        if found is not None:
            return _described(f"{folder.rstrip('/')}/python3", found, files, java, label)
    raise BaseImageError(
        f"base {label} has no python3 on its PATH; a base must hold the Python that scores",
        where=label,
        next_command="edgewright image base create",
    )


def _described(path: str, found: str, files: _Files, java: str, label: str) -> BasePython:
    name = _PYTHON.fullmatch(PurePosixPath(found).name)
    if name is None or name[1] is None:
        raise BaseImageError(
            f"base {label}: {path} leads to /{found}, whose name does not tell its version (python3.N)",
            where=label,
        )
    machine, loader = read_elf(files.heads[found])
    libc = "musl" if "ld-musl" in loader else "glibc" if "ld-linux" in loader else loader or "unknown"
    architecture = MACHINES.get(machine, f"ELF machine {machine}")
    return BasePython(path, f"3.{name[1]}", libc, files.libc_version, architecture, java, files.pyspark)


def read_elf(head: bytes) -> tuple[int, str]:
    """Machine and loader of a program from its first bytes (ELF specification: header, PT_INTERP); 0 and "" for none."""
    if len(head) < 64 or head[:4] != b"\x7fELF" or head[5] != 1:
        return 0, ""
    wide = head[4] == 2
    machine = struct.unpack_from("<H", head, 18)[0]
    table = struct.unpack_from("<Q" if wide else "<I", head, 32 if wide else 28)[0]
    entry_size, count = struct.unpack_from("<HH", head, 54 if wide else 42)
    for number in range(count):
        at = table + number * entry_size
        if at + 40 > len(head):
            break
        if struct.unpack_from("<I", head, at)[0] == 3:
            offset = struct.unpack_from("<Q" if wide else "<I", head, at + (8 if wide else 4))[0]
            return machine, head[offset : offset + 256].split(b"\0")[0].decode("ascii", "replace")
    return machine, ""


def _collect(archive: tarfile.TarFile, files: _Files) -> None:
    while (member := archive.next()) is not None:
        path = _normal(PurePosixPath("/", member.name))
        name = PurePosixPath(path).name
        if name == _OPAQUE:
            files.remove(str(PurePosixPath(path).parent))
        elif name.startswith(_WHITEOUT):
            files.remove(str(PurePosixPath(path).with_name(name.removeprefix(_WHITEOUT))))
        elif member.issym():
            files.heads.pop(path, None)
            files.links[path] = member.linkname
        elif member.islnk() and _PROGRAM.fullmatch(name):
            files.links[path] = f"/{member.linkname}"
        elif member.isfile() and _PROGRAM.fullmatch(name):
            files.links.pop(path, None)
            files.heads[path] = _content(archive, member, _HEAD_BYTES)
        elif member.isfile() and (name == "libc.so.6" or re.fullmatch(r"libc-2\.\d+\.so", name)):
            found = _LIBC_SENTENCE.search(_content(archive, member, _LIBC_LIMIT_BYTES))
            files.libc_version = found[1].decode() if found else files.libc_version
        files.pyspark |= path.endswith("-packages/pyspark/__init__.py")
        # tarfile keeps every member for random access, which a stream has not.
        archive.members.clear()  # type: ignore[attr-defined]


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo, limit_bytes: int) -> bytes:
    source = archive.extractfile(member)
    return source.read(limit_bytes) if source is not None else b""


def _normal(path: PurePosixPath) -> str:
    """Without `/` at the start, `.` and `..` resolved as text."""
    parts: list[str] = []
    for part in path.parts:
        if part == "..":
            del parts[-1:]
        elif part not in ("/", "."):
            parts.append(part)
    return "/".join(parts)


def _prefixes(path: str) -> Iterator[str]:
    """`a`, `a/b`, `a/b/c`."""
    parts = path.split("/")
    return ("/".join(parts[:count]) for count in range(1, len(parts) + 1))


@contextmanager
def _opened(store: ContentStore, descriptor: Descriptor, label: str) -> Iterator[tarfile.TarFile]:
    if descriptor.media_type not in (OCI_LAYER_GZIP, OCI_LAYER_TAR):
        raise BaseImageError(
            f"base {label}: layer {descriptor.digest} must be a plain or gzip-compressed tar, not "
            f"{descriptor.media_type!r}; have the base pushed again with gzip",
            where=label,
        )
    with store.open(descriptor.digest) as blob:
        stream: IO[bytes] = (
            cast(IO[bytes], gzip.GzipFile(fileobj=blob)) if descriptor.media_type == OCI_LAYER_GZIP else blob
        )
        try:
            with tarfile.open(fileobj=stream, mode="r|") as tar:
                yield tar
        except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, ValueError) as error:
            raise BaseImageError(
                f"base {label}: layer {descriptor.digest} is damaged: {error}", where=label
            ) from error

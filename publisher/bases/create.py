"""Makes a slim Debian base with Python, by mmdebstrap, for any architecture and without emulation.

`--variant=extract` unpacks packages and runs none of their scripts: no root-only step, no foreign program. What scripts
would have made is made here (the bundle of certificates, two users), what is of the builder is dropped (host name, name
servers, package lists), and the tar is written anew: sorted, owner and time 0, no devices, no setuid bits. The same
packages give the same bytes. (mmdebstrap(1); the list is what numpy and onnxruntime load, found by running them.)
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from edge_containers.image_model import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    ImageConfig,
    ImageIndex,
    ImageManifest,
    Platform,
    read_config,
)
from edge_contracts.image_ref import ImageDigest
from publisher.bases.sources import base_tag, store_rootfs
from publisher.errors import BaseImageError, UsageError
from publisher.garbage import STORE_LOCK
from publisher.image_plan import DEFAULT_PATH
from publisher.steps import Steps, no_steps
from publisher.workspace import Workspace

DEFAULT_SUITE = "bookworm"
DEFAULT_MIRROR = "http://deb.debian.org/debian"
# libstdc++6: numpy and onnxruntime do not load without it.
PACKAGES = (
    "base-files",
    "ca-certificates",
    "libc6",
    "libgcc-s1",
    "libpython3-stdlib",
    "libstdc++6",
    "python3-minimal",
    "tzdata",
    "zlib1g",
)
# Spark starts its Java by shell scripts that call these.
JRE_PACKAGES = ("bash", "coreutils", "dash", "default-jre-headless", "procps", "sed", "grep")
# The link /usr/bin/java would be made by a package's script; this one is in the package.
JAVA_HOME = "/usr/lib/jvm/default-java"
DEBIAN_ARCHITECTURES = {"amd64": "amd64", "arm64": "arm64", "arm": "armhf"}

ATTEMPTS = 3
RETRY_DELAY_S = 2.0
TIMEOUT_S = 900.0
COMPRESSION = 6
FORMAT = 2
"""Counts up when the same packages would give another tar."""

CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
_PASSWD = (
    b"root:x:0:0:root:/root:/usr/sbin/nologin\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
)
_GROUP = b"root:x:0:\nnogroup:x:65534:\n"
_MADE = {"etc/passwd": _PASSWD, "etc/group": _GROUP}
# Of the builder, of apt, or for reading by people; licences (usr/share/doc/*/copyright) stay.
_DROPPED = re.compile(
    r"dev/.+|proc/.+|sys/.+|run/.+|tmp/.+|etc/(hostname|resolv\.conf|fstab|mtab)|etc/apt/.+|var/(cache|log|backups)/.+|"
    r"var/lib/apt/.+|etc/dpkg/dpkg\.cfg\.d/99mmdebstrap|usr/share/(man|locale|info|lintian)/.+|usr/share/doc/[^/]+/(?!copyright$).+|.+\.pyc"
)
_KEPT_MODE_BITS = 0o1777


@dataclass(frozen=True, slots=True)
class BaseRecipe:
    """What to make."""

    platform: Platform
    suite: str = DEFAULT_SUITE
    mirror: str = DEFAULT_MIRROR
    with_jre: bool = False
    packages: tuple[str, ...] = ()

    @property
    def all_packages(self) -> tuple[str, ...]:
        return tuple(sorted({*PACKAGES, *(JRE_PACKAGES if self.with_jre else ()), *self.packages}))

    @property
    def name(self) -> str:
        """How images name it: the suite, and what it has beside Python."""
        return f"{self.suite}-jre" if self.with_jre else self.suite

    @property
    def key(self) -> str:
        """Name of these inputs."""
        inputs = [FORMAT, str(self.platform), self.suite, self.mirror, self.all_packages]
        return hashlib.sha256(json.dumps(inputs).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class CreatedBase:
    """A base made here; `reused` when an earlier call had."""

    name: str
    platform: Platform
    digest: ImageDigest
    diff_id: ImageDigest
    size_bytes: int
    reused: bool


def create_base(
    workspace: Workspace,
    recipe: BaseRecipe,
    *,
    name: str | None = None,
    output_file: Path | None = None,
    refresh: bool = False,
    steps: Steps = no_steps,
    report: Callable[[str], None] = lambda line: None,
) -> CreatedBase:
    """Make a base and keep it in the workspace as `name`, beside those of other platforms under the same name.

    Args:
        output_file: also write the root file system's tar there.
        refresh: make it anew although it was made with the same packages before.
        report: takes what mmdebstrap says, line by line.

    Raises:
        BaseImageError: mmdebstrap is not installed, or failed in every attempt.
        UsageError: no Debian architecture, or a name that cannot be.
    """
    check_recipe(recipe, name := name or recipe.name)
    with workspace.lock(f"base-{name}"), workspace.lock(STORE_LOCK, shared=True):
        made = None if refresh else _made_before(workspace, recipe, name)
        if made is None:
            with workspace.work_folder() as work:
                tar = _rootfs(recipe, work, steps, report)
                with steps(f"keeping base {name} for {recipe.platform}"):
                    layer = store_rootfs(tar, workspace.store, COMPRESSION)
            made = _record(workspace, recipe, name, *layer)
            workspace.audit("base create", name, platform=str(recipe.platform), digest=str(made.digest))
        if output_file is not None:
            _write_out(workspace, made, output_file)
    return made


def check_recipe(recipe: BaseRecipe, name: str) -> None:
    """What can be known before work."""
    if recipe.platform.architecture not in DEBIAN_ARCHITECTURES:
        known = ", ".join(DEBIAN_ARCHITECTURES)
        raise UsageError(f"architecture must be one of {known}, not {recipe.platform.architecture!r}")
    for what, text in (("suite", recipe.suite), ("name of a base", name)):
        if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{0,63}", text) or text == "none":
            raise UsageError(f"{what} must be lower-case letters, digits and . + -, not {text!r}", where=text)
    for package in recipe.packages:
        if not re.fullmatch(r"[a-z0-9][a-z0-9.+-]+", package):
            raise UsageError(f"package must be a Debian package name, not {package!r}", where=package)


def _made_before(workspace: Workspace, recipe: BaseRecipe, name: str) -> CreatedBase | None:
    for entry in _entries(workspace, name):
        if entry.platform != recipe.platform:
            continue
        manifest = ImageManifest.from_bytes(workspace.store.read_bytes(entry.digest))
        config = read_config(workspace.store.read_bytes(manifest.config.digest), manifest, recipe.platform)
        if config.labels.get("edgewright.base-recipe") == recipe.key and all(
            map(workspace.store.is_whole, manifest.layers)
        ):
            [layer], [diff_id] = manifest.layers, config.diff_ids
            return CreatedBase(name, recipe.platform, layer.digest, diff_id, layer.size, reused=True)
    return None


def _entries(workspace: Workspace, name: str) -> tuple[Descriptor, ...]:
    tagged = workspace.store.resolve(base_tag(name))
    return ImageIndex.from_bytes(workspace.store.read_bytes(tagged.digest)).manifests if tagged else ()


def _record(
    workspace: Workspace, recipe: BaseRecipe, name: str, layer: Descriptor, diff_id: ImageDigest
) -> CreatedBase:
    """Name the layer as an image, in the place of an older one for the same platform."""
    store = workspace.store
    config = ImageConfig(
        recipe.platform,
        (diff_id,),
        labels={"edgewright.base-recipe": recipe.key},
        env=(f"PATH={DEFAULT_PATH}", *((f"JAVA_HOME={JAVA_HOME}",) if recipe.with_jre else ())),
        history=(f"debian {recipe.suite}: {' '.join(recipe.all_packages)}",),
    )
    manifest = ImageManifest(store.put_bytes(config.to_bytes()).describe(OCI_CONFIG), (layer,))
    described = store.put_bytes(manifest.to_bytes()).describe(OCI_MANIFEST, platform=recipe.platform)
    others = [entry for entry in _entries(workspace, name) if entry.platform != recipe.platform]
    entries = sorted([*others, described], key=lambda entry: str(entry.platform))
    store.tag(base_tag(name), store.put_bytes(ImageIndex(tuple(entries)).to_bytes()).describe(OCI_INDEX))
    return CreatedBase(name, recipe.platform, layer.digest, diff_id, layer.size, reused=False)


def _rootfs(recipe: BaseRecipe, work: Path, steps: Steps, report: Callable[[str], None]) -> Path:
    raw, tar = work / "mmdebstrap.tar", work / "rootfs.tar"
    with steps(f"making a Debian {recipe.suite} base for {recipe.platform}"):
        _mmdebstrap(recipe, raw, report)
    with tarfile.open(raw, "r:") as source, tar.open("wb") as sink:
        rewrite_rootfs(source, sink)
    raw.unlink()
    return tar


def _mmdebstrap(recipe: BaseRecipe, target: Path, report: Callable[[str], None]) -> None:
    """Run it, with all of the suite's archives first, then again, then with the main one alone.

    A mirror that is being updated has an index and files that do not fit together for a while, most often in the
    security archive.
    """
    program = shutil.which("mmdebstrap")
    if program is None:
        raise BaseImageError(
            "mmdebstrap, which makes base images, is not installed here; install it, or take a base from a registry "
            "or a tar with --base",
            where="mmdebstrap",
            next_command="sudo apt-get install mmdebstrap",
        )
    main_only = (f"deb {recipe.mirror} {recipe.suite} main",)
    tail = ""
    for attempt in range(ATTEMPTS):
        sources = main_only if attempt == ATTEMPTS - 1 else (recipe.mirror,)
        target.unlink(missing_ok=True)
        code, tail = _run(_arguments(program, recipe, target, sources), report)
        if code == 0:
            return
        report(f"attempt {attempt + 1} of {ATTEMPTS} failed (exit {code})")
        if attempt < ATTEMPTS - 1:
            time.sleep(RETRY_DELAY_S * (attempt + 1))
    raise BaseImageError(
        f"mmdebstrap made no base of {recipe.suite} for {recipe.platform} in {ATTEMPTS} attempts; it says: {tail}",
        where=recipe.mirror,
        temporary=True,
    )


def _arguments(program: str, recipe: BaseRecipe, target: Path, sources: Sequence[str]) -> list[str]:
    return [
        program,
        "--variant=extract",
        f"--architectures={DEBIAN_ARCHITECTURES[recipe.platform.architecture]}",
        f"--include={','.join(recipe.all_packages)}",
        '--aptopt=Acquire::Retries "3"',
        '--aptopt=Acquire::http::Timeout "60"',
        recipe.suite,
        str(target),
        *sources,
    ]


def _run(arguments: Sequence[str], report: Callable[[str], None]) -> tuple[int, str]:
    """Exit code, and what it said last."""
    lines: list[str] = []
    environ: Mapping[str, str] = {**os.environ, "SOURCE_DATE_EPOCH": "0", "LC_ALL": "C.UTF-8"}
    deadline = time.monotonic() + TIMEOUT_S
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environ,
        cwd="/",
        text=True,
        errors="replace",
        umask=0o022,
        start_new_session=True,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            lines = [*lines[-9:], line.strip()]
            report(line.rstrip())
            if time.monotonic() > deadline:
                break
        return process.wait(max(deadline - time.monotonic(), 1.0)), " / ".join(lines[-3:])
    except subprocess.TimeoutExpired:
        return -1, f"nothing for {TIMEOUT_S:g} s"
    finally:
        _end(process)


def _end(process: subprocess.Popen[str]) -> None:
    """Ctrl-C ends mmdebstrap as well; it removes its own folder then."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
    if process.stderr is not None:
        process.stderr.close()


def rewrite_rootfs(source: tarfile.TarFile, sink: IO[bytes]) -> None:
    """Write mmdebstrap's tar as a base's; see the module."""
    members = {_name(member.name): member for member in source}
    kept = {name: member for name, member in members.items() if name and not _DROPPED.fullmatch(name)}
    bundle = _certificates(source, kept)
    made = {**_MADE, CERTIFICATES: bundle} if bundle else dict(_MADE)
    with tarfile.open(fileobj=sink, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in sorted(kept.keys() | made.keys()):
            if name in made:
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(made[name]), 0o644
                tar.addfile(entry, io.BytesIO(made[name]))
            elif (normal := _normalised(name, kept[name])) is not None:
                tar.addfile(normal, source.extractfile(kept[name]) if kept[name].isreg() else None)


def _certificates(source: tarfile.TarFile, members: Mapping[str, tarfile.TarInfo]) -> bytes:
    """The bundle as update-ca-certificates(8) makes it: all of the package's, in the order of their names."""

    def bodies() -> Iterator[bytes]:
        for name in sorted(members):
            if name.startswith("usr/share/ca-certificates/") and name.endswith(".crt"):
                file = source.extractfile(members[name])
                yield file.read().strip() + b"\n" if file else b""

    return b"".join(bodies())


def _normalised(name: str, member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if not (member.isreg() or member.isdir() or member.issym() or member.islnk()):
        return None
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = member.type, member.size if member.isreg() else 0
    entry.linkname = _name(member.linkname) if member.islnk() else member.linkname
    # tmp keeps its sticky bit; setuid and setgid go.
    entry.mode = member.mode & _KEPT_MODE_BITS
    return entry


def _name(name: str) -> str:
    return name.removeprefix("./").strip("/") if name != "." else ""


def _write_out(workspace: Workspace, base: CreatedBase, output_file: Path) -> None:
    """The layer as a tar, plain or, named `.gz` or `.tgz`, compressed."""
    part = output_file.with_name(f".{output_file.name}.part")
    try:
        with workspace.store.open(base.digest) as blob, part.open("wb") as file:
            plain = output_file.suffix not in (".gz", ".tgz")
            shutil.copyfileobj(gzip.GzipFile(fileobj=blob) if plain else blob, file, 1 << 20)
        part.replace(output_file)
    except OSError as error:
        raise BaseImageError(
            f"{output_file} cannot be written: {error.strerror}", where=str(output_file)
        ) from error
    finally:
        part.unlink(missing_ok=True)

"""Modules as sandboxed processes: the runtime of a device without a container engine.

    ROOT/oci/                          content store
    ROOT/layers/sha256/HEX/            unpacked layers, by diff_id
    ROOT/images/HEX.json               what an image is, by the digest a deployment names; there when all of it is
    ROOT/modules/NAME/INSTANCE/        one started instance (see `instance`)
    ROOT/ports.json                    public ports that were chosen (see `public_ports`)

Rules:
- Only images without a base (label `edgewright.base` = none) run here, under the configured interpreter.
- The best tier that works is found by doing: a small program is started in it. Why a better one was passed over is in
  `report`. Without isolation nothing runs, unless that was allowed.
- Everything is written by rename; a process killed anywhere leaves the old state or the new one.
- One process at a time changes a root; others may look (`list`, `logs`, `stats`).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from edge_containers import sandbox, shim
from edge_containers.bundle import Bundle, read_bundle
from edge_containers.bytecode import Compiler
from edge_containers.image_model import Platform, StoredImage
from edge_containers.instance import Instance
from edge_containers.interpreter import Interpreter
from edge_containers.module_view import LayerFolder, ModuleView, labelled_folders, labelled_roles
from edge_containers.public_ports import LOOPBACK, PublicPorts, listen
from edge_containers.registry_client import BasicCredentials, RegistryClient
from edge_containers.runtime import (
    ImageNotPreparedError,
    IncompatibleImageError,
    ModuleSpec,
    ModuleStartError,
    ModuleStats,
    ModuleStatus,
    NoSuchInstanceError,
    PreparedImage,
    Progress,
    RunningModule,
    RuntimeReport,
    SandboxUnavailableError,
)
from edge_containers.store import ContentStore
from edge_containers.unpack import remove_unfinished, unpack_layer
from edge_contracts.create_options import CreateOptions
from edge_contracts.image_ref import ImageDigest, ImageRef

NAMESPACES, LANDLOCK, UNISOLATED = "namespaces", "landlock", "unisolated"
TIERS = (NAMESPACES, LANDLOCK, UNISOLATED)
"""From the most isolated to the least."""

_PYTHON_LAYERS = ("dependencies", "runtime")
HTTP_PORT_LABEL = "edgewright.http-port"
_DOCKER_REGISTRY = "docker.io"
_NAME = re.compile(r"[A-Za-z0-9_$][A-Za-z0-9_.$-]{0,127}")
_TMP_BYTES = 64 << 20
_LOG_BYTES, _LOG_FILES = 1_000_000, 3
_STOP_TIMEOUT_S = 10.0
_PROBE_TIMEOUT_S = 20.0
_PROBE = "import os; os.listdir('/proc/self'); os.listdir({folder!r}); open(os.environ['TMPDIR'] + '/probe', 'w').close()"


@dataclass(frozen=True, slots=True)
class Tier:
    """A way of isolation that was seen to work; `reason` tells why none better is used."""

    name: str
    user_namespace: bool
    reason: str


class ProcessRuntime:
    """The `ModuleRuntime` of this machine's own kernel; see the module. Safe to use from several threads."""

    def __init__(
        self,
        root: Path,
        python: Path,
        *,
        allow_unisolated: bool = False,
        port_range: tuple[int, int] = (20000, 29999),
        tiers: Sequence[str] = TIERS,
        ca_file: Path | None = None,
        store: ContentStore | None = None,
    ) -> None:
        """Open `root`, made when absent; nothing is started.

        Args:
            python: interpreter that images without a base run under; not the agent's own environment.
            allow_unisolated: whether modules may run with no isolation where there is no other way.
            port_range: first and last public port to choose from.
            tiers: those to consider, best first.
            ca_file: authorities a registry's certificate may come from, beside the system's.
            store: where blobs are, in place of `root`'s own; `collect_garbage` empties it of all but what it keeps.
        """
        self.root = root.absolute()
        self._python = python
        self._tiers = [tier for tier in tiers if tier != UNISOLATED or allow_unisolated]
        self._ca_file = ca_file
        self._modules = self.root / "modules"
        self._images = self.root / "images"
        self._layers = self.root / "layers" / "sha256"
        # Traversable, not readable: in the tiers without mounts a module's user passes through to its layers.
        for folder, mode in ((self.root, 0o711), (self._modules, 0o700), (self._images, 0o700)):
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(mode)
        for folder in (self._layers.parent, self._layers):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o755)
        self.store = store or ContentStore(self.root / "oci")
        self._ports = PublicPorts(self.root / "ports.json", port_range)
        self._compiler = Compiler()
        self._images_lock = threading.RLock()
        self._probe_lock = threading.RLock()
        self._interpreter: Interpreter | None = None
        self._tier: Tier | None = None

    def report(self) -> RuntimeReport:
        tier = self._chosen_tier()
        return RuntimeReport("process", tier.name, tier.reason)

    def pull(
        self, ref: ImageRef, credentials: BasicCredentials | None = None, progress: Progress | None = None
    ) -> PreparedImage:
        with (
            self._images_lock,
            RegistryClient(
                ref.registry or _DOCKER_REGISTRY, credentials=credentials, ca_file=self._ca_file
            ) as registry,
        ):
            pulled = registry.pull_image(ref, self._platform(), self.store, progress)
            digest = pulled.ref.digest or pulled.descriptor.digest
            return self.prepare(digest, bytes_received=pulled.bytes_received)

    def prepare(self, digest: ImageDigest, *, bytes_received: int = 0) -> PreparedImage:
        """Make an image whose blobs are in `store` ready to start: the second half of `pull`, without any network.

        Raises:
            ImageNotPreparedError: blobs of it are missing.
            IncompatibleImageError: it is for another interpreter, or its labels make no sense.
            ContainerError: a layer is not what its digests say, or the disk is full.
        """
        with self._images_lock:
            stored = self.store.find_image(digest, self._platform())
            if stored is None:
                raise ImageNotPreparedError(
                    f"image {digest} is not whole in {self.store.root}", where=str(digest)
                )
            image = self._checked_image(digest, stored, bytes_received)
            remove_unfinished(self._layers)
            for descriptor, diff_id in zip(stored.manifest.layers, image.layers.values(), strict=True):
                unpack_layer(self.store, descriptor, diff_id, self._layers / diff_id.hex)
            self._require_layer_folders(image)
            shim.write_json(str(self._image_file(digest)), _image_document(image))
            return image

    def load_bundle(self, file: BinaryIO, where: str) -> Bundle:
        with self._importing() as store:
            bundle = read_bundle(file, store, self._platform(), where=where)
            for image in bundle.images:
                if image.digest is not None:
                    self.prepare(image.digest)
            return bundle

    @contextlib.contextmanager
    def _importing(self) -> Iterator[ContentStore]:
        """The content store, for images that come by another way than `pull`: no garbage is collected meanwhile.

        What a block that fails has stored or prepared is taken out again.
        """
        with self._images_lock:
            folders = (self.store.blobs, self._images, self._layers)
            before = {folder: set(folder.iterdir()) for folder in folders}
            try:
                yield self.store
            except BaseException:
                for folder in folders:
                    _remove_all(set(folder.iterdir()) - before[folder])
                raise

    def _checked_image(self, digest: ImageDigest, stored: StoredImage, bytes_received: int) -> PreparedImage:
        labels, diff_ids = stored.config.labels, stored.config.diff_ids
        self._ask_interpreter().check(labels, stored.config.platform.architecture, str(digest))
        if len(diff_ids) != len(stored.manifest.layers):
            raise IncompatibleImageError(
                f"image {digest}: config must have a diff_id for each of {len(stored.manifest.layers)} layers, "
                f"not {len(diff_ids)}",
                where="rootfs.diff_ids",
            )
        roles = labelled_roles(labels, len(diff_ids), str(digest))
        labelled_folders(labels, roles, str(digest))
        _http_port(labels, str(digest))
        layers = dict(zip(roles, diff_ids, strict=True))
        return PreparedImage(digest, stored.descriptor.digest, labels, layers, bytes_received)

    def _require_layer_folders(self, image: PreparedImage) -> None:
        for layer in self._layer_folders(image):
            if not Path(layer.source).is_dir():
                raise IncompatibleImageError(
                    f"image {image.digest}: layer '{layer.role}' must hold the folder {layer.target} that the label "
                    "edgewright.layers names, it does not",
                    where="edgewright.layers",
                )

    def has_image(self, ref: ImageRef) -> bool:
        image = self._find_image(ref)
        return image is not None and all(
            (self._layers / diff_id.hex).is_dir() for diff_id in image.layers.values()
        )

    def start(self, spec: ModuleSpec, *, hold: bool = False) -> RunningModule:
        tier = self._chosen_tier()
        image = self._find_image(spec.image)
        if image is None:
            raise ImageNotPreparedError(
                f"module '{spec.name}': image {spec.image} has not been pulled", where=str(spec.image)
            )
        try:
            return self._started(spec, image, tier, hold=hold)
        except OSError as error:
            raise ModuleStartError(
                f"module '{spec.name}' could not be started: {shim.describe(error)}", where=str(self._modules)
            ) from error

    def _started(self, spec: ModuleSpec, image: PreparedImage, tier: Tier, *, hold: bool) -> RunningModule:
        instance = self._new_instance(spec.name, spec.instance_id)
        with ExitStack() as on_failure, ExitStack() as sockets:
            on_failure.callback(instance.delete)
            health = sockets.enter_context(listen(spec.name, (LOOPBACK, 0)))
            public = self._public_socket(spec, image.labels)
            if public is not None:
                sockets.enter_context(public)
            temporary = self._temporary(tier)
            if temporary is not None:
                on_failure.callback(shutil.rmtree, temporary, ignore_errors=True)
            view = self._view(tier, self._layer_folders(image), temporary, spec.workload_dir)
            _make_links(view.model_links())
            document = {
                **self._shim_document(tier, view, instance.folder, temporary),
                **_instance_document(spec, image, view, health=health, public=public, hold=hold),
            }
            instance.launch(document, filter(None, (health, public)))
            on_failure.pop_all()
        return instance.state()

    def _new_instance(self, name: str, instance_id: str) -> Instance:
        instance = Instance(self._instance_folder(name, instance_id))
        if (instance.folder / "spec.json").exists():
            raise ModuleStartError(
                f"module '{name}' has an instance {instance_id} already", where=str(instance.folder)
            )
        if instance.folder.is_dir():
            # Left by a start that was killed before it wrote down what to start.
            instance.delete()
        instance.folder.mkdir(mode=0o700, parents=True)
        return instance

    def _public_socket(self, spec: ModuleSpec, labels: Mapping[str, str]) -> socket.socket | None:
        """The socket of the instance that already serves this address, else a new one; None for no HTTP at all."""
        container_port = _http_port(labels, str(spec.image))
        if container_port is None:
            return None
        host, port = CreateOptions.parse(spec.create_options).host_port_for(container_port)
        wanted = self._ports.wanted(spec.name, host, port)
        for instance in self._instances(spec.name):
            if wanted is not None and instance.state().public_address == wanted:
                shared = instance.public_socket()
                if shared is not None:
                    return shared
        return self._ports.bind(spec.name, host, port)

    def _shim_document(
        self, tier: Tier, view: ModuleView, folder: Path, temporary: str | None
    ) -> dict[str, Any]:
        mountpoint = folder / "root"
        mountpoint.mkdir()
        return {
            "tier": tier.name,
            "userNamespace": tier.user_namespace,
            "cwd": view.working_dir,
            "root": {
                "mountpoint": str(mountpoint),
                "steps": view.root_steps() if tier.name == NAMESPACES else [],
                "tmpBytes": _TMP_BYTES,
            },
            "landlock": {"read": view.readable_paths(), "write": view.writable_paths()},
            "sockets": {"health": None, "public": None},
            "memoryLimitBytes": 0,
            "stopTimeoutS": _STOP_TIMEOUT_S,
            "logBytes": _LOG_BYTES,
            "logFiles": _LOG_FILES,
            "temporary": temporary,
        }

    def _temporary(self, tier: Tier) -> str | None:
        """A folder of the module's own to write to, outside our root, which its user may not enter."""
        if tier.name == NAMESPACES:
            return None
        folder = tempfile.mkdtemp(prefix="edgewright-")
        if sandbox.can_become_nobody():
            os.chown(folder, sandbox.NOBODY, sandbox.NOBODY)
        return folder

    def _view(
        self, tier: Tier, layers: Iterable[LayerFolder], temporary: str | None, workload_dir: Path | None
    ) -> ModuleView:
        return ModuleView(
            self._ask_interpreter(),
            layers,
            isolated_root=tier.name == NAMESPACES,
            temporary=temporary or "/tmp",
            workload_dir=workload_dir,
            hidden=self.root,
        )

    def _layer_folders(self, image: PreparedImage) -> list[LayerFolder]:
        folders = labelled_folders(image.labels, image.layers, str(image.digest))
        return [
            LayerFolder(role, target, f"{self._layers / image.layers[role].hex}{target}")
            for role, target in folders.items()
        ]

    def activate(self, name: str, instance_id: str) -> None:
        instance = self._running(name, instance_id)
        if instance.spec()["hold"]:
            instance.activate()

    def stop(self, name: str, instance_id: str, timeout_s: float = _STOP_TIMEOUT_S) -> RunningModule | None:
        instance = self._find_instance(name, instance_id)
        if instance is None:
            return None
        instance.stop(timeout_s)
        return instance.state()

    def list(self) -> list[RunningModule]:
        return sorted(self._states(), key=lambda state: state.started_at)

    def remove(self, name: str, instance_id: str) -> None:
        folder = self._instance_folder(name, instance_id)
        if not folder.is_dir():
            return
        instance = Instance(folder)
        instance.stop(_STOP_TIMEOUT_S)
        instance.delete()
        with contextlib.suppress(OSError):
            folder.parent.rmdir()

    def logs(self, name: str, tail: int | None = None) -> str:
        instances = sorted(self._instances(name), key=lambda each: each.spec()["startedAt"])
        lines = "".join(instance.log_text() for instance in instances).splitlines(keepends=True)
        return "".join(lines if tail is None else lines[max(0, len(lines) - tail) :])

    def stats(self, name: str, instance_id: str) -> ModuleStats:
        processes = self._running(name, instance_id).processes()
        tree = [] if processes is None else sandbox.descendants(processes["shim"]["pid"])
        return ModuleStats(
            memory_bytes=sandbox.memory_bytes(tree),
            cpu_s=sum(map(sandbox.cpu_s, tree)),
            processes=len(tree),
        )

    def collect_garbage(self, keep_images: Iterable[ImageRef]) -> int:
        with self._images_lock:
            used = [state.image for state in self._states()]
            kept = {ref.digest.hex for ref in [*keep_images, *used] if ref.digest is not None}
            for file in self._images.glob("*.json"):
                if file.stem not in kept:
                    file.unlink()
            images = [_read_image(file) for file in self._images.glob("*.json")]
            freed = self._delete_layers({layer.hex for image in images for layer in image.layers.values()})
            self._delete_leftovers()
            return freed + self.store.collect_garbage([image.digest for image in images])

    def prepare_quick_start(self, images: Iterable[ImageRef]) -> None:
        prepared = [image for image in map(self._find_image, images) if image is not None]
        layers = {image.layers[role].hex for image in prepared for role in _PYTHON_LAYERS}
        folders = [self._layers / name for name in sorted(layers)]
        self._compiler.start(self._ask_interpreter().executable, folders)

    def _delete_layers(self, kept: set[str]) -> int:
        freed = 0
        for folder in self._layers.iterdir():
            if folder.name not in kept and not folder.name.startswith("."):
                freed += _folder_bytes(folder)
                doomed = folder.with_name(f".{folder.name}.removed")
                folder.rename(doomed)
                shutil.rmtree(doomed, ignore_errors=True)
        return freed

    def _delete_leftovers(self) -> None:
        remove_unfinished(self._layers)
        for folder in (*self._layers.glob(".*.removed"), *self._modules.glob("*/.*.removed")):
            shutil.rmtree(folder, ignore_errors=True)

    def _states(self) -> Iterator[RunningModule]:
        for folder in sorted(self._modules.iterdir()):
            for instance in self._instances(folder.name):
                # Removed while we look.
                with contextlib.suppress(FileNotFoundError):
                    yield instance.state()

    def _instances(self, name: str) -> Iterator[Instance]:
        folder = self._modules / name
        if not folder.is_dir():
            return
        for each in sorted(folder.iterdir()):
            # A start that never came to its spec is no instance, a removed one no longer.
            if not each.name.startswith(".") and (each / "spec.json").exists():
                yield Instance(each)

    def _instance_folder(self, name: str, instance_id: str) -> Path:
        for what, value in (("module name", name), ("instance id", instance_id)):
            if not _NAME.fullmatch(value):
                raise ModuleStartError(
                    f"{what} must be up to 128 of [A-Za-z0-9_.$-], not starting with . or -, not {value!r}"
                )
        return self._modules / name / instance_id

    def _find_instance(self, name: str, instance_id: str) -> Instance | None:
        folder = self._instance_folder(name, instance_id)
        return Instance(folder) if (folder / "spec.json").exists() else None

    def _running(self, name: str, instance_id: str) -> Instance:
        instance = self._find_instance(name, instance_id)
        if instance is None or instance.state().status is not ModuleStatus.RUNNING:
            found = "there is none" if instance is None else "it has exited"
            raise NoSuchInstanceError(
                f"module '{name}' must have a running instance {instance_id}, {found}", where=name
            )
        return instance

    def _image_file(self, digest: ImageDigest) -> Path:
        return self._images / f"{digest.hex}.json"

    def _find_image(self, ref: ImageRef) -> PreparedImage | None:
        if ref.digest is None:
            raise ImageNotPreparedError(
                f"image must be given by digest, not '{ref}'", code="image-not-pinned", where=str(ref)
            )
        file = self._image_file(ref.digest)
        return _read_image(file) if file.exists() else None

    def _platform(self) -> Platform:
        return Platform("linux", self._ask_interpreter().architecture)

    def _ask_interpreter(self) -> Interpreter:
        with self._probe_lock:
            if self._interpreter is None:
                self._interpreter = Interpreter.ask(self._python)
            return self._interpreter

    def _chosen_tier(self) -> Tier:
        self._ask_interpreter()
        with self._probe_lock:
            if self._tier is None:
                self._tier = self._probe_tiers()
            return self._tier

    def _probe_tiers(self) -> Tier:
        reasons: list[str] = []
        for name in self._tiers:
            # Root needs no user namespace; in a container it may have one all the same, and nothing else.
            variants = (False, True) if name == NAMESPACES and os.geteuid() == 0 else (name == NAMESPACES,)
            for user_namespace in variants:
                tier = Tier(name, user_namespace, "; ".join(reasons))
                failure = self._probe(tier)
                if failure is None:
                    return tier
            reasons.append(f"{name}: {failure}")
        if UNISOLATED not in self._tiers:
            reasons.append(f"{UNISOLATED}: not allowed")
        raise SandboxUnavailableError(
            f"no sandbox for modules works on this machine: {'; '.join(reasons)}", where=str(self.root)
        )

    def _probe(self, tier: Tier) -> str | None:
        """Start a small program in the tier; why it did not work, or None."""
        folder = self.root / f".probe-{secrets.token_hex(4)}"
        folder.mkdir(mode=0o700)
        instance = Instance(folder)
        temporary = self._temporary(tier)
        layer = LayerFolder("script", "/opt/edgewright", str(self._layers))
        view = self._view(tier, [layer], temporary, None)
        program = _PROBE.format(folder=view.path("script"))
        document = {
            **self._shim_document(tier, view, folder, temporary),
            "name": "probe",
            "argv": [view.interpreter.executable, "-I", "-S", "-c", program],
            "env": {"TMPDIR": view.temporary},
        }
        try:
            instance.launch(document, ())
            code = instance.await_end(_PROBE_TIMEOUT_S)
            return None if code == 0 else _last_line(instance.log_text()) or f"exit code {code}"
        except ModuleStartError as error:
            return error.message.partition("started: ")[2]
        finally:
            instance.stop(0)
            instance.delete()


def _make_links(links: Mapping[str, str]) -> None:
    """Make links in the module's own temporary folder; whatever our umask, its user may pass through."""
    for path, source in links.items():
        version = Path(path)
        for folder in (version.parent.parent, version.parent):
            folder.mkdir(exist_ok=True)
            folder.chmod(0o755)
        version.symlink_to(source)


def _instance_document(
    spec: ModuleSpec,
    image: PreparedImage,
    view: ModuleView,
    *,
    health: socket.socket,
    public: socket.socket | None,
    hold: bool,
) -> dict[str, Any]:
    """What is the instance's own in spec.json, beside what its sandbox needs."""
    own = {"EDGEWRIGHT_HEALTH_FD": str(health.fileno())}
    if public is not None:
        own["EDGEWRIGHT_HTTP_FD"] = str(public.fileno())
    if hold:
        own["EDGEWRIGHT_HOLD"] = "1"
    return {
        "name": spec.name,
        "instance": spec.instance_id,
        "image": str(spec.image),
        "startedAt": time.time(),
        "hold": hold,
        "argv": view.command(),
        "env": view.environment(image.labels, spec.create_options, spec.env, own),
        "sockets": {"health": health.fileno(), "public": None if public is None else public.fileno()},
        "healthAddress": health.getsockname()[:2],
        "publicAddress": None if public is None else public.getsockname()[:2],
        "memoryLimitBytes": _memory_limit(spec),
    }


def _http_port(labels: Mapping[str, str], image: str) -> int | None:
    text = labels.get(HTTP_PORT_LABEL)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and 0 < int(text) <= 65535):
        raise IncompatibleImageError(
            f"image {image}: label {HTTP_PORT_LABEL} must hold a port, not {text!r}", where=HTTP_PORT_LABEL
        )
    return int(text)


def _memory_limit(spec: ModuleSpec) -> int:
    """`HostConfig.Memory` in bytes; 0, as in Docker, is no limit."""
    host_config = spec.create_options.get("HostConfig")
    value = host_config.get("Memory") if isinstance(host_config, Mapping) else None
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ModuleStartError(
            f"module '{spec.name}': HostConfig.Memory must be a number of bytes, not {value!r}",
            where="createOptions.HostConfig.Memory",
        )
    return value


def _image_document(image: PreparedImage) -> dict[str, object]:
    return {
        "digest": str(image.digest),
        "manifest": str(image.manifest_digest),
        "labels": dict(image.labels),
        "layers": {role: str(diff_id) for role, diff_id in image.layers.items()},
    }


def _read_image(file: Path) -> PreparedImage:
    document = json.loads(file.read_bytes())
    return PreparedImage(
        digest=ImageDigest.parse(document["digest"]),
        manifest_digest=ImageDigest.parse(document["manifest"]),
        labels=document["labels"],
        layers={role: ImageDigest.parse(text) for role, text in document["layers"].items()},
    )


def _remove_all(paths: Iterable[Path]) -> None:
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _folder_bytes(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*"))


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]

"""Builds scoring images in process: no daemon, no Dockerfile, no emulation, both platforms at once.

A layer is made only when nothing in the workspace has the same inputs; documents are always written, which costs
nothing and gives the same digests. Nothing refers to what is written until the index is, so a build that fails or is
interrupted leaves no image, only whole layers that the next build finds.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from importlib.metadata import distribution
from importlib.util import find_spec
from pathlib import Path

from edge_containers.image_model import (
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    ImageIndex,
    ImageManifest,
    Platform,
)
from edge_contracts.errors import PublishError
from publisher.bases.base import BaseImage, Bases
from publisher.build_request import BuildRequest
from publisher.builders.layer import (
    BuiltLayer,
    LayerCache,
    LayerFile,
    files_key,
    layer_key,
    timed,
    write_layer,
)
from publisher.config import EnvironmentSettings
from publisher.environments import Environment, EnvironmentLock, EnvironmentLocks, installed_files
from publisher.errors import BaseImageError, BuildCancelledError
from publisher.garbage import LAYER_CACHE
from publisher.golden import recording_platform
from publisher.golden_run import GoldenRun
from publisher.image_plan import (
    DEPENDENCIES_ROOT,
    RUNTIME_ROOT,
    SPARK,
    WITHOUT_BASE,
    ImagePlan,
    LayerRole,
    PlanBase,
    image_config,
)
from publisher.models import Model
from publisher.steps import Steps
from publisher.uv_runner import BuildLog, UvRunner
from publisher.workspace import Workspace

# Two dependency layers are made at a time: uv waits for the network, gzip for a core.
PARALLEL_PLATFORMS = 2
SMALL_LAYER_COMPRESSION = 6


@dataclass(frozen=True, slots=True)
class PlatformLayers:
    """One platform's layers, lowest first, and the lock of its dependencies."""

    platform: Platform
    layers: tuple[BuiltLayer, ...]
    lock: EnvironmentLock
    base: PlanBase = WITHOUT_BASE


@dataclass(frozen=True, slots=True)
class BuildResult:
    """A built image, in the store and not yet named."""

    index: Descriptor
    platforms: tuple[PlatformLayers, ...]
    seconds: float

    @property
    def size_bytes(self) -> int:
        """Bytes of all distinct layers, as they travel."""
        layers = (layer.descriptor for platform in self.platforms for layer in platform.layers)
        return sum({layer.digest: layer.size for layer in layers}.values())


class OciBuilder:
    """Builds into one workspace's store.

    `packages` says where they come from, by default as the workspace does; `offline` takes what is on this machine.
    """

    def __init__(
        self,
        workspace: Workspace,
        log: BuildLog,
        steps: Steps,
        packages: EnvironmentSettings | None = None,
        *,
        offline: bool = False,
    ) -> None:
        self._workspace = workspace
        self._store = workspace.store
        self._cache = LayerCache(workspace.cache / LAYER_CACHE, workspace.store)
        self._uv = UvRunner(packages or workspace.settings.environment, workspace.root, log, offline=offline)
        self._locks = EnvironmentLocks(workspace.cache / "locks", self._uv)
        self._log = log
        self._steps = steps
        self._stop = threading.Event()

    def build(self, request: BuildRequest) -> BuildResult:
        """Build a checked request.

        Raises:
            EnvironmentResolveError: a package that cannot be had.
            PublishError: a layer that cannot be made.
        """
        started = time.monotonic()
        plan = request.plan()
        with self._workspace.work_folder() as work, ThreadPoolExecutor(PARALLEL_PLATFORMS) as pool:
            bases = self._bases(request, work)
            jobs = [
                pool.submit(
                    self._dependencies,
                    request,
                    needed_environment(request, bases.get(platform)),
                    platform,
                    _subfolder(work, platform),
                )
                for platform in plan.platforms
            ]
            try:
                shared = self._shared_layers(request, plan)
                dependencies = _all_done(jobs)
                shared += self._script_layer(request, plan, shared, dependencies, work)
            except BaseException:
                self._stop.set()
                self._uv.cancel()
                raise
        platforms = tuple(
            _platform_layers(bases.get(lock.platform), lock, (layer, *shared)) for lock, layer in dependencies
        )
        index = self._write_documents(plan, platforms)
        return BuildResult(index, platforms, time.monotonic() - started)

    def _bases(self, request: BuildRequest, work: Path) -> Mapping[Platform, BaseImage]:
        bases = Bases(self._workspace, request.base_credentials, self._steps)
        return bases.find(
            request.base, request.platforms, request.environment.python, work, upgrade=request.upgrade
        )

    def _dependencies(
        self, request: BuildRequest, environment: Environment, platform: Platform, work: Path
    ) -> tuple[EnvironmentLock, BuiltLayer]:
        with self._steps(f"resolving dependencies for {platform}"):
            lock = self._locks.resolve(
                environment,
                platform,
                upgrade=request.upgrade,
                locked=request.locked,
                work=work,
            )
        level = self._workspace.settings.image.dependencies_compression
        key = layer_key(LayerRole.DEPENDENCIES, level, [str(lock.digest), str(platform), lock.python])
        return lock, self._layer(
            key, LayerRole.DEPENDENCIES, level, lambda: self._installed(lock, work), f" for {platform}"
        )

    def _installed(self, lock: EnvironmentLock, work: Path) -> list[LayerFile]:
        target = work / "installed"
        with self._steps(f"installing {len(lock.packages)} packages for {lock.platform}"):
            self._locks.install(lock, target, work=work)
        return installed_files(target, lock, DEPENDENCIES_ROOT.strip("/"))

    def _shared_layers(self, request: BuildRequest, plan: ImagePlan) -> list[BuiltLayer]:
        """Layers that all platforms share: runtime and models."""
        runtime = runtime_files()
        models = [
            self._model_layer(model, planned.root)
            for model, planned in zip(request.models, plan.models, strict=True)
        ]
        return [self._small_layer(LayerRole.RUNTIME, runtime), *models]

    def _script_layer(
        self,
        request: BuildRequest,
        plan: ImagePlan,
        shared: Sequence[BuiltLayer],
        dependencies: Sequence[tuple[EnvironmentLock, BuiltLayer]],
        work: Path,
    ) -> list[BuiltLayer]:
        """The script's and the golden cases' layer, shared by all platforms; none where there is neither."""
        files = request.script_files()
        if request.golden is None:
            return [self._small_layer(LayerRole.SCRIPT, files)] if files else []
        platform = recording_platform(plan.platforms)
        [below] = [layer for lock, layer in dependencies if lock.platform == platform]
        run = GoldenRun(plan, request.golden, files, (below, *shared))
        key = run.key(SMALL_LAYER_COMPRESSION)
        label = " with golden answers"
        return [
            self._layer(
                key, LayerRole.SCRIPT, SMALL_LAYER_COMPRESSION, lambda: self._golden(run, work), label
            )
        ]

    def _golden(self, run: GoldenRun, work: Path) -> list[LayerFile]:
        with self._steps("recording golden answers"):
            return run.files_with_answers(self._store, _named_folder(work, "golden"))

    def _model_layer(self, model: Model, root: str) -> BuiltLayer:
        level, inside = self._workspace.settings.image.model_compression, root.strip("/")
        key = layer_key(LayerRole.MODEL, level, [str(model.digest), inside])
        files = [
            LayerFile(f"{inside}/{file.path}", self._store.path(file.digest), file.executable)
            for file in model.files
        ]
        return self._layer(key, LayerRole.MODEL, level, lambda: files)

    def _small_layer(self, role: LayerRole, files: list[LayerFile]) -> BuiltLayer:
        key = files_key(role, SMALL_LAYER_COMPRESSION, files)
        return self._layer(key, role, SMALL_LAYER_COMPRESSION, lambda: files)

    def _layer(
        self,
        key: str,
        role: LayerRole,
        compression: int,
        files: Callable[[], Iterable[LayerFile]],
        whose: str = "",
    ) -> BuiltLayer:
        """The layer from the cache, or made of `files` and remembered; `whose` is for progress."""
        started = time.monotonic()
        layer = self._cache.get(key, role)
        if layer is None:
            sources = files()
            with self._steps(f"writing the {role} layer{whose}"):
                descriptor, diff_id = write_layer(
                    self._store, role, sources, compression=compression, stop=self._stop
                )
            layer = BuiltLayer(role, descriptor, diff_id, reused=False, seconds=0.0)
            self._cache.put(key, layer)
        return timed(layer, time.monotonic() - started)

    def _write_documents(self, plan: ImagePlan, platforms: Iterable[PlatformLayers]) -> Descriptor:
        manifests = tuple(self._write_manifest(plan, each) for each in platforms)
        index = ImageIndex(manifests)
        return self._store.put_bytes(index.to_bytes()).describe(OCI_INDEX)

    def _write_manifest(self, plan: ImagePlan, built: PlatformLayers) -> Descriptor:
        diff_ids = [layer.diff_id for layer in built.layers]
        config = image_config(plan, built.platform, built.lock.digest, diff_ids, built.base)
        manifest = ImageManifest(
            config=self._store.put_bytes(config.to_bytes()).describe(OCI_CONFIG),
            layers=tuple(layer.descriptor for layer in built.layers),
        )
        return self._store.put_bytes(manifest.to_bytes()).describe(OCI_MANIFEST, platform=built.platform)


def runtime_files() -> list[LayerFile]:
    """The runtime layer: the scoring runtime and paho, pure Python, from what is installed here."""
    root = RUNTIME_ROOT.strip("/")
    files = [
        LayerFile(f"{root}/{package}/{path.relative_to(folder).as_posix()}", path)
        for package in ("scoring_runtime", "paho")
        for folder in [_package_folder(package)]
        for path in sorted(folder.rglob("*.py"))
    ]
    return [*files, *(LayerFile(f"{root}/paho/{path.name}", path) for path in _licences("paho-mqtt"))]


def _package_folder(package: str) -> Path:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise PublishError(
            f"package {package}, which goes into every image, is not installed here",
            code="installation",
            next_command="pip install 'edgewright[publisher]'",
        )
    return Path(spec.submodule_search_locations[0])


def _licences(name: str) -> list[Path]:
    """Licence files of an installed distribution: whoever passes its code on passes these on (EPL-2.0, 3.2)."""
    listed = distribution(name).files or []
    return sorted(Path(str(each.locate())) for each in listed if each.name.upper().startswith("LICENSE"))


def needed_environment(request: BuildRequest, base: BaseImage | None) -> Environment:
    """What is to be installed: PySpark too, where the runtime is Spark's and the base has none.

    Raises:
        BaseImageError: the base has no Java runtime, and the runtime is Spark's.
    """
    environment = request.scoring_environment
    if request.runtime != SPARK or base is None:
        return environment
    if not base.python.java:
        raise BaseImageError(
            f"base {base.brought.name} has no Java runtime (java on its PATH or in its JAVA_HOME), which runtime spark-py "
            "needs",
            where=base.brought.name,
            next_command="edgewright image base create --with-jre",
        )
    asked = any(re.match(r"pyspark\b", each) for each in environment.requirements)
    if asked or base.python.pyspark:
        return environment
    return replace(environment, requirements=tuple(sorted([*environment.requirements, "pyspark"])))


def _platform_layers(
    base: BaseImage | None, lock: EnvironmentLock, own: tuple[BuiltLayer, ...]
) -> PlatformLayers:
    if base is None:
        return PlatformLayers(lock.platform, own, lock)
    return PlatformLayers(lock.platform, (*base.layers(), *own), lock, base.plan())


def _subfolder(work: Path, platform: Platform) -> Path:
    return _named_folder(work, str(platform).replace("/", "-"))


def _named_folder(work: Path, name: str) -> Path:
    folder = work / name
    folder.mkdir()
    return folder


def _all_done(
    jobs: list[Future[tuple[EnvironmentLock, BuiltLayer]]],
) -> list[tuple[EnvironmentLock, BuiltLayer]]:
    """Results in order; when one fails, its error rather than that of a job it made give up."""
    wait(jobs, return_when=FIRST_EXCEPTION)
    failed = [error for job in jobs if job.done() and (error := job.exception()) is not None]
    for error in failed:
        if not isinstance(error, BuildCancelledError):
            raise error
    return [job.result() for job in jobs]

"""The finished layers of an image, unpacked and run here once, for its golden answers."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_containers.store import ContentStore
from edge_containers.unpack import unpack_layer
from publisher.builders.layer import BuiltLayer, LayerFile, files_key, layer_key
from publisher.golden import (
    SCHEMA,
    RunnableLayers,
    golden_files,
    read_golden,
    record,
    recording_python,
    sample_of,
)
from publisher.image_plan import (
    APP_ROOT,
    DEPENDENCIES_ROOT,
    RUNTIME_ROOT,
    ImagePlan,
    LayerRole,
    image_environment,
)

_OWN_TO_ENGINES = ("PYTHONPATH", "EDGEWRIGHT_GOLDEN", "EDGEWRIGHT_MESSAGES")
_PATH = "/usr/local/bin:/usr/bin:/bin"


@dataclass(frozen=True, slots=True)
class GoldenRun:
    """What is to be run: `below` are the layers under the script's, of the platform that runs here."""

    plan: ImagePlan
    golden: Path
    script_files: Sequence[LayerFile]
    below: Sequence[BuiltLayer]

    def key(self, compression: int) -> str:
        """Name of the layer that comes out: whatever could change an answer."""
        requests = "" if self._from_schema else files_key("golden", 0, self._request_files())
        script = files_key(LayerRole.SCRIPT, 0, self.script_files)
        inputs = [requests, script, *(str(layer.diff_id) for layer in self.below)]
        return layer_key(LayerRole.SCRIPT, compression, inputs)

    def files_with_answers(self, store: ContentStore, work: Path) -> list[LayerFile]:
        """The script's files and the recorded cases.

        Raises:
            GoldenError: the image does not run here, or answers otherwise than was given.
        """
        layers = self._unpacked(store, work)
        cases = (sample_of(layers),) if self._from_schema else read_golden(self.golden)
        return [*self.script_files, *golden_files(cases, record(cases, layers))]

    @property
    def _from_schema(self) -> bool:
        return str(self.golden) == SCHEMA

    def _request_files(self) -> list[LayerFile]:
        files = sorted(self.golden.glob("*.json")) if self.golden.is_dir() else [self.golden]
        return [LayerFile(file.name, file) for file in files]

    def _unpacked(self, store: ContentStore, work: Path) -> RunnableLayers:
        """One folder as the image's root: hard to tell from it for anything that reads its variables."""
        root, unpacked = work / "root", work / "layers"
        unpacked.mkdir()
        for layer in self.below:
            folder = unpacked / layer.diff_id.hex
            unpack_layer(store, layer.descriptor, layer.diff_id, folder)
            # Moved, where nothing is in the way, rather than copied: dependencies are many files.
            _merge(folder, root)
        for file in self.script_files:
            target = root / file.path
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(file.source, bytes):
                target.write_bytes(file.source)
            else:
                shutil.copyfile(file.source, target)
        (root / APP_ROOT.strip("/")).mkdir(parents=True, exist_ok=True)
        temporary = work / "tmp"
        temporary.mkdir()
        return RunnableLayers(
            dependencies=root / DEPENDENCIES_ROOT.strip("/"),
            runtime=root / RUNTIME_ROOT.strip("/"),
            root=work,
            environment=self._environment(root, temporary),
            python=recording_python(self.plan.python),
        )

    def _environment(self, root: Path, temporary: Path) -> dict[str, str]:
        engines = image_environment(self.plan)
        rooted = {name: f"{root}{value}" for name, value in engines.items() if value.startswith(APP_ROOT)}
        own = {"PATH": _PATH, "LANG": "C.UTF-8", "HOME": str(temporary), "TMPDIR": str(temporary)}
        kept = {name: value for name, value in engines.items() if name not in _OWN_TO_ENGINES}
        return {**kept, **rooted, **own, "EDGEWRIGHT_MESSAGES": ""}


def _merge(source: Path, target: Path) -> None:
    if not target.exists():
        source.rename(target)
        return
    for entry in source.iterdir():
        if entry.is_dir() and not entry.is_symlink() and (target / entry.name).exists():
            _merge(entry, target / entry.name)
        else:
            entry.rename(target / entry.name)

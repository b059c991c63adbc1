"""What a module sees: which files of the machine and of its image, at which paths, in which environment.

Rules:
- The image's labels say where each layer's folder stands (DECISIONS I4), only ever beneath `LAYER_HOMES`; the image's
  own Env is not used.
- In the tier "namespaces" a module sees its layers at the labelled paths, beside the interpreter, the system's libraries
  and a few files of /etc (names, time zone, public certificates). A layer whose folder holds another's is bound entry by
  entry, for nothing can be mounted where the layer has no folder.
- One model is a layer of role `model`; of several, each is a layer of role `model:…` at FOLDER/NAME/VERSION, and
  AZUREML_MODEL_DIR is FOLDER. Where there are no mounts FOLDER is a folder of links to the layers.
- In the other tiers it sees the real paths; Landlock lets it read the same files.
- Environment, later wins: ours, the label `edgewright.environment`, createOptions' Env, the manifest's, then what names
  the paths and sockets. The label sets no variable that begins with one of `RESERVED_VARIABLES`.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from edge_containers.interpreter import Interpreter
from edge_containers.runtime import IncompatibleImageError

LAYER_HOMES = ("/opt/edgewright", "/var/azureml-app")
WORKLOAD_DIR = "/run/edgewright"
BOOTSTRAP = (
    "import runpy, sys\n"
    "sys.path += sys.argv[1:]\n"
    "del sys.argv[1:]\n"
    "runpy.run_module('scoring_runtime', run_name='__main__', alter_sys=True)\n"
)
_NEEDED_ROLES = ("dependencies", "runtime")
_MODEL_ROLE = "model"
_LINKED_MODELS = "azureml-models"

_SYSTEM_FOLDERS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_SYSTEM_FILES = (
    "/etc/ld.so.cache",
    "/etc/alternatives",
    "/etc/localtime",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/etc/nsswitch.conf",
    "/etc/services",
    "/etc/ssl/certs",
    "/etc/ssl/openssl.cnf",
    "/etc/pki/tls/certs",
    "/etc/pki/ca-trust/extracted",
    # onnxruntime counts processors here.
    "/sys/devices/system/cpu",
)
_DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")

_ENVIRONMENT = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    # It would write a device id and speak to its vendor.
    "ORT_DISABLE_TELEMETRY": "1",
}
_LABELLED_ENVIRONMENT = {
    "EDGEWRIGHT_MODEL": "edgewright.model",
    "EDGEWRIGHT_MESSAGES": "edgewright.messages",
    "EDGEWRIGHT_MODEL_FILE": "edgewright.model-file",
    "AZUREML_ENTRY_SCRIPT": "edgewright.entry-script",
    "EDGEWRIGHT_GOLDEN": "edgewright.golden",
}

RESERVED_VARIABLES = (
    "AML_",
    "AZUREML_",
    "EDGEWRIGHT_",
    "HOME",
    "IOTEDGE_",
    "LANG",
    "LD_",
    "PATH",
    "PYTHON",
    "ORT_",
)
"""What an image must not decide: where programs and libraries are, and what the runtime says to the module."""

Step = list[str]
_Kind = TypeVar("_Kind", list[Any], dict[str, Any])


@dataclass(frozen=True, slots=True)
class LayerFolder:
    """One layer's folder: `target` as labelled, `source` on this machine."""

    role: str
    target: str
    source: str


def labelled_roles(labels: Mapping[str, str], layer_count: int, image: str) -> tuple[str, ...]:
    """Roles of the layers, lowest first.

    Raises:
        IncompatibleImageError: the label is missing or does not fit the layers.
    """
    roles = _json_label(labels, "edgewright.layer-roles", list, image)
    if len(roles) != layer_count or len(set(map(str, roles))) != layer_count:
        raise _bad_label("edgewright.layer-roles", f"{layer_count} different roles", roles, image)
    return tuple(str(role) for role in roles)


def labelled_folders(labels: Mapping[str, str], roles: Iterable[str], image: str) -> dict[str, str]:
    """Role → path inside the image, for the roles the image has.

    Raises:
        IncompatibleImageError: a needed role has none, or a path stands outside `LAYER_HOMES`.
    """
    folders = _json_label(labels, "edgewright.layers", dict, image)
    for role in _NEEDED_ROLES:
        if role not in folders or role not in roles:
            raise _bad_label("edgewright.layers", f"a folder and a layer for {role!r}", folders, image)
    models = [folders[role] for role in roles if _is_model(role) and role in folders]
    if not models:
        raise _bad_label("edgewright.layers", "a folder and a layer for 'model'", folders, image)
    if len(models) > 1 and len({str(_models_folder(path)) for path in models}) > 1:
        raise _bad_label("edgewright.layers", "models as NAME/VERSION in one folder", models, image)
    for path in folders.values():
        if not _is_layer_home(path):
            raise _bad_label("edgewright.layers", f"paths beneath {' or '.join(LAYER_HOMES)}", path, image)
    return {role: folders[role] for role in roles if role in folders}


def own_variables(labels: Mapping[str, str]) -> dict[str, str]:
    """The variables that the image's script asks for; what is no text or is reserved is left out."""
    try:
        found = json.loads(labels.get("edgewright.environment", "{}"))
    except ValueError:
        return {}
    return {
        name: value
        for name, value in (found.items() if isinstance(found, dict) else ())
        if isinstance(value, str) and "\0" not in value and is_own_variable(name)
    }


def is_own_variable(name: str) -> bool:
    """Whether an image may set this variable."""
    return name.isascii() and name.isidentifier() and not name.upper().startswith(RESERVED_VARIABLES)


def _is_model(role: str) -> bool:
    return role == _MODEL_ROLE or role.startswith(f"{_MODEL_ROLE}:")


def _models_folder(path: object) -> PurePosixPath:
    return PurePosixPath(str(path)).parent.parent


def _is_layer_home(path: object) -> bool:
    if not isinstance(path, str) or os.path.normpath(path) != path:
        return False
    return any(path == home or path.startswith(f"{home}/") for home in LAYER_HOMES)


def _json_label(labels: Mapping[str, str], name: str, kind: type[_Kind], image: str) -> _Kind:
    value: object = labels.get(name)
    with contextlib.suppress(KeyError, ValueError):
        value = json.loads(labels[name])
    if not isinstance(value, kind):
        raise _bad_label(name, f"a JSON {kind.__name__}", value, image)
    return value


def _bad_label(name: str, expected: str, found: object, image: str) -> IncompatibleImageError:
    return IncompatibleImageError(
        f"image {image}: label {name} must hold {expected}, not {found!r}", where=name
    )


class ModuleView:
    """One module's paths, environment and sandbox in a tier."""

    def __init__(
        self,
        interpreter: Interpreter,
        layers: Iterable[LayerFolder],
        *,
        isolated_root: bool,
        temporary: str,
        workload_dir: Path | None,
        hidden: Path,
    ) -> None:
        """Args: isolated_root: labelled paths apply; temporary: the module's only writable folder; hidden: never seen."""
        self.interpreter = interpreter
        self.layers = {layer.role: layer for layer in layers}
        self.isolated_root = isolated_root
        self.temporary = temporary
        self.workload_dir = workload_dir
        self.hidden = str(hidden.resolve())

    def path(self, role: str) -> str | None:
        """The layer's folder as the module names it."""
        layer = self.layers.get(role)
        return None if layer is None else layer.target if self.isolated_root else layer.source

    @property
    def model_dir(self) -> str:
        """The folder of the one model, or the one that holds NAME/VERSION of each."""
        models = self._models()
        if len(models) == 1:
            return str(self.path(models[0].role))
        if self.isolated_root:
            return str(_models_folder(models[0].target))
        return f"{self.temporary}/{_LINKED_MODELS}"

    def model_links(self) -> dict[str, str]:
        """Links that make `model_dir` where nothing can be mounted: path → the layer's folder."""
        models = self._models()
        if self.isolated_root or len(models) < 2:
            return {}
        return {
            f"{self.model_dir}/{PurePosixPath(each.target).relative_to(_models_folder(each.target))}": each.source
            for each in models
        }

    def _models(self) -> list[LayerFolder]:
        return [layer for role, layer in self.layers.items() if _is_model(role)]

    @property
    def working_dir(self) -> str:
        return self.path("script") or ("/" if self.isolated_root else self.temporary)

    def command(self) -> list[str]:
        """Isolated from the machine's packages: the image's folders alone are added to the standard library.

        Behind it, not before, as installed packages are. -u: lines of a module that is killed are not lost.
        """
        folders = [str(self.path("dependencies")), str(self.path("runtime"))]
        return [self.interpreter.executable, "-I", "-S", "-u", "-B", "-c", BOOTSTRAP, *folders]

    def environment(
        self,
        labels: Mapping[str, str],
        create_options: Mapping[str, object],
        manifest: Mapping[str, str],
        own: Mapping[str, str],
    ) -> dict[str, str]:
        """The module's whole environment; `own` is what the runtime itself has to say, above all else."""
        labelled = {name: labels[label] for name, label in _LABELLED_ENVIRONMENT.items() if label in labels}
        listed = create_options.get("Env")
        options = (
            dict(str(each).split("=", 1) for each in listed if "=" in str(each))
            if isinstance(listed, list)
            else {}
        )
        script = self.path("script")
        paths = {
            "AZUREML_MODEL_DIR": self.model_dir,
            "TMPDIR": self.temporary,
            "HOME": self.temporary,
            **({"AML_APP_ROOT": script} if script is not None else {}),
        }
        return {
            **_ENVIRONMENT,
            **own_variables(labels),
            **labelled,
            **options,
            **self._workload(manifest),
            **paths,
            **own,
        }

    def _workload(self, manifest: Mapping[str, str]) -> dict[str, str]:
        if self.isolated_root or self.workload_dir is None:
            return dict(manifest)
        inside, real = f"unix://{WORKLOAD_DIR}/", f"unix://{self.workload_dir.resolve()}/"
        return {
            name: value.replace(inside, real, 1) if value.startswith(inside) else value
            for name, value in manifest.items()
        }

    def root_steps(self) -> list[Step]:
        """How `sandbox.enter_root` furnishes the root; links last, so that no target runs through one."""
        binds = [["bind", path, path] for path in self._machine_folders()]
        binds += [["bind", os.path.realpath(path), path] for path in _existing(_SYSTEM_FILES)]
        hide = [["hide", self.hidden]] if _is_beneath(self.hidden, self._machine_folders()) else []
        links = [
            ["link", str(Path(path).readlink()), path] for path in _SYSTEM_FOLDERS if Path(path).is_symlink()
        ]
        steps = [*binds, *hide, *layer_steps({each.target: each.source for each in self.layers.values()})]
        if self.workload_dir is not None:
            steps.append(["bind", str(self.workload_dir.resolve()), WORKLOAD_DIR])
        return sorted([*steps, *links], key=lambda step: step[0] == "link")

    def _machine_folders(self) -> list[str]:
        system = [path for path in _existing(_SYSTEM_FOLDERS) if not Path(path).is_symlink()]
        found: list[str] = []
        for folder in [*system, *self.interpreter.folders]:
            if not _is_beneath(folder, found):
                found.append(folder)
        return found

    def readable_paths(self) -> list[str]:
        """What Landlock lets it read."""
        own = [layer.source for layer in self.layers.values()]
        own += [] if self.workload_dir is None else [str(self.workload_dir.resolve())]
        return [*self._machine_folders(), *_existing(_SYSTEM_FILES), "/proc", *own]

    def writable_paths(self) -> list[str]:
        return [self.temporary, *_existing(_DEVICES)]


def layer_steps(folders: Mapping[str, str]) -> list[Step]:
    """Steps that bind each source at its target, where targets may stand inside one another."""
    steps: list[Step] = []
    for target, source in sorted(folders.items()):
        steps += _place(source, target, [other for other in folders if other.startswith(f"{target}/")])
    return steps


def _place(source: str, target: str, nested: list[str]) -> list[Step]:
    if not nested:
        return [["bind", source, target]]
    steps: list[Step] = []
    for entry in sorted(os.scandir(source), key=lambda entry: entry.name):
        inside = str(PurePosixPath(target) / entry.name)
        below = [other for other in nested if other.startswith(f"{inside}/")]
        if inside in nested:
            continue
        if entry.is_symlink():
            steps.append(["link", str(Path(entry.path).readlink()), inside])
        elif entry.is_dir():
            steps += _place(entry.path, inside, below)
        else:
            steps.append(["bind", entry.path, inside])
    return steps


def _existing(paths: Iterable[str]) -> list[str]:
    return [path for path in paths if Path(path).exists()]


def _is_beneath(path: str, folders: Iterable[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder.rstrip('/')}/") for folder in folders)

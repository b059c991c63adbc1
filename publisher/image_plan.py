"""From a model, a script and locked environments to what an image consists of: pure, no I/O.

An image without a base has four layers (three for a bare ONNX model, which needs no script; one more for each further
model), lowest first:

    dependencies  opt/edgewright/dependencies/…                      per platform
    runtime       opt/edgewright/runtime/{scoring_runtime,paho}/…    one blob for all platforms
    model         var/azureml-app/azureml-models/NAME/VERSION/…      one blob for all platforms
    script        var/azureml-app/…                                  one blob for all platforms

An image with a base has the base's layers below these (`base`, `base-2`, …), as they are.

What changes most often comes last, so that a new model or script leaves every blob below it as it was. The process
runtime reads the labels; `Env`, `Cmd` and `User` say the same to a container engine.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from edge_containers.image_model import ImageConfig, Platform
from edge_contracts.image_ref import ImageDigest

HTTP_PORT = 5001
APP_ROOT = "/var/azureml-app"
MODELS_FOLDER = "azureml-models"
GOLDEN_FOLDER = "golden"
MODELS_ROOT = f"{APP_ROOT}/{MODELS_FOLDER}"
DEPENDENCIES_ROOT = "/opt/edgewright/dependencies"
RUNTIME_ROOT = "/opt/edgewright/runtime"
DEFAULT_MESSAGES = "input1=output1"

# nobody and nogroup of every Debian: scoring needs no right of its own.
USER = "65534:65534"


NO_BASE = "none"
PYTHON, SPARK = RUNTIMES = ("python", "spark-py")
# Of Docker's own images; for a base that says none.
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class LayerRole(StrEnum):
    """What a layer holds; the value is the role in annotations and, but for one of several models, in labels.

    Roles in labels are unique: of several models each is `model:NAME:VERSION` there.
    """

    BASE = "base"
    DEPENDENCIES = "dependencies"
    RUNTIME = "runtime"
    MODEL = "model"
    SCRIPT = "script"


@dataclass(frozen=True, slots=True)
class PlannedModel:
    """One model of an image; `file` is its base name when it is a single file, else None."""

    name: str
    version: int
    file: str | None = None

    @property
    def id(self) -> str:
        """`name:version`."""
        return f"{self.name}:{self.version}"

    @property
    def root(self) -> str:
        """Folder of the model inside the image."""
        return f"{MODELS_ROOT}/{self.name}/{self.version}"


@dataclass(frozen=True, slots=True)
class PlanBase:
    """What an image stands on, on one platform.

    Attributes:
        name: value of the label `edgewright.base`.
        layer_count: how many layers it has.
        python: path of its interpreter; by PATH when there is no base.
        env: its environment, `NAME=value`.
    """

    name: str = NO_BASE
    layer_count: int = 0
    python: str = "python3"
    env: tuple[str, ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        """`env` as a mapping, with a PATH."""
        given = dict(each.split("=", 1) for each in self.env if "=" in each)
        return {"PATH": DEFAULT_PATH, **given} if self.layer_count else {}


WITHOUT_BASE = PlanBase()


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """Everything that decides an image but the bytes of its files.

    Attributes:
        models: at least one; each is a layer of its own.
        entry_script: base name of the script; None for a bare ONNX model.
        python: minor version, as `3.11`.
        messages: which message input goes to which output.
        variables: environment variables of the script's own; those that place the runtime's parts are not taken.
        runtime: `python` or `spark-py`.
        golden: whether the script layer has golden cases, which the runtime checks before it is ready.
    """

    models: tuple[PlannedModel, ...]
    entry_script: str | None
    python: str
    platforms: tuple[Platform, ...]
    messages: str = DEFAULT_MESSAGES
    golden: bool = False
    variables: Mapping[str, str] = field(default_factory=dict)
    runtime: str = PYTHON

    @property
    def model_ids(self) -> str:
        """`name:version` of every model, joined by commas."""
        return ",".join(model.id for model in self.models)

    @property
    def model_file(self) -> str | None:
        """The file of the one model there is, where it is a single file."""
        return self.models[0].file if len(self.models) == 1 else None

    @property
    def model_dir(self) -> str:
        """AZUREML_MODEL_DIR: the folder of the one model, or the one that holds NAME/VERSION of each."""
        return self.models[0].root if len(self.models) == 1 else MODELS_ROOT

    @property
    def directories(self) -> Mapping[str, str]:
        """Where each layer's content is inside the image, by role, lowest layer first."""
        one = len(self.models) == 1
        models = {
            LayerRole.MODEL if one else f"{LayerRole.MODEL}:{each.id}": each.root for each in self.models
        }
        folders = {
            LayerRole.DEPENDENCIES: DEPENDENCIES_ROOT,
            LayerRole.RUNTIME: RUNTIME_ROOT,
            **models,
            **({LayerRole.SCRIPT: APP_ROOT} if self.entry_script is not None or self.golden else {}),
        }
        return {str(role): folder for role, folder in folders.items()}

    def roles(self, base: PlanBase) -> tuple[str, ...]:
        """Roles of the layers, lowest first."""
        return (*base_roles(base.layer_count), *self.directories)


def base_roles(count: int) -> tuple[str, ...]:
    """Roles of a base's layers, all different: `base`, `base-2`, …"""
    return tuple(LayerRole.BASE if number == 1 else f"base-{number}" for number in range(1, count + 1))


def image_labels(plan: ImagePlan, lock: ImageDigest, base: PlanBase = WITHOUT_BASE) -> dict[str, str]:
    """The labels of one platform's config; `lock` is the digest of its lock file."""
    labels = {
        "edgewright.base": base.name,
        "edgewright.python": plan.python,
        "edgewright.libc": "glibc",
        "edgewright.layers": _json(dict(plan.directories)),
        "edgewright.layer-roles": _json(plan.roles(base)),
        "edgewright.http-port": str(HTTP_PORT),
        "edgewright.contract": "score",
        "edgewright.lock-digest": str(lock),
        "edgewright.model": plan.model_ids,
        "edgewright.messages": plan.messages,
    }
    optional = {
        "edgewright.entry-script": plan.entry_script,
        "edgewright.model-file": plan.model_file,
        "edgewright.golden": GOLDEN_FOLDER if plan.golden else None,
        "edgewright.environment": _json(dict(sorted(plan.variables.items()))) if plan.variables else None,
    }
    return labels | {name: value for name, value in optional.items() if value is not None}


def image_environment(plan: ImagePlan, base: PlanBase = WITHOUT_BASE) -> dict[str, str]:
    """What a container engine sets for the scoring runtime; the process runtime composes the same from the labels."""
    optional = {
        "AZUREML_ENTRY_SCRIPT": plan.entry_script,
        "EDGEWRIGHT_MODEL_FILE": plan.model_file,
        "EDGEWRIGHT_GOLDEN": GOLDEN_FOLDER if plan.golden else None,
    }
    return (
        base.environment
        | (spark_environment(base) if plan.runtime == SPARK else {})
        | plan.variables
        | {
            "PYTHONPATH": f"{DEPENDENCIES_ROOT}:{RUNTIME_ROOT}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTHONUNBUFFERED": "1",
            "AML_APP_ROOT": APP_ROOT,
            "AZUREML_MODEL_DIR": plan.model_dir,
            "EDGEWRIGHT_MODEL": plan.model_ids,
            "EDGEWRIGHT_MESSAGES": plan.messages,
            "HOME": "/tmp",
            # onnxruntime's Linux wheels report usage to their maker unless told not to.
            "ORT_DISABLE_TELEMETRY": "1",
        }
        | {name: value for name, value in optional.items() if value is not None}
    )


def spark_environment(base: PlanBase) -> dict[str, str]:
    """For Spark in one container: its Java is reached on loopback, and its workers are the same Python."""
    return {
        "PYSPARK_PYTHON": base.python,
        "PYSPARK_DRIVER_PYTHON": base.python,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "SPARK_LOCAL_DIRS": "/tmp",
    }


def image_config(
    plan: ImagePlan,
    platform: Platform,
    lock: ImageDigest,
    diff_ids: Sequence[ImageDigest],
    base: PlanBase = WITHOUT_BASE,
) -> ImageConfig:
    """One platform's config; `diff_ids` in the order of `plan.roles(base)`."""
    return ImageConfig(
        platform=platform,
        diff_ids=tuple(diff_ids),
        labels=image_labels(plan, lock, base),
        env=tuple(f"{name}={value}" for name, value in sorted(image_environment(plan, base).items())),
        cmd=(base.python, "-m", "scoring_runtime", "--host", "0.0.0.0", "--port", str(HTTP_PORT)),
        exposed_ports=(f"{HTTP_PORT}/tcp",),
        user=USER,
        working_dir=APP_ROOT,
        history=plan.roles(base),
    )


def _json(value: object) -> str:
    return json.dumps(value, separators=(",", ":"))

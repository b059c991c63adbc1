"""What is noted of a registered model beside its files: framework, and what it should be given to run.

Nothing of it changes how a model is stored or scored; it is kept, listed and searched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from publisher.errors import UsageError

REFUSED: Mapping[str, str] = {
    "datasets": "note what it was trained on in its properties",
    "sample_input_dataset": "put a sample into the model's folder, or into the script's schema",
    "sample_output_dataset": "put a sample into the model's folder, or into the script's schema",
}
"""Parameters of the original that need its data sets, which there are none of here, with the way out."""


class Framework:
    """Frameworks as the original names them; any other name is taken too."""

    CUSTOM = "Custom"
    TENSORFLOW = "TensorFlow"
    SCIKITLEARN = "ScikitLearn"
    ONNX = "Onnx"
    TFKERAS = "TfKeras"
    PYTORCH = "PyTorch"
    MULTI = "Multi"


@dataclass(frozen=True, slots=True)
class ResourceConfiguration:
    """What a model should be given to run; all above 0 where given, GPUs whole."""

    cpu: float | None = None
    memory_in_gb: float | None = None
    gpu: int | None = None

    def __post_init__(self) -> None:
        for name, kinds in (("cpu", (int, float)), ("memory_in_gb", (int, float)), ("gpu", (int,))):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, kinds) or value <= 0):
                raise UsageError(f"{name} must be a number above 0, not {value!r}", where=name)


@dataclass(frozen=True, slots=True)
class ModelDetails:
    """What `Model.register` was told beside names and labels."""

    framework: str | None = None
    framework_version: str | None = None
    resources: ResourceConfiguration | None = None

    def __post_init__(self) -> None:
        for name in ("framework", "framework_version"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, str) or not value):
                raise UsageError(f"model_{name} must be a text, not {value!r}", where=f"model_{name}")
        if self.framework_version and not self.framework:
            raise UsageError(
                f"model_framework_version {self.framework_version!r} needs a model_framework",
                where="model_framework_version",
            )
        if self.resources is not None and not isinstance(self.resources, ResourceConfiguration):
            raise UsageError(
                f"resource_configuration must be a ResourceConfiguration, not {type(self.resources).__name__}",
                where="resource_configuration",
            )

    def to_dict(self) -> dict[str, Any]:
        """As rows and documents hold it, in the original's names."""
        resources = self.resources
        return {
            "framework": self.framework,
            "frameworkVersion": self.framework_version,
            "resourceConfiguration": None
            if resources is None
            else {"cpu": resources.cpu, "memoryInGB": resources.memory_in_gb, "gpu": resources.gpu},
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> Self:
        """What `to_dict` gave; an empty document is of a model registered before there were details."""
        kept = document.get("resourceConfiguration")
        return cls(
            document.get("framework"),
            document.get("frameworkVersion"),
            kept and ResourceConfiguration(kept["cpu"], kept["memoryInGB"], kept["gpu"]),
        )


def refuse_datasets(given: Mapping[str, object]) -> None:
    """Refuse, by name, what needs data sets."""
    for name, advice in REFUSED.items():
        if given[name] is not None:
            raise UsageError(f"{name} is not supported, there are no data sets here: {advice}", where=name)

"""Package names of Azure ML's time that images do without or know under another name.

What an image has in place of each is in the scoring runtime: its server, and `azureml.*` modules that old scripts import.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name


@dataclass(frozen=True, slots=True)
class OldName:
    """What a name stands for today.

    Attributes:
        now: the package to install in its place; None where none is needed.
        why: the rest of the sentence "NAME …", for the user.
        keeps_version: whether the version range asked for means the same under the new name.
    """

    now: str | None
    why: str
    keeps_version: bool = False


_SERVER = "is Azure ML's scoring server, whose place the image's own runtime takes"
_SHIM = "is not installed: the image has the azureml modules that entry scripts import"

OLD_NAMES: Mapping[str, OldName] = {
    "sklearn": OldName("scikit-learn", "is called scikit-learn", keeps_version=True),
    "skimage": OldName("scikit-image", "is called scikit-image", keeps_version=True),
    "pil": OldName("pillow", "is called pillow"),
    "tensorflow-gpu": OldName("tensorflow", "is part of tensorflow", keeps_version=True),
    "azureml-defaults": OldName(
        "inference-schema",
        f"{_SERVER}; of what it brought inference-schema is kept: list other packages your script imports",
    ),
    "azureml-inference-server-http": OldName("inference-schema", f"{_SERVER}; inference-schema is kept"),
    "azureml-core": OldName(None, _SHIM),
    "azureml-sdk": OldName(None, _SHIM),
    "azureml-contrib-services": OldName(None, _SHIM),
    "azureml-monitoring": OldName(None, _SHIM),
    "azureml-model-management-sdk": OldName(None, _SERVER),
}


def replace_old_names(requirements: Iterable[str]) -> tuple[list[str], list[str]]:
    """Requirements under today's names, and a note for each that changed."""
    kept: list[str] = []
    notes: list[str] = []
    for text in requirements:
        requirement = Requirement(text)
        old = OLD_NAMES.get(canonicalize_name(requirement.name))
        if old is None:
            kept.append(text)
            continue
        notes.append(f"{requirement.name} {old.why}")
        if old.now is not None:
            kept.append(_renamed(requirement, old, old.now))
    return kept, notes


def _renamed(requirement: Requirement, old: OldName, now: str) -> str:
    # `sklearn==0.0` is the placeholder's own version, none of scikit-learn.
    placeholder = re.fullmatch(r"==0\.0(\.post\d+)?", str(requirement.specifier))
    version = str(requirement.specifier) if old.keeps_version and not placeholder else ""
    marker = f"; {requirement.marker}" if requirement.marker else ""
    return f"{now}{version}{marker}"

"""What a release is, and the words for how it ended.

Rules:
- A release is the set of `$edgeAgent`'s modules: images, environment, createOptions, policies. Registry credentials,
  routes, module twins, `$version` and metadata are not part of it: they apply live.
- Its digest is sha256 over canonical JSON, so that it is the same on the publisher and on every device, whatever the
  order of members and the way createOptions was cut.
- Per device, release digest and desired `$version` there is exactly one terminal result.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

from edge_contracts.documents import canonical_json
from edge_contracts.image_ref import ImageDigest
from edge_contracts.module_settings import ModuleSettings


class ReleaseResult(StrEnum):
    """The terminal result of a release on a device."""

    SUCCEEDED = "succeeded"
    FAILED_NO_CHANGE = "failed-no-change"
    FAILED_ROLLED_BACK = "failed-rolled-back"
    FAILED_UNABLE_TO_ROLL_BACK = "failed-unable-to-roll-back"
    REJECTED = "rejected"
    SUPERSEDED = "superseded"


class ErrorClass(StrEnum):
    """Why a module or a release does not get on: what an operator looks at first."""

    AUTH = "auth"
    NOT_FOUND = "not-found"
    NETWORK = "network"
    DISK = "disk"
    EXEC_FORMAT = "exec-format"
    CRASH = "crash"
    UNHEALTHY = "unhealthy"
    CONFIG = "config"


def release_digest(modules: Mapping[str, ModuleSettings]) -> str:
    """The identity of a release, `sha256:…`; system modules do not belong to `modules`."""
    content = {
        name: {
            "image": str(module.image),
            "version": module.version,
            "status": module.status,
            "restartPolicy": module.restart_policy,
            "imagePullPolicy": module.image_pull_policy,
            "startupOrder": module.startup_order,
            "env": module.env,
            "createOptions": module.create_options,
        }
        for name, module in modules.items()
    }
    return str(ImageDigest.of(canonical_json(content).encode()))

"""Manifests for tests: a complete one by hand, and a strategy for what `DeploymentManifest.assemble` takes."""

from __future__ import annotations

import os
from typing import Any

from hypothesis import strategies as st

from edge_contracts.image_ref import ImageDigest, ImageRef
from edge_contracts.manifest import (
    DeploymentManifest,
    DesiredStatus,
    ImagePullPolicy,
    ModuleSettings,
    RegistryCredential,
    RestartPolicy,
)
from edge_contracts.redact import Secret
from edge_contracts.routes import BrokeredEndpoint, Route, Upstream

MANIFESTS = int(os.environ.get("EDGEWRIGHT_MANIFESTS", "100"))
"""How many manifests the sweeps make; `scripts/verify manifests` sets 1,000."""

DIGEST = "sha256:" + "0123456789abcdef" * 4
PASSWORD = "hunter2-hunter2"


def complete() -> dict[str, Any]:
    """The smallest manifest of IoT Edge's documentation with every kind of member, as an author writes it."""
    return {
        "modulesContent": {
            "$edgeAgent": {
                "properties.desired": {
                    "schemaVersion": "1.1",
                    "runtime": {
                        "type": "docker",
                        "settings": {
                            "minDockerVersion": "v1.25",
                            "loggingOptions": "",
                            "registryCredentials": {
                                "r1": {"username": "u", "password": PASSWORD, "address": "registry.example"}
                            },
                        },
                    },
                    "systemModules": {
                        "edgeAgent": {
                            "type": "docker",
                            "settings": {"image": "mcr.example/agent:1.5", "createOptions": "{}"},
                        },
                        "edgeHub": {
                            "type": "docker",
                            "status": "running",
                            "restartPolicy": "always",
                            "startupOrder": 0,
                            "settings": {"image": "mcr.example/hub:1.5", "createOptions": "{}"},
                        },
                    },
                    "modules": {
                        "scorer": {
                            "version": "1.0",
                            "type": "docker",
                            "status": "running",
                            "restartPolicy": "always",
                            "imagePullPolicy": "on-create",
                            "startupOrder": 1,
                            "env": {"LEVEL": {"value": "info"}, "COUNT": {"value": 3}, "ON": {"value": True}},
                            "settings": {
                                "image": f"registry.example/scorer@{DIGEST}",
                                "createOptions": '{"HostConfig":',
                                "createOptions01": "{}}",
                            },
                        }
                    },
                }
            },
            "$edgeHub": {
                "properties.desired": {
                    "schemaVersion": "1.1",
                    "routes": {
                        "up": {
                            "route": "FROM /messages/modules/scorer/outputs/* INTO $upstream",
                            "priority": 1,
                            "timeToLiveSecs": 3600,
                        },
                        "in": "FROM /messages/* WHERE kind = 'img' INTO BrokeredEndpoint(\"/modules/scorer/inputs/in1\")",
                    },
                    "storeAndForwardConfiguration": {"timeToLiveSecs": 7200},
                }
            },
            "scorer": {"properties.desired": {"threshold": 0.5, "labels": ["a", "b"]}},
        }
    }


_names = st.from_regex(r"[A-Za-z0-9_-]{1,10}", fullmatch=True).filter(
    lambda name: name not in ("edgeAgent", "edgeHub")
)
_identifiers = st.from_regex(r"[a-z][a-z0-9-]{0,8}", fullmatch=True)
_texts = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=10)
_images = st.builds(
    lambda registry, repository, data: ImageRef(registry, repository, None, ImageDigest.of(data)),
    st.sampled_from([None, "registry.example", "127.0.0.1:5050"]),
    st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True),
    st.binary(max_size=4),
)
_leaves = (
    st.booleans()
    | st.integers(-(2**52), 2**52 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | _texts
)
_objects = st.dictionaries(
    _identifiers, _leaves | st.dictionaries(_identifiers, _leaves, max_size=2), max_size=3
)
_long_options = st.integers(0, 1500).map(lambda count: {"Labels": {"long": "x" * count}})


def module_settings() -> st.SearchStrategy[ModuleSettings]:
    """Modules with every field in use."""
    return st.builds(
        ModuleSettings,
        name=_names,
        image=_images,
        version=_texts,
        status=st.sampled_from(DesiredStatus),
        restart_policy=st.sampled_from([RestartPolicy.NEVER, RestartPolicy.ON_FAILURE, RestartPolicy.ALWAYS]),
        startup_order=st.integers(0, 4294967295),
        image_pull_policy=st.sampled_from(ImagePullPolicy),
        env=st.dictionaries(st.from_regex(r"[A-Z_][A-Z0-9_]{0,8}", fullmatch=True), _texts, max_size=3),
        create_options=_objects | _long_options,
        desired=st.none() | _objects,
    )


@st.composite
def manifests(draw: st.DrawFn) -> DeploymentManifest:
    """Assembled manifests of up to four modules with routes between them."""
    modules = draw(st.lists(module_settings(), max_size=4, unique_by=lambda module: module.name))
    names = [module.name for module in modules] or ["nobody"]
    sinks = st.one_of(st.just(Upstream()), st.builds(BrokeredEndpoint, st.sampled_from(names), _identifiers))
    texts = st.builds("FROM /messages/modules/{}/outputs/* INTO {}".format, st.sampled_from(names), sinks)
    documents = st.one_of(
        texts,
        st.builds(lambda text, priority: {"route": text, "priority": priority}, texts, st.integers(0, 9)),
        st.builds(
            lambda text, ttl_s: {"route": text, "timeToLiveSecs": ttl_s}, texts, st.integers(0, 4294967295)
        ),
    )
    routes = draw(st.dictionaries(_identifiers, documents, max_size=3))
    credentials = [
        RegistryCredential(name, "registry.example", "user", Secret(PASSWORD))
        for name in draw(st.lists(_identifiers, max_size=2, unique=True))
    ]
    return DeploymentManifest.assemble(
        modules,
        [Route.parse(name, document) for name, document in routes.items()],
        credentials,
        store_and_forward_ttl_s=draw(st.integers(-1, 10**6)),
    )

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from contracts_manifests import DIGEST, complete, module_settings
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_contracts.image_ref import ImageRef
from edge_contracts.manifest import DeploymentManifest, DesiredStatus, ModuleSettings, RestartPolicy
from edge_contracts.release import ErrorClass, ReleaseResult, release_digest

MODULE = ModuleSettings(
    "m",
    ImageRef.parse(f"registry.example/m@{DIGEST}"),
    env={"A": "1", "B": "2"},
    create_options={"x": 1, "y": {"z": 2}},
)


def digest_of(document: dict[str, Any]) -> str:
    return release_digest(DeploymentManifest.parse(document).modules)


def test_digest_is_the_same_in_every_version_of_this_code() -> None:
    assert release_digest({}) == "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert digest_of(complete()) == "sha256:ecdf5261cffc55cb3ba842b52cb086aa8bf368b110c5d10546967716ff85d604"


@settings(max_examples=20, deadline=None)
@given(st.lists(module_settings(), max_size=3, unique_by=lambda module: module.name), st.randoms())
def test_digest_does_not_depend_on_order(modules: list[ModuleSettings], random: Any) -> None:
    before = release_digest({module.name: module for module in modules})
    random.shuffle(modules)
    turned = [replace(module, env=dict(reversed(module.env.items()))) for module in modules]
    assert release_digest({module.name: module for module in turned}) == before


def test_digest_does_not_depend_on_how_options_are_cut_and_written() -> None:
    document = complete()
    settings = document["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]["scorer"]["settings"]
    del settings["createOptions01"]
    settings["createOptions"] = ' { "HostConfig" : { } } '
    assert digest_of(document) == digest_of(complete())


def test_what_applies_live_is_no_part_of_it() -> None:
    document = complete()
    content = document["modulesContent"]
    desired = content["$edgeAgent"]["properties.desired"]
    desired["runtime"]["settings"]["registryCredentials"]["r1"]["password"] = "rotated"
    desired["systemModules"]["edgeHub"]["settings"]["image"] = "mcr.example/hub:9"
    content["$edgeHub"]["properties.desired"]["routes"] = {}
    content["scorer"]["properties.desired"]["threshold"] = 0.9
    assert digest_of(document) == digest_of(complete())


@pytest.mark.parametrize(
    "change",
    [
        {"image": ImageRef.parse("registry.example/m:2")},
        {"env": {"A": "1"}},
        {"create_options": {}},
        {"version": "2"},
        {"status": DesiredStatus.STOPPED},
        {"restart_policy": RestartPolicy.NEVER},
        {"startup_order": 1},
    ],
)
def test_what_a_module_is_makes_the_release(change: dict[str, Any]) -> None:
    assert release_digest({"m": replace(MODULE, **change)}) != release_digest({"m": MODULE})
    assert release_digest({"m2": replace(MODULE, name="m2")}) != release_digest({"m": MODULE})


def test_words_are_those_on_the_wire() -> None:
    assert [str(result) for result in ReleaseResult] == [
        "succeeded",
        "failed-no-change",
        "failed-rolled-back",
        "failed-unable-to-roll-back",
        "rejected",
        "superseded",
    ]
    assert " ".join(ErrorClass) == "auth not-found network disk exec-format crash unhealthy config"

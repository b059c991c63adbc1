from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from contracts_manifests import PASSWORD, complete, manifests
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_contracts.errors import ContractError
from edge_contracts.image_ref import ImageRef
from edge_contracts.manifest import DeploymentManifest, ModuleSettings
from edge_contracts.release import ErrorClass, ReleaseResult
from edge_contracts.reported import (
    ClientReport,
    DeploymentStatusCode,
    Health,
    ModuleReport,
    ReleaseReport,
    RuntimeInfo,
    RuntimeStatus,
    diff,
    edge_agent_reported,
    edge_hub_reported,
)
from edge_contracts.twin import REPORTED_LIMIT_BYTES, merge_patch, twin_size_bytes, validate_section

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
RUNTIME = RuntimeInfo("linux", "x86_64", "6.1", "process", "namespaces", "probed")
DIGEST = "sha256:" + "0" * 64


def reported(
    manifest: DeploymentManifest, text: str = "", next_attempt: datetime | None = None
) -> dict[str, Any]:
    def report(module: ModuleSettings) -> ModuleReport:
        return ModuleReport(
            module,
            RuntimeStatus.UNHEALTHY,
            status_description=text,
            image_hash=DIGEST,
            exit_code=-9,
            restart_count=12,
            last_start=NOON,
            last_exit=NOON,
            last_restart=NOON,
            health=Health.UNHEALTHY,
            error_class=ErrorClass.EXEC_FORMAT,
            next_attempt=next_attempt,
        )

    return edge_agent_reported(
        desired_version=12,
        code=DeploymentStatusCode.FAILED,
        description=text,
        runtime=RUNTIME,
        edge_agent=report(manifest.edge_agent),
        edge_hub=report(manifest.edge_hub),
        modules={name: report(module) for name, module in manifest.modules.items()},
        release=ReleaseReport(
            DIGEST,
            "rolling-back",
            ReleaseResult.FAILED_UNABLE_TO_ROLL_BACK,
            3,
            12,
            ErrorClass.CRASH,
            text,
            DIGEST,
        ),
        agent_version="0.1.0",
    )


def test_shape_is_that_of_iot_edge() -> None:
    document = reported(DeploymentManifest.parse(complete()), "out of memory")
    assert document["schemaVersion"] == "1.0"
    assert document["lastDesiredVersion"] == 12
    assert document["lastDesiredStatus"] == {"code": 500, "description": "out of memory"}
    assert document["runtime"] == {
        "type": "docker",
        "settings": {"minDockerVersion": "", "loggingOptions": ""},
        "platform": {"os": "linux", "architecture": "x86_64", "version": "6.1"},
    }
    scorer = document["modules"]["scorer"]
    assert scorer == {
        "version": "1.0",
        "type": "docker",
        "status": "running",
        "restartPolicy": "always",
        "startupOrder": 1,
        "imagePullPolicy": "on-create",
        "settings": {
            "image": scorer["settings"]["image"],
            "imageHash": DIGEST,
            "createOptions": '{"HostConfig":{}}',
        },
        "env": {"LEVEL": {"value": "info"}, "COUNT": {"value": "3"}, "ON": {"value": "true"}},
        "exitCode": -9,
        "statusDescription": "out of memory",
        "lastStartTimeUtc": "2026-01-31T12:00:00.000000Z",
        "lastExitTimeUtc": "2026-01-31T12:00:00.000000Z",
        "runtimeStatus": "unhealthy",
        "restartCount": 12,
        "lastRestartTimeUtc": "2026-01-31T12:00:00.000000Z",
    }
    assert not {"status", "restartPolicy", "restartCount"} & set(document["systemModules"]["edgeAgent"])
    assert document["systemModules"]["edgeHub"]["restartPolicy"] == "always"


def test_own_section_holds_release_health_and_runtime() -> None:
    own = reported(DeploymentManifest.parse(complete()), "no")["edgewright"]
    assert own["runtime"] == {"kind": "process", "tier": "namespaces", "reason": "probed"}
    assert own["modules"] == {"scorer": {"health": "unhealthy", "errorClass": "exec-format"}}
    assert own["release"] == {
        "digest": DIGEST,
        "phase": "rolling-back",
        "attempt": 3,
        "desiredVersion": 12,
        "result": "failed-unable-to-roll-back",
        "errorClass": "crash",
        "description": "no",
        "previousDigest": DIGEST,
    }


def test_times_that_are_not_set_and_next_attempts() -> None:
    module = ModuleSettings("m", ImageRef.parse("m:1"))
    report = ModuleReport(module, RuntimeStatus.BACKOFF, next_attempt=NOON)
    document = edge_agent_reported(
        desired_version=1,
        code=DeploymentStatusCode.SUCCESSFUL,
        runtime=RUNTIME,
        edge_agent=report,
        edge_hub=report,
        modules={"m": report},
    )
    assert document["modules"]["m"]["lastStartTimeUtc"] == "0001-01-01T00:00:00"
    assert "startupOrder" not in document["modules"]["m"]
    assert document["edgewright"]["modules"]["m"] == {
        "health": "unknown",
        "nextAttempt": "2026-01-31T12:00:00.000000Z",
    }
    assert "release" not in document["edgewright"]


def test_no_secret_is_reported() -> None:
    document = complete()
    modules = document["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]
    modules["scorer"]["env"]["DB_PASSWORD"] = {"value": PASSWORD}
    modules["scorer"]["env"]["token"] = {"value": PASSWORD}
    modules["scorer"]["env"]["DSN"] = {"value": f"https://u:{PASSWORD}@db.example"}
    modules["scorer"]["settings"]["createOptions"] = json.dumps({"Env": [f"API_KEY=x;password={PASSWORD}"]})
    del modules["scorer"]["settings"]["createOptions01"]
    manifest = DeploymentManifest.parse(document)
    text = json.dumps(reported(manifest, f"pull failed: https://u:{PASSWORD}@registry.example"))
    assert PASSWORD not in text
    assert "registryCredentials" not in text


@settings(max_examples=15, deadline=None)
@given(manifests(), st.sampled_from(["", "x" * 100, "é" * 400, "y" * 5000]))
def test_what_is_reported_fits_the_twin_and_the_prediction(manifest: DeploymentManifest, text: str) -> None:
    document = reported(manifest, text, NOON)
    validate_section(document, limit_bytes=REPORTED_LIMIT_BYTES, where="properties.reported")
    assert twin_size_bytes(document) <= manifest.predicted_reported_size_bytes() + 2 * 2000 * (
        text[:1] == "é"
    )


leaves = st.one_of(st.booleans(), st.integers(0, 2), st.text(max_size=2), st.lists(st.integers(0, 1)))
keys = st.sampled_from(["a", "b", "c"])
sections = st.recursive(
    st.dictionaries(keys, leaves), lambda inner: st.dictionaries(keys, inner | leaves), max_leaves=8
)


@settings(max_examples=40, deadline=None)
@given(sections, sections)
def test_difference_makes_the_new_of_the_old(old: dict[str, Any], new: dict[str, Any]) -> None:
    patch = diff(old, new)
    assert json.dumps(merge_patch(old, patch), sort_keys=True) == json.dumps(new, sort_keys=True)
    assert diff(new, new) == {}


def test_clients_of_the_edge_hub_have_keys_that_a_twin_takes() -> None:
    document = edge_hub_reported(
        desired_version=3,
        code=DeploymentStatusCode.CONFIG_FORMAT_ERROR,
        description="Error while parsing desired properties",
        clients={"my.device/m": ClientReport(True, NOON), "a%$ #": ClientReport(False, NOON, NOON)},
    )
    assert document["lastDesiredStatus"]["code"] == 400
    assert document["clients"] == {
        "my%2Edevice/m": {
            "status": "Connected",
            "lastConnectedTimeUtc": "2026-01-31T12:00:00.000000Z",
            "lastDisconnectedTimeUtc": "0001-01-01T00:00:00",
        },
        "a%25%24%20%23": {
            "status": "Disconnected",
            "lastConnectedTimeUtc": "2026-01-31T12:00:00.000000Z",
            "lastDisconnectedTimeUtc": "2026-01-31T12:00:00.000000Z",
        },
    }
    validate_section(document, limit_bytes=REPORTED_LIMIT_BYTES, where="properties.reported")


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        (("schemaVersion",), "3.0", 412),
        (("modules",), [], 400),
        (("modules", "scorer", "settings", "image"), "A", 400),
        ((), {}, 417),
    ],
)
def test_bad_desired_properties_have_their_code(path: tuple[str, ...], value: Any, code: int) -> None:
    desired = complete()["modulesContent"]["$edgeAgent"]["properties.desired"]
    parent = desired
    for key in path[:-1]:
        parent = parent[key]
    if path:
        parent[path[-1]] = value
    with pytest.raises(ContractError) as caught:
        DeploymentManifest.from_edge_agent_desired(desired if path else value)
    assert DeploymentStatusCode.of_error(caught.value) == code

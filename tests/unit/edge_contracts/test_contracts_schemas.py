"""Generated manifests pass the schemas that Azure's own command line checks with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from contracts_manifests import MANIFESTS, complete, manifests
from hypothesis import given, settings

from edge_contracts.manifest import DeploymentManifest

pytestmark = pytest.mark.reference


@pytest.fixture(scope="session")
def validators(reference_data: Path) -> dict[str, jsonschema.Draft4Validator]:
    folder = reference_data / "schemas"
    return {
        "$edgeAgent": _validator(folder / "azure-iot-edgeagent-deployment-1.1.json"),
        "$edgeHub": _validator(folder / "azure-iot-edgehub-deployment-1.1.json"),
    }


def _validator(path: Path) -> jsonschema.Draft4Validator:
    return jsonschema.Draft4Validator(json.loads(path.read_text("utf-8")))


def offences(validators: dict[str, jsonschema.Draft4Validator], document: dict[str, Any]) -> list[str]:
    content = document["modulesContent"]
    return [
        error.message
        for name, validator in validators.items()
        for error in validator.iter_errors({name: content[name]})
    ]


@settings(max_examples=MANIFESTS, deadline=None)
@given(manifests())
def test_generated_manifests_pass(
    validators: dict[str, jsonschema.Draft4Validator], manifest: DeploymentManifest
) -> None:
    assert offences(validators, manifest.dump()) == []


def test_manifest_by_hand_passes_and_comes_back_as_it_was(
    validators: dict[str, jsonschema.Draft4Validator],
) -> None:
    assert offences(validators, DeploymentManifest.parse(complete()).dump()) == []


def test_schemas_are_those_that_refuse(validators: dict[str, jsonschema.Draft4Validator]) -> None:
    document = complete()
    document["modulesContent"]["$edgeAgent"]["properties.desired"]["modules"]["scorer"]["colour"] = "red"
    document["modulesContent"]["$edgeHub"]["properties.desired"]["routes"]["up"]["priority"] = 10
    assert len(offences(validators, document)) >= 2

"""Any sequence of operations: versions only grow, refused ones change nothing, patches lead the device to the twin."""

from __future__ import annotations

from typing import Any

from hub_values import add_device, new_core, run
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_contracts.twin import merge_patch
from iot_hub.core import HubCore, PushDesired
from iot_hub.deployment_content import DeploymentContent
from iot_hub.errors import HubRequestError
from iot_hub.identities import IdentityKey
from iot_hub.twins import TwinRequest, difference

NAMES = st.sampled_from(["a", "b", "c", "bad key", "$x"])
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.just("text"), st.just("x" * 5000), st.just([1, {}])
)
VALUES = st.recursive(
    st.dictionaries(NAMES, LEAVES, max_size=3),
    lambda below: st.dictionaries(NAMES, below | LEAVES, max_size=3),
    max_leaves=8,
)
DEVICE = IdentityKey("d")
MODULES = ("$edgeAgent", "$edgeHub", "m", "n")

Operation = tuple[str, str, dict[str, Any]]
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["patch", "replace", "report", "tags", "content"]), st.sampled_from(MODULES), VALUES
    ),
    max_size=12,
)


def perform(core: HubCore, operation: Operation) -> tuple[Any, ...]:
    kind, module, values = operation
    key = DEVICE.module(module)
    match kind:
        case "patch":
            return run(core, core.write_twin(key, TwinRequest({}, values), None))
        case "replace":
            return run(core, core.write_twin(key, TwinRequest({}, values, replaces=True), None))
        case "tags":
            return run(core, core.write_twin(key, TwinRequest(values, {}), None))
        case "report":
            return run(core, core.report(key, values))
        case _:
            contents = {name: {"properties.desired": values} for name in (module, "m")}
            contents["n"] = {"properties.desired": {"fine": 1}}
            return run(
                core,
                core.apply_content(DEVICE, DeploymentContent.parse({"modulesContent": contents}, DEVICE)),
            )


def state(core: HubCore) -> dict[IdentityKey, Any]:
    keys = [record.key for record in core.modules(DEVICE)]
    return {key: (core.identity(key), core.twin(key)) for key in keys}


@settings(max_examples=60, deadline=None)
@given(OPERATIONS)
def test_any_sequence_of_operations(operations: list[Operation]) -> None:
    core = new_core()
    add_device(core, DEVICE.device_id, iot_edge=True)
    devices: dict[IdentityKey, dict[str, Any]] = {}
    for operation in operations:
        before = state(core)
        try:
            effects = perform(core, operation)
        except HubRequestError:
            assert state(core) == before
            continue
        after = state(core)
        for key, (_, twin) in before.items():
            now = after[key][1]
            for old, new in ((twin.desired, now.desired), (twin.reported, now.reported)):
                assert new.version in (old.version, old.version + 1)
                assert (new.version == old.version) == (new == old)
            assert now.version >= twin.version
        for effect in effects:
            assert isinstance(effect, PushDesired)
            assert effect.version == after[effect.key][1].desired.version
            devices[effect.key] = merge_patch(devices.get(effect.key, {}), effect.patch)
        # A device that merged every patch holds what the hub holds.
        for key, (_, twin) in after.items():
            assert devices.get(key, {}) == twin.desired.values


@settings(max_examples=60, deadline=None)
@given(VALUES, VALUES)
def test_difference_leads_from_one_document_to_the_other(old: dict[str, Any], new: dict[str, Any]) -> None:
    start, goal = merge_patch({}, old), merge_patch({}, new)
    assert merge_patch(start, difference(start, goal)) == goal
    assert difference(goal, goal) == {}

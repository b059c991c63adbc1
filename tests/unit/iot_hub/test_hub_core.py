from __future__ import annotations

import pytest
from hub_values import Clock, add_device, new_core, run

from edge_contracts.redact import Secret
from iot_hub.core import MODULES_PER_DEVICE, Disconnect, HubCore, PushDesired
from iot_hub.deployment_content import DeploymentContent
from iot_hub.errors import HubRequestError
from iot_hub.identities import IdentityKey, IdentityRequest
from iot_hub.twins import TwinRequest

KEYS = {
    "primary_key": Secret("cHJpbWFyeSBrZXkgMTIzNA=="),
    "secondary_key": Secret("c2Vjb25kYXJ5IGtleSAxMg=="),
}


def content(device: IdentityKey, **modules: dict) -> DeploymentContent:
    body = {"modulesContent": {name: {"properties.desired": desired} for name, desired in modules.items()}}
    return DeploymentContent.parse(body, device)


def test_new_device_gets_keys_of_its_own() -> None:
    core = new_core()
    first, second = core.identity(add_device(core, "a")), core.identity(add_device(core, "b"))
    assert len({*first.keys, *second.keys}) == 4
    assert first.generation_id != second.generation_id


def test_record_never_shows_its_keys() -> None:
    core = new_core()
    record = core.identity(add_device(core, **KEYS))
    assert KEYS["primary_key"].reveal() not in repr(record)


def test_update_keeps_keys_and_generation_and_changes_the_etag() -> None:
    core = new_core()
    key = add_device(core)
    before = core.identity(key)
    run(core, core.put_identity(key, IdentityRequest(enabled=False), before.etag))
    after = core.identity(key)
    assert (after.keys, after.generation_id, after.enabled) == (before.keys, before.generation_id, False)
    assert after.etag != before.etag


def test_update_of_what_does_not_exist_is_not_found() -> None:
    with pytest.raises(HubRequestError) as caught:
        new_core().put_identity(IdentityKey("d"), IdentityRequest(), "*")
    assert caught.value.code == "DeviceNotFound"


def test_create_retried_after_a_crash_is_no_conflict() -> None:
    clock = Clock()
    before = new_core(clock)
    key = IdentityKey("d")
    made = before.put_identity(key, IdentityRequest(enabled=True), None)
    clock.advance(2)
    after = new_core(clock)
    after.apply(made)
    assert after.put_identity(key, IdentityRequest(enabled=True), None).is_empty
    with pytest.raises(HubRequestError, match="exists"):
        after.put_identity(key, IdentityRequest(enabled=False), None)
    clock.advance(120)
    with pytest.raises(HubRequestError, match="exists"):
        after.put_identity(key, IdentityRequest(enabled=True), None)


def test_create_with_other_keys_than_the_kept_ones_is_a_conflict() -> None:
    core = new_core()
    key = add_device(core, **KEYS)
    assert core.put_identity(key, IdentityRequest(**KEYS), None).is_empty
    swapped = IdentityRequest(primary_key=KEYS["secondary_key"], secondary_key=KEYS["primary_key"])
    with pytest.raises(HubRequestError) as caught:
        core.put_identity(key, swapped, None)
    assert caught.value.status == 409


def test_disabling_disconnects_the_device_and_its_modules() -> None:
    core = new_core()
    key = add_device(core, iot_edge=True)
    effects = run(core, core.put_identity(key, IdentityRequest(enabled=False), "*"))
    assert {effect.key for effect in effects} == {key, key.module("$edgeAgent"), key.module("$edgeHub")}
    assert not core.is_enabled(key.module("$edgeHub"))


def test_deleting_takes_the_modules_along() -> None:
    core = new_core()
    key = add_device(core, iot_edge=True)
    effects = run(core, core.delete_identity(key, "*"))
    assert Disconnect(key, forget=True) in effects
    assert core.find(key.module("$edgeAgent")) is None
    assert list(core.devices()) == []


def test_device_that_becomes_an_edge_device_gets_the_runtime_modules() -> None:
    core = new_core()
    key = add_device(core)
    run(core, core.put_identity(key, IdentityRequest(iot_edge=True), "*"))
    assert [record.key.module_id for record in core.modules(key)] == ["$edgeAgent", "$edgeHub"]
    with pytest.raises(HubRequestError, match="stays one"):
        core.put_identity(key, IdentityRequest(iot_edge=False), "*")


def test_module_limit_names_the_number() -> None:
    core = new_core()
    key = add_device(core, iot_edge=True)
    for number in range(MODULES_PER_DEVICE):
        run(core, core.put_identity(key.module(f"m{number}"), IdentityRequest(), None))
    with pytest.raises(HubRequestError, match="at most 50 modules, not 51") as caught:
        core.put_identity(key.module("more"), IdentityRequest(), None)
    assert caught.value.status == 409


def test_patch_pushes_what_was_patched_and_replace_pushes_the_difference() -> None:
    core = new_core()
    key = add_device(core)
    patch = {"a": {"b": 1, "c": 2}, "d": None}
    assert run(core, core.write_twin(key, TwinRequest({}, patch), None)) == (PushDesired(key, patch, 2),)
    replaced = TwinRequest({}, {"a": {"b": 1, "n": True}}, replaces=True)
    assert run(core, core.write_twin(key, replaced, None)) == (
        PushDesired(key, {"a": {"c": None, "n": True}}, 3),
    )
    assert core.write_twin(key, replaced, None).is_empty


def test_tags_change_the_twin_and_push_nothing() -> None:
    core = new_core()
    key = add_device(core)
    before = core.twin(key)
    assert run(core, core.write_twin(key, TwinRequest({"site": "a"}, {}), None)) == ()
    after = core.twin(key)
    assert (after.version, after.desired) == (before.version + 1, before.desired)
    assert after.etag != before.etag


def test_report_changes_the_version_and_not_the_etag() -> None:
    core = new_core()
    key = add_device(core)
    before = core.twin(key)
    run(core, core.report(key, {"a": 1}))
    after = core.twin(key)
    assert (after.reported.version, after.version, after.etag) == (2, before.version + 1, before.etag)


def test_content_with_one_bad_module_changes_nothing() -> None:
    core = new_core()
    key = add_device(core, iot_edge=True)
    with pytest.raises(HubRequestError, match=r"modulesContent\.b.*a\.b") as caught:
        core.apply_content(key, content(key, a={"x": 1}, b={"a.b": 1}))
    assert caught.value.where == "modulesContent.b.properties.desired.a.b"
    assert core.find(key.module("a")) is None


def test_content_over_the_module_limit_changes_nothing() -> None:
    core = new_core()
    key = add_device(core, iot_edge=True)
    modules = {f"m{number}": {} for number in range(MODULES_PER_DEVICE + 1)}
    with pytest.raises(HubRequestError, match="at most 50"):
        core.apply_content(key, content(key, **modules))
    assert len(core.modules(key)) == 2


def test_content_leaves_other_modules_and_tags_alone() -> None:
    core = new_core()
    key = add_device(core, iot_edge=True)
    run(core, core.apply_content(key, content(key, a={"x": 1}, b={"y": 1})))
    run(core, core.write_twin(key.module("a"), TwinRequest({"t": 1}, {}), None))
    kept = core.identity(key.module("a")), core.twin(key.module("b"))
    run(core, core.apply_content(key, content(key, a={"x": 2})))
    assert (core.identity(key.module("a")), core.twin(key.module("b"))) == kept
    assert core.twin(key.module("a")).tags == {"t": 1}


def test_same_content_twice_is_no_change() -> None:
    core = new_core()
    key = add_device(core, iot_edge=True)
    deployment = content(key, **{"$edgeAgent": {"modules": {"m": {}}}, "n": {}})
    run(core, core.apply_content(key, deployment))
    assert core.apply_content(key, deployment).is_empty


@pytest.mark.parametrize("device_id", ["", "a b", "a/b", "ä", "x" * 129, "a\n"])
def test_bad_id_is_refused(device_id: str) -> None:
    with pytest.raises(HubRequestError, match="deviceId must be") as caught:
        new_core().put_identity(IdentityKey(device_id), IdentityRequest(), None)
    assert caught.value.status == 400


@pytest.mark.parametrize(
    ("body", "where"),
    [
        ({"deviceId": "other"}, "deviceId"),
        ({"status": "asleep"}, "status"),
        ({"capabilities": {"iotEdge": "yes"}}, "capabilities.iotEdge"),
        ({"authentication": {"type": "selfSigned"}}, "authentication.type"),
        (
            {"authentication": {"symmetricKey": {"primaryKey": "c2hvcnQ="}}},
            "authentication.symmetricKey.primaryKey",
        ),
        ([], "the body"),
    ],
)
def test_bad_identity_request_names_the_member(body: object, where: str) -> None:
    with pytest.raises(HubRequestError) as caught:
        IdentityRequest.parse(body, IdentityKey("d"))
    assert (caught.value.status, caught.value.where) == (400, where)


def test_key_that_cannot_be_read_is_not_shown() -> None:
    almost = "c2VjcmV0IHNlY3JldCBzZWNyZX"
    with pytest.raises(HubRequestError) as caught:
        IdentityRequest.parse({"authentication": {"symmetricKey": {"primaryKey": almost}}}, IdentityKey("d"))
    assert almost not in str(caught.value)


def test_state_that_was_read_back_is_the_state() -> None:
    core = new_core()
    key = add_device(core, iot_edge=True)
    changes = [core.apply_content(key, content(key, m={"a": 1}))]
    run(core, changes[0])
    copy: HubCore = new_core()
    add_device(copy, iot_edge=True)
    run(copy, changes[0])
    assert copy.modules(key) == core.modules(key)

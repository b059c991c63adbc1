"""Queries as Microsoft's service SDK asks them (azure-iot-hub)."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hub_harness import HubProcess, wait_until

pytest.importorskip("azure.iot.hub", reason="azure-iot-hub has wheels for x86-64 Linux only")

from azure.iot.hub.models import QuerySpecification, Twin, TwinProperties
from msrest.exceptions import HttpOperationError

pytestmark = pytest.mark.filterwarnings("ignore")

SITES = {"q-0": "north", "q-1": "south", "q-2": "north", "q-3": None, "q-4": "north"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    """Five devices, of which q-0 reported level 5, and q-4 runs modules."""
    with HubProcess(tmp_path_factory.mktemp("query") / "hub") as process:
        manager = process.registry_manager()
        for name, site in SITES.items():
            process.create_device(name, iot_edge=name == "q-4")
            twin = Twin(
                tags={"site": site}, properties=TwinProperties(desired={"odd-name": {"x": len(name)}})
            )
            if site:
                manager.update_twin(name, twin, "*")
        with process.device_client("q-0") as client:
            client.patch_twin_reported_properties({"level": 5})
        wait_until(lambda: manager.get_twin("q-0").connection_state == "Disconnected")
        yield process


@pytest.fixture(scope="module")
def manager(hub: HubProcess) -> Any:
    return hub.registry_manager()


def twins(manager: Any, query: str, size: int | None = None) -> list[Any]:
    """All twins of a query, page by page as an application reads them."""
    found: list[Any] = []
    token = None
    while True:
        page = manager.query_iot_hub(QuerySpecification(query=query), token, size)
        assert size is None or len(page.items) <= size
        found += page.items
        token = page.continuation_token
        if not token:
            return found


def names(manager: Any, condition: str, size: int | None = None) -> list[str]:
    return [twin.device_id for twin in twins(manager, f"SELECT * FROM devices WHERE {condition}", size)]


def rows(hub: HubProcess, query: str) -> list[Any]:
    """The rows of a projection, which the SDK can read as twins only."""
    status, answer = hub.request("POST", "/devices/query", {"query": query})
    assert status == 200, answer
    return list(answer)


@pytest.mark.parametrize("size", [None, 1, 2, 5])
def test_pages_hold_every_twin_once(manager: Any, size: int | None) -> None:
    assert [twin.device_id for twin in twins(manager, "SELECT * FROM devices", size)] == list(SITES)
    assert names(manager, "tags.site = 'north'", size) == ["q-0", "q-2", "q-4"]
    modules = twins(manager, "select * from devices.modules", size)
    assert [(twin.device_id, twin.module_id) for twin in modules] == [
        ("q-4", "$edgeAgent"),
        ("q-4", "$edgeHub"),
    ]
    assert len(twins(manager, "SELECT TOP 3 * FROM devices", size)) == 3
    assert twins(manager, "SELECT * FROM devices.jobs", size) == []


def test_conditions_see_the_twin_at_once(hub: HubProcess, manager: Any) -> None:
    assert names(manager, "tags.site IN ['south', 'east'] OR properties.reported.level > 4") == ["q-0", "q-1"]
    assert names(manager, "NOT is_defined(tags.site)") == ["q-3"]
    assert names(manager, "capabilities.iotEdge = true AND connectionState = 'Disconnected'") == ["q-4"]
    assert names(manager, "properties.desired.[[odd-name]].x = 3 AND startswith(deviceId, 'q-1')") == ["q-1"]
    assert names(manager, "properties.desired.$version > 1 AND tags.site NIN ['north']") == ["q-1"]
    agents = twins(manager, "SELECT * FROM devices.modules WHERE moduleId = '$edgeAgent'")
    assert [(twin.device_id, twin.module_id) for twin in agents] == [("q-4", "$edgeAgent")]


def test_twins_come_whole(manager: Any) -> None:
    [found] = twins(manager, "SELECT * FROM devices WHERE deviceId = 'q-0'")
    assert found.serialize() == manager.get_twin("q-0").serialize()


def test_rows_of_projections_and_groups(hub: HubProcess, manager: Any) -> None:
    assert rows(hub, "SELECT deviceId, tags.site AS place FROM devices WHERE tags.site = 'south'") == [
        {"deviceId": "q-1", "place": "south"}
    ]
    assert rows(
        hub, "SELECT COUNT() AS n FROM devices WHERE tags.site = 'north' AND properties.reported.level = 5"
    ) == [{"n": 1}]
    assert rows(hub, "SELECT tags.site AS site, COUNT() AS n FROM devices GROUP BY tags.site") == [
        {"n": 1},
        {"site": "north", "n": 3},
        {"site": "south", "n": 1},
    ]
    page = manager.query_iot_hub(QuerySpecification(query="SELECT deviceId FROM devices"), None, 2)
    assert (page.type, [row.device_id for row in page.items]) == ("Raw", ["q-0", "q-1"])


def test_groups_are_paged(hub: HubProcess, manager: Any) -> None:
    query = "SELECT deviceId, COUNT() AS version FROM devices GROUP BY deviceId"
    assert [row.device_id for row in twins(manager, query, 2)] == list(SITES)
    assert [row.device_id for row in twins(manager, query.replace("SELECT", "SELECT TOP 3"), 2)] == list(
        SITES
    )[:3]


def test_page_goes_on_where_its_last_twin_is_gone(hub: HubProcess, manager: Any) -> None:
    hub.create_device("q-11")
    query = QuerySpecification(query="SELECT * FROM devices WHERE deviceId < 'q-3'")
    first = manager.query_iot_hub(query, None, 3)
    assert [twin.device_id for twin in first.items] == ["q-0", "q-1", "q-11"]
    manager.delete_device("q-11")
    second = manager.query_iot_hub(query, first.continuation_token, 3)
    assert [twin.device_id for twin in second.items] == ["q-2"]
    assert second.continuation_token is None


def test_bad_query_is_400_with_place_and_expectation(manager: Any) -> None:
    with pytest.raises(HttpOperationError) as caught:
        manager.query_iot_hub(QuerySpecification(query="SELECT * FROM devices WHERE tags.site == 'x'"))
    response = caught.value.response
    assert (response.status_code, response.headers["iothub-errorcode"]) == (400, "ArgumentInvalid")
    assert (
        "'query' at character 40: expected a property, a constant, a function or '(', found '='"
        in response.text
    )


@pytest.mark.parametrize(
    "token", ["x", "bnVsbA==", base64.b64encode(json.dumps([1, 2, 3]).encode()).decode()]
)
def test_foreign_continuation_is_refused(hub: HubProcess, token: str) -> None:
    body = {"query": "SELECT * FROM devices"}
    status, answer = hub.request("POST", "/devices/query", body, headers={"x-ms-continuation": token})
    assert status == 400
    assert "x-ms-continuation must be one that this hub gave" in answer["Message"]


@pytest.mark.parametrize("body", [{}, [], {"query": 5}])
def test_body_without_query_is_refused(hub: HubProcess, body: Any) -> None:
    status, answer = hub.request("POST", "/devices/query", body)
    assert status == 400
    assert "query must be text" in answer["Message"]


def test_page_size_is_bounded(hub: HubProcess) -> None:
    body = {"query": "SELECT * FROM devices"}
    status, answer = hub.request("POST", "/devices/query", body, headers={"x-ms-max-item-count": "1001"})
    assert status == 400
    assert "from 1 to 1000" in answer["Message"]

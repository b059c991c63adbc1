"""Workspaces by name, as Azure ML's SDK v1 makes, finds, lists and deletes them."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest

from edge_contracts.errors import EdgewrightError
from publisher.embedded_hub import HubAddress
from publisher.errors import InUseError, UsageError, WorkspaceError
from publisher.exceptions import ModelNotFoundException, WebserviceException
from publisher.models import Model
from publisher.processes import process_id, write_record
from publisher.workspace import Workspace

SUBSCRIPTION = "6560575d-fa06-4e7d-95fb-f962e74efd7a"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def workspace() -> Workspace:
    """As the original's documentation makes one."""
    return Workspace.create(
        name="myworkspace",
        subscription_id=SUBSCRIPTION,
        resource_group="myresourcegroup",
        create_resource_group=True,
        location="eastus2",
    )


def test_create_notes_what_azure_calls_it(workspace: Workspace, folder: Path) -> None:
    assert workspace.root == folder / "myworkspace"
    again = Workspace.at(workspace.root, environ={})
    assert (again.name, again.subscription_id, again.resource_group, again.location) == (
        "myworkspace",
        SUBSCRIPTION,
        "myresourcegroup",
        "eastus2",
    )


def test_create_again_is_refused_unless_allowed(workspace: Workspace) -> None:
    with pytest.raises(WorkspaceError, match=r"'myworkspace' is in .* already; .* set exist_ok to True"):
        Workspace.create("myworkspace")
    assert Workspace.create("myworkspace", exist_ok=True).root == workspace.root


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "../x"}, "a workspace's name must be"),
        ({"name": ""}, "a workspace's name must be"),
        ({"name": "x", "exists_ok": True}, "Workspace.create has no parameter exists_ok"),
    ],
)
def test_create_refuses_what_cannot_be(given: dict[str, object], message: str, folder: Path) -> None:
    with pytest.raises(UsageError, match=message):
        Workspace.create(**given)  # type: ignore[arg-type]
    assert list(folder.iterdir()) == []


def test_parameters_about_other_resources_say_nothing(folder: Path) -> None:
    assert Workspace.create("x", sku="basic", storage_account="/a", show_output=False).root == folder / "x"


def test_get_finds_by_name_and_compares_what_both_sides_say(workspace: Workspace) -> None:
    assert Workspace.get("myworkspace", subscription_id=SUBSCRIPTION.upper()).root == workspace.root
    assert Workspace(SUBSCRIPTION, "myresourcegroup", "myworkspace").root == workspace.root
    with pytest.raises(WorkspaceError, match="is of resource group 'myresourcegroup', not 'other'"):
        Workspace.get("myworkspace", resource_group="other")
    with pytest.raises(WorkspaceError, match=r"no workspace 'other' .*; there are myworkspace") as caught:
        Workspace.get("other")
    assert caught.value.next_command == "edgewright init other"


def test_list_is_by_name_and_filtered(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Workspace.create("plain")
    found = {name: [each.root for each in those] for name, those in Workspace.list(SUBSCRIPTION).items()}
    assert found == {"myworkspace": [workspace.root], "plain": [plain.root]}
    assert list(Workspace.list(resource_group="other")) == ["plain"]
    monkeypatch.chdir(workspace.root)
    assert list(Workspace.list()) == ["myworkspace"]


def test_a_written_config_is_found_from_below(
    workspace: Workspace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    below = folder / "project" / "notebooks"
    below.mkdir(parents=True)
    workspace.write_config(folder / "project")
    document = json.loads((folder / "project" / ".azureml" / "config.json").read_text())
    assert document["workspace_name"] == "myworkspace"
    monkeypatch.chdir(below)
    assert Workspace.from_config().root == workspace.root
    assert Workspace.from_config(folder / "project" / ".azureml" / "config.json").root == workspace.root


def test_a_config_of_azures_names_a_workspace_beside_it(workspace: Workspace, folder: Path) -> None:
    (folder / "aml_config").mkdir()
    document = {"subscription_id": SUBSCRIPTION, "resource_group": "g", "workspace_name": "myworkspace"}
    (folder / "aml_config" / "config.json").write_text(json.dumps(document))
    with pytest.raises(WorkspaceError, match="is of resource group 'myresourcegroup', not 'g'"):
        Workspace.from_config()
    (folder / "aml_config" / "config.json").write_text(json.dumps(document | {"resource_group": ""}))
    assert Workspace.from_config().root == workspace.root


def test_a_config_of_somebody_elses_is_passed_over(folder: Path) -> None:
    (folder / "config.json").write_text('{"a": 1}')
    with pytest.raises(WorkspaceError, match=r"neither edgewright\.toml nor config\.json"):
        Workspace.from_config()
    with pytest.raises(WorkspaceError, match="must be a JSON object with workspace_name"):
        Workspace.from_config(folder / "config.json")


def test_the_nearest_workspace_wins_over_a_config_above_it(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    Workspace.create("other").write_config()
    monkeypatch.chdir(workspace.root)
    assert Workspace.from_config().name == "myworkspace"


def test_details_name_the_registry(workspace: Workspace) -> None:
    details = workspace.get_details()
    assert (details["name"], details["location"], details["containerRegistry"]) == (
        "myworkspace",
        "eastus2",
        None,
    )
    group = f"/subscriptions/{SUBSCRIPTION}/resourceGroups/g"
    account = f"{group}/providers/Microsoft.ContainerRegistry/registries/myregistry"
    other = Workspace.create(
        "other", subscription_id=SUBSCRIPTION, resource_group="g", container_registry=account
    )
    assert other.get_details()["containerRegistry"] == account
    assert other.settings.azure.container_registry == "myregistry"


def test_models_are_the_newest_by_name(workspace: Workspace, folder: Path) -> None:
    (folder / "m.pkl").write_bytes(b"weights")
    for name in ("digits", "letters", "digits"):
        Model.register(workspace, "m.pkl", name)
    assert {name: model.version for name, model in workspace.models.items()} == {"digits": 2, "letters": 1}
    assert workspace.images == workspace.webservices == {}


def test_the_originals_exceptions_catch_what_is_raised(workspace: Workspace) -> None:
    with pytest.raises(WebserviceException) as caught:
        Model(workspace, "sklearn_mnist")
    assert caught.value.message.startswith("ModelNotFound: no model 'sklearn_mnist'")
    with pytest.raises(ModelNotFoundException):
        Model.get_model_path("sklearn_mnist")


def test_delete_leaves_what_is_not_its_own(workspace: Workspace, folder: Path) -> None:
    (workspace.root / "notes.txt").touch()
    workspace.delete()
    assert [path.name for path in workspace.root.iterdir()] == ["notes.txt"]
    with pytest.raises(EdgewrightError, match="no workspace 'myworkspace'"):
        Workspace.get("myworkspace")
    Workspace.create("empty").delete()
    assert not (folder / "empty").exists()


def test_delete_is_refused_while_the_hub_runs(workspace: Workspace) -> None:
    address = HubAddress("127.0.0.1", 8883, 8443, 5050)
    write_record(workspace.run / "hub.json", process_id(os.getpid()), address=asdict(address))
    assert workspace.get_details()["containerRegistry"] == "127.0.0.1:5050"
    with pytest.raises(InUseError, match="its hub or agents run"):
        workspace.delete()
    assert Workspace.get("myworkspace").root == workspace.root

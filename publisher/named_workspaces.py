"""The part of a workspace that is Azure ML's SDK v1's: made, got and listed by name, `config.json`, details, deletion.

What a workspace is and holds is in `publisher.workspace`; where one of a name is, in `publisher.workspace_directory`.
"""

from __future__ import annotations

import builtins
import contextlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from publisher.config import CONFIG_NAME, Settings
from publisher.errors import InUseError, UsageError, WorkspaceError
from publisher.workspace_directory import (
    CONFIG_FILE,
    CONFIG_FOLDERS,
    find_config,
    find_roots,
    root_of,
    write_config,
)

if TYPE_CHECKING:
    from publisher.images import Image
    from publisher.models import Model
    from publisher.workspace import Workspace

WORKSPACE_NAME_RULE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"

IGNORED = frozenset(
    [
        "sku",
        "tags",
        "friendly_name",
        "storage_account",
        "key_vault",
        "app_insights",
        "adb_workspace",
        "primary_user_assigned_identity",
        "cmk_keyvault",
        "resource_cmk_uri",
        "hbi_workspace",
        "default_cpu_compute_target",
        "default_gpu_compute_target",
        "private_endpoint_config",
        "private_endpoint_auto_approval",
        "show_output",
        "user_assigned_identity_for_cmk_encryption",
        "system_datastores_auth_mode",
        "v1_legacy_mode",
    ]
)
"""Parameters of the original's `Workspace.create` that are about resources a workspace has not here."""


class NamedWorkspaces:
    """Base of `Workspace`."""

    root: Path
    state: Path
    settings: Settings

    def __init__(
        self,
        subscription_id: str | None = None,
        resource_group: str | None = None,
        workspace_name: str | None = None,
        auth: object | None = None,
    ) -> None:
        """Open the workspace `workspace_name`; see `get`."""
        if not workspace_name:
            raise UsageError("workspace_name must be given")
        self._open(root_of(workspace_name, Path.cwd()))
        self._check_azure(subscription_id, resource_group)

    @classmethod
    def at(cls, root: Path, environ: Mapping[str, str] | None = None) -> Self:
        """The workspace in `root`."""
        raise NotImplementedError

    @classmethod
    def init(
        cls, path: Path | str = ".", *, name: str | None = None, azure: Mapping[str, str] | None = None
    ) -> Self:
        """Make a workspace."""
        raise NotImplementedError

    def _open(self, root: Path, environ: Mapping[str, str] | None = None) -> None:
        raise NotImplementedError

    @classmethod
    def create(  # noqa: PLR0917 - the signature of Azure ML's SDK v1
        cls,
        name: str,
        auth: object | None = None,
        subscription_id: str | None = None,
        resource_group: str | None = None,
        location: str | None = None,
        create_resource_group: bool = True,
        *,
        container_registry: str | None = None,
        exist_ok: bool = False,
        path: Path | str = ".",
        **ignored: object,
    ) -> Self:
        """Make a workspace in the folder `name` of `path`.

        Subscription, group, location and registry (its name, or its resource id) are noted in `edgewright.toml`.
        `auth`, `create_resource_group` and what `IGNORED` names say nothing here.

        Raises:
            WorkspaceError: there is one already, and `exist_ok` is false.
            UsageError: a name that is no folder's, or a parameter the original has not.
        """
        unknown = sorted(ignored.keys() - IGNORED)
        if unknown:
            raise UsageError(f"Workspace.create has no parameter {', '.join(unknown)}", where=unknown[0])
        if not re.fullmatch(WORKSPACE_NAME_RULE, name):
            raise UsageError(
                f"a workspace's name must be 1 to 64 of [A-Za-z0-9._-], beginning with a letter or digit, not {name!r}"
            )
        root = Path(path).expanduser().absolute() / name
        if (root / CONFIG_NAME).exists():
            if not exist_ok:
                raise WorkspaceError(
                    f"workspace {name!r} is in {root} already; to have that one, set exist_ok to True",
                    where=str(root),
                )
            return cls.at(root)
        azure = {
            "subscription_id": subscription_id or "",
            "resource_group": resource_group or "",
            "location": location or "",
            "container_registry": (container_registry or "").rpartition("/")[2],
        }
        return cls.init(root, name=name, azure=azure)

    @classmethod
    def get(  # noqa: PLR0917 - the signature of Azure ML's SDK v1
        cls,
        name: str,
        auth: object | None = None,
        subscription_id: str | None = None,
        resource_group: str | None = None,
        location: str | None = None,
        cloud: str = "AzureCloud",
        id: str | None = None,
    ) -> Self:
        """The workspace `name` at or above the current directory, or in a folder directly below it.

        Raises:
            WorkspaceError: there is none, or it is of another subscription or group.
        """
        return cls(subscription_id, resource_group, name, auth)

    @classmethod
    def list(
        cls,
        subscription_id: str | None = None,
        auth: object | None = None,
        resource_group: str | None = None,
    ) -> dict[str, builtins.list[Self]]:
        """Workspaces at, above and directly below the current directory, nearest first, by name."""
        found: dict[str, builtins.list[Self]] = {}
        for root in find_roots(Path.cwd()):
            workspace = cls.at(root)
            if not workspace._differs(subscription_id, resource_group):
                found.setdefault(workspace.name, []).append(workspace)
        return found

    @classmethod
    def from_config(cls, path: Path | str | None = None, auth: object | None = None) -> Self:
        """The workspace that the nearest `config.json` names, or the nearest one, from `path` upwards.

        Raises:
            WorkspaceError: there is neither, or it names one that is not there.
        """
        named = find_config(Path(path or ".").expanduser().absolute())
        if isinstance(named, Path):
            return cls.at(named)
        if named.path is not None and (named.path / CONFIG_NAME).is_file():
            workspace = cls.at(named.path)
        else:
            workspace = cls.at(root_of(named.name, named.file.parent.parent))
        workspace._check_azure(named.subscription_id, named.resource_group)
        return workspace

    def write_config(self, path: Path | str | None = None, file_name: str | None = None) -> None:
        """Write `.azureml/config.json` in `path` (the current directory), which `from_config` finds."""
        document = {
            "subscription_id": self.subscription_id,
            "resource_group": self.resource_group,
            "workspace_name": self.name,
            "workspace_path": str(self.root),
        }
        write_config(Path(path or ".") / CONFIG_FOLDERS[0] / (file_name or CONFIG_FILE), document)

    def get_details(self) -> dict[str, Any]:
        """What the original tells of a workspace, as far as it has a meaning here.

        `containerRegistry` is the resource id of `azure.container_registry`, else the address of the embedded registry
        where it runs, else None; the last part behind a slash is the registry's name.
        """
        group = f"/subscriptions/{self.subscription_id}/resourceGroups/{self.resource_group}"
        registry = self.settings.azure.container_registry
        return {
            "id": f"{group}/providers/Microsoft.MachineLearningServices/workspaces/{self.name}",
            "name": self.name,
            "location": self.location,
            "type": "Microsoft.MachineLearningServices/workspaces",
            "containerRegistry": f"{group}/providers/Microsoft.ContainerRegistry/registries/{registry}"
            if registry
            else self.registry,
            "path": str(self.root),
        }

    def delete(self, delete_dependent_resources: bool = False, no_wait: bool = False) -> None:
        """Remove the workspace with its models and images; other files of its folder stay.

        With `delete_dependent_resources` its hub, with the devices and the registry in it, and its agents are stopped
        first.

        Raises:
            InUseError: they run; nothing was removed then.
        """
        from publisher.overview import is_running, tear_down

        if delete_dependent_resources:
            tear_down(cast("Workspace", self))
        elif is_running(cast("Workspace", self)):
            raise InUseError(
                f"workspace {self.name!r} cannot be deleted: its hub or agents run; stop them, or set "
                "delete_dependent_resources to True",
                where=str(self.root),
                next_command="edgewright down",
            )
        (self.root / CONFIG_NAME).unlink(missing_ok=True)
        shutil.rmtree(self.state, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.root.rmdir()

    @property
    def name(self) -> str:
        """How the workspace is called in output."""
        return self.settings.workspace.name

    @property
    def subscription_id(self) -> str:
        """`azure.subscription_id`, empty when not set."""
        return self.settings.azure.subscription_id

    @property
    def resource_group(self) -> str:
        """`azure.resource_group`, empty when not set."""
        return self.settings.azure.resource_group

    @property
    def location(self) -> str:
        """`azure.location`, empty when not set."""
        return self.settings.azure.location

    @property
    def registry(self) -> str | None:
        """Host of the registry of `[azure]`, else of the embedded hub where it runs, else None."""
        if name := self.settings.azure.container_registry:
            return name if "." in name else f"{name}.azurecr.io"
        return _embedded_registry(cast("Workspace", self))

    @property
    def models(self) -> dict[str, Model]:
        """The newest version of every registered model, by name."""
        from publisher.models import Model

        return Model.newest(cast("Workspace", self))

    @property
    def webservices(self) -> dict[str, object]:
        """Services by name: none, since this version deploys to devices alone."""
        return {}

    @property
    def images(self) -> dict[str, Image]:
        """The newest version of every image, by name."""
        from publisher.images import Image

        return Image.newest(cast("Workspace", self))

    def _differs(self, subscription_id: str | None, resource_group: str | None) -> str:
        """What is not as asked for, where both sides say something; empty for nothing."""
        asked = (
            ("subscription", subscription_id, self.subscription_id),
            ("resource group", resource_group, self.resource_group),
        )
        return ", ".join(
            f"{what} {own!r}, not {wanted!r}"
            for what, wanted, own in asked
            if wanted and own and wanted.lower() != own.lower()
        )

    def _check_azure(self, subscription_id: str | None, resource_group: str | None) -> None:
        difference = self._differs(subscription_id, resource_group)
        if difference:
            raise WorkspaceError(
                f"workspace {self.name!r} in {self.root} is of {difference}", where=self.name
            )


def _embedded_registry(workspace: Workspace) -> str | None:
    from publisher.embedded_hub import EmbeddedHub

    hub = EmbeddedHub(workspace).status()
    return None if hub.pid is None or hub.address is None else hub.address.registry

"""`edgewright init`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from publisher.cli.output import command_group, note
from publisher.config import CONFIG_NAME
from publisher.workspace import Workspace

app = command_group("Workspaces.")


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Folder of the workspace; made if absent.")] = Path(),
) -> None:
    """Make a workspace in a folder, or complete the one that is there. Nothing is overwritten."""
    existed = (path / CONFIG_NAME).exists()
    workspace = Workspace.init(path)
    note(f"workspace {workspace.name!r} {'is in' if existed else 'made in'} {workspace.root}")
    note("next: edgewright model register PATH --name NAME")

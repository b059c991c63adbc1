"""`edgewright init`, `status` and `down`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from publisher.cli.output import (
    Format,
    JsonOption,
    OutputOption,
    chosen,
    command_group,
    note,
    progress,
    show_document,
)
from publisher.config import CONFIG_NAME
from publisher.workspace import Workspace

app = command_group("Workspaces.")

DEMO_FOLDER = "edgewright-demo"


@app.command()
def init(
    path: Annotated[Path, typer.Argument(help="Folder of the workspace; made if absent.")] = Path(),
) -> None:
    """Make a workspace in a folder, or complete the one that is there. Nothing is overwritten."""
    existed = (path / CONFIG_NAME).exists()
    workspace = Workspace.init(path)
    note(f"workspace {workspace.name!r} {'is in' if existed else 'made in'} {workspace.root}")
    note("next: edgewright model register PATH --name NAME")


@app.command()
def status(output: OutputOption = Format.TABLE, as_json: JsonOption = False) -> None:
    """Show what this workspace has, what it runs, and how its devices are."""
    from publisher.overview import overview

    show_document(overview(Workspace.open()), chosen(output, as_json))


@app.command()
def down(
    path: Annotated[
        Path | None, typer.Argument(help="The workspace; this one, or the demo's, by default.")
    ] = None,
) -> None:
    """Stop everything this workspace has started: agents, their modules, the hub. Remove it if the demo made it."""
    from publisher.overview import tear_down

    if path is None and not (Path() / CONFIG_NAME).exists() and (Path(DEMO_FOLDER) / CONFIG_NAME).exists():
        path = Path(DEMO_FOLDER)
    with progress("stopping"):
        ended = tear_down(Workspace.open(path))
    note(
        f"stopped: {ended.agents} agents, {ended.modules} modules, hub {'yes' if ended.hub else 'was not running'}"
    )
    if ended.removed is not None:
        note(f"removed {ended.removed}")

"""`edgewright demo`: the walk of one model on this machine, and a table of what it measured."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from publisher.cli.output import command_group, note
from publisher.cli.workspace import DEMO_FOLDER
from publisher.demo.walk import DemoAddresses, StepResult, Walk
from publisher.errors import UsageError
from publisher.overview import DEMO_MARK, tear_down
from publisher.workspace import Workspace

app = command_group("The demo.")

FIRST_LINE_S, NEXT_LINE_S = 1.0, 5.0


@app.command()
def demo(
    *,
    keep: Annotated[bool, typer.Option("--keep", help="Leave everything running for a look around.")] = False,
    directory: Annotated[Path, typer.Option(help="Folder to make and to work in.")] = Path(DEMO_FOLDER),
    host: Annotated[str, typer.Option(help="Loopback address of the demo's hub.")] = "127.0.0.1",
    https_port: Annotated[int, typer.Option(help="Port of the hub's REST API.")] = 8443,
    registry_port: Annotated[int, typer.Option(help="Port of the registry.")] = 5050,
    edge_hub_host: Annotated[
        str, typer.Option(help="Loopback address of the device's own hub.")
    ] = "127.0.0.2",
    as_json: Annotated[bool, typer.Option("--json", help="Print the table as JSON.")] = False,
) -> None:
    """Take a real model from file to scores on a device, on this machine: train, build, push, deploy, score, update."""
    if directory.exists() and any(directory.iterdir()):
        raise UsageError(
            f"folder {directory} is there already and is not empty",
            where=str(directory),
            next_command=f"edgewright down {directory}",
        )
    workspace = Workspace.init(directory)
    (workspace.state / DEMO_MARK).touch()
    walk = Walk(workspace.root, DemoAddresses(host, https_port, registry_port, edge_hub_host))
    try:
        results = _walk(walk)
    except BaseException:
        if not keep:
            _clean_up(workspace)
        raise
    if as_json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    else:
        _print_table(results)
    if keep:
        note(f"left running in {directory}; look around with: cd {directory}; edgewright status")
        note(f"next: edgewright down {directory}")
    else:
        _clean_up(workspace)


def _walk(walk: Walk) -> list[StepResult]:
    results = []
    steps = walk.steps
    for number, (title, step) in enumerate(steps, start=1):
        with _Ticking(f"{number:2}/{len(steps)} {title}"):
            result = walk.perform(title, step)
        results.append(result)
        note(f"{number:2}/{len(steps)} {title}: {result.seconds:.1f} s")
        note(f"      {result.found}")
    return results


def _clean_up(workspace: Workspace) -> None:
    """Stop and remove everything, whatever interrupts."""
    note("cleaning up")
    tear_down(workspace)


class _Ticking:
    """A line on stderr for whatever takes longer than a second, and then one every five."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        self._thread.join()

    def _run(self) -> None:
        started, pause = time.monotonic(), FIRST_LINE_S
        while not self._done.wait(pause):
            note(f"{self._label} … {time.monotonic() - started:.0f} s")
            pause = NEXT_LINE_S


def _print_table(results: Sequence[StepResult]) -> None:
    """Step, seconds, bytes, and below each the commands that do it by hand."""
    print()
    print(f"{'':2}  {'step':40} {'seconds':>7}  bytes")
    for number, result in enumerate(results, start=1):
        print(f"{number:2}  {result.title:40} {result.seconds:7.1f}  {result.moved or '-'}")
        for command in result.commands:
            print(f"      $ {command}")
    total = sum(result.seconds for result in results)
    print(f"{'':2}  {'total':40} {total:7.1f}")

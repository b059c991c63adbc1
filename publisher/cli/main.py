"""`edgewright`: the command line.

A command is a row of `COMMANDS`; its module is imported when it is called, so that `--help` stays quick. The module
has a Typer app named `app`; a row that is no group takes the one command of its own name out of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from edge_contracts.errors import EdgewrightError
from publisher.cli.output import report_error


@dataclass(frozen=True, slots=True)
class CommandRow:
    """Where a command is, and its line in the help."""

    module: str
    help: str
    is_group: bool = True


COMMANDS: Mapping[str, CommandRow] = {
    "init": CommandRow("publisher.cli.workspace", "Make a workspace in a folder.", is_group=False),
    "demo": CommandRow(
        "publisher.cli.demo", "Walk a model from file to scores on a device, here.", is_group=False
    ),
    "status": CommandRow("publisher.cli.workspace", "Show what this workspace has and runs.", is_group=False),
    "down": CommandRow(
        "publisher.cli.workspace", "Stop everything this workspace has started.", is_group=False
    ),
    "hub": CommandRow("publisher.cli.hub", "Start, stop and watch the embedded hub."),
    "model": CommandRow("publisher.cli.models", "Register models and look them up."),
    "image": CommandRow("publisher.cli.images", "Build scoring images, push and export them."),
    "registry": CommandRow("publisher.cli.registry", "Make credentials that devices pull with."),
    "device": CommandRow("publisher.cli.devices", "Create devices, look at them, call them."),
    "manifest": CommandRow("publisher.cli.manifests", "Make, check and apply deployment manifests."),
    "bundle": CommandRow("publisher.cli.bundle", "Put a manifest and its images into one file."),
    "score": CommandRow("publisher.cli.score", "Serve a script or a model on this machine."),
}

# Typer carries its own copy of click since 0.16; its exceptions are reached through what both export.
_CLICK_ERROR: type[Exception] = next(
    each for each in typer.BadParameter.__mro__ if each.__name__ == "ClickException"
)
_HANDLED_BY_TYPER = (_CLICK_ERROR, typer.Exit, typer.Abort, BrokenPipeError)


class LazyGroup(TyperGroup):
    """The top level: lists every command, imports the one that is called, and turns failures into exit codes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = {
            name: TyperCommand(name, help=row.help, rich_markup_mode=None) for name, row in COMMANDS.items()
        }

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the command as usual, then put the real one in its placeholder's place."""
        name, command, rest = super().resolve_command(ctx, args)
        return name, _load(name) if name else command, rest

    def invoke(self, ctx: Any) -> Any:
        """Run the command; a failure is printed and becomes the exit code."""
        try:
            return super().invoke(ctx)
        except _HANDLED_BY_TYPER:
            raise
        except (EdgewrightError, KeyboardInterrupt, Exception) as error:
            raise typer.Exit(report_error(error)) from error


def _load(name: str) -> Any:
    row = COMMANDS[name]
    group = typer.main.get_group(import_module(row.module).app)
    if row.is_group:
        group.name = name
        return group
    return group.commands[name]


app = typer.Typer(
    cls=LazyGroup,
    help="Take a trained model to where it must score.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"edgewright {version('edgewright')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take a trained model to where it must score."""


def main() -> None:
    """The `edgewright` program."""
    try:
        app(prog_name="edgewright")
    except KeyboardInterrupt as error:
        raise SystemExit(report_error(error)) from None


if __name__ == "__main__":
    main()

"""`edgewright score`: the scoring server of the images, on this machine."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Annotated

import typer

from publisher.cli.output import command_group, note
from publisher.errors import UsageError
from publisher.file_watch import FileWatch
from publisher.local_server import LocalServer, LocalServerError

app = command_group("Serve a script or a model as an image would, and try it.")

# Two looks in a row must agree: a save is served about half a second later.
LOOK_EVERY_S = 0.25
SHOWN_PATHS = 3


@app.callback()
def _group() -> None:
    """Serve a script or a model as an image would, and try it."""


@app.command()
def serve(
    *,
    script: Annotated[Path | None, typer.Option(help="Entry script with init() and run(data).")] = None,
    model: Annotated[Path | None, typer.Option(help="ONNX model to serve without a script.")] = None,
    model_dir: Annotated[
        Path | None, typer.Option(help="The script's AZUREML_MODEL_DIR, or the folder of --model.")
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(metavar="NAMES", help="Execution providers of --model, preferred first: cuda,cpu."),
    ] = None,
    require_provider: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES", help="Those that must really run a part of --model; else it does not start."
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 for any.")] = 5001,
    no_reload: Annotated[bool, typer.Option("--no-reload", help="Do not start again on save.")] = False,
) -> None:
    """Serve in the foreground with the very runtime of the images, and start again on save. Ctrl-C ends it."""
    folder = _folder(model_dir)
    arguments, cwd = _served(script, model, folder)
    if folder is not None:
        arguments += ["--model-dir", str(folder)]
    arguments += _providers(provider, require_provider, is_script=script is not None)
    watch = FileWatch(
        [cwd] if script is not None else [],
        [Path(arguments[1]), *([folder] if script is not None and folder is not None else [])],
    )
    server = LocalServer(arguments, cwd, host, port)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        _first(server)
        _keep(server, None if no_reload else watch)
    except KeyboardInterrupt:
        note("stopping; once more ends it at once")
    finally:
        server.close()
    note("stopped")


def _served(script: Path | None, model: Path | None, folder: Path | None) -> tuple[list[str], Path]:
    """The runtime's arguments, the served file second, and its working directory."""
    if (script is None) == (model is None):
        raise UsageError(
            "give one of --script score.py and --model model.onnx: a script opens its model itself"
        )
    option, given = ("--script", script) if script is not None else ("--model", model)
    assert given is not None
    candidates = [given] if script is not None or folder is None else [given, folder / given]
    found = next((file.absolute() for file in candidates if file.is_file()), None)
    if found is None:
        raise UsageError(f"{option} must be a file, and there is none at {given}", where=str(given))
    return ["--entry-script" if script is not None else "--model", str(found)], found.parent


def _providers(provider: str | None, required: str | None, *, is_script: bool) -> list[str]:
    given = {"--provider": provider, "--require-provider": required}
    arguments = [part for name, value in given.items() if value for part in (name, value)]
    if arguments and is_script:
        raise UsageError(f"{arguments[0]} goes with --model: a script opens its model itself")
    return arguments


def _folder(given: Path | None) -> Path | None:
    if given is not None and not given.is_dir():
        raise UsageError(f"--model-dir must be a folder, and there is none at {given}", where=str(given))
    return None if given is None else given.absolute()


def _first(server: LocalServer) -> None:
    if not server.replace(is_outdated=lambda: False):
        raise LocalServerError("the scoring server could not start; the reason is above")
    print(f"scoring URI: {server.address}/score", flush=True)
    note(f"also: {server.address}/swagger.json  {server.address}/metrics")


def _keep(server: LocalServer, watch: FileWatch | None) -> None:
    """Until interrupted."""
    while (code := server.exit_code) is None:
        time.sleep(LOOK_EVERY_S)
        changed = watch.changed() if watch is not None else []
        if watch is not None and changed:
            _reload(server, watch, changed)
    raise LocalServerError(f"the scoring server has ended by itself ({_ending(code)})")


def _reload(server: LocalServer, watch: FileWatch, changed: list[Path]) -> None:
    watch.accept()
    note(f"changed: {_names(changed)}; starting again")
    if server.replace(is_outdated=lambda: bool(watch.changed())):
        note("reloaded")
    elif watch.changed():
        note("changed again meanwhile")
    else:
        note("not reloaded: it cannot start, the reason is above; the one before serves on")


def _names(paths: list[Path]) -> str:
    shown = ", ".join(os.path.relpath(path) for path in paths[:SHOWN_PATHS])
    return shown if len(paths) <= SHOWN_PATHS else f"{shown} and {len(paths) - SHOWN_PATHS} more"


def _ending(code: int) -> str:
    return f"signal {-code}" if code < 0 else f"exit code {code}"

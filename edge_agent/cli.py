"""The `edge-agent` command: run, list, logs, status, restart, apply, messages send, check.

Exit codes: 0 done, 1 failed, 2 usage. A failure prints its message and, where there is one, `next: COMMAND`.
`list`, `status` and `logs` work whether or not an agent runs; then they read the state folder and the runtime.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge_agent.config import AgentConfig, ConfigError, load_config
from edge_agent.control import AgentNotRunningError, call
from edge_contracts.errors import AgentError, EdgewrightError
from edge_contracts.redact import redact_text

APPLY_POLL_S = 0.3
COLUMNS = (
    ("NAME", "name"),
    ("STATUS", "status"),
    ("DESCRIPTION", "description"),
    ("IMAGE", "image"),
    ("ADDRESS", "scoringUri"),
)


class UsageError(AgentError):
    """The command line asks for something that cannot be."""

    code = "usage"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if options.command is check:  # says itself what is wrong with a configuration
            return check(options)
        return int(options.command(load_config(options.config), options))
    except UsageError as error:
        return _complain(error, 2)
    except EdgewrightError as error:
        return _complain(error, 1)
    except BrokenPipeError:
        sys.stderr.close()
        return 0
    except KeyboardInterrupt:
        return 130


def _complain(error: EdgewrightError, code: int) -> int:
    print(f"edge-agent: {redact_text(error.message)}", file=sys.stderr)
    if error.next_command:
        print(f"next: {error.next_command}", file=sys.stderr)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="edge-agent", description="Runs scoring modules on this device as its hub desires them."
    )
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        help="config.toml (else $EDGE_AGENT_CONFIG, else /etc/edge-agent)",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _command(commands, "run", run, "run the agent until SIGTERM; modules outlive it")
    _with_output(_command(commands, "list", list_modules, "the modules and where they score"))
    logs = _command(commands, "logs", show_logs, "what a module printed")
    logs.add_argument("module", metavar="MODULE")
    logs.add_argument("--tail", type=int, metavar="N", help="its last N lines only")
    _with_output(_command(commands, "status", show_status, "connection, release and sandbox"))
    restart = _command(commands, "restart", restart_module, "restart one module")
    restart.add_argument("module", metavar="MODULE")
    applied = _command(
        commands, "apply", apply_file, "run a bundle or a manifest's local images, without a hub"
    )
    applied.add_argument("file", type=Path, metavar="FILE", help="of edgewright bundle create, or a manifest")
    applied.add_argument(
        "--wait", type=float, default=120.0, metavar="SECONDS", help="for the result (default: 120)"
    )
    _with_output(_command(commands, "check", check, "diagnose configuration, connection and machine"))
    _messages(commands)
    return parser


def _messages(commands: Any) -> None:
    messages = commands.add_parser("messages", help="messages of the device itself")
    actions = messages.add_subparsers(required=True, metavar="ACTION")
    send = _command(
        actions, "send", send_message, "give a message to the device's routes (source /messages/*)"
    )
    send.add_argument("file", metavar="FILE", help="its body; - reads standard input")
    send.add_argument("--property", action="append", default=[], metavar="K=V", help="application property")
    send.add_argument("--content-type", metavar="TYPE", help="such as application/json")


def _command(commands: Any, name: str, function: Callable[..., int], text: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.set_defaults(command=function)
    # Also after the command; SUPPRESS keeps the value given before it.
    parser.add_argument(
        "--config", type=Path, metavar="FILE", default=argparse.SUPPRESS, help=argparse.SUPPRESS
    )
    return parser


def _with_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", choices=("table", "json"), default="table", help="default: table")
    parser.add_argument("--json", action="store_const", const="json", dest="output", help="short for -o json")


def run(config: AgentConfig, options: argparse.Namespace) -> int:
    """Run the agent."""
    from edge_agent.run import run_agent

    return run_agent(config)


def list_modules(config: AgentConfig, options: argparse.Namespace) -> int:
    """Print the modules."""
    try:
        rows = call(config.state_dir, "list")
    except AgentNotRunningError:
        rows = _rows_without_agent(config)
    if options.output == "json":
        _print_json(rows)
    elif rows:
        _print_table(rows)
    else:
        print("no modules: no deployment has been completed yet", file=sys.stderr)
    return 0


def _rows_without_agent(config: AgentConfig) -> list[dict[str, Any]]:
    from edge_agent.listing import module_states
    from edge_agent.run import open_runtime
    from edge_agent.store import Store

    if not config.state_dir.is_dir():
        return []
    record = Store(config.state_dir).load_record()
    return [state.as_row() for state in module_states(record, open_runtime(config).list())]


def show_logs(config: AgentConfig, options: argparse.Namespace) -> int:
    """Print a module's log."""
    from edge_agent.run import open_runtime

    if options.tail is not None and options.tail < 0:
        raise UsageError(f"--tail must be 0 or more, not {options.tail}")
    names = (
        sorted({module.name for module in open_runtime(config).list()}) if config.state_dir.is_dir() else []
    )
    if options.module not in names:
        raise AgentError(
            f"no module '{options.module}' has run on this device; modules: {', '.join(names) or 'none'}",
            code="no-such-module",
            next_command="edge-agent list",
        )
    text = open_runtime(config).logs(options.module, options.tail)
    sys.stdout.write(text if text.endswith("\n") or not text else text + "\n")
    return 0


def show_status(config: AgentConfig, options: argparse.Namespace) -> int:
    """Print the agent's status; exit 1 while no agent runs."""
    try:
        status = call(config.state_dir, "status")
    except AgentNotRunningError:
        status = _status_without_agent(config)
    if options.output == "json":
        _print_json(status)
    else:
        _print_status(status)
    return 0 if status["running"] else 1


def _status_without_agent(config: AgentConfig) -> dict[str, Any]:
    from edge_agent.agent import release_summary
    from edge_agent.store import Store

    record = Store(config.state_dir).load_record()
    return {"running": False, "stateDir": str(config.state_dir), "release": release_summary(record)}


def _print_status(status: dict[str, Any]) -> None:
    release = status["release"]
    last = release["last"]
    lines = [
        ("agent", f"running, pid {status['pid']}" if status["running"] else "not running: edge-agent run")
    ]
    if status["running"]:
        hub = status["hub"]
        lines += [
            ("device", status["deviceId"]),
            (
                "hub",
                "connected" if hub["connected"] else f"not connected: {hub['last_error'] or 'connecting'}",
            ),
            ("edge hub", status["edgeHub"]["problem"] or status["edgeHub"]["address"]),
            ("sandbox", f"{status['runtime']['tier']} {status['runtime']['reason']}".strip()),
            ("desired version", str(status["desiredVersion"])),
        ]
    lines.append(("release", release["committed"] or "none"))
    if release["attempt"]:
        lines.append(("trying", f"{release['attempt']['digest']} ({release['attempt']['phase']})"))
    if last:
        lines.append(("last result", f"{last['result']} {last['description']}".strip()))
    for name, value in lines:
        print(f"{name:16} {value}")


def restart_module(config: AgentConfig, options: argparse.Namespace) -> int:
    """Ask the agent to restart a module."""
    call(config.state_dir, "restart", module=options.module)
    print(f"restarting {options.module}; see: edge-agent list")
    return 0


def apply_file(config: AgentConfig, options: argparse.Namespace) -> int:
    """Apply a file on this device; exit 1 if it did not come to run."""
    path = options.file.absolute()
    try:
        call(config.state_dir, "apply", path=str(path))
    except AgentNotRunningError:
        return _apply_without_agent(config, path)
    deadline = time.monotonic() + options.wait
    status = _apply_status(config)
    while status["state"] != "ended" and (status["state"] == "reading" or time.monotonic() < deadline):
        time.sleep(APPLY_POLL_S)
        status = _apply_status(config)
    if status["state"] != "ended":
        print(f"release {status['release']} is taken and under way; see: edge-agent status", file=sys.stderr)
        return 1
    print(f"release {status['release']}: {status['result']} {status['description']}".rstrip())
    return 0 if status["result"] == "succeeded" else 1


def _apply_status(config: AgentConfig) -> dict[str, Any]:
    status: dict[str, Any] = call(config.state_dir, "apply-status")
    return status


def _apply_without_agent(config: AgentConfig, path: Path) -> int:
    from edge_agent.local_release import load_local, make_release, save_local, take_file
    from edge_agent.run import open_runtime
    from edge_agent.store import Store

    store = Store(config.state_dir)
    store.prepare()
    with store.locked():
        taken = take_file(path, open_runtime(config))
        local = make_release(taken, store.load_record(), load_local(store))
        save_local(store, local)
    print(f"release {local.digest} is taken; the agent runs it when it starts: edge-agent run")
    return 0


def send_message(config: AgentConfig, options: argparse.Namespace) -> int:
    """Give a message to the device's routes."""
    properties = dict(_property(text) for text in options.property)
    body = sys.stdin.buffer.read() if options.file == "-" else _read(Path(options.file))
    answer = call(
        config.state_dir,
        "send",
        body=base64.b64encode(body).decode(),
        properties=properties,
        contentType=options.content_type,
    )
    count = answer["endpoints"]
    print(f"accepted, to {count} endpoint{'' if count == 1 else 's'}")
    if not count:
        print("no route takes messages of the device itself (FROM /messages/* …)", file=sys.stderr)
    return 0


def _property(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not name or not separator:
        raise UsageError(f"--property must be K=V, not '{text}'")
    return name, value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error


def check(options: argparse.Namespace) -> int:
    """Run every diagnostic; exit 1 if one found an error."""
    from edge_agent.checks import Outcome, run_checks, unreadable_config

    try:
        results = run_checks(load_config(options.config))
    except ConfigError as error:
        results = unreadable_config(error)
    if options.output == "json":
        _print_json([result.as_document() for result in results])
    else:
        for result in results:
            print(f"{result.outcome.value:8} {result.check}: {result.detail}")
            if result.outcome is not Outcome.OK and result.mend:
                print(f"{'':8} mend: {result.mend}")
    return 1 if any(result.outcome is Outcome.ERROR for result in results) else 0


def _print_json(document: Any) -> None:
    print(json.dumps(document, indent=2))


def _print_table(rows: list[dict[str, Any]]) -> None:
    cells = [[title for title, _ in COLUMNS]]
    cells += [[str(row[key] or "") for _, key in COLUMNS] for row in rows]
    widths = [max(len(line[index]) for line in cells) for index in range(len(COLUMNS))]
    for line in cells:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())

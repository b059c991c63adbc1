"""Write `docs/reference/cli.md`: the committed table of commands, then every built command with its options."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from edge_agent.cli import _parser as edge_agent_parser
from publisher.cli.main import COMMANDS, app

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "cli.md"

HEAD = """\
# Command line

Two programs: `edgewright` on a workstation or in CI, `edge-agent` on a device. Every read takes
`-o table|json|yaml` (`edge-agent`: `table|json`), `--json` is short for `-o json`. Results go to stdout, everything
else to stderr. Exit codes: 0 done, 1 failed, 2 usage, 130 interrupted. A failure is one message and, where there is
one, `next:` with the command to type. `EDGEWRIGHT_DEBUG=1` adds the traceback.

The table is the whole plan; a command without a section below is not built yet and absent from the program.

```
edgewright   init | demo [--keep] | status | down
  hub        start | stop | status | serve | monitor | simulate | verify
  model      register | list | show | delete
  image      build | list | show | push | pull | export | delete | base create
  registry   credentials [--show] | list | revoke
  device     create (register) | list | show | delete | tag | twin | method | send | connection-string | logs
  manifest   generate | check | diff | apply (--device D | --target-condition Q --priority N) | export
  bundle     create
  compute    create | attach | list | detach | delete
  deploy     edge | local | aci | kubernetes (aks) | batch | fpga        [--dry-run] [--render]
  service    list | show | invoke (run) | update | delete | logs | keys | swagger | size | host
  batch      status | logs | cancel | resume
  rollout    start | plan | status | watch | pause | resume | approve | abort | rollback | history | run
  score      serve
  dashboard
edge-agent   run | check [--offline] [--root DIR] | list | logs | restart | status | system | messages | score | apply FILE | config set|show|import|apply | support-bundle
```

This page is written by `scripts/docs`.
"""


def edgewright_commands() -> Iterator[tuple[str, Any]]:
    """Name and click command of every command, in the order of the help."""
    group = typer.main.get_command(app)
    context = typer.Context(group, info_name="edgewright")
    for name in COMMANDS:
        _, command, _ = group.resolve_command(context, [name])  # type: ignore[attr-defined]
        yield from _leaves(f"edgewright {name}", command)


def _leaves(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    children = getattr(command, "commands", None)
    if not children:
        yield name, command
        return
    for child, below in children.items():
        yield from _leaves(f"{name} {child}", below)


def edge_agent_commands() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Name and parser of every command of the agent."""
    yield from _subparsers("edge-agent", edge_agent_parser())


def _subparsers(name: str, parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    groups = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    if not groups:
        yield name, parser
        return
    for child, below in groups[0].choices.items():
        yield from _subparsers(f"{name} {child}", below)


def page() -> str:
    """The whole page."""
    parts = [HEAD, "## edgewright\n"]
    parts += [_click_section(name, command) for name, command in edgewright_commands()]
    parts.append("## edge-agent\n")
    parts.append(
        "`--config FILE` names the settings (else `$EDGE_AGENT_CONFIG`, else /etc/edge-agent/config.toml).\n"
    )
    parts += [_argparse_section(name, parser) for name, parser in edge_agent_commands()]
    return "\n".join(parts)


def _click_section(name: str, command: Any) -> str:
    arguments, options = [], []
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            arguments.append(parameter.metavar or parameter.name.upper())
            if getattr(parameter, "help", None):
                options.append(f"- `{parameter.metavar or parameter.name.upper()}`: {parameter.help}")
        elif parameter.name not in ("help",):
            spelled = ", ".join([*parameter.opts, *parameter.secondary_opts])
            options.append(f"- `{spelled}`: {parameter.help or ''}")
    usage = " ".join([name, *arguments])
    return _section(name, usage, (command.help or "").strip(), options)


def _argparse_section(name: str, parser: argparse.ArgumentParser) -> str:
    arguments, options = [], []
    for action in parser._actions:
        if action.help == argparse.SUPPRESS or action.dest == "help":
            continue
        if action.option_strings:
            options.append(f"- `{', '.join(action.option_strings)}`: {action.help or ''}")
        else:
            arguments.append(str(action.metavar))
            options.append(f"- `{action.metavar}`: {action.help or ''}")
    return _section(name, " ".join([name, *arguments]), parser.description or "", options)


def _section(name: str, usage: str, text: str, options: list[str]) -> str:
    lines = [f"### {name}", "", f"`{usage}`", "", text, ""]
    if options:
        lines += [*options, ""]
    return "\n".join(lines)


def main() -> int:
    """Write the page, or with `--check` compare it."""
    wanted = page()
    if "--check" in sys.argv[1:]:
        if PAGE.read_text(encoding="utf-8") == wanted:
            return 0
        print(f"error: {PAGE.name} is not what the programs say\nnext: scripts/docs", file=sys.stderr)
        return 1
    PAGE.parent.mkdir(parents=True, exist_ok=True)
    PAGE.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Checks of an entry script before anything is built: it is read, never run.

An entry script defines, at its top level, `init()` and `run(...)` with at least one parameter: as a function, by an
import, or by an assignment (of the latter two only the name can be checked).
"""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

from publisher.errors import ScriptError

Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class _Definition:
    line: int
    function: Function | None


def check_entry_script(path: Path) -> None:
    """Refuse a script that the scoring runtime could not start.

    Raises:
        ScriptError: the first thing wrong, with file, line, what was expected and what was found.
    """
    if path.suffix != ".py":
        raise ScriptError(f"entry script {path} must be a Python file ending in .py", where=str(path))
    tree = _parse(path)
    defined = _definitions(tree.body)
    for name, signature in (("init", "init()"), ("run", "run(data)")):
        if name not in defined:
            found = (
                ", ".join(sorted(key for key, value in defined.items() if value.function)) or "no function"
            )
            raise ScriptError(
                f"entry script {path} must define {signature} at its top level; found {found}",
                where=str(path),
            )
    _check_parameters(path, defined["init"], "init", needed=False)
    _check_parameters(path, defined["run"], "run", needed=True)


def _parse(path: Path) -> ast.Module:
    if not path.is_file():
        raise ScriptError(f"entry script {path} does not exist", where=str(path))
    try:
        return ast.parse(path.read_bytes(), filename=str(path))
    except SyntaxError as error:
        where = f"{path}:{error.lineno or 1}"
        raise ScriptError(f"entry script is not valid Python at {where}: {error.msg}", where=where) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ScriptError(f"entry script {path} cannot be read: {error}", where=str(path)) from error


def _definitions(body: list[ast.stmt]) -> dict[str, _Definition]:
    found: dict[str, _Definition] = {}
    for node in body:
        function = node if isinstance(node, Function) else None
        found.update({name: _Definition(node.lineno, function) for name in _names(node)})
        for block in _blocks(node):
            found.update(_definitions(block))
    return found


def _names(node: ast.stmt) -> list[str]:
    if isinstance(node, Function | ast.ClassDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [(alias.asname or alias.name).split(".")[0] for alias in node.names]
        # `from x import *` may define both; only running it would tell.
        return ["init", "run"] if "*" in names else names
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign) and node.value is not None:
        targets = [node.target]
    return [each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name)]


def _blocks(node: ast.stmt) -> list[list[ast.stmt]]:
    """Statements that run at top level too: those inside `if`, `try` and `with`."""
    if isinstance(node, ast.If):
        return [node.body, node.orelse]
    if isinstance(node, ast.Try):
        return [node.body, *(handler.body for handler in node.handlers), node.orelse, node.finalbody]
    return [node.body] if isinstance(node, ast.With) else []


def _check_parameters(path: Path, definition: _Definition, name: str, *, needed: bool) -> None:
    function = definition.function
    # A decorator (inference_schema's, say) may change the parameters; the function under it is still checked.
    if function is None:
        return
    where = f"{path}:{definition.line}"
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    if (
        needed
        and not positional
        and not arguments.kwonlyargs
        and not arguments.vararg
        and not arguments.kwarg
    ):
        raise ScriptError(f"run in {where} must take at least one parameter, found run()", where=where)
    if not needed and len(positional) > len(arguments.defaults):
        found = f"init({ast.unparse(arguments)})"
        raise ScriptError(f"init in {where} must take no parameters, found {found}", where=where)

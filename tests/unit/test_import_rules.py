"""Who may import whom: the table of the architecture, held by walking every import statement.

The path that breaks a rule is named, so that the reader sees which module pulled the other one in.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = (
    "edge_contracts",
    "edge_containers",
    "iot_hub",
    "scoring_runtime",
    "edge_agent",
    "cloud_targets",
    "fpga",
    "publisher",
)
# What each package may import of ours: whole packages, or single modules of one.
ALLOWED: dict[str, set[str]] = {
    "edge_contracts": set(),
    "edge_containers": {"edge_contracts"},
    "iot_hub": {"edge_contracts", "edge_containers"},
    "scoring_runtime": set(),
    "edge_agent": {"edge_contracts", "edge_containers", "iot_hub.mqtt_codec", "iot_hub.mqtt_server"},
    "cloud_targets": {"edge_contracts", "edge_containers"},
    "fpga": set(),
    "publisher": {
        "edge_contracts",
        "edge_containers",
        "iot_hub",
        "scoring_runtime",
        "cloud_targets",
        "fpga",
    },
}
# The resident agent stays small: none of these may be reached from it, at any depth.
FORBIDDEN_ON_DEVICE = {
    "cryptography",
    "fastapi",
    "starlette",
    "uvicorn",
    "pydantic",
    "typer",
    "rich",
    "httpx",
    "kubernetes",
    "onnx",
    "onnxruntime",
    "numpy",
    "yaml",
}


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


def imports_of(name: str, path: Path) -> set[str]:
    """Dotted names that a module imports anywhere, inside functions and type-checking blocks too."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes(), str(path))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parents, base]) if base else ".".join(parents)
            found.add(base)
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


MODULES = modules()
IMPORTS = {name: imports_of(name, path) for name, path in MODULES.items()}


def is_allowed(importer: str, imported: str) -> bool:
    own, other = importer.split(".")[0], imported.split(".")[0]
    if other not in PACKAGES or other == own:
        return True
    rules = ALLOWED[own]
    if other in rules:
        return True
    # `from iot_hub import mqtt_codec` names the package as well; the module is what counts.
    return imported == other or any(imported == rule or imported.startswith(rule + ".") for rule in rules)


def path_to(start: str, goal: set[str]) -> list[str] | None:
    """Shortest chain of our own modules from `start` to one that imports a top-level name in `goal`."""
    queue, seen = [[start]], {start}
    while queue:
        chain = queue.pop(0)
        for imported in sorted(IMPORTS.get(chain[-1], ())):
            if imported.split(".")[0] in goal:
                return [*chain, imported]
            if imported in MODULES and imported not in seen:
                seen.add(imported)
                queue.append([*chain, imported])
    return None


@pytest.mark.parametrize("package", PACKAGES)
def test_package_imports_only_what_the_table_allows(package: str) -> None:
    broken = [
        f"{name} imports {imported}"
        for name in MODULES
        if name.split(".")[0] == package
        for imported in sorted(IMPORTS[name])
        if not is_allowed(name, imported)
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("package", ["edge_contracts"])
def test_contracts_need_the_standard_library_alone(package: str) -> None:
    allowed = sys.stdlib_module_names | {package}
    broken = [
        f"{name} imports {imported}"
        for name in MODULES
        if name.split(".")[0] == package
        for imported in sorted(IMPORTS[name])
        if imported.split(".")[0] not in allowed
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize("start", ["edge_agent.agent", "edge_containers.shim"])
def test_resident_programs_reach_no_heavy_package(start: str) -> None:
    chain = path_to(start, FORBIDDEN_ON_DEVICE)
    assert chain is None, "reached by: " + " -> ".join(chain or ())


def test_a_broken_rule_is_named() -> None:
    assert not is_allowed("edge_contracts.sas", "publisher.workspace")
    assert not is_allowed("edge_agent.agent", "iot_hub.core")
    assert is_allowed("edge_agent.agent", "iot_hub.mqtt_codec.Connect")


def test_importing_the_agent_loads_no_heavy_package() -> None:
    """The same rule on the running interpreter, which also sees what third parties import."""
    code = "import sys, edge_agent.agent; print(' '.join(sorted({m.split('.')[0] for m in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=ROOT,
    )
    assert FORBIDDEN_ON_DEVICE.isdisjoint(done.stdout.split())

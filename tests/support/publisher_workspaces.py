"""Workspaces for tests: packages come from wheels made here, so that a build needs no index and no network."""

from __future__ import annotations

import base64
import hashlib
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path

from edge_containers.image_model import Platform
from publisher.environments import Environment, EnvironmentLocks
from publisher.uv_runner import BuildLog, UvRunner
from publisher.workspace import Workspace

RUNTIME_WHEELS = {"httptools": "0.7.0", "orjson": "3.11.0", "starlette": "0.50.0", "uvicorn": "0.40.0"}
"""Stand-ins for what the scoring runtime needs: the names and versions count, nothing imports them."""

SCORE = "def init():\n    pass\n\n\ndef run(data):\n    return data\n"


def make_wheel(
    folder: Path,
    name: str,
    version: str = "1.0",
    *,
    tag: str = "py3-none-any",
    files: Mapping[str, str] | None = None,
    requires: tuple[str, ...] = (),
    scripts: tuple[str, ...] = (),
) -> Path:
    """Write a wheel that uv takes; `scripts` become console scripts."""
    folder.mkdir(parents=True, exist_ok=True)
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    contents = dict(files or {f"{module}/__init__.py": f"version = {version!r}\n"})
    contents[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n" + "".join(
        f"Requires-Dist: {each}\n" for each in requires
    )
    contents[f"{info}/WHEEL"] = f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {tag}\n"
    if scripts:
        lines = "".join(f"{each} = {module}:main\n" for each in scripts)
        contents[f"{info}/entry_points.txt"] = f"[console_scripts]\n{lines}"
    contents[f"{info}/RECORD"] = (
        "".join(f"{path},{_hash(text)},{len(text)}\n" for path, text in contents.items())
        + f"{info}/RECORD,,\n"
    )
    path = folder / f"{module}-{version}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, text in contents.items():
            # A fixed time, so that two folders of the same wheels are the same.
            wheel.writestr(zipfile.ZipInfo(member, (2020, 1, 1, 0, 0, 0)), text)
    return path


def make_runtime_wheels(folder: Path) -> Path:
    """A folder that satisfies the scoring runtime's own requirements."""
    for name, version in RUNTIME_WHEELS.items():
        make_wheel(folder, name, version, scripts=("serve",) if name == "uvicorn" else ())
    return folder


def make_workspace(root: Path, wheels: Path, python: str = "3.11") -> Workspace:
    """A workspace that knows no index but the folder `wheels`."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "edgewright.toml").write_text(
        f'[workspace]\nname = "test"\n\n[environment]\npython = "{python}"\nno_index = true\n'
        f'find_links = ["{wheels}"]\n',
        encoding="utf-8",
    )
    return Workspace.at(root, environ={})


def resolved_locks(folder: Path) -> Path:
    """Locks of the scoring runtime's requirements for both platforms, for `seed_locks`: resolved once for many tests."""
    workspace = make_workspace(folder / "w", make_runtime_wheels(folder / "wheels"))
    uv = UvRunner(workspace.settings.environment, workspace.root, BuildLog(folder / "log"))
    locks = EnvironmentLocks(workspace.cache / "locks", uv)
    for platform in (Platform.parse("linux/amd64"), Platform.parse("linux/arm64")):
        environment = Environment((), "3.11").for_scoring(bare_onnx=False)
        locks.resolve(environment, platform, upgrade=False, work=folder)
    return workspace.cache / "locks"


def seed_locks(workspace: Workspace, locks: Path) -> None:
    """Give a workspace the locks, so that a build with no requirements of its own need not resolve."""
    shutil.copytree(locks, workspace.cache / "locks")


def write_score(folder: Path, text: str = SCORE, name: str = "score.py") -> Path:
    """An entry script."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def blobs(workspace: Workspace) -> set[str]:
    """Names of all blobs in the store."""
    return {path.name for path in (workspace.state / "oci" / "blobs" / "sha256").iterdir()}


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return "sha256=" + base64.urlsafe_b64encode(digest).rstrip(b"=").decode()

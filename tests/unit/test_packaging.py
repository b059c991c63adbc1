"""Every extra installs from wheels alone where the README says so (DECISIONS N4), bar one named source archive."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest
import uv

ROOT = Path(__file__).resolve().parent.parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
PLATFORMS = ("x86_64-manylinux_2_28", "aarch64-manylinux_2_28", "aarch64-apple-darwin")
PYTHONS = ("3.11", "3.13")  # the ends of the supported range
UV = uv.find_uv_bin()
# The last paho-mqtt that the device SDK accepts was published as a source archive only; it is pure Python.
SOURCE_ARCHIVES = ("paho-mqtt",)


def resolve(extras: tuple[str, ...], platform: str, python: str) -> str:
    """Names and versions that uv resolves for extras on one platform; fails with uv's words otherwise."""
    command = [UV, "pip", "compile", "pyproject.toml", "--quiet", "--no-header"]
    for extra in extras:
        command += ["--extra", extra]
    command += ["--no-annotate", "--python-platform", platform, "--python-version", python]
    command += ["--only-binary", ":all:"]
    for name in SOURCE_ARCHIVES:
        command += ["--no-binary", name]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, f"{extras} on {platform}, Python {python}: {done.stderr}"
    return done.stdout


@pytest.mark.timeout(300)
@pytest.mark.parametrize("platform", PLATFORMS)
def test_every_extra_resolves_with_wheels_only(platform: str) -> None:
    """`all` and `dev` hold every other extra between them: what resolves together resolves apart."""
    named = " ".join(" ".join(PROJECT["optional-dependencies"][extra]) for extra in ("all", "dev"))
    for extra in set(PROJECT["optional-dependencies"]) - {"all", "dev"}:
        assert extra in named
    for python in PYTHONS:
        assert "azure-iot-device==2.14" in resolve(("all", "dev"), platform, python)


def test_a_device_installs_few_packages() -> None:
    """The agent's extra stays small: what it brings is listed, so that a new dependency is a decision."""
    found = {
        line.split("==")[0] for line in resolve(("agent",), PLATFORMS[1], "3.12").splitlines() if "==" in line
    }
    assert found == {
        "azure-iot-device",
        "certifi",
        "cffi",
        "charset-normalizer",
        "cryptography",
        "deprecation",
        "idna",
        "janus",
        "packaging",
        "paho-mqtt",
        "pycparser",
        "pysocks",
        "requests",
        "requests-unixsocket2",
        "typing-extensions",
        "urllib3",
    }


def test_the_lock_file_is_current() -> None:
    done = subprocess.run(
        [UV, "lock", "--check", "--quiet"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr + "\nnext: .venv/bin/uv lock"

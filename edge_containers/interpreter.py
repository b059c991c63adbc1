"""The Python a base-less image runs under: asked once what it is, and compared with what the image was built for."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from edge_containers.base_label import BASE_LABEL, NO_BASE
from edge_containers.runtime import IncompatibleImageError, SandboxUnavailableError

_TIMEOUT_S = 30

# The shared libraries it has mapped, after loading what links to others, say where libraries outside its prefix are.
_QUESTIONS = """
import json, os, struct, sys
for name in ("ssl", "ctypes", "sqlite3", "zlib", "bz2", "lzma", "hashlib"):
    try:
        __import__(name)
    except ImportError:
        pass
mapped = {line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if line.count("/")}
folders = [os.path.dirname(path) for path in mapped if ".so" in path]
machine, bits = os.uname().machine, 8 * struct.calcsize("P")
try:
    libc = (os.confstr("CS_GNU_LIBC_VERSION") or "").split(" ")[0]
except (ValueError, OSError):
    libc = ""
print(json.dumps({
    "executable": os.path.realpath(sys.executable),
    "version": "%d.%d" % sys.version_info[:2],
    "libc": libc or ("musl" if any("musl" in path for path in mapped) else "unknown"),
    "machine": machine,
    "bits": bits,
    "folders": [sys.base_prefix, sys.base_exec_prefix, *sys.path, *folders],
}))
"""

_ARCHITECTURES = {
    ("x86_64", 64): "amd64",
    ("x86_64", 32): "386",
    ("aarch64", 64): "arm64",
    ("aarch64", 32): "arm",
    ("armv7l", 32): "arm",
    ("armv6l", 32): "arm",
    ("riscv64", 64): "riscv64",
}


@dataclass(frozen=True, slots=True)
class Interpreter:
    """What the configured interpreter is.

    Attributes:
        executable: its real path.
        version: "3.11".
        libc: "glibc" or "musl".
        architecture: in Go's names, as images have it.
        folders: real paths of all it reads: prefix, standard library, shared libraries.
    """

    executable: str
    version: str
    libc: str
    architecture: str
    folders: tuple[str, ...]

    @classmethod
    def ask(cls, python: Path) -> Interpreter:
        """Run `python`, isolated, and take its answers.

        Raises:
            SandboxUnavailableError: it is not there, or is no working Python.
        """
        command = [str(python), "-I", "-S", "-c", _QUESTIONS]
        try:
            run = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=_TIMEOUT_S
            )
            answers = json.loads(run.stdout)
        except (OSError, subprocess.SubprocessError, ValueError) as error:
            raise SandboxUnavailableError(
                f"interpreter for modules must be a working Python, '{python}' is not: {error}",
                code="interpreter",
                where=str(python),
            ) from error
        machine = answers["machine"]
        return cls(
            executable=answers["executable"],
            version=answers["version"],
            libc=answers["libc"],
            architecture=_ARCHITECTURES.get((machine, answers["bits"]), machine),
            folders=_folders(answers["folders"]),
        )

    def check(self, labels: Mapping[str, str], architecture: str, image: str) -> None:
        """Refuse an image that was not built for this interpreter.

        Raises:
            IncompatibleImageError: names what differs, expected and found.
        """
        facts = (
            (BASE_LABEL, "base", NO_BASE, labels.get(BASE_LABEL)),
            ("edgewright.python", "Python", self.version, labels.get("edgewright.python")),
            ("edgewright.libc", "C library", self.libc, labels.get("edgewright.libc")),
            ("architecture", "architecture", self.architecture, architecture),
        )
        for where, what, expected, found in facts:
            if found != expected:
                raise IncompatibleImageError(
                    f"image {image} cannot run here: its {what} must be {expected}, as of {self.executable}, "
                    f"not {found or 'unlabelled'}",
                    where=where,
                )


def _folders(paths: list[str]) -> tuple[str, ...]:
    real = {str(Path(path).resolve()) for path in paths if Path(path).is_dir()}
    return tuple(sorted(real))

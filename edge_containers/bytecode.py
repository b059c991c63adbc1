"""Compile a layer's Python once, in the background: a module then starts in a third of the time.

A sandboxed module cannot write bytecode, so without this every start compiles numpy and onnxruntime anew. Layers never
change, so the bytecode is of the kind that is not checked against its source (PEP 552, unchecked). It lies beside the
verified source, written by the agent's user: who can change it can change the agent.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

MARK = ".compiled"
# At the lowest priority: the modules that score come first. compileall writes each file by rename. It works from inside
# the layer, so that a layer removed meanwhile (renamed, then deleted) cannot come back in part; the import system puts
# the real path into code that it loads. It does not outlive the process that started it.
_PROGRAM = """
import compileall, os, sys
from pathlib import Path
from py_compile import PycInvalidationMode
parent, *folders = sys.argv[1:]
os.nice(19)
for folder in folders:
    os.chdir(folder)
    for path in Path(".").rglob("*.py"):
        if os.getppid() != int(parent):
            sys.exit(1)
        compileall.compile_file(path, quiet=2, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)
    Path(".compiled").touch()
"""


class Compiler:
    """Compiles layers with the interpreter that will run them, one process at a time."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, interpreter: str, layers: Sequence[Path]) -> None:
        """Begin with the layers that are not compiled yet; returns at once. Does nothing while it is at it."""
        waiting = [str(layer) for layer in layers if layer.is_dir() and not (layer / MARK).exists()]
        if not waiting or (self._process is not None and self._process.poll() is None):
            return
        self._process = subprocess.Popen(
            [interpreter, "-I", "-S", "-c", _PROGRAM, str(os.getpid()), *waiting],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait(self, timeout_s: float) -> None:
        """Until the running compilation has ended.

        Raises:
            subprocess.TimeoutExpired: it has not.
        """
        if self._process is not None:
            self._process.wait(timeout_s)

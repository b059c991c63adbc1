"""`from sklearn.externals import joblib`, which scikit-learn dropped in 0.23, finds the joblib package itself.

A finder rather than a file among the shims: `sklearn` is a package of the image, and one name inside it cannot come from
another folder. Submodules are the package's own too, so that pickles which name them load.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

OLD, NEW = "sklearn.externals.joblib", "joblib"


def install() -> None:
    """Put the finder first: Python's own would load a submodule a second time under its old name."""
    if not any(isinstance(finder, _JoblibFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _JoblibFinder())


class _JoblibFinder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != OLD and not fullname.startswith(OLD + "."):
            return None
        name = NEW + fullname.removeprefix(OLD)
        return ModuleSpec(fullname, _Alias(name)) if find_spec(name) else None


class _Alias(Loader):
    def __init__(self, name: str) -> None:
        self._name = name

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        """The import system takes what it finds in `sys.modules` afterwards, so the package keeps its own spec."""
        sys.modules[module.__name__] = importlib.import_module(self._name)

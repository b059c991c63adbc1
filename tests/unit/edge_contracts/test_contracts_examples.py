"""The worked examples of the modules hold."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import edge_contracts

MODULES = sorted(module.name for module in pkgutil.iter_modules(edge_contracts.__path__))


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name: str) -> None:
    module = importlib.import_module(f"edge_contracts.{name}")
    assert doctest.testmod(module).failed == 0

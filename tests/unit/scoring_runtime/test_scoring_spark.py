"""A script for Spark where pyspark is not installed; `scripts/verify scoring_spark` runs it where it is."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from scoring_server import run_to_end

SCRIPT = """
from inference_schema.parameter_types.spark_parameter_type import SparkParameterType
def init(): pass
def run(data): return data
"""


@pytest.mark.skipif(find_spec("pyspark") is not None, reason="pyspark is installed here")
def test_a_spark_schema_without_pyspark_ends_the_start_and_names_it(tmp_path: Path) -> None:
    (tmp_path / "score.py").write_text(SCRIPT)
    done = run_to_end(tmp_path, "--entry-script", "score.py", "--port", "0")
    assert done.returncode == 3
    assert done.stderr.rstrip().endswith("raised ModuleNotFoundError: No module named 'pyspark'")

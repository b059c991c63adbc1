"""`scripts/verify scoring_spark`: a served script whose schema is inference-schema's `SparkParameterType`, with real pyspark.

pyspark (about 480 MB) and a Java runtime are too much for every run of the tests, so the environment is made here. CI has the
other half of the claim: without pyspark the start fails and says so (`tests/unit/scoring_runtime/test_scoring_spark.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

import uv
from scoring_contract import free_port
from scoring_server import call, environment

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("inference-schema[numpy-support,pandas-support]==1.8", "pyspark>=4,<5", "pandas<3", "uvicorn", "httptools", "starlette", "orjson")  # fmt: skip
TIMEOUT_S = 900
START_TIMEOUT_S = 180.0

SCRIPT = """
from inference_schema.parameter_types.spark_parameter_type import SparkParameterType
from inference_schema.parameter_types.standard_py_parameter_type import StandardPythonParameterType
from inference_schema.schema_decorators import input_schema, output_schema
from pyspark.sql import DataFrame, SparkSession

local = {"spark.ui.enabled": "false", "spark.driver.host": "127.0.0.1", "spark.driver.bindAddress": "127.0.0.1"}
session = SparkSession.builder.master("local[1]").config(map=local).getOrCreate()
sample = session.createDataFrame([(1.8, "a")], ["x", "name"])

def init(): pass

@input_schema("data", SparkParameterType(sample))
@output_schema(StandardPythonParameterType({"rows": 1, "sum": 1.0}))
def run(data):
    assert isinstance(data, DataFrame), type(data)
    return {"rows": data.count(), "sum": data.groupBy().sum("x").collect()[0][0], "columns": data.columns}
"""
BODY = {"data": [{"x": 1.5, "name": "b"}, {"x": 2.0, "name": "c"}]}
EXPECTED = {"rows": 2, "sum": 3.5, "columns": ["x", "name"]}


def main() -> int:
    """Serve the script, score it from several threads of the server, read its swagger document."""
    if shutil.which("java") is None:
        print("error: no Java runtime: apt install default-jre-headless", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        python = make_environment(folder / "venv")
        (folder / "score.py").write_text(SCRIPT)
        port = free_port()
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [python, "-m", "scoring_runtime", "--entry-script", "score.py", "--port", str(port)],
                cwd=folder,
                env=environment(PYTHONPATH=str(ROOT), EDGEWRIGHT_THREADS="2"),
                stdout=log,
                stderr=log,
            )
        try:
            return check(server, ("127.0.0.1", port), folder / "log")
        finally:
            server.terminate()
            server.wait(30)


def check(server: subprocess.Popen[bytes], address: tuple[str, int], log: Path) -> int:
    """0 when answers and document are as expected."""
    if not until_ready(server, address):
        print(f"error: the server did not start:\n{log.read_text()}", file=sys.stderr)
        return 1
    headers = {"content-type": "application/json"}
    answers = [call(address, "POST", "/score", json.dumps(BODY).encode(), headers) for _ in range(3)]
    schema = call(address, "GET", "/swagger.json").json()["definitions"]["ServiceInput"]["properties"]["data"]
    found = [answer.json() for answer in answers]
    print(f"answers: {found}\nschema: {json.dumps(schema)}")
    refused = call(address, "POST", "/score", b"{}", headers)
    print(f"without 'data': {refused.status} {refused.body.decode()}")
    columns = schema["items"]["properties"]
    right = found == [EXPECTED] * 3 and refused.status == 400 and columns["x"]["type"] == "number"
    if not right:
        print(f"error: expected {EXPECTED}, 400 and a number\n{log.read_text()[-4000:]}", file=sys.stderr)
    return int(not right)


def until_ready(server: subprocess.Popen[bytes], address: tuple[str, int]) -> bool:
    deadline = time.monotonic() + START_TIMEOUT_S
    while server.poll() is None and time.monotonic() < deadline:
        try:
            if call(address, "GET", "/ready").status == 200:
                return True
        except OSError:
            time.sleep(0.5)
    return False


def make_environment(folder: Path) -> Path:
    """A virtual environment with pyspark; its interpreter."""
    tool = os.fsdecode(uv.find_uv_bin())
    subprocess.run([tool, "venv", "-q", "--python", sys.executable, folder], check=True, timeout=TIMEOUT_S)
    python = folder / "bin/python"
    install = [tool, "pip", "install", "-q", "--python", python, *PACKAGES]
    subprocess.run(install, check=True, timeout=TIMEOUT_S)
    return python


if __name__ == "__main__":
    sys.exit(main())

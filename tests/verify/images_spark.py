"""`scripts/verify images_spark --wheels FOLDER`: an image of runtime spark-py scores with a Spark session.

Makes a Debian base with a Java runtime, builds an image whose run() asks Spark, starts it in a Docker engine of its own
(unprivileged, read-only) and compares its answer. FOLDER holds a wheel of PySpark, which the package index has as source
only: `pip wheel --no-deps 'pyspark==3.5.*' -w FOLDER` (300 MB to download). Needs root, mmdebstrap and docker.io.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))

import urllib3
from docker_engine import running_docker_engine
from registry_servers import free_port

from edge_containers.image_model import Platform
from publisher.bases.create import BaseRecipe, create_base
from publisher.build_request import BuildRequest
from publisher.environments import Environment
from publisher.images import ContainerImage
from publisher.models import Model
from publisher.workspace import Workspace

SCRIPT = """
import json, os
from pyspark.sql import SparkSession

def init():
    global prices
    spark = SparkSession.builder.master("local[1]").appName("score").config("spark.ui.enabled", "false").getOrCreate()
    path = os.path.join(os.environ["AZUREML_MODEL_DIR"], "prices.json")
    prices = spark.createDataFrame([(key, value) for key, value in json.load(open(path)).items()], ["name", "price"])

def run(data):
    spark = SparkSession.builder.getOrCreate()
    asked = spark.createDataFrame([(each,) for each in json.loads(data)["data"]], ["name"])
    return sorted([row["name"], row["price"]] for row in asked.join(prices, "name").collect())
"""
EXPECTED = [["apple", 1.5], ["pear", 2.25]]
START_S, SCORE_S = 240.0, 120.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--wheels", type=Path, required=True)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, running_docker_engine() as engine:
        workspace = Workspace.init(Path(folder) / "w")
        (workspace.root / "edgewright.toml").write_text(
            f'[workspace]\nname = "spark"\n[environment]\npython = "3.11"\nfind_links = ["{options.wheels.absolute()}"]\n'
        )
        workspace = Workspace.open(workspace.root)
        base = create_base(workspace, BaseRecipe(Platform.parse("linux/amd64"), with_jre=True), report=print)
        print(f"base {base.name}: {base.size_bytes / 1e6:.0f} MB", flush=True)
        request = _request(workspace, Path(folder), base.name)
        image = ContainerImage.from_request(workspace, request)
        print(f"image: {image.size / 1e6:.0f} MB, built in {image.build_seconds:.0f} s", flush=True)
        image.export(Path(folder) / "image.tar")
        engine.run("load", "--input", str(Path(folder) / "image.tar"), timeout_s=600)
        port = free_port()
        hardened = ["--read-only", "--tmpfs=/tmp", "--cap-drop=ALL", "--memory=1g"]
        container = engine.run("run", "-d", f"-p=127.0.0.1:{port}:5001", *hardened, image.id)
        started = time.monotonic()
        try:
            answer = _ask(port)
        finally:
            print(engine.run("logs", container)[-2000:])
        assert answer == EXPECTED, answer
        print(f"spark-py: the right answer {time.monotonic() - started:.1f} s after the container's start")


def _request(workspace: Workspace, folder: Path, base: str) -> BuildRequest:
    (folder / "prices.json").write_text('{"apple": 1.5, "pear": 2.25}')
    (folder / "score.py").write_text(SCRIPT)
    model = Model.register(workspace, folder / "prices.json", "prices")
    return BuildRequest(
        "prices",
        (model,),
        folder / "score.py",
        Environment((), "3.11"),
        platforms=(Platform.parse("linux/amd64"),),
        base=base,
        runtime="spark-py",
    )


def _ask(port: int) -> object:
    deadline = time.monotonic() + START_S
    while True:
        try:
            body = {"data": ["pear", "apple", "plum"]}
            url = f"http://127.0.0.1:{port}/score"
            answer = urllib3.request("POST", url, json=body, retries=False, timeout=SCORE_S)
            assert answer.status == 200, answer.data
            return answer.json()
        except urllib3.exceptions.HTTPError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)


if __name__ == "__main__":
    main()

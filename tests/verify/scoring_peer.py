"""`scripts/verify scoring_peer`: the scoring contract's table run on this runtime and on Azure ML's own server.

Both run in one environment made for this, pinned by version, under a temporary folder. The table goes to stdout, and with
`--output FILE` to a file; exit code 1 when this runtime fails a row, or the other one fails a row without a reason
(`Row.ours` in the table of the contract, or `DIFFERENCES` here), or a row was not run though it applies.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "support"))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "contract"))

import test_scoring_contract as table
import uv
from scoring_contract import ROOT

PEER = "azureml-inference-server-http==1.5.1"
# The scripts' own packages, and what this runtime needs in any image.
PACKAGES = (
    PEER,
    "inference-schema==1.8",
    "pandas<3",
    "scikit-learn",
    "uvicorn",
    "httptools",
    "starlette",
    "orjson",
)
TIMEOUT_S = 900

# How a case that only one server can have says so when it is skipped on the other.
_SIDES = ("ours", "theirs")

# Case → why the other server's answer is not wanted here.
DIFFERENCES: dict[str, str] = {}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one case; `detail` is empty when it holds."""

    state: str
    detail: str = ""

    @property
    def is_failed(self) -> bool:
        return self.state == "differs"

    def __str__(self) -> str:
        return f"{self.state}: {self.detail}" if self.detail else self.state


def main() -> int:
    """Make the environment, run the table twice, print."""
    parser = argparse.ArgumentParser(description="Run the scoring contract on both servers.")
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        python = make_environment(Path(folder, "venv"))
        ours = outcomes(Path(folder), python, {})
        server = f"{python.parent}/azmlinfsrv --entry_script {{script}} --port {{port}}"
        theirs = outcomes(Path(folder), python, {"EDGEWRIGHT_CONTRACT_SERVER": server})
    text, failures = report(ours, theirs)
    print(text)
    if options.output is not None:
        options.output.write_text(text, encoding="utf-8")
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    return int(bool(failures))


def make_environment(folder: Path) -> Path:
    """A virtual environment with both servers; its interpreter."""
    tool = uv.find_uv_bin()
    subprocess.run(
        [tool, "venv", "-q", "--python", sys.executable, str(folder)], check=True, timeout=TIMEOUT_S
    )
    python = folder / "bin/python"
    command = [tool, "pip", "install", "-q", "--python", str(python), *PACKAGES]
    subprocess.run(command, check=True, timeout=TIMEOUT_S)
    return python


def outcomes(folder: Path, python: Path, variables: dict[str, str]) -> dict[str, Outcome]:
    """Every case of the table on one server."""
    result = folder / "result.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "contract_on_peer", f"--junitxml={result}"]
    done = subprocess.run(
        [*command, "tests/contract/test_scoring_contract.py"],
        cwd=ROOT,
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT / "tests/support"),
            "EDGEWRIGHT_CONTRACT_PYTHON": str(python),
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if not result.is_file():
        raise SystemExit(f"error: pytest did not run:\n{done.stdout}{done.stderr}")
    cases = ElementTree.parse(result).iter("testcase")  # noqa: S314 - pytest wrote it just now
    found = {_case(each): _outcome(each) for each in cases}
    result.unlink()
    return found


def _case(element: ElementTree.Element) -> str:
    """`test_row[26 health]` → `26 health`, `test_16_init_runs_once` → `16 init runs once`."""
    name = element.attrib["name"]
    found = re.fullmatch(r"test_row\[(.*)\]", name, re.DOTALL)
    return found[1] if found else name.removeprefix("test_").replace("_", " ")


def _outcome(element: ElementTree.Element) -> Outcome:
    for child in element:
        if child.tag == "skipped":
            message = child.attrib.get("message", "")
            side, _, reason = message.partition(": ")
            return Outcome("does not apply", reason) if side in _SIDES else Outcome("not run", message)
        if child.tag in ("failure", "error"):
            lines = child.attrib.get("message", "").splitlines()
            return Outcome("differs", lines[0][:140] if lines else "")
    return Outcome("holds")


def report(ours: dict[str, Outcome], theirs: dict[str, Outcome]) -> tuple[str, list[str]]:
    """The page, and what must not be."""
    reasons = {row.case: row.ours for row in table.ROWS if row.ours} | DIFFERENCES
    failures, wanted = [], []
    lines = [
        "# The scoring contract on both servers",
        "",
        f"Written by `scripts/verify scoring_peer --output FILE`; the other server is {PEER}, same interpreter and packages.",
        "A row holds when status, body and headers are those of `tests/contract/test_scoring_contract.py`.",
        "",
        "| row | ours | theirs |",
        "| --- | --- | --- |",
    ]
    for case, mine in ours.items():
        other = theirs.get(case, Outcome("not run"))
        lines.append(f"| {_cell(case)} | {_cell(str(mine))} | {_cell(str(other))} |")
        if mine.is_failed:
            failures.append(f"ours, {case}: {mine.detail}")
        for side, found in (("ours", mine), ("theirs", other)):
            if found.state == "not run":
                failures.append(f"{side}, {case}: not run: {found.detail}")
        reason = reasons.get(case) or (other.detail if other.state == "does not apply" else "")
        if other.state != "holds" and mine.state == "holds":
            wanted.append(f"- {case}: {reason or 'no reason is known'}")
        if other.is_failed and not reason:
            failures.append(f"theirs, {case}: {other.detail}")
    counts = " · ".join(
        f"{name} {_count(found, 'holds')} of {len(found) - _count(found, 'does not apply')} that apply"
        for name, found in (("ours", ours), ("theirs", theirs))
    )
    lines += ["", f"Rows that hold: {counts}.", "", "## Where we differ, and why", "", *wanted, ""]
    return "\n".join(lines), failures


def _count(found: dict[str, Outcome], state: str) -> int:
    return sum(each.state == state for each in found.values())


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


if __name__ == "__main__":
    sys.exit(main())

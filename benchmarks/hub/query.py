"""How long the embedded hub takes for a query over 10,000 twins: `python benchmarks/hub/query.py [TWINS]`.

1. The twins are written into the hub's database first: three tags, four desired and a dozen reported properties each.
2. The hub runs as its own process; each query is asked 20 times over one kept HTTPS connection, after one that is not
   counted. What is measured is the time from the request to the whole answer read.
3. Answers are checked: the count, the number of twins of a page, and how many there are in all pages.

Bar: a COUNT with a tag and a reported predicate, and the first page of 100, at most 200 ms each. Results:
results/query.json.
"""

from __future__ import annotations

import http.client
import json
import os
import platform
import ssl
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent.parent / "tests" / "support"))

from hub_harness import HubProcess  # noqa: E402

from edge_contracts.sas import ConnectionString, make_sas  # noqa: E402
from iot_hub.core import Change, HubCore  # noqa: E402
from iot_hub.hub import utc_now  # noqa: E402
from iot_hub.identities import IdentityKey, IdentityRequest  # noqa: E402
from iot_hub.store import HubStore  # noqa: E402
from iot_hub.twins import TwinRequest  # noqa: E402

BAR_MS = 200.0
TIMES = 20
CONDITION = "tags.site = 'north' AND properties.reported.level > 2"
QUERIES = {
    "COUNT with a tag and a reported predicate": f"SELECT COUNT() AS n FROM devices WHERE {CONDITION}",
    "first page of 100 with both predicates": f"SELECT * FROM devices WHERE {CONDITION}",
    "first page of 100 of all": "SELECT * FROM devices",
    "first page of 100 that finds the last 50": "SELECT * FROM devices WHERE tags.place >= {last}",
    "COUNT by tag": "SELECT tags.site AS site, COUNT() AS n FROM devices GROUP BY tags.site",
}


def prepare(data_dir: Path, twins: int) -> None:
    """Write the devices and their twins; every second one is in the north, levels go from 0 to 4."""
    data_dir.mkdir(mode=0o700)
    store = HubStore(data_dir / "hub.db")
    core = HubCore(now=utc_now, random_bytes=os.urandom)
    for number in range(twins):
        key = IdentityKey(f"device-{number:06}")
        core.apply(core.put_identity(key, IdentityRequest(), None))
        tags = {"site": "north" if number % 2 else "south", "line": number % 7, "place": number}
        desired = {"level": number % 5, "mode": "auto", "limits": {"low": 1, "high": 9}}
        core.apply(core.write_twin(key, TwinRequest(tags, desired), None))
        modules = {
            name: {"runtimeStatus": "running", "exitCode": 0, "restartCount": 0} for name in ("a", "b")
        }
        core.apply(core.report(key, {"level": number // 2 % 5, "status": "ok", "modules": modules}))
    records = tuple(core.devices())
    store.commit(Change(records, tuple(core.twin(record.key) for record in records)))
    store.close()


class Client:
    """One HTTPS connection to the hub, as its owner."""

    def __init__(self, hub: HubProcess) -> None:
        owner = ConnectionString.parse(hub.connection_string)
        token = make_sas(
            owner.resource_uri,
            owner.shared_access_key.reveal(),
            expiry=int(time.time()) + 3600,
            policy=owner.shared_access_key_name,
        )
        self._headers = {"Authorization": token, "Content-Type": "application/json"}
        context = ssl.create_default_context(cafile=str(hub.ca_file))
        self._connection = http.client.HTTPSConnection(hub.host, hub.https_port, timeout=60, context=context)

    def query(self, text: str) -> list[Any]:
        body = json.dumps({"query": text})
        self._connection.request("POST", "/devices/query?api-version=2021-04-12", body, self._headers)
        answer = self._connection.getresponse()
        rows = json.loads(answer.read())
        assert answer.status == 200, rows
        return list(rows)


def measure(client: Client, text: str) -> tuple[list[float], list[Any]]:
    """Milliseconds of each time, and the rows."""
    rows = client.query(text)
    times = []
    for _ in range(TIMES):
        start = time.perf_counter()
        assert client.query(text) == rows
        times.append(1000 * (time.perf_counter() - start))
    return times, rows


def check(twins: int, rows: dict[str, list[Any]]) -> None:
    """Hold the answers against what `prepare` wrote."""
    found = sum(number % 2 == 1 and number // 2 % 5 > 2 for number in range(twins))
    count, both, page, last, sites = rows.values()
    assert count == [{"n": found}]
    assert len(both) == min(100, found)
    assert len(page) == min(100, twins)
    assert len(last) == 50
    assert sites == [{"site": "north", "n": twins // 2}, {"site": "south", "n": twins - twins // 2}]


def main() -> int:
    twins = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        data_dir = Path(folder) / "hub"
        prepare(data_dir, twins)
        with HubProcess(data_dir) as hub:
            client = Client(hub)
            results = {name: measure(client, text.format(last=twins - 50)) for name, text in QUERIES.items()}
    check(twins, {name: rows for name, (_, rows) in results.items()})
    table = {name: _spread(times) for name, (times, _) in results.items()}
    for name, row in table.items():
        print(
            f"{name:42} {row['median_ms']:7.1f} ms  ({row['least_ms']} to {row['most_ms']}); bar {BAR_MS:g} ms"
        )
    document = {
        "measured": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": f"{os.cpu_count()} cores, {platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "twins": twins,
        "times": TIMES,
        "bar_ms": BAR_MS,
        "queries": table,
    }
    results_file = HERE / "results" / "query.json"
    results_file.parent.mkdir(exist_ok=True)
    results_file.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    return 0 if all(row["median_ms"] <= BAR_MS for row in table.values()) else 1


def _spread(times: list[float]) -> dict[str, float]:
    return {
        "median_ms": round(statistics.median(times), 1),
        "least_ms": round(min(times), 1),
        "most_ms": round(max(times), 1),
    }


if __name__ == "__main__":
    sys.exit(main())

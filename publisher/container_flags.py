"""createOptions from flags in the manner of `docker run`.

| flag                                        | createOptions                                                     |
| ------------------------------------------- | ----------------------------------------------------------------- |
| `--port [HOST:]PORT[:CONTAINER][/udp]`      | `HostConfig.PortBindings`; CONTAINER is 5001, the scoring port    |
| `--memory 512m`                             | `HostConfig.Memory` in bytes; at least 6 MiB, as Docker wants it  |
| `--cpus 1.5`                                | `HostConfig.NanoCpus`                                             |
| `--gpu all`, `--gpu 2`, `--gpu ID,ID`       | `HostConfig.DeviceRequests` (Engine API 1.40)                     |
| `--device /dev/x[:/dev/y[:rwm]]`            | `HostConfig.Devices`                                              |
| `--volume SOURCE:/path[:ro]`                | `HostConfig.Binds`; SOURCE is an absolute path or a volume's name |

Whatever else Docker takes goes in as JSON (`--create-options`), under what the flags say. There is no `--privileged`:
`--device` gives a module the one device it needs.

>>> create_options(memory="512m", cpus="0.5")
{'HostConfig': {'Memory': 536870912, 'NanoCpus': 500000000}}
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any

from edge_contracts.create_options import CreateOptions
from edge_contracts.twin import merge_patch
from publisher.errors import UsageError

SCORING_PORT = 5001
MEMORY_MINIMUM_BYTES = 6 << 20
CPU_LIMIT = 1024
_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_PORT = re.compile(
    r"(?:(?P<host>[0-9]{1,3}(?:\.[0-9]{1,3}){3}):)?(?P<port>[0-9]{1,5})(?::(?P<container>[0-9]{1,5}))?"
    r"(?:/(?P<protocol>tcp|udp))?"
)
_MEMORY = re.compile(r"(?P<number>[0-9]{1,12})(?P<unit>[bkmg]?)b?", re.IGNORECASE)
_CPUS = re.compile(r"[0-9]{1,4}(?:\.[0-9]{1,9})?")
_DEVICE = re.compile(r"(?P<host>/[^:\s]+)(?::(?P<container>/[^:\s]+))?(?::(?P<rights>[rwm]{1,3}))?")
_VOLUME = re.compile(r"(?:/[^:]*|[A-Za-z0-9][A-Za-z0-9_.-]*):/[^:]*(?::(?:ro|rw|z|Z))?")
_GPU = re.compile(r"all|[1-9][0-9]?|(?=.*[A-Za-z,])[A-Za-z0-9-]+(?:,[A-Za-z0-9-]+)*")


def create_options(
    *,
    ports: Sequence[str] = (),
    memory: str | None = None,
    cpus: str | None = None,
    gpu: str | None = None,
    devices: Sequence[str] = (),
    volumes: Sequence[str] = (),
    others: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The createOptions document; `others` is what Docker takes beside the flags.

    Raises:
        UsageError: a flag is not of its form; `where` names it.
        ContractError: `others` is not as Docker's API says.
    """
    host_config: dict[str, Any] = {}
    if ports:
        host_config["PortBindings"] = _port_bindings(ports)
    if memory is not None:
        host_config["Memory"] = _memory_bytes(memory)
    if cpus is not None:
        host_config["NanoCpus"] = _nano_cpus(cpus)
    if gpu is not None:
        host_config["DeviceRequests"] = [_device_request(gpu)]
    if devices:
        host_config["Devices"] = [_device(text) for text in devices]
    if volumes:
        host_config["Binds"] = [
            _checked(_VOLUME, text, "--volume", "SOURCE:/path[:ro]")[0] for text in volumes
        ]
    options = merge_patch(dict(others or {}), {"HostConfig": host_config} if host_config else {})
    return dict(CreateOptions.parse(options).document)


def _port_bindings(texts: Sequence[str]) -> dict[str, Any]:
    bindings: dict[str, list[dict[str, str]]] = {}
    for text in texts:
        expected = "[HOST:]PORT[:CONTAINER][/udp], an IPv4 address of the device and ports of 1 to 65535"
        found = _checked(_PORT, text, "--port", expected, _is_port)
        container = f"{int(found['container'] or SCORING_PORT)}/{found['protocol'] or 'tcp'}"
        binding = {"HostPort": str(int(found["port"]))}
        if found["host"]:
            binding["HostIp"] = found["host"]
        bindings.setdefault(container, []).append(binding)
    return bindings


def _is_port(found: re.Match[str]) -> bool:
    try:
        ipaddress.IPv4Address(found["host"] or "0.0.0.0")
    except ValueError:
        return False
    return all(0 < int(found[name] or 1) < 65536 for name in ("port", "container"))


def _memory_bytes(text: str) -> int:
    expected = f"a size such as 512m or 2g, at least {MEMORY_MINIMUM_BYTES >> 20}m"
    found = _checked(_MEMORY, text, "--memory", expected, lambda each: _bytes(each) >= MEMORY_MINIMUM_BYTES)
    return _bytes(found)


def _bytes(found: re.Match[str]) -> int:
    return int(found["number"]) * _UNITS[found["unit"].lower()]


def _nano_cpus(text: str) -> int:
    expected = f"a number such as 1.5, above 0 and at most {CPU_LIMIT}"
    found = _checked(_CPUS, text, "--cpus", expected, lambda each: 0 < Decimal(each[0]) <= CPU_LIMIT)
    return int(Decimal(found[0]) * 10**9)


def _device_request(text: str) -> dict[str, Any]:
    value = _checked(_GPU, text, "--gpu", "all, a count, or ids joined by commas")[0]
    if value == "all" or value.isdigit():
        return {"Count": -1 if value == "all" else int(value), "Capabilities": [["gpu"]]}
    return {"DeviceIDs": value.split(","), "Capabilities": [["gpu"]]}


def _device(text: str) -> dict[str, str]:
    found = _checked(_DEVICE, text, "--device", "/dev/x[:/dev/y[:rwm]]")
    return {
        "PathOnHost": found["host"],
        "PathInContainer": found["container"] or found["host"],
        "CgroupPermissions": found["rights"] or "rwm",
    }


def _checked(
    pattern: re.Pattern[str],
    text: str,
    flag: str,
    expected: str,
    fits: Callable[[re.Match[str]], bool] = bool,
) -> re.Match[str]:
    found = pattern.fullmatch(text) if text.isascii() else None
    if found is None or not fits(found):
        raise UsageError(f"{flag} must be {expected}, not {text!r}", where=flag)
    return found

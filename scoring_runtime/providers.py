"""onnxruntime's execution providers: which are asked for, which are here, and which really run a model.

1. A name is onnxruntime's without "ExecutionProvider", in lower case: cuda, tensorrt, openvino, cpu. The whole name is taken too.
2. They are asked for in order of preference. The processor runs what no other one takes, asked for or not.
3. A provider is used when it runs nodes of the graph. That it is installed, or registered with a session, is not enough: without
   a device, or for a graph it cannot run, onnxruntime gives everything to the processor and says nothing.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when the library loads, so before the import below

import onnxruntime as ort

from .errors import ProviderError, SettingsError

ort.disable_telemetry_events()

log = logging.getLogger("scoring_runtime")

CPU = "cpu"
# Asks a session to remember which provider got which node.
RECORD = ("session.record_ep_graph_assignment_info", "1")
_ENDING = "executionprovider"


def short_name(name: str) -> str:
    """`CUDAExecutionProvider` → `cuda`."""
    return name.lower().removesuffix(_ENDING)


def installed() -> dict[str, str]:
    """What this onnxruntime is built with: short names → its own."""
    return {short_name(name): name for name in ort.get_available_providers()}


def sessions_providers(asked: Sequence[str]) -> list[str]:
    """onnxruntime's names of those asked for that are installed, the processor last.

    Raises:
        SettingsError: no onnxruntime has such a provider.
    """
    known = {short_name(name) for name in ort.get_all_providers()} | set(installed())
    for name in asked:
        if short_name(name) not in known:
            raise SettingsError(
                f"onnxruntime {ort.__version__} knows no provider '{name}'; expected some of {', '.join(sorted(known))}"
            )
    here = installed()
    wanted = [here[short] for short in map(short_name, asked) if short in here]
    return list(dict.fromkeys([*wanted, here[CPU]]))


def nodes_by_provider(session: ort.InferenceSession) -> dict[str, int]:
    """How many nodes of the graph each registered provider runs, by short name; empty when this onnxruntime cannot say."""
    assigned = getattr(session, "get_provider_graph_assignment_info", None)
    if assigned is None:
        return {}
    counts: Counter[str] = Counter()
    for part in assigned():
        counts[short_name(part.ep_name)] += len(part.get_nodes())
    return {short: counts[short] for short in map(short_name, session.get_providers())}


def used_providers(session: ort.InferenceSession, nodes: Mapping[str, int]) -> tuple[str, ...]:
    """Those that run nodes, in order of preference; of an onnxruntime that cannot say, those that are registered."""
    registered = tuple(map(short_name, session.get_providers()))
    # A graph whose nodes were all computed while it was loaded has none to assign.
    return tuple(short for short in registered if nodes.get(short)) or (registered if not nodes else (CPU,))


def check_used(
    session: ort.InferenceSession, used: Sequence[str], asked: Sequence[str], required: Sequence[str]
) -> None:
    """Warn of what was asked for and runs nothing.

    Raises:
        ProviderError: one that is required runs nothing.
    """
    for name in dict.fromkeys(map(short_name, [*required, *asked])):
        if name in used or (name == CPU and name not in map(short_name, required)):
            continue
        text = (
            f"provider '{name}' {_why_unused(session, name)}; asked for: {', '.join(asked)};"
            f" installed in onnxruntime {ort.__version__} here: {', '.join(installed())}; used: {', '.join(used)}"
        )
        if name in map(short_name, required):
            raise ProviderError(f"required {text}")
        log.warning("%s", text)


def _why_unused(session: ort.InferenceSession, name: str) -> str:
    if name not in installed():
        return "is not installed"
    if name not in map(short_name, session.get_providers()):
        return "could not be started (its libraries or its device are missing)"
    return "takes no node of this model's graph"

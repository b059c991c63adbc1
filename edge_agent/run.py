"""`edge-agent run`: the agent with its real collaborators, until SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import traceback
from functools import partial
from random import Random
from typing import NoReturn

from edge_agent.agent import Agent
from edge_agent.config import AgentConfig
from edge_agent.edge_hub.hub import EdgeHub, EdgeHubConfig
from edge_agent.hub_client import SdkConnector, SdkSender
from edge_agent.identity import HubIdentities
from edge_agent.logs import configure_logging
from edge_agent.store import Store
from edge_containers.process_runtime import ProcessRuntime
from edge_contracts.errors import AgentError
from edge_contracts.sas import ConnectionString

log = logging.getLogger("edge_agent")


def run_agent(config: AgentConfig) -> int:
    """Run until a signal; the process ends with the returned code.

    Raises:
        AgentError: it could not start: configuration, state folder, or another agent in it.
    """
    configure_logging()
    connection = config.connection_string()
    store = Store(config.state_dir)
    store.prepare()
    with store.locked():
        try:
            asyncio.run(_run(config, connection, store))
        except AgentError:
            raise
        except Exception:
            log.critical("the agent ends: %s", traceback.format_exc())
            _leave(1)
        _leave(0)


def _leave(code: int) -> NoReturn:
    """End at once: a library's call that never returned would keep the interpreter waiting for its thread."""
    sys.stderr.flush()
    os._exit(code)


async def _run(config: AgentConfig, connection: ConnectionString, store: Store) -> None:
    identities = HubIdentities(connection, config.https_port, config.ca_file, store)
    identities.load()
    connector = SdkConnector(connection, config.ca_file, identities.key_of)
    sender = SdkSender(connector, partial(identities.ensure, again=True))
    agent = Agent(
        config,
        device_id=str(connection.device_id),
        runtime=open_runtime(config),
        identities=identities,
        connector=connector,
        local_hub=EdgeHub(_edge_hub_config(config, connection), identities.key_of, sender),
        upstream=sender,
        store=store,
        random=Random(),
    )
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await agent.run(stop)


def open_runtime(config: AgentConfig) -> ProcessRuntime:
    """The module runtime on this agent's state folder; also for commands that work while no agent runs."""
    return ProcessRuntime(
        config.state_dir / "runtime",
        config.python,
        allow_unisolated=config.allow_unisolated,
        port_range=(config.first_port, config.last_port),
        ca_file=config.ca_file,
    )


def _edge_hub_config(config: AgentConfig, connection: ConnectionString) -> EdgeHubConfig:
    return EdgeHubConfig(
        host=config.edge_hub_host,
        port=config.edge_hub_port,
        hub_host_name=connection.host_name,
        device_id=str(connection.device_id),
        state_dir=config.state_dir / "edge_hub",
        store_max_bytes=config.store_max_bytes,
    )

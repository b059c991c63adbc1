"""A TCP connection and a TLS handshake with the hub, explained."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

from edge_agent.checks import Finding, Outcome
from edge_agent.config import AgentConfig, ConfigError

TIMEOUT_S = 10.0


def try_tls(config: AgentConfig, port: int) -> Finding:
    """Connect to the hub's `port` with the configured authorities."""
    try:
        connection = config.connection_string()
    except ConfigError:
        return Finding(Outcome.SKIPPED, "no usable connection string")
    return handshake(connection.gateway_host_name or connection.host_name, port, config.ca_file)


def handshake(host: str, port: int, ca_file: Path | None) -> Finding:
    """Connect to any `host` and `port`."""
    where = f"{host}:{port}"
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except OSError as error:
        return Finding(
            Outcome.ERROR, f"cannot read hub.ca_file {ca_file}: {error}", "copy the hub's ca.pem there"
        )
    try:
        with (
            socket.create_connection((host, port), TIMEOUT_S) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            return Finding(Outcome.OK, f"{where} answers, {secure.version()}")
    except ssl.SSLCertVerificationError as error:
        mend = "set hub.ca_file to the hub's ca.pem; a wrong clock refuses certificates too"
        return Finding(
            Outcome.ERROR, f"{where} shows a certificate that is not trusted: {error.verify_message}", mend
        )
    except socket.gaierror as error:
        return Finding(
            Outcome.ERROR, f"the name {host} cannot be resolved: {error.strerror}", "check DNS and HostName"
        )
    except OSError as error:
        mend = "check that the hub runs (edgewright hub status) and that the network lets this port through"
        return Finding(Outcome.ERROR, f"{where} cannot be reached: {error.strerror or error}", mend)

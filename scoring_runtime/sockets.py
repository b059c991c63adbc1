"""The listening sockets: inherited from the module runtime, or bound here."""

from __future__ import annotations

import socket
from typing import Any

from .errors import ListenError, SettingsError
from .settings import Settings


def listening_sockets(settings: Settings) -> tuple[socket.socket, socket.socket | None]:
    """(public, health): inherited ones where the runtime passed them; no health socket of our own."""
    health = None
    if settings.health_fd is not None:
        health = inherited_socket(settings.health_fd, "EDGEWRIGHT_HEALTH_FD")
    if settings.http_fd is not None:
        return inherited_socket(settings.http_fd, "EDGEWRIGHT_HTTP_FD"), health
    return bind(settings.host, settings.port), health


def inherited_socket(fd: int, variable: str) -> socket.socket:
    """The listening socket that the module runtime left at `fd`.

    Raises:
        SettingsError: there is none, or it does not listen.
    """
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise SettingsError(f"{variable}={fd} is not a socket: {error.strerror}") from error
    if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        sock.detach()
        raise SettingsError(f"{variable}={fd} is a socket that does not listen")
    sock.setblocking(False)
    return sock


def bind(host: str, port: int) -> socket.socket:
    """Take the address, without listening yet: connections are refused until there is someone to answer.

    Raises:
        ListenError: the address is taken or not this machine's.
    """
    family, kind, protocol, _, address = _resolve(host, port)
    sock = socket.socket(family, kind, protocol)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
    except OSError as error:
        sock.close()
        raise ListenError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port"
        ) from error
    sock.setblocking(False)
    return sock


def _resolve(host: str, port: int) -> tuple[Any, ...]:
    try:
        return socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except socket.gaierror as error:
        raise ListenError(f"cannot listen on {host}: {error.strerror}") from error

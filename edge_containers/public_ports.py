"""The public port of each module: asked for by the deployment, or chosen once and remembered.

The runtime binds, not the module (DECISIONS P4). SO_REUSEADDR, so that connections of a former life in TIME_WAIT do
not stand in the way; never SO_REUSEPORT, which would let another program of the same user take a share of the requests.
"""

from __future__ import annotations

import errno
import json
import socket
import threading
import zlib
from pathlib import Path

from edge_containers.runtime import Address, ModuleStartError, PortInUseError
from edge_containers.shim import write_json

LOOPBACK = "127.0.0.1"
ALL_ADDRESSES = "0.0.0.0"
"""Docker's address for a published port that names none."""
_BACKLOG = 128


class PublicPorts:
    """Binds public sockets; `file` holds module → chosen port. Safe to use from several threads of one process."""

    def __init__(self, file: Path, port_range: tuple[int, int]) -> None:
        """Args: port_range: first and last port that may be chosen."""
        first, last = port_range
        if not 0 < first <= last <= 65535:
            raise ValueError(f"port_range must be two ports in order, not {port_range}")
        self._file = file
        self._range = range(first, last + 1)
        self._lock = threading.Lock()

    def wanted(self, module: str, host: str | None, port: int | None) -> Address | None:
        """The address the module is to have; None when it has none yet and a port is still to be chosen."""
        if port is not None:
            return host or ALL_ADDRESSES, port
        chosen = self._read().get(module)
        return None if chosen is None else (host or LOOPBACK, chosen)

    def bind(self, module: str, host: str | None, port: int | None) -> socket.socket:
        """A listening socket at the asked-for port, else at the module's remembered one, else at a free one.

        A remembered port that somebody else took meanwhile is given up for another.

        Raises:
            PortInUseError: the asked-for port is taken, or none of the range is free.
            ModuleStartError: the address is not this machine's, or the port is not for this user.
        """
        if port is not None:
            return listen(module, (host or ALL_ADDRESSES, port))
        with self._lock:
            return self._bind_chosen(module, host or LOOPBACK)

    def _bind_chosen(self, module: str, host: str) -> socket.socket:
        chosen = self._read()
        others = {port for name, port in chosen.items() if name != module}
        candidates = self._candidates(module, chosen.get(module))
        # Ports remembered for others come last: of a module that is gone, if they can be had at all.
        for port in sorted(candidates, key=others.__contains__):
            try:
                listener = listen(module, (host, port))
            except PortInUseError:
                continue
            kept = {name: each for name, each in chosen.items() if each != port}
            write_json(str(self._file), {**kept, module: port})
            return listener
        raise PortInUseError(
            f"module '{module}' needs a TCP port of {self._range.start} to {self._range.stop - 1} on {host}: "
            "all of them are in use",
            where=module,
        )

    def _candidates(self, module: str, remembered: int | None) -> list[int]:
        # A start of its own for each name: agents on one machine seldom meet.
        start = zlib.crc32(module.encode()) % len(self._range)
        rotated = [*self._range[start:], *self._range[:start]]
        return rotated if remembered is None else [remembered, *rotated]

    def _read(self) -> dict[str, int]:
        try:
            return dict(json.loads(self._file.read_bytes()))
        except FileNotFoundError:
            return {}


def listen(module: str, address: Address) -> socket.socket:
    """A listening TCP socket.

    Raises:
        PortInUseError, ModuleStartError: as `PublicPorts.bind`.
    """
    host, port = address
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise PortInUseError(
                f"module '{module}' needs TCP port {port} on {host}, which is already in use",
                where=f"{host}:{port}",
            ) from error
        raise ModuleStartError(
            f"module '{module}' cannot listen on {host}:{port}: {error.strerror or error}",
            where=f"{host}:{port}",
        ) from error
    return listener

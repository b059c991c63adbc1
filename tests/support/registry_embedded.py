"""The product's own registry on a free loopback port, with a table of users."""

from __future__ import annotations

import hmac
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import uvicorn

from iot_hub.registry import RegistryGrant, make_registry

START_S = 20.0


def grant(
    subject: str, *repositories: str, actions: str = "pull push", expires_at: float | None = None
) -> RegistryGrant:
    return RegistryGrant(subject, repositories, tuple(actions.split()), expires_at)


@dataclass
class TableAuth:
    """Users with their passwords and grants; change `users` while it runs."""

    users: dict[str, tuple[str, RegistryGrant]] = field(default_factory=dict)

    def check(self, username: str, password: str) -> RegistryGrant | None:
        secret, granted = self.users.get(username, ("", None))
        return granted if hmac.compare_digest(secret.encode(), password.encode()) else None


def default_users() -> Mapping[str, tuple[str, RegistryGrant]]:
    return {
        "pusher": ("correct-horse", grant("pusher", "*")),
        "puller": ("battery", grant("puller", "team/*", actions="pull")),
    }


@contextmanager
def embedded_registry(
    folder: Path,
    auth: TableAuth | None = None,
    *,
    wall_clock: Callable[[], float] = time.time,
    **options: int,
) -> Iterator[str]:
    """Its address, `127.0.0.1:PORT`. By default `pusher:correct-horse` may do all and `puller:battery` pull team/*."""
    app = make_registry(folder, auth or TableAuth(dict(default_users())), wall_clock=wall_clock, **options)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="warning", ws="none", timeout_graceful_shutdown=2)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        deadline = time.monotonic() + START_S
        while not server.started:
            assert time.monotonic() < deadline, "the registry did not start"
            assert thread.is_alive(), "the registry ended at once"
            time.sleep(0.01)
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(START_S)
        listener.close()

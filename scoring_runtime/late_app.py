"""The ASGI application, imported and built in a thread once the process serves.

It is a fifth of a cold start, and what most requests want (`POST /score`) is answered without it (`fast_path`).
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger("scoring_runtime")

# As for whatever else of an image cannot be used at start (`serve`).
EXIT_BAD_START = 3


class LateApp:
    """Requests that come before it is built wait for it."""

    def __init__(self, build: Callable[[], ASGIApp]) -> None:
        self._build = build
        self._app: ASGIApp | None = None
        self._building: asyncio.Future[ASGIApp] | None = None

    def start(self) -> asyncio.Future[ASGIApp]:
        """Build it, if nobody has asked before. An image that lacks a package ends here."""
        if self._building is None:
            self._building = asyncio.get_running_loop().run_in_executor(None, self._make)
        return self._building

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self._app or await asyncio.shield(self.start())
        await app(scope, receive, send)

    def _make(self) -> ASGIApp:
        try:
            self._app = self._build()
        except BaseException:
            log.critical("the HTTP application cannot be loaded", exc_info=True)
            logging.shutdown()
            os._exit(EXIT_BAD_START)
        gc.freeze()  # what was loaded stays; later collections need not look at it again
        return self._app

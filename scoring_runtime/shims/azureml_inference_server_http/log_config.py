"""The two classes that a `logging.json` written for Azure ML's server names."""

from __future__ import annotations

import logging
import time
from typing import Any

FORMAT = "%(asctime)s %(levelname).1s [%(process)d] %(name)s - %(message)s"


class AMLLogFormatter(logging.Formatter):
    """Times are UTC."""

    def __init__(self, fmt: str = FORMAT, datefmt: str | None = None, style: Any = "%", **more: Any) -> None:
        super().__init__(fmt, datefmt, style, **more)
        self.converter = time.gmtime


class RootAccessFilter(logging.Filter):
    """Drops the lines of health probes."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "GET / HTTP/1.1" not in record.getMessage()

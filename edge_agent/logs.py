"""The agent's own log: one line per record on stderr, secrets masked, an exception's text but never its traceback."""

from __future__ import annotations

import logging
import sys
import time

from edge_contracts.redact import redact_text


class LineFormatter(logging.Formatter):
    """`2026-01-31T12:00:00Z INFO edge_agent.reconcile: text` (UTC); line breaks become `\\n`."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(record.created))
        text = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None:
            text = f"{text}: {type(record.exc_info[1]).__name__}: {record.exc_info[1]}"
        line = redact_text(text).replace("\n", "\\n")
        return f"{moment} {record.levelname} {record.name}: {line}"


def configure_logging(level: int = logging.INFO) -> None:
    """Send every log record of this process to stderr in that form."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("azure").setLevel(logging.CRITICAL)
    logging.getLogger("urllib3").setLevel(logging.ERROR)

"""A user's traceback as its author would have seen it: without the frames that called the script."""

from __future__ import annotations

import traceback
from pathlib import Path
from types import TracebackType

_OWN_FOLDER = str(Path(__file__).parent)


def user_traceback(error: BaseException) -> str:
    """The complete traceback text, causes included, from the first frame that is not ours or the importer's."""
    first = _first_user_frame(error.__traceback__)
    return "".join(traceback.format_exception(type(error), error, first or error.__traceback__)).rstrip()


def _first_user_frame(frame: TracebackType | None) -> TracebackType | None:
    while frame is not None and _is_machinery(frame.tb_frame.f_code.co_filename):
        frame = frame.tb_next
    return frame


def _is_machinery(filename: str) -> bool:
    return filename.startswith((_OWN_FOLDER, "<frozen "))

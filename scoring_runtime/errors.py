"""What can go wrong in the scoring runtime.

    ScoringError
    ├── StartError            the module cannot start; the process ends with `exit_code`
    │   ├── SettingsError       a bad argument or environment variable
    │   ├── ListenError         the socket cannot be had
    │   ├── ScriptError         the user's script cannot be used
    │   ├── ModelError          the model file cannot be used
    │   ├── ProviderError       a required execution provider runs nothing
    │   └── GoldenError         a recorded answer is not reproduced
    ├── RequestError          the caller's mistake
    │   ├── BadInputError       the body is not what the model takes
    │   └── ContentTypeError    the content type is not what the model takes
    ├── ResultError           the user's result cannot be written as JSON
    └── BusyError             too many requests are waiting already

A tree of its own: nothing outside this package is imported here (it is copied into images alone).
"""

from __future__ import annotations


class ScoringError(Exception):
    """Root of the tree; `code` is stable, `temporary` says whether trying again may help."""

    code = "error"
    temporary = False


class StartError(ScoringError):
    code = "start-failed"
    exit_code = 1


class SettingsError(StartError):
    code = "bad-settings"
    exit_code = 2


class ListenError(StartError):
    code = "cannot-listen"


class ScriptError(StartError):
    """The user's script cannot be used; `user_traceback` is what its author must read, or empty."""

    code = "bad-script"
    exit_code = 3  # what Azure ML's server exits with when a worker cannot boot (facts: gunicorn's code)

    def __init__(self, message: str, user_traceback: str = "") -> None:
        super().__init__(message)
        self.user_traceback = user_traceback


class ModelError(StartError):
    code = "bad-model"
    exit_code = 3


class ProviderError(StartError):
    code = "provider-missing"
    exit_code = 3


class GoldenError(StartError):
    code = "golden-differs"
    exit_code = 3


class RequestError(ScoringError):
    code = "bad-request"


class BadInputError(RequestError):
    code = "bad-input"


class ContentTypeError(RequestError):
    code = "unsupported-content-type"


class ResultError(ScoringError):
    code = "result-not-json"


class BusyError(ScoringError):
    code = "busy"
    temporary = True

"""Root of the error tree: what every failure that reaches a user carries.

    EdgewrightError
    ├── ContractError      a document, reference, route, topic or token is not as the contract says
    │   └── SasError         a SAS token that is malformed, expired, for something else, or signed by another key
    ├── ContainerError     images and how they run (edge_containers)
    ├── HubError           the embedded hub (iot_hub)
    ├── AgentError         the edge agent (edge_agent)
    ├── PublishError       workspace, models, images, credentials, manifests (publisher)
    └── TargetError        deployment targets (cloud_targets)

Each package keeps its leaves beside the code that raises them. Callers and tests use the fields, never the text.
"""

from __future__ import annotations

from edge_contracts.redact import redact_document, redact_text

FOUND_LIMIT = 120
"""Characters of an offending value shown in a message: enough to recognise it, never a whole document."""


class EdgewrightError(Exception):
    """A failure with a message for a user: what, where, what was expected and what was found.

    Attributes:
        message: the whole message, also `str(error)`.
        code: stable identifier of the kind of failure.
        where: the object concerned: a path inside a document, a file, an address.
        temporary: whether the same call may succeed later without any change.
        next_command: the next command to type, where there is one.
    """

    code: str = "error"
    temporary: bool = False

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        where: str | None = None,
        temporary: bool | None = None,
        next_command: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.next_command = next_command
        if code is not None:
            self.code = code
        if temporary is not None:
            self.temporary = temporary

    def __str__(self) -> str:
        return self.message


class ContractError(EdgewrightError):
    """A document, reference, route, topic or token that is not as the contract says: the author's mistake."""

    code = "contract"


class SasError(ContractError):
    """A SAS token that does not open the resource it is presented for."""

    code = "sas"


class ContainerError(EdgewrightError):
    """Images and how they run."""

    code = "container"


class HubError(EdgewrightError):
    """The embedded hub."""

    code = "hub"


class AgentError(EdgewrightError):
    """The edge agent."""

    code = "agent"


class PublishError(EdgewrightError):
    """Workspace, models, images, credentials and manifests."""

    code = "publish"


class TargetError(EdgewrightError):
    """Deployment targets."""

    code = "target"


def shown(value: object) -> str:
    """`value` as a message shows what was found: its repr without secrets, cut to `FOUND_LIMIT` characters."""
    text = redact_text(repr(redact_document(value)))
    return text if len(text) <= FOUND_LIMIT else f"{text[: FOUND_LIMIT - 1]}…"


def unexpected(where: str, expected: str, found: object, *, code: str | None = None) -> ContractError:
    """The error for one value inside a document: `'path' must be EXPECTED, not FOUND`."""
    return ContractError(f"'{where}' must be {expected}, not {shown(found)}", code=code, where=where)

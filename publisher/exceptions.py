"""The original's names of what is raised here, for scripts that catch it.

Every one has `message`, and stands where the original raised it; how this project's own errors are told apart is in
`publisher.errors`.
"""

from __future__ import annotations

from edge_contracts.errors import EdgewrightError
from publisher.errors import NotFoundError, UsageError

AzureMLException = EdgewrightError
WebserviceException = EdgewrightError
UserErrorException = UsageError
ModelNotFoundException = NotFoundError

__all__ = ["AzureMLException", "ModelNotFoundException", "UserErrorException", "WebserviceException"]

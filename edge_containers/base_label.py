"""What an image's label says it stands on, and where such an image can run."""

from __future__ import annotations

from collections.abc import Mapping

from edge_containers.runtime import IncompatibleImageError

BASE_LABEL = "edgewright.base"
NO_BASE = "none"


def require_base(labels: Mapping[str, str], image: str, target: str) -> None:
    """Refuse an image without a base where containers are started: it has no Python of its own.

    Raises:
        IncompatibleImageError: with the command that makes a base.
    """
    if labels.get(BASE_LABEL) == NO_BASE:
        raise IncompatibleImageError(
            f"image {image} has base 'none': it holds no Python, and {target} starts it as a container; make a base and "
            "build the image on it (edgewright image build … --base bookworm)",
            where=BASE_LABEL,
            next_command="edgewright image base create",
        )

"""The platforms images are built for, under uv's names."""

from __future__ import annotations

from collections.abc import Mapping

from edge_containers.image_model import Platform
from publisher.errors import UsageError

# manylinux_2_28: the oldest glibc with wheels of current numpy and onnxruntime, found in every Debian from 11 on.
UV_PLATFORMS: Mapping[str, str] = {
    "linux/amd64": "x86_64-manylinux_2_28",
    "linux/arm64": "aarch64-manylinux_2_28",
}


def uv_platform(platform: Platform) -> str:
    """uv's name of a target platform.

    Raises:
        UsageError: none of the platforms images are built for.
    """
    name = str(platform)
    if name not in UV_PLATFORMS:
        reason = " (neither numpy nor ONNX Runtime has wheels for it)" if name == "linux/arm/v7" else ""
        known = ", ".join(UV_PLATFORMS)
        raise UsageError(f"images are not built for {name}{reason}; platforms are {known}", where=name)
    return UV_PLATFORMS[name]

"""Builds give the same bytes anywhere, take little memory, and leave nothing half when interrupted (short forms)."""

from __future__ import annotations

from pathlib import Path

import pytest
from images_sweep import CIRCUMSTANCES, build, interrupt_builds, make_source, new_workspace

from edge_containers.store import ContentStore
from publisher.builders.layer import LayerFile, write_layer

pytestmark = pytest.mark.timeout(300)

MEMORY_BAR_BYTES = 200 << 20


def test_clock_umask_locale_hash_seed_and_order_of_files_change_no_byte(tmp_path: Path) -> None:
    digests = {
        build(new_workspace(tmp_path, f"w{number}"), make_source(tmp_path / f"s{number}"), how)["digest"]
        for number, how in enumerate(CIRCUMSTANCES[:3])
    }
    assert len(digests) == 1


def test_a_layer_of_fixed_files_is_these_bytes_on_every_machine(tmp_path: Path) -> None:
    files = [
        LayerFile("opt/b.txt", b"b\n"),
        LayerFile("opt/a/run", b"#!/bin/sh\n", executable=True),
        LayerFile("opt/" + "long/" * 30 + "Ünïcode", b"x" * 1000),
    ]
    store = ContentStore(tmp_path / "store")
    diff_ids = {str(write_layer(store, "model", files, compression=level)[1]) for level in (0, 1, 9)}
    assert diff_ids == {"sha256:3c7794105e5d619a42f8f40771241e34b6ed3e31a8c77629b0f53464e10b67b9"}


def test_a_large_model_takes_little_memory(tmp_path: Path) -> None:
    found = build(new_workspace(tmp_path, "w"), make_source(tmp_path / "s", 200 << 20))
    assert found["peakBytes"] < MEMORY_BAR_BYTES


def test_interrupted_builds_list_no_half_image_and_the_next_is_whole(tmp_path: Path) -> None:
    ends = interrupt_builds(tmp_path, count=5, seed=4)
    assert sum(ends.values()) == 6
    assert ends.get("interrupted", 0) + ends.get("else", 0) > 0  # else: before Python had its handler

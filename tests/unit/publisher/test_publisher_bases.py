"""Bases: found by name, path and reference, looked into, refused when they do not fit."""

from __future__ import annotations

import gzip
import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
from publisher_bases import base_files, docker_archive, elf, put_base, tar_of
from publisher_workspaces import make_runtime_wheels, make_workspace
from registry_double import RegistryDouble, User

from edge_containers.base_label import require_base
from edge_containers.errors import BlobNotFoundError
from edge_containers.image_model import Descriptor, Platform
from edge_containers.registry_client import BasicCredentials, RegistryClient
from edge_containers.runtime import IncompatibleImageError
from edge_containers.store import ContentStore
from edge_contracts.image_ref import ImageDigest
from edge_contracts.redact import Secret
from publisher.bases.base import BaseImage, Bases
from publisher.bases.create import (
    CERTIFICATES,
    BaseRecipe,
    check_recipe,
    create_base,
    rewrite_rootfs,
)
from publisher.bases.look import read_elf
from publisher.bases.mounts import fetcher, mounts_of
from publisher.config import parse_settings
from publisher.errors import BaseImageError, ConfigError, UsageError
from publisher.workspace import Workspace

AMD64, ARM64 = Platform.parse("linux/amd64"), Platform.parse("linux/arm64")
CREDENTIALS = BasicCredentials("reader", Secret("correct-horse"))


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return make_workspace(tmp_path / "w", make_runtime_wheels(tmp_path / "wheels"))


def find(
    workspace: Workspace,
    base: str,
    *platforms: Platform,
    python: str = "3.11",
    upgrade: bool = False,
    credentials: BasicCredentials | None = None,
) -> Mapping[Platform, BaseImage]:
    bases = Bases(workspace, (lambda registry: credentials) if credentials else None)
    with workspace.work_folder() as work:
        return bases.find(base, platforms or (AMD64,), python, work, upgrade=upgrade)


def rootfs(path: Path, files: Mapping[str, bytes]) -> Path:
    path.write_bytes(tar_of(files))
    return path


class TestLook:
    def test_python_libc_and_architecture_are_read_from_the_files(
        self, workspace: Workspace, tmp_path: Path
    ) -> None:
        found = find(workspace, str(rootfs(tmp_path / "b.tar", base_files())))[AMD64].python
        assert found.to_dict() == {
            "path": "/usr/bin/python3",
            "version": "3.11",
            "libc": "glibc",
            "libc_version": "2.36",
            "architecture": "amd64",
            "java": "",
            "pyspark": False,
        }

    def test_java_is_found_by_its_home_and_pyspark_among_the_packages(self, workspace: Workspace) -> None:
        files = {
            **base_files(),
            "usr/lib/jvm/default-java": b"->java-17",
            "usr/lib/jvm/java-17/bin/java": elf(),
            "usr/lib/python3/dist-packages/pyspark/__init__.py": b"",
        }
        env = ("JAVA_HOME=/usr/lib/jvm/default-java",)
        workspace.store.tag("edgewright-base/jre", put_base(workspace.store, {"amd64": [files]}, env))
        found = find(workspace, "jre")[AMD64].python
        assert (found.java, found.pyspark) == ("/usr/lib/jvm/default-java/bin/java", True)

    def test_links_through_folders_are_followed(self, workspace: Workspace, tmp_path: Path) -> None:
        files = {
            "bin": b"->usr/bin",
            "usr/bin/python3": b"->/opt/current/python3.11",
            "opt/current": b"->./py",
            "opt/py/python3.11": elf(),
        }
        assert find(workspace, str(rootfs(tmp_path / "b.tar", files)))[AMD64].python.version == "3.11"

    def test_the_path_of_the_base_decides_which_python(self, workspace: Workspace) -> None:
        files = {
            **base_files(python="3.9"),
            "usr/local/bin/python3": b"->python3.11",
            "usr/local/bin/python3.11": elf(),
        }
        workspace.store.tag("edgewright-base/two", put_base(workspace.store, {"amd64": [files]}))
        assert find(workspace, "two")[AMD64].python.path == "/usr/local/bin/python3"

    def test_an_upper_layer_replaces_and_hides(self, workspace: Workspace) -> None:
        layers = [base_files(python="3.9"), {"usr/bin/.wh.python3.9": b"", **base_files(python="3.11")}]
        workspace.store.tag("edgewright-base/b", put_base(workspace.store, {"amd64": layers}))
        assert find(workspace, "b")[AMD64].python.version == "3.11"
        gone = [base_files(), {"usr/.wh..wh..opq": b""}]
        workspace.store.tag("edgewright-base/gone", put_base(workspace.store, {"amd64": gone}))
        with pytest.raises(BaseImageError, match="no python3 on its PATH"):
            find(workspace, "gone")

    def test_a_head_that_is_no_program_tells_nothing(self) -> None:
        assert read_elf(b"#!/bin/sh\n") == (0, "")
        assert read_elf(elf("arm64")) == (0xB7, "/lib/ld-linux-aarch64.so.1")
        assert read_elf(elf()[:100]) == (0x3E, "")


class TestRefused:
    @pytest.mark.parametrize(
        ("files", "says"),
        [
            (base_files(python="3.9"), "has Python 3.9 .*for Python 3.11"),
            (base_files("arm64"), "must be of architecture amd64 for linux/amd64.* is of arm64"),
            (base_files(glibc="2.27"), "glibc 2.27, packages need 2.28"),
            (
                {**base_files(), "usr/bin/python3.11": elf(loader="/lib/ld-musl-x86_64.so.1")},
                "C library musl",
            ),
            ({"usr/bin/sh": elf()}, "no python3 on its PATH"),
            ({"usr/bin/python3": elf()}, "does not tell its version"),
            ({"usr/bin/python3": b"->python3"}, "no python3"),
        ],
    )
    def test_what_does_not_fit_is_said(
        self, workspace: Workspace, tmp_path: Path, files: dict[str, bytes], says: str
    ) -> None:
        with pytest.raises(BaseImageError, match=says):
            find(workspace, str(rootfs(tmp_path / "b.tar", files)))

    def test_an_unknown_name_lists_what_there_is(self, workspace: Workspace) -> None:
        workspace.store.tag("edgewright-base/bookworm", put_base(workspace.store, {"amd64": [base_files()]}))
        with pytest.raises(BaseImageError, match=r"made here \(bookworm\)") as caught:
            find(workspace, "python:3.11")
        assert caught.value.next_command == "edgewright image base create"

    def test_a_platform_that_was_not_made_names_the_command(self, workspace: Workspace) -> None:
        workspace.store.tag("edgewright-base/bookworm", put_base(workspace.store, {"amd64": [base_files()]}))
        with pytest.raises(BaseImageError, match="not built for linux/arm64") as caught:
            find(workspace, "bookworm", AMD64, ARM64)
        assert caught.value.next_command == "edgewright image base create --arch arm64 --name bookworm"

    @pytest.mark.parametrize("damage", [b"", b"no tar at all" * 100, gzip.compress(b"x" * 2000)[:-20]])
    def test_a_file_that_is_no_tar(self, workspace: Workspace, tmp_path: Path, damage: bytes) -> None:
        (tmp_path / "b.tar").write_bytes(damage)
        with pytest.raises(BaseImageError):
            find(workspace, str(tmp_path / "b.tar"))

    def test_base_layers_is_copy_or_mount(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"image\.base_layers must be copy or mount, not 'move'"):
            parse_settings('[image]\nbase_layers = "move"\n', tmp_path / "edgewright.toml", {})


class TestOnDisk:
    def test_a_plain_and_a_compressed_root_file_system_are_one_layer(
        self, workspace: Workspace, tmp_path: Path
    ) -> None:
        plain = find(workspace, str(rootfs(tmp_path / "b.tar", base_files())))[AMD64]
        (tmp_path / "b.tar.gz").write_bytes(gzip.compress((tmp_path / "b.tar").read_bytes()))
        compressed = find(workspace, str(tmp_path / "b.tar.gz"))[AMD64]
        assert [each for _, each in plain.brought.layers] == [each for _, each in compressed.brought.layers]
        assert plain.brought.name == compressed.brought.name

    def test_arch_in_the_path_is_each_platforms(self, workspace: Workspace, tmp_path: Path) -> None:
        for architecture in ("amd64", "arm64"):
            rootfs(workspace.root / f"base-{architecture}.tar", base_files(architecture))
        found = find(workspace, "./base-{arch}.tar", AMD64, ARM64)
        assert [each.python.architecture for each in found.values()] == ["amd64", "arm64"]

    def test_a_layout_is_read_by_tag_and_left_as_it_is(self, workspace: Workspace, tmp_path: Path) -> None:
        layout = ContentStore(tmp_path / "layout")
        for tag, python in (("a", "3.11"), ("b", "3.9")):
            layout.tag(tag, put_base(layout, {"amd64": [base_files(python=python)]}))
        before = sorted(path for path in layout.root.rglob("*"))
        assert find(workspace, f"{layout.root}:a")[AMD64].python.version == "3.11"
        with pytest.raises(BaseImageError, match=r"has 2 images; name one as PATH:TAG \(a, b\)"):
            find(workspace, str(layout.root))
        with pytest.raises(BaseImageError, match="no image 'c'"):
            find(workspace, f"{layout.root}:c")
        assert sorted(path for path in layout.root.rglob("*")) == before

    def test_a_layout_with_a_changed_layer_is_refused(self, workspace: Workspace, tmp_path: Path) -> None:
        layout = ContentStore(tmp_path / "layout")
        layout.tag("a", put_base(layout, {"amd64": [base_files()]}))
        [layer] = [
            path for path in (layout.root / "blobs/sha256").iterdir() if path.read_bytes()[:2] == b"\x1f\x8b"
        ]
        layer.write_bytes(layer.read_bytes() + b"x")
        with pytest.raises(BaseImageError, match=r"expected sha256:|found sha256:"):
            find(workspace, str(layout.root))

    def test_an_archive_of_a_layout_and_of_docker_save(self, workspace: Workspace, tmp_path: Path) -> None:
        layout = ContentStore(tmp_path / "layout")
        layout.tag("a", put_base(layout, {"amd64": [base_files()]}))
        with tarfile.open(tmp_path / "oci.tar", "w") as tar:
            tar.add(layout.root, ".")
        docker_archive(tmp_path / "docker.tar", [base_files(python="3.9"), base_files()])
        oci = find(workspace, str(tmp_path / "oci.tar"))[AMD64]
        docker = find(workspace, str(tmp_path / "docker.tar"))[AMD64]
        assert (len(oci.brought.layers), len(docker.brought.layers)) == (1, 2)
        with pytest.raises(BaseImageError, match="is for linux/amd64, not for linux/arm64"):
            find(workspace, str(tmp_path / "docker.tar"), ARM64)

    def test_what_was_found_is_remembered_until_the_file_changes(
        self, workspace: Workspace, tmp_path: Path
    ) -> None:
        path = rootfs(tmp_path / "b.tar", base_files())
        first = find(workspace, str(path))[AMD64]
        workspace.store.delete(first.brought.layers[0][0].digest)  # as garbage collection may
        assert find(workspace, str(path))[AMD64].brought == first.brought
        rootfs(path, {**base_files(), "etc/new": b"1"})
        assert find(workspace, str(path))[AMD64].brought != first.brought


class TestRegistry:
    @pytest.fixture
    def registry(self, tmp_path: Path) -> RegistryDouble:
        with RegistryDouble(auth="basic", users={"reader": User("correct-horse")}) as double:
            yield double

    def push(self, registry: RegistryDouble, tmp_path: Path, python: str = "3.11") -> str:
        store = ContentStore(tmp_path / f"base-{python}")
        layers = {each: [base_files(each, python)] for each in ("amd64", "arm64")}
        index = put_base(store, layers, ("PATH=/usr/bin", "LANG=C"))
        with RegistryClient(registry.address, credentials=CREDENTIALS) as client:
            client.push_image(store, index, "bases/python", "3")
        return f"{registry.address}/bases/python:3"

    def test_a_tag_is_copied_by_digest_and_means_the_same_until_upgrade(
        self, workspace: Workspace, registry: RegistryDouble, tmp_path: Path
    ) -> None:
        base = self.push(registry, tmp_path)
        first = find(workspace, base, AMD64, ARM64, credentials=CREDENTIALS)
        assert first[AMD64].brought.name == first[ARM64].brought.name
        assert first[AMD64].brought.name.startswith(f"{registry.address}/bases/python@sha256:")
        assert all(
            workspace.store.is_whole(layer) for each in first.values() for layer, _ in each.brought.layers
        )
        self.push(registry, tmp_path, "3.9")
        requests = len(registry.requests)
        again = find(workspace, base, AMD64, ARM64)  # with no credentials: nothing is asked
        assert again[AMD64].brought == first[AMD64].brought
        assert len(registry.requests) == requests
        with pytest.raises(BaseImageError, match=r"has Python 3\.9"):
            find(workspace, base, credentials=CREDENTIALS, upgrade=True)

    def test_a_mounted_base_leaves_no_layer_here_and_says_where_they_are(
        self, workspace: Workspace, registry: RegistryDouble, tmp_path: Path
    ) -> None:
        config = workspace.root / "edgewright.toml"
        config.write_text(config.read_text() + '[image]\nbase_layers = "mount"\n')
        mounting = Workspace.open(workspace.root)
        found = find(mounting, self.push(registry, tmp_path), credentials=CREDENTIALS)[AMD64]
        [(layer, _)] = found.brought.layers
        assert not mounting.store.has(layer.digest)
        assert layer.annotations["edgewright.source"] == f"{registry.address}/bases/python"
        assert found.python.version == "3.11"
        fetch = fetcher(mounting.store, lambda registry: CREDENTIALS)
        fetch(layer)  # as pushing to another registry asks for
        assert mounting.store.is_whole(layer)
        assert mounts_of(registry.address)(layer) == "bases/python"
        assert mounts_of("other.example")(layer) is None
        with pytest.raises(BlobNotFoundError):
            fetch(Descriptor(layer.media_type, ImageDigest.of(b"x"), 1))


class TestCreate:
    def test_a_root_file_system_is_written_anew(self) -> None:
        source = tar_of(
            {
                "./etc/hostname": b"builder",
                "./usr/share/ca-certificates/mozilla/b.crt": b"B\n",
                "./usr/share/ca-certificates/mozilla/a.crt": b"A",
                "./usr/share/doc/x/copyright": b"MIT",
                "./usr/share/doc/x/changelog": b"long",
                "./var/lib/apt/lists/lock": b"",
                "./usr/bin/python3": b"->python3.11",
            }
        )
        digests = []
        for shift in (0, 1):
            raw = io.BytesIO()
            with tarfile.open(fileobj=io.BytesIO(source)) as old, tarfile.open(fileobj=raw, mode="w") as tar:
                members = old.getmembers()
                for member in members[shift:] + members[:shift]:
                    member.mtime, member.uid, member.mode = shift * 99, shift, 0o4755
                    tar.addfile(member, old.extractfile(member) if member.isreg() else None)
                device = tarfile.TarInfo("./console")
                device.type = tarfile.CHRTYPE
                tar.addfile(device)
            out = io.BytesIO()
            with tarfile.open(fileobj=io.BytesIO(raw.getvalue())) as tar:
                rewrite_rootfs(tar, out)
            digests.append(out.getvalue())
        assert digests[0] == digests[1]
        with tarfile.open(fileobj=io.BytesIO(digests[0])) as tar:
            assert tar.getnames() == [
                "etc/group",
                "etc/passwd",
                CERTIFICATES,
                "usr/bin/python3",
                "usr/share/ca-certificates/mozilla/a.crt",
                "usr/share/ca-certificates/mozilla/b.crt",
                "usr/share/doc/x/copyright",
            ]
            assert tar.extractfile(CERTIFICATES).read() == b"A\nB\n"
            assert {member.mode for member in tar if member.isreg()} == {0o644, 0o755}

    @pytest.mark.parametrize(
        ("recipe", "name"),
        [
            (BaseRecipe(Platform("linux", "s390x")), "x"),
            (BaseRecipe(AMD64, suite="--foo"), "x"),
            (BaseRecipe(AMD64), "none"),
            (BaseRecipe(AMD64, packages=("a,b",)), "x"),
        ],
    )
    def test_what_cannot_be_is_refused_before_work(self, recipe: BaseRecipe, name: str) -> None:
        with pytest.raises(UsageError):
            check_recipe(recipe, name)

    def test_without_mmdebstrap_the_way_to_it_is_named(
        self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(BaseImageError, match=r"mmdebstrap.*is not installed") as caught:
            create_base(workspace, BaseRecipe(AMD64))
        assert caught.value.next_command == "sudo apt-get install mmdebstrap"
        assert workspace.store.tags() == {}

    def test_failures_are_retried_with_the_main_archive_alone_and_leave_nothing(
        self, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        program = tmp_path / "bin" / "mmdebstrap"
        program.parent.mkdir()
        program.write_text(
            f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\necho "E: hash sum mismatch" >&2\nexit 25\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
        monkeypatch.setattr("publisher.bases.create.RETRY_DELAY_S", 0.0)
        lines: list[str] = []
        with pytest.raises(BaseImageError, match=r"3 attempts; it says: E: hash sum mismatch"):
            create_base(workspace, BaseRecipe(ARM64, mirror="http://127.0.0.1/debian"), report=lines.append)
        calls = (tmp_path / "calls").read_text().splitlines()
        assert [call.endswith("deb http://127.0.0.1/debian bookworm main") for call in calls] == [
            False,
            False,
            True,
        ]
        assert all("--architectures=arm64" in call for call in calls)
        assert "attempt 1 of 3 failed (exit 25)" in lines
        assert workspace.store.tags() == {}


def test_an_image_without_a_base_is_no_container() -> None:
    require_base({"edgewright.base": "bookworm@sha256:1"}, "digits:1", "the container engine")
    with pytest.raises(IncompatibleImageError, match="digits:1 has base 'none'") as caught:
        require_base({"edgewright.base": "none"}, "digits:1", "the container engine")
    assert caught.value.next_command == "edgewright image base create"

"""Environments: read strictly, locked per platform, failures named by package."""

from __future__ import annotations

import csv
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from publisher_index import PackageIndex
from publisher_workspaces import make_wheel

from edge_containers.image_model import Platform
from edge_contracts.image_ref import ImageDigest
from publisher.config import EnvironmentSettings
from publisher.environments import (
    Environment,
    EnvironmentLock,
    EnvironmentLocks,
    installed_files,
)
from publisher.errors import (
    BuildCancelledError,
    ConflictError,
    EnvironmentResolveError,
    IndexUnreachableError,
    LockedError,
    NotCachedError,
    NoVersionError,
    NoWheelError,
    RequirementError,
    UnknownPackageError,
    UsageError,
)
from publisher.target_platforms import uv_platform
from publisher.uv_report import resolve_error
from publisher.uv_runner import BuildLog, UvResult, UvRunner, uv_environ

AMD64, ARM64 = Platform.parse("linux/amd64"), Platform.parse("linux/arm64")


def requirements(tmp_path: Path, text: str) -> tuple[str, ...]:
    path = tmp_path / "requirements.txt"
    path.write_text(text, encoding="utf-8")
    return Environment.from_file(path, "3.11").requirements


class TestRequirements:
    def test_comments_continuations_hashes_and_order_do_not_matter(self, tmp_path: Path) -> None:
        text = (
            "\ufeff# what score.py needs\nscipy[test] >= 1.11, <2 ; python_version < '3.13'  # pinned\n\n"
            "numpy==2.0.0 \\\n  --hash=sha256:aa \\\n  --hash=sha256:bb\nnumpy==2.0.0\n"
        )
        assert requirements(tmp_path, text) == (
            "numpy==2.0.0",
            "scipy[test] >= 1.11, <2 ; python_version < '3.13'",
        )

    def test_included_files_are_read_and_a_circle_is_named(self, tmp_path: Path) -> None:
        (tmp_path / "base.txt").write_text("numpy\n")
        assert requirements(tmp_path, "-r base.txt\nscipy\n") == ("numpy", "scipy")
        (tmp_path / "base.txt").write_text("-r requirements.txt\n")
        with pytest.raises(
            RequirementError, match=r"base\.txt:1 includes .*requirements\.txt, which includes it"
        ):
            requirements(tmp_path, "-r base.txt\n")

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            (
                "--index-url https://u:p@example.com/simple",
                "--index-url .*environment.index in edgewright.toml",
            ),
            ("--extra-index-url=https://example.com", "--extra-index-url .*environment.extra_index"),
            ("-f wheels", "-f .*environment.find_links"),
            ("-e .", "-e .*build a wheel"),
            ("numpy @ https://example.com/numpy.whl", "not a URL or path: put the wheel in a folder"),
            ("./numpy.whl", "not a URL or path"),
            ("git+https://example.com/x", "not a URL or path"),
            ("numpy scipy", "expected NAME"),
            ("&&&", "expected NAME"),
            ("--pre", "expected NAME"),
        ],
    )
    def test_a_line_that_is_not_taken_names_file_line_and_way_out(
        self, tmp_path: Path, line: str, message: str
    ) -> None:
        with pytest.raises(RequirementError, match=message) as caught:
            requirements(tmp_path, f"# first\n{line}\n")
        assert f"{tmp_path / 'requirements.txt'}:2" in caught.value.message
        assert "u:p@" not in caught.value.message

    def test_a_missing_file_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(RequirementError, match=r"nothere\.txt cannot be read"):
            Environment.from_file(tmp_path / "nothere.txt", "3.11")

    def test_a_list_names_the_entry(self) -> None:
        assert Environment.from_list(["b", "a"], "3.11").requirements == ("a", "b")
        with pytest.raises(RequirementError, match="requirements, line 2"):
            Environment.from_list(["a", "/b"], "3.11")

    def test_the_runtime_adds_its_own_and_onnx_where_the_model_scores_itself(self) -> None:
        script = Environment(("numpy",), "3.11").for_scoring(bare_onnx=False).requirements
        bare = Environment((), "3.11").for_scoring(bare_onnx=True).requirements
        assert {each.split(">")[0] for each in script} == {
            "numpy",
            "httptools",
            "orjson",
            "starlette",
            "uvicorn",
        }
        assert {"numpy", "onnxruntime"} <= {each.split(">")[0] for each in bare}


# Recorded from uv 0.13.9.
REPORTS = {
    "unknown": (
        """error: No solution found when resolving dependencies
  cause: Because no-such-pkg was not found in the package registry and you require no-such-pkg, we can conclude that your requirements are unsatisfiable.
""",
        UnknownPackageError,
        "package 'no-such-pkg' was not found in the package index",
    ),
    "no version": (
        """error: No solution found when resolving dependencies
  cause: Because there is no version of numpy==999 and you require numpy==999, we can conclude that your requirements are unsatisfiable.
""",
        NoVersionError,
        "no version that satisfies 'numpy==999' for linux/arm64",
    ),
    "source only": (
        """error: No solution found when resolving dependencies
  cause: Because paho-mqtt==1.6.1 has no usable wheels and you require paho-mqtt==1.6.1, we can conclude that your requirements are unsatisfiable.

hint: Wheels are required for `paho-mqtt` because building from source is disabled for all packages (i.e., with `--no-build`)
""",
        NoWheelError,
        "package 'paho-mqtt' has no wheel for linux/arm64",
    ),
    "other platforms": (
        """error: No solution found when resolving dependencies
  cause: Because tflite-runtime<=2.13.0 has no wheels with a matching Python ABI tag (e.g., `cp311`) and only the following versions of tflite-runtime are available:
             tflite-runtime<=2.13.0
             tflite-runtime==2.14.0
         we can conclude that all of:
             tflite-runtime<2.14.0
             tflite-runtime>2.14.0
          cannot be used.

hint: Wheels are available for `tflite-runtime` (v2.14.0) on the following platforms: `manylinux_2_34_aarch64`, `manylinux2014_x86_64`
""",
        NoWheelError,
        "tflite-runtime 2.14.0 has wheels for manylinux_2_34_aarch64, manylinux2014_x86_64",
    ),
    "all versions": (
        """error: No solution found when resolving dependencies
  cause: Because all versions of uamqp have no usable wheels and you require uamqp, we can conclude that your requirements are unsatisfiable.
""",
        NoWheelError,
        "leave the platform out with --platform linux/amd64",
    ),
    "conflict": (
        """error: No solution found when resolving dependencies
  cause: Because a==1.0 depends on b<1 and you require b>=2, we can conclude that a==1.0 and your requirements are incompatible.
""",
        ConflictError,
        "a==1.0 depends on b<1",
    ),
    "unreachable": (
        """error: Request failed after 3 retries in 5.8s
  cause: Failed to fetch: http://127.0.0.1:9/simple/numpy/
  cause: error sending request for url (http://127.0.0.1:9/simple/numpy/)
  cause: tcp connect error
""",
        IndexUnreachableError,
        "the package index cannot be reached: Failed to fetch: http://127.0.0.1:9/simple/numpy/ (log",
    ),
}


@pytest.mark.parametrize(("output", "kind", "message"), REPORTS.values(), ids=REPORTS)
def test_a_report_of_uv_becomes_one_named_error(output: str, kind: type[Exception], message: str) -> None:
    error = resolve_error(UvResult(1, output), ARM64, Path("/w/build.log"))
    assert type(error) is kind
    assert message in error.message
    assert "/w/build.log" in error.message
    assert "\n" not in error.message


def test_platforms_without_wheels_are_refused_by_name() -> None:
    assert uv_platform(AMD64) == "x86_64-manylinux_2_28"
    with pytest.raises(UsageError, match=r"linux/arm/v7 \(neither numpy nor ONNX Runtime has wheels"):
        uv_platform(Platform.parse("linux/arm/v7"))
    with pytest.raises(UsageError, match="not built for linux/s390x; platforms are linux/amd64, linux/arm64"):
        uv_platform(Platform.parse("linux/s390x"))


class TestUv:
    """uv itself, with wheels made here."""

    @pytest.fixture
    def wheels(self, tmp_path: Path) -> Path:
        folder = tmp_path / "wheels"
        make_wheel(folder, "pure-a", requires=("pure-b>=1",))
        make_wheel(folder, "pure-b", scripts=("b-tool",))
        make_wheel(folder, "amd64-only", tag="cp311-cp311-manylinux_2_28_x86_64")
        return folder

    @pytest.fixture
    def uv(self, wheels: Path, tmp_path: Path) -> UvRunner:
        settings = EnvironmentSettings(find_links=("wheels",), no_index=True)
        return UvRunner(settings, tmp_path, BuildLog(tmp_path / "build.log"))

    @pytest.fixture
    def locks(self, uv: UvRunner, tmp_path: Path) -> EnvironmentLocks:
        return EnvironmentLocks(tmp_path / "locks", uv)

    @pytest.fixture
    def work(self, tmp_path: Path) -> Path:
        folder = tmp_path / "work"
        folder.mkdir()
        return folder

    def test_a_lock_holds_versions_and_hashes_and_no_place(self, locks: EnvironmentLocks, work: Path) -> None:
        lock = locks.resolve(Environment(("pure-a",), "3.11"), ARM64, upgrade=False, work=work)
        assert lock.packages == ("pure-a==1.0", "pure-b==1.0")
        assert lock.text.count("--hash=sha256:") == 2
        assert "/" not in lock.text and "://" not in lock.text
        assert not lock.reused

    def test_the_same_requirements_are_not_resolved_again_until_asked(
        self, locks: EnvironmentLocks, work: Path, wheels: Path
    ) -> None:
        environment = Environment(("pure-b",), "3.11")
        first = locks.resolve(environment, ARM64, upgrade=False, work=work)
        make_wheel(wheels, "pure-b", "2.0")
        second = locks.resolve(environment, ARM64, upgrade=False, work=work)
        assert (second.text, second.reused, second.resolved_at) == (first.text, True, first.resolved_at)
        other_python = locks.resolve(Environment(("pure-b",), "3.12"), ARM64, upgrade=False, work=work)
        assert other_python.packages == ("pure-b==2.0",)
        assert locks.resolve(environment, ARM64, upgrade=True, work=work).packages == ("pure-b==2.0",)
        assert locks.resolve(environment, ARM64, upgrade=False, work=work).packages == ("pure-b==2.0",)

    def test_an_unknown_package_is_named(self, locks: EnvironmentLocks, work: Path, tmp_path: Path) -> None:
        with pytest.raises(UnknownPackageError) as caught:
            locks.resolve(Environment(("pure-a", "no-such-pkg"), "3.11"), AMD64, upgrade=False, work=work)
        assert caught.value.package == "no-such-pkg"
        assert "no-such-pkg" in (tmp_path / "build.log").read_text()
        assert not (tmp_path / "locks").exists()

    def test_a_package_without_a_wheel_names_the_platform(self, locks: EnvironmentLocks, work: Path) -> None:
        environment = Environment(("amd64-only",), "3.11")
        assert locks.resolve(environment, AMD64, upgrade=False, work=work).packages == ("amd64-only==1.0",)
        with pytest.raises(NoWheelError) as caught:
            locks.resolve(environment, ARM64, upgrade=False, work=work)
        assert (caught.value.package, caught.value.platform) == ("amd64-only", "linux/arm64")

    def test_markers_are_those_of_the_target(self, locks: EnvironmentLocks, work: Path) -> None:
        environment = Environment(("amd64-only; platform_machine == 'x86_64'", "pure-b"), "3.11")
        assert locks.resolve(environment, ARM64, upgrade=False, work=work).packages == ("pure-b==1.0",)

    def test_installed_files_name_neither_the_builder_nor_the_installer(
        self, locks: EnvironmentLocks, work: Path
    ) -> None:
        lock = locks.resolve(Environment(("pure-b",), "3.11"), ARM64, upgrade=False, work=work)
        target = work / "installed"
        locks.install(lock, target, work=work)
        files = {file.path: file for file in installed_files(target, lock, "opt/d")}
        assert set(files) == {
            "opt/d/edgewright.lock",
            "opt/d/pure_b/__init__.py",
            "opt/d/pure_b-1.0.dist-info/METADATA",
            "opt/d/pure_b-1.0.dist-info/RECORD",
            "opt/d/pure_b-1.0.dist-info/WHEEL",
            "opt/d/pure_b-1.0.dist-info/entry_points.txt",
        }
        record = files["opt/d/pure_b-1.0.dist-info/RECORD"].source
        assert isinstance(record, bytes)
        recorded = {row[0] for row in csv.reader(record.decode().splitlines())}
        assert recorded == {path.removeprefix("opt/d/") for path in files} - {"edgewright.lock"}

    def test_wrong_bytes_are_not_installed(self, locks: EnvironmentLocks, work: Path) -> None:
        text = "pure-b==1.0 \\\n    --hash=sha256:" + "0" * 64 + "\n"
        lock = EnvironmentLock(ARM64, "3.11", text, "now", reused=False)
        with pytest.raises(
            EnvironmentResolveError, match=r"wheel of 'pure-b==1\.0' is not the one in the lock"
        ):
            locks.install(lock, work / "installed", work=work)

    def test_a_cancelled_runner_starts_nothing(self, uv: UvRunner) -> None:
        uv.cancel()
        with pytest.raises(BuildCancelledError):
            uv.run(("--version",), timeout_s=10)

    def test_what_takes_too_long_is_killed(self, uv: UvRunner, tmp_path: Path) -> None:
        with pytest.raises(IndexUnreachableError, match="did not end within 0 s"):
            uv.run(("pip", "compile", "-"), timeout_s=0.0)


def test_index_urls_reach_uv_by_its_environment_alone(tmp_path: Path) -> None:
    settings = EnvironmentSettings(
        index="https://u:s3cret@one/simple", extra_index=("https://two",), find_links=("w", "https://three")
    )
    environ = uv_environ(settings, tmp_path)
    assert environ["UV_DEFAULT_INDEX"] == "https://u:s3cret@one/simple"
    assert environ["UV_INDEX"] == "https://two"
    assert environ["UV_FIND_LINKS"] == f"{tmp_path / 'w'},https://three"
    assert environ["UV_PYTHON"] == sys.executable
    assert uv_environ(EnvironmentSettings(), tmp_path).keys().isdisjoint({"UV_DEFAULT_INDEX", "UV_INDEX"})


def test_the_build_log_holds_no_password(tmp_path: Path) -> None:
    log = BuildLog(tmp_path / "log")
    log.write("uv pip compile", "error: https://u:s3cret@one/simple answered 401")
    assert "s3cret" not in log.path.read_text()


def test_the_digest_of_a_lock_is_that_of_its_text() -> None:
    lock = EnvironmentLock(ARM64, "3.11", "a==1\n", "now", reused=False)
    assert lock.digest == ImageDigest.of(b"a==1\n")


class TestLocked:
    """--locked: the workspace's lock, what is on this machine, or a clear refusal."""

    @pytest.fixture
    def folders(self, tmp_path: Path) -> Path:
        make_wheel(tmp_path / "wheels", "pure-a")
        make_wheel(tmp_path / "wheels", "pure-b")
        (tmp_path / "work").mkdir()
        return tmp_path

    def locks(self, folder: Path, *, offline: bool = False, index: str = "") -> EnvironmentLocks:
        settings = EnvironmentSettings(find_links=("wheels",), no_index=not index, index=index)
        log = BuildLog(folder / "build.log")
        return EnvironmentLocks(folder / "locks", UvRunner(settings, folder, log, offline=offline))

    def test_what_was_locked_is_built_again_with_no_index(self, folders: Path) -> None:
        environment = Environment(("pure-a",), "3.11")
        work = folders / "work"
        first = self.locks(folders).resolve(environment, ARM64, upgrade=False, work=work)
        offline = self.locks(folders, offline=True)
        again = offline.resolve(environment, ARM64, upgrade=False, locked=True, work=work)
        assert again.text == first.text
        offline.install(again, work / "installed", work=work)
        assert (work / "installed" / "pure_a" / "__init__.py").is_file()

    def test_a_lock_that_would_change_is_refused_with_the_difference(self, folders: Path) -> None:
        work = folders / "work"
        self.locks(folders).resolve(Environment(("pure-a",), "3.11"), ARM64, upgrade=False, work=work)
        changed = Environment(("pure-b",), "3.11")
        with pytest.raises(LockedError, match=r"linux/arm64 would change.*\+pure-b -pure-a"):
            self.locks(folders).resolve(changed, ARM64, upgrade=False, locked=True, work=work)
        with pytest.raises(LockedError, match=r"no lock for linux/amd64 and Python 3\.11"):
            self.locks(folders).resolve(
                Environment(("pure-a",), "3.11"), AMD64, upgrade=False, locked=True, work=work
            )
        assert len(list((folders / "locks").iterdir())) == 1

    def test_another_index_is_another_lock(self, folders: Path) -> None:
        work, environment = folders / "work", Environment(("pure-a",), "3.11")
        self.locks(folders).resolve(environment, ARM64, upgrade=False, work=work)
        other = self.locks(folders, offline=True, index="https://user:s3cret@packages.example.com/simple")
        with pytest.raises(LockedError, match="locked from another package index") as caught:
            other.resolve(environment, ARM64, upgrade=False, locked=True, work=work)
        assert "s3cret" not in caught.value.message

    def test_a_wheel_that_is_not_on_this_machine_is_said_so(self, folders: Path) -> None:
        text = "never-published-here==1.0 \\\n    --hash=sha256:" + "0" * 64 + "\n"
        lock = EnvironmentLock(ARM64, "3.11", text, "now", reused=True)
        offline = self.locks(folders, offline=True, index="https://packages.example.com/simple")
        with pytest.raises(NotCachedError, match=r"'never-published-here' .* --locked asks no index"):
            offline.install(lock, folders / "installed", work=folders / "work")


class TestPrivateIndex:
    """An index that wants a password, in a server that sees every request."""

    USER, PASSWORD = "builder", "s3cret/of:the@index"

    @pytest.fixture
    def index(self, tmp_path: Path) -> Iterator[PackageIndex]:
        make_wheel(tmp_path / "served", "pure-a", requires=("pure-b",))
        make_wheel(tmp_path / "served", "pure-b")
        with PackageIndex(tmp_path / "served", self.USER, self.PASSWORD) as index:
            yield index

    def test_its_password_is_used_and_left_nowhere(self, index: PackageIndex, tmp_path: Path) -> None:
        work, log = tmp_path / "work", BuildLog(tmp_path / "build.log")
        work.mkdir()
        settings = EnvironmentSettings(index=index.url)
        runner = ArgumentsSeen(settings, tmp_path, log)
        locks = EnvironmentLocks(tmp_path / "locks", runner)
        lock = locks.resolve(Environment(("pure-a",), "3.11"), ARM64, upgrade=False, work=work)
        locks.install(lock, work / "installed", work=work)
        assert lock.packages == ("pure-a==1.0", "pure-b==1.0")
        assert index.authorized > 0
        left = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
        secrets = (self.PASSWORD, quote(self.PASSWORD, safe=""))
        for text in [*left, repr(settings).encode(), *runner.seen]:
            assert not any(each.encode() in text for each in secrets)
        assert runner.seen

    def test_a_wrong_password_is_an_error_without_it(self, index: PackageIndex, tmp_path: Path) -> None:
        wrong = index.url.replace("s3cret", "wr0ng")
        log = BuildLog(tmp_path / "build.log")
        locks = EnvironmentLocks(
            tmp_path / "locks", UvRunner(EnvironmentSettings(index=wrong), tmp_path, log)
        )
        with pytest.raises(EnvironmentResolveError) as caught:
            locks.resolve(Environment(("pure-a",), "3.11"), ARM64, upgrade=False, work=tmp_path)
        assert "401" in log.path.read_text() or "nauthorized" in log.path.read_text()
        assert "wr0ng" not in caught.value.message + log.path.read_text()


class ArgumentsSeen(UvRunner):
    """A runner that keeps what other users of the machine could see of each process."""

    def __init__(self, settings: EnvironmentSettings, root: Path, log: BuildLog) -> None:
        super().__init__(settings, root, log)
        self.seen: list[bytes] = []

    def _start(self, command: list[str]) -> subprocess.Popen[str]:
        process = super()._start(command)
        self.seen.append(Path(f"/proc/{process.pid}/cmdline").read_bytes())
        return process

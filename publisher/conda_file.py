"""Conda environment files: what of them comes from the Python package index, and what only conda has.

Rules:
- A conda package that is a Python package is taken as a wheel under its PyPI name (`pytorch` is `torch`); `=1.2` means
  `==1.2.*` there, build strings and channels are left out, with a note.
- What is no Python package (compilers, CUDA, C libraries, R) is refused by name unless the image is built by conda itself
  (`--builder docker`), which takes the file as it is.
- `python` is not installed: it is the image's. Another version asked for is a warning.
- The `pip:` list is a requirements file.

    conda = read_conda(Path("environment.yml"))
    conda.requirements          # ("numpy==1.26.*", "torch>=2.2")
    conda.unavailable           # names only conda has
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import InvalidSpecifier, SpecifierSet

from publisher.errors import CondaPackageError, RequirementError
from publisher.requirements import requirement_lines
from publisher.yaml_document import YamlDocument, read_yaml

PYPI_NAMES: Mapping[str, str] = {
    "pytorch": "torch",
    "pytorch-cpu": "torch",
    "dask-core": "dask",
    "matplotlib-base": "matplotlib",
    "msgpack-python": "msgpack",
    "opencv": "opencv-python-headless",
    "py-opencv": "opencv-python-headless",
    "py-xgboost": "xgboost",
    "py-xgboost-cpu": "xgboost",
    "pytables": "tables",
    "ruamel_yaml": "ruamel.yaml",
    "seaborn-base": "seaborn",
    "tensorflow-base": "tensorflow",
    "tensorflow-mkl": "tensorflow",
    "tensorflow-eigen": "tensorflow",
    "pyarrow-core": "pyarrow",
    "pillow-simd": "pillow",
    "python-graphviz": "graphviz",
    "typing_extensions": "typing-extensions",
}
"""Conda names that differ from the name on the Python package index."""

_NO_PYTHON_PACKAGE = re.compile(
    r"_.*|r|r-.*|m2w64-.*|vs20\d\d.*|(?:gcc|gxx|gfortran|clang|ld|binutils|sysroot|kernel-headers|compilers?|c|cxx|fortran)"
    r"(?:[_-].*)?"
    r"|(?:cuda|cudatoolkit|cudnn|nccl|pytorch-cuda|pytorch-mutex|cuda-.*|libcu.*|libnv.*|nvcc.*)"
    r"|lib(?:gcc|stdcxx|gfortran|gomp|blas|cblas|lapack|ffi|openblas|zlib|png|jpeg|tiff|xml2|ssh2|curl|uuid|nsl|sqlite|"
    r"expat|protobuf|iconv|deflate|webp|llvm\d*|clang|glib|boost|hwloc|opus|vpx|sndfile|gl|uv|ev|edit|xcb|xslt|aio)[\w.-]*"
    r"|mkl|mkl-service|mkl_fft|mkl_random|blas|openblas|intel-openmp|llvm-openmp|tbb|openmpi|mpich|mpi"
    r"|openssl|ca-certificates|zlib|zstd|lz4-c|snappy|bzip2|xz|readline|ncurses|tk|sqlite|krb5|glib|glibc|icu|boost-cpp|hdf5"
    r"|libnetcdf|geos|proj|gdal|nodejs|openjdk|maven|go|rust|perl|ruby|julia|git|curl|wget|make|cmake|ninja|bash|tar"
    r"|unzip|vim|ffmpeg|imagemagick|graphviz|x264|freetype|fontconfig|jpeg|libpng|conda|mamba|micromamba"
)
_INSTALLERS = frozenset({"pip"})
"""Packages that only serve to install others: nothing to do, nothing to say."""

_KEYS = frozenset({"name", "channels", "dependencies", "prefix", "variables", "platforms", "category"})

# CONDA-PACKAGE-SPEC: [channel::]name[[=]version[=build]] (conda's documentation, "Package match specifications").
_SPEC = re.compile(
    r"(?:(?P<channel>[^\s:=]+)::)?(?P<name>[A-Za-z0-9_][A-Za-z0-9_.-]*)"
    r"(?:\s*(?P<operator>[=<>!~]=?|\s)\s*(?P<rest>[^\s,\[\]]+(?:\s*,\s*[^\s,\[\]]+)*)(?:\s+(?P<build>[^\s,\[\]]+))?)?"
    r"\s*(?P<brackets>\[[^\[\]]*\])?"
)
_VERSION = re.compile(r"(?P<operator>==|=|!=|<=|>=|~=|<|>|)\s*(?P<version>[0-9][\w.!+]*(?:\.\*|\*)?|\*)")


@dataclass(frozen=True, slots=True)
class CondaPackage:
    """One conda dependency.

    Attributes:
        name: as conda has it, lower case.
        requirement: the same as a requirement of the Python package index, None where there is none.
        where: file and line.
    """

    name: str
    requirement: str | None
    where: str


@dataclass(frozen=True, slots=True)
class CondaEnvironment:
    """A conda environment file, parsed.

    Attributes:
        path: the file it was read from.
        text: the environment file itself, which a conda build takes as it is.
        python: version range of `python` (`==3.6.2.*`), empty when it names none.
        pip: what its `pip:` list asks for.
        variables: what conda would set when the environment is activated.
        notes: what was left out.
    """

    path: Path
    text: bytes = field(repr=False)
    name: str
    channels: tuple[str, ...]
    python: str
    packages: tuple[CondaPackage, ...]
    pip: tuple[str, ...]
    variables: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def requirements(self) -> tuple[str, ...]:
        """What the Python package index has of it."""
        return (*(each.requirement for each in self.packages if each.requirement), *self.pip)

    @property
    def unavailable(self) -> tuple[CondaPackage, ...]:
        """Packages that only conda has."""
        return tuple(each for each in self.packages if each.requirement is None)

    def check_wheels(self) -> None:
        """Refuse what only conda has.

        Raises:
            CondaPackageError: naming every such package, and the way out.
        """
        if self.unavailable:
            names = ", ".join(each.name for each in self.unavailable)
            where = self.unavailable[0].where
            raise CondaPackageError(
                f"{names} in {where} cannot come from the Python package index: only conda has it. Take it out where wheels "
                "bring their own (CUDA, BLAS and compilers' libraries do), or build with conda by --builder docker",
                packages=tuple(each.name for each in self.unavailable),
                where=where,
            )

    def python_note(self, python: str) -> tuple[str, ...]:
        """A warning where images of `python` are not what the file asks for."""
        if not self.python or _minor_matches(self.python, python):
            return ()
        asked = self.python.removeprefix("==").removesuffix(".*")
        return (
            f"{self.path.name} asks for python {asked}, the image has Python {python}: that of its base; "
            "environment.python in edgewright.toml sets it",
        )


def read_conda(path: Path, name: str | None = None) -> CondaEnvironment:
    """Read a conda environment file.

    One that stands for another in messages, under `name`, came with somebody's model: it may include no other file.

    Raises:
        DocumentError: unreadable or not YAML.
        RequirementError: not a conda environment, or a line this version does not take.
    """
    return _parsed(read_yaml(path, name), (), path, None if name else path)


def parse_conda(document: YamlDocument, keys: tuple[str, ...], path: Path) -> CondaEnvironment:
    """The conda environment that stands at `keys` of another document, the file `path`."""
    return _parsed(document, keys, path, path)


def _parsed(
    document: YamlDocument, keys: tuple[str, ...], path: Path, includes_from: Path | None
) -> CondaEnvironment:
    document = document.at(*keys)
    shown = Path(document.name).name
    top = document.value
    if not isinstance(top, dict) or not isinstance(top.get("dependencies"), list):
        raise _refused(document.where(), "has no list 'dependencies': expected a conda environment")
    for key in top:
        if key not in _KEYS:
            raise _refused(
                document.where(key), f"has the unknown key {key!r}; known are {', '.join(sorted(_KEYS))}"
            )
    reader = _Reader(includes_from, document)
    for index, entry in enumerate(top["dependencies"]):
        reader.add(entry, index)
    channels = _strings(document, "channels")
    if channels:
        reader.notes.append(
            f"{shown}: channels {', '.join(map(_bare, channels))} are not asked; packages come from the Python package "
            "index"
        )
    variables = top.get("variables") or {}
    if not isinstance(variables, dict):
        raise _refused(document.where("variables"), "must map names to values in 'variables'")
    return CondaEnvironment(
        path=path,
        text=_dumped(top) if keys else path.read_bytes(),
        name=str(top.get("name") or ""),
        channels=channels,
        python=reader.python,
        packages=tuple(reader.packages),
        pip=tuple(reader.pip),
        variables={name: str(value) for name, value in variables.items()},
        notes=tuple(reader.notes),
    )


def _dumped(value: object) -> bytes:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True).encode()


class _Reader:
    """Collects dependencies in their order."""

    def __init__(self, path: Path | None, document: YamlDocument) -> None:
        self._path = path
        self._document = document
        self.python = ""
        self.packages: list[CondaPackage] = []
        self.pip: list[str] = []
        self.notes: list[str] = []

    def add(self, entry: object, index: int) -> None:
        """Take one entry of `dependencies`: a package, or the `pip:` list."""
        where = self._document.where("dependencies", index)
        if isinstance(entry, str):
            self._add_package(entry, where)
        elif isinstance(entry, dict) and set(entry) == {"pip"} and isinstance(entry["pip"], list | None):
            for number, line in enumerate(entry["pip"] or ()):
                self._add_pip(line, self._document.where("dependencies", index, "pip", number))
        else:
            raise _refused(where, "must be a package or a list 'pip:'")

    def _add_pip(self, line: object, where: str) -> None:
        if not isinstance(line, str):
            raise _refused(where, "must be a requirement")
        self.pip += requirement_lines(line.strip(), where, self._path)

    def _add_package(self, text: str, where: str) -> None:
        name, version = self._spec(text, where)
        if name == "python":
            self.python = version
        elif name not in _INSTALLERS:
            self.packages.append(CondaPackage(name, _requirement(name, version, text, where), where))

    def _spec(self, text: str, where: str) -> tuple[str, str]:
        """Name and PEP 440 range of a package specification."""
        found = _SPEC.fullmatch(text.strip())
        if found is None:
            raise _refused(where, f"has {text!r}: expected NAME, NAME=VERSION or NAME>=VERSION")
        name = found["name"].lower()
        if found["channel"]:
            self.notes.append(
                f"{name}: channel {_bare(found['channel'])} is not asked; it comes from the Python package index"
            )
        brackets = _bracket_version(found["brackets"], where)
        operator, rest, build = (found["operator"] or "").strip(), found["rest"] or "", found["build"]
        if "=" in rest and operator in ("=", "==") and "," not in rest:
            rest, _, build = rest.partition("=")
        if build:
            self.notes.append(f"{name}: the conda build {build!r} is not asked for")
        version = brackets if not rest else _pep440(_exact_if_bare(operator, rest), text, where)
        return name, version


def _exact_if_bare(operator: str, rest: str) -> str:
    # `name 1.2` is the version itself, `name=1.2` any 1.2.x; `name >=1.2` has its operator in the rest.
    if operator or rest[0] in "=<>!~*":
        return f"{operator}{rest}"
    return f"=={rest}"


def _bracket_version(brackets: str | None, where: str) -> str:
    if not brackets:
        return ""
    found = re.fullmatch(r"\[\s*version\s*=\s*(['\"]?)([^'\"]+)\1\s*\]", brackets)
    if found is None:
        raise _refused(
            where, f"has {brackets}: of conda's bracket terms only [version='…'] has a meaning for wheels"
        )
    return _pep440(found[2], brackets, where)


def _pep440(text: str, spec: str, where: str) -> str:
    """Conda's version range as PEP 440 writes it."""
    if "|" in text:
        raise _refused(
            where, f"has {spec!r}: 'or' ({'|'!r}) of versions cannot be asked of the package index"
        )
    clauses = [_clause(each.strip(), spec, where) for each in text.split(",")]
    joined = ",".join(each for each in clauses if each)
    try:
        return str(SpecifierSet(joined)) if joined else ""
    except InvalidSpecifier as error:
        raise _refused(where, f"has {spec!r}, which is no version range") from error


def _clause(text: str, spec: str, where: str) -> str:
    found = _VERSION.fullmatch(text)
    if found is None:
        raise _refused(where, f"has {spec!r}, which is no version range")
    operator, version = found["operator"], found["version"]
    if version == "*":
        return ""
    stem = version.rstrip("*").rstrip(".")
    if operator in ("", "=") and (operator == "=" or version.endswith("*")):
        return f"=={stem}.*"
    if version.endswith("*"):
        # `>=1.2.*` is `>=1.2` to conda; equality takes the star.
        return f"{operator}{stem}" + (".*" if operator in ("==", "!=") else "")
    return f"{operator or '=='}{version}"


def _requirement(name: str, version: str, text: str, where: str) -> str | None:
    if name not in PYPI_NAMES and _NO_PYTHON_PACKAGE.fullmatch(name):
        return None
    requirement = f"{PYPI_NAMES.get(name, name)}{version}"
    try:
        Requirement(requirement)
    except InvalidRequirement as error:
        raise _refused(where, f"has {text!r}, which names no Python package") from error
    return requirement


def _minor_matches(specifier: str, python: str) -> bool:
    """Whether some 3.X.Y of the minor version `python` is in the range."""
    wanted = SpecifierSet(specifier)
    exact = re.fullmatch(r"==(\d+\.\d+)(\..*)?", specifier)
    if exact:
        return exact[1] == python
    return any(wanted.contains(f"{python}.{patch}") for patch in (0, 99))


def _strings(document: YamlDocument, key: str) -> tuple[str, ...]:
    value: Any = document.value.get(key) or []
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise _refused(document.where(key), f"must have a list of names in {key!r}")
    return tuple(value)


def _bare(channel: str) -> str:
    """A channel for messages: a URL may hold a token (`/t/TOKEN/`) or a password."""
    return re.sub(r"//[^/@]*@", "//", re.sub(r"/t/[^/]+/", "/t/***/", channel))


def _refused(where: str, what: str) -> RequirementError:
    return RequirementError(f"{where} {what}", where=where)

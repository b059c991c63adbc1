"""createOptions: the Docker ContainerCreate body that a manifest carries as JSON text in pieces.

Rules (IoT Edge: `Constants.cs`, `DockerConfig.cs`, `JsonEx.cs`):
- Pieces of 512 characters, at most 100: `createOptions`, `createOptions01` … `createOptions99`.
- The reader ignores the case of the names, sorts by name, and refuses a gap; the first piece has no number.
- No piece, or only blank text, means `{}`. Members that nobody here knows are kept.

>>> split_create_options("x" * 600)["createOptions01"] == "x" * 88
True
>>> options = CreateOptions.parse({"HostConfig": {"PortBindings": {"5001/tcp": [{"HostPort": "8501"}]}}})
>>> options.host_port_for(5001)
(None, 8501)
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edge_contracts.documents import parse_object
from edge_contracts.errors import ContractError, unexpected

PIECE_CHARACTERS = 512
PIECE_LIMIT = 100
_NAME = re.compile(r"createoptions(\d*)", re.IGNORECASE)


def is_create_options_name(name: str) -> bool:
    """Whether a member of `settings` is a piece of createOptions."""
    return _NAME.fullmatch(name) is not None


def split_create_options(text: str) -> dict[str, str]:
    """The members of `settings` for this JSON text; the empty text gives one empty piece.

    Raises:
        ContractError: more than 100 pieces.
    """
    count = max(1, -(-len(text) // PIECE_CHARACTERS))
    if count > PIECE_LIMIT:
        raise ContractError(
            f"createOptions must be at most {PIECE_LIMIT} pieces of {PIECE_CHARACTERS} characters, "
            f"not {len(text)} characters",
            code="create-options",
        )
    return {
        "createOptions" if index == 0 else f"createOptions{index:02d}": text[start : start + PIECE_CHARACTERS]
        for index, start in ((index, index * PIECE_CHARACTERS) for index in range(count))
    }


def join_create_options(settings: Mapping[str, Any], *, where: str = "settings") -> str:
    """The JSON text behind the pieces among `settings`; empty when there are none.

    Raises:
        ContractError: a piece is missing, misnumbered or no string.
    """
    names = sorted((name for name in settings if is_create_options_name(name)), key=str.lower)
    pieces: list[str] = []
    for index, name in enumerate(names):
        _check_number(name, index, where)
        if not isinstance(settings[name], str):
            raise unexpected(f"{where}.{name}", "JSON text", settings[name], code="create-options")
        pieces.append(settings[name])
    return "".join(pieces)


def _check_number(name: str, index: int, where: str) -> None:
    digits = name[len("createOptions") :]
    wanted = "" if index == 0 else f"{index:02d}"
    if (digits == "") != (index == 0) or (digits and int(digits) != index):
        raise ContractError(
            f"'{where}.{name}' must be the piece 'createOptions{wanted}' next, not '{name}'",
            code="create-options",
            where=f"{where}.{name}",
        )


@dataclass(frozen=True, slots=True)
class CreateOptions:
    """A typed view of createOptions; `document` is the whole of it."""

    document: Mapping[str, Any]

    @classmethod
    def parse(cls, document: Mapping[str, Any], *, where: str = "createOptions") -> CreateOptions:
        """Check the shape of the members that are read here.

        Raises:
            ContractError: `HostConfig`, `PortBindings` or a binding is not shaped as Docker's API says.
        """
        if not isinstance(document, Mapping):
            raise unexpected(where, "a JSON object", document, code="create-options")
        options = cls(document)
        for port, bindings in options._port_bindings(where).items():
            path = f"{where}.HostConfig.PortBindings.{port}"
            if bindings is not None and not isinstance(bindings, list):
                raise unexpected(path, "a list of bindings", bindings, code="create-options")
            for binding in bindings or ():
                if not isinstance(binding, Mapping):
                    raise unexpected(path, "a list of objects with HostPort", binding, code="create-options")
                _host_port(binding, path)
        return options

    @classmethod
    def from_text(cls, text: str, *, where: str = "createOptions") -> CreateOptions:
        """Read the JSON text of a manifest.

        Raises:
            ContractError: no JSON object, or a member of the wrong shape.
        """
        if not text.strip():
            return cls({})
        document = parse_object(text, where=where, code="create-options")
        return cls.parse(document, where=where)

    def host_port_for(self, container_port: int, protocol: str = "tcp") -> tuple[str | None, int | None]:
        """Address and port on the host which the first binding of a container port asks for; None where it does not say."""
        bindings = self._port_bindings("createOptions").get(f"{container_port}/{protocol}")
        if bindings is None and protocol == "tcp":
            bindings = self._port_bindings("createOptions").get(str(container_port))
        if not bindings:
            return None, None
        return bindings[0].get("HostIp") or None, _host_port(
            bindings[0], "createOptions.HostConfig.PortBindings"
        )

    def fixed_host_ports(self) -> list[tuple[int, str]]:
        """Ports of the host that are asked for by number, each with its protocol."""
        return sorted(
            {
                (port, container_port.partition("/")[2] or "tcp")
                for container_port, bindings in self._port_bindings("createOptions").items()
                for binding in bindings or ()
                if (port := _host_port(binding, "createOptions.HostConfig.PortBindings")) is not None
            }
        )

    def elevated_rights(self) -> list[tuple[str, str]]:
        """Members that let a module out of its container: path, and what it gives."""
        host_config = self.document.get("HostConfig")
        if not isinstance(host_config, Mapping):
            return []
        found = [
            (f"HostConfig.{key}", text)
            for key, (wanted, text) in _ELEVATED.items()
            if wanted(host_config.get(key))
        ]
        sockets = [bind for bind in _binds(host_config) if "docker.sock" in bind]
        return [*found, *((f"HostConfig.Binds.{bind}", "the container engine itself") for bind in sockets)]

    def _port_bindings(self, where: str) -> Mapping[str, Any]:
        host_config = self.document.get("HostConfig") or {}
        if not isinstance(host_config, Mapping):
            raise unexpected(f"{where}.HostConfig", "a JSON object", host_config, code="create-options")
        bindings = host_config.get("PortBindings") or {}
        if not isinstance(bindings, Mapping):
            raise unexpected(
                f"{where}.HostConfig.PortBindings", "a JSON object", bindings, code="create-options"
            )
        return bindings


_ELEVATED: Mapping[str, tuple[Callable[[Any], bool], str]] = {
    "Privileged": (lambda value: value is True, "every right on the device"),
    "CapAdd": (bool, "capabilities of the kernel"),
    "NetworkMode": (lambda value: value == "host", "the device's own network"),
    "PidMode": (lambda value: value == "host", "the device's own processes"),
    "IpcMode": (lambda value: value == "host", "the device's own shared memory"),
}


def _binds(host_config: Mapping[str, Any]) -> list[str]:
    binds = host_config.get("Binds")
    return [bind for bind in binds if isinstance(bind, str)] if isinstance(binds, list) else []


def _host_port(binding: Mapping[str, Any], path: str) -> int | None:
    value = binding.get("HostPort")
    if value is None or value == "":
        return None
    if not (isinstance(value, str) and value.isascii() and value.isdigit() and int(value) <= 65535):
        raise unexpected(f"{path}.HostPort", "a port as text, as in '8501'", value, code="create-options")
    return int(value) or None

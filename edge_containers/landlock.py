"""Landlock by system calls: from here on this process and its children touch only the paths it lists.

Needs no privilege and no namespace, only Linux 5.13 (ABI 1); later ABIs guard more and are used where they exist.
What Landlock does not guard: stat(2), connecting to a Unix socket whose folder can be traversed, and the network.

Imported by the shim under `python -I -S`, once per module: standard library only, and only its light parts.
Source: the kernel's `Documentation/userspace-api/landlock.rst`, `include/uapi/linux/landlock.h`.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct

# The same numbers on every architecture: system calls added after Linux 5.1 share one table.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_TRUNCATE, _IOCTL_DEV = 1 << 14, 1 << 15
_ABI1_RIGHTS = (1 << 13) - 1
_RIGHTS_ADDED = {2: 1 << 13, 3: _TRUNCATE, 5: _IOCTL_DEV}
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEV
_READ_RIGHTS = _EXECUTE | _READ_FILE | _READ_DIR

# ABI 6: no connection to an abstract Unix socket, and no signal, beyond the own domain.
_SCOPES_ABI = 6
_SCOPES = 0b11
_PR_SET_NO_NEW_PRIVS = 38

_libc = ctypes.CDLL(None, use_errno=True)


def _call(what: str, number: int, *arguments: object) -> int:
    # Variadic: an int must be passed as wide as the register it is read from.
    wide = [ctypes.c_long(each) if isinstance(each, int) else each for each in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *wide))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result


def abi_version() -> int:
    """The kernel's Landlock ABI.

    Raises:
        OSError: the kernel has none (ENOSYS) or it is switched off (EOPNOTSUPP).
    """
    return _call("landlock", _CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)


def restrict(readable: list[str], writable: list[str]) -> None:
    """Leave this process, for good, reading and executing beneath `readable` and doing all beneath `writable`.

    Raises:
        OSError: the kernel has no Landlock, or a path cannot be reached by this user; nothing is restricted then.
    """
    abi = abi_version()
    rights = _ABI1_RIGHTS
    for version, added in _RIGHTS_ADDED.items():
        rights |= added if abi >= version else 0
    attributes = struct.pack("QQQ", rights, 0, _SCOPES) if abi >= _SCOPES_ABI else struct.pack("Q", rights)
    ruleset = _call("landlock_create_ruleset", _CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for path in readable:
            _allow(ruleset, path, _READ_RIGHTS & rights)
        for path in writable:
            _allow(ruleset, path, rights)
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        _call("landlock_restrict_self", _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _FILE_RIGHTS
        rule = struct.pack("=Qi", rights, descriptor)
        _call(f"landlock_add_rule {path}", _ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)

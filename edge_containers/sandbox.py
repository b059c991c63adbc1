"""What encloses a module's program: namespaces, a root of its own, no privileges, limits.

Steps, in the order the shim takes them (tier "namespaces"):
1. `enter_pid_namespace` before forking the shim, which becomes the namespace's first process: when it dies, by whatever
   cause, the kernel kills everything inside. Without CAP_SYS_ADMIN a user namespace comes along, in which the caller's
   user appears as `NOBODY`.
2. `mount_own_proc` in the shim, so that process ids it reads are those it can signal.
3. `enter_root` in the module's process: an empty tmpfs in which exactly the listed paths are bound, read-only; only
   /tmp can be written.
4. `drop_privileges`, `die_with_parent`, then exec; `limit_resources` before all, while /proc can be written.

The other tiers skip 1 to 3. While the shim holds capabilities in the user namespace and the module none, the kernel
denies the module every look into the shim (`/proc/1/root` is the real root), although both are one user outside.

Imported by the shim under `python -I -S`, once per module: standard library only, and only its light parts.
"""

# Importing pathlib would take a fifth more memory, in every shim.
# ruff: noqa: PTH103, PTH112, PTH120, PTH123, PTH211
from __future__ import annotations

import ctypes
import os
import resource
import signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

NOBODY = 65534

_CLONE_NEWNS = 0x00020000
_CLONE_NEWUTS = 0x04000000
_CLONE_NEWIPC = 0x08000000
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWPID = 0x20000000

_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 0x1, 0x2, 0x4, 0x8
_MS_REMOUNT, _MS_BIND, _MS_REC, _MS_SLAVE = 0x20, 0x1000, 0x4000, 0x80000
# A user namespace may not clear these on a mount it inherited, so a remount repeats those that are set.
_ST_TO_MS = {
    os.ST_NOSUID: _MS_NOSUID,
    os.ST_NODEV: _MS_NODEV,
    os.ST_NOEXEC: _MS_NOEXEC,
    os.ST_NOATIME: 0x400,
    os.ST_NODIRATIME: 0x800,
    os.ST_RELATIME: 0x200000,
}
_MNT_DETACH = 2

_PR_SET_PDEATHSIG = 1
_PR_CAPBSET_DROP = 24
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_CAPABILITY_VERSION_3 = 0x20080522
_CAPABILITY_LIMIT = 64

_ROOT_BYTES = 1 << 20
_DEVICES = ("null", "zero", "full", "random", "urandom")
_DEVICE_LINKS = {
    "fd": "/proc/self/fd",
    "stdin": "/proc/self/fd/0",
    "stdout": "/proc/self/fd/1",
    "stderr": "/proc/self/fd/2",
    # POSIX semaphores and shared memory live here; one writable place is enough.
    "shm": "/tmp",
}
_ACCOUNTS = {
    "/etc/passwd": f"nobody:x:{NOBODY}:{NOBODY}:nobody:/tmp:/usr/sbin/nologin\n",
    "/etc/group": f"nogroup:x:{NOBODY}:\n",
}

_OPEN_FILES = 1024
# Raised so that a device short of memory loses a module, which is started again, before the agent.
_OOM_SCORE = 500

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")


def _mount(source: str, target: str, kind: str | None, flags: int, data: str = "") -> None:
    kind_bytes = None if kind is None else kind.encode()
    result = _libc.mount(source.encode(), target.encode(), kind_bytes, ctypes.c_ulong(flags), data.encode())
    _check(result, f"mount {kind or source} on {target}")


def enter_pid_namespace(*, user_namespace: bool) -> None:
    """Make the next fork's child the first process of a new pid namespace.

    Raises:
        OSError: the kernel, or what confines this process, refuses.
    """
    uid, gid = os.geteuid(), os.getegid()
    if user_namespace:
        _check(_libc.unshare(_CLONE_NEWUSER | _CLONE_NEWPID), "unshare user and pid namespace")
        # user_namespaces(7): without setgroups denied, an unprivileged process may not map its group.
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{NOBODY} {uid} 1")
        _write("/proc/self/gid_map", f"{NOBODY} {gid} 1")
    else:
        _check(_libc.unshare(_CLONE_NEWPID), "unshare pid namespace")


def _write(path: str, text: str) -> None:
    try:
        with open(path, "w", encoding="ascii") as file:
            file.write(text)
    except OSError as error:
        raise OSError(error.errno, f"write {path}: {error.strerror}") from error


def mount_own_proc() -> None:
    """Give this process, alone with its children, the /proc of its own pid namespace."""
    _check(_libc.unshare(_CLONE_NEWNS), "unshare mount namespace")
    # Slave, not private: what the machine unmounts later must not stay busy because of us.
    _mount("none", "/", None, _MS_REC | _MS_SLAVE)
    _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)


def enter_root(root: str, steps: list[list[str]], tmp_bytes: int) -> None:
    """Make `root` (an existing empty folder) this process's root, holding what `steps` name and the kernel's own parts.

    Steps are `["bind", source, target]`, `["hide", target]` and `["link", text, target]`, targets as seen inside. Each
    bind is read-only before the next step, so nothing here can create a path on the machine's own disks.
    """
    _check(_libc.unshare(_CLONE_NEWNS | _CLONE_NEWIPC | _CLONE_NEWUTS), "unshare mount, ipc, uts namespace")
    _mount("tmpfs", root, "tmpfs", _MS_NOSUID | _MS_NODEV, f"mode=755,size={_ROOT_BYTES}")
    for kind, *arguments in steps:
        _PLACE[kind](root, *arguments)
    _add_kernel_parts(root, tmp_bytes)
    _mount("none", root, None, _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID | _MS_NODEV)
    os.chdir(root)
    # pivot_root(2), "pivot_root(".", ".")": the old root ends up mounted over the new one, and is then let go.
    _check(_libc.pivot_root(b".", b"."), "pivot_root")
    _check(_libc.umount2(b".", _MNT_DETACH), "umount of the old root")
    os.chdir("/")


def _bind(root: str, source: str, target: str) -> None:
    inside = root + target
    if os.path.isdir(source):
        os.makedirs(inside, 0o755, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(inside), 0o755, exist_ok=True)
        os.close(os.open(inside, os.O_CREAT | os.O_CLOEXEC, 0o644))
    # Recursive, because a user namespace may not uncover what a mount hides.
    _mount(source, inside, None, _MS_BIND | _MS_REC)
    for mounted in _mounts_beneath(inside):
        _remount_read_only(mounted)


def _mounts_beneath(path: str) -> list[str]:
    with open("/proc/self/mountinfo", "rb") as file:
        # proc(5): the fifth field is the mount point, with space, tab, newline and backslash as octal escapes.
        points = [_unescape(line.split(b" ")[4]) for line in file]
    return [point for point in points if point == path or point.startswith(path + "/")]


def _unescape(field: bytes) -> str:
    head, *rest = field.split(b"\\")
    return os.fsdecode(head + b"".join(bytes([int(part[:3], 8)]) + part[3:] for part in rest))


def _remount_read_only(path: str) -> None:
    kept = os.statvfs(path).f_flag
    flags = _MS_REMOUNT | _MS_BIND | _MS_RDONLY | _MS_NOSUID
    for st_flag, ms_flag in _ST_TO_MS.items():
        flags |= ms_flag if kept & st_flag else 0
    _mount("none", path, None, flags)


def _hide(root: str, target: str) -> None:
    _mount("tmpfs", root + target, "tmpfs", _MS_RDONLY | _MS_NOSUID | _MS_NODEV, "mode=0,size=4k")


def _link(root: str, text: str, target: str) -> None:
    os.makedirs(os.path.dirname(root + target), 0o755, exist_ok=True)
    os.symlink(text, root + target)


_PLACE: dict[str, Callable[..., None]] = {"bind": _bind, "hide": _hide, "link": _link}


def _add_kernel_parts(root: str, tmp_bytes: int) -> None:
    os.makedirs(f"{root}/dev", 0o755)
    for name in _DEVICES:
        _bind(root, f"/dev/{name}", f"/dev/{name}")
    for name, text in _DEVICE_LINKS.items():
        os.symlink(text, f"{root}/dev/{name}")
    os.makedirs(f"{root}/etc", 0o755, exist_ok=True)
    for path, text in _ACCOUNTS.items():
        _write(root + path, text)
    os.makedirs(f"{root}/proc", 0o755)
    _mount("proc", f"{root}/proc", "proc", _MS_RDONLY | _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    os.makedirs(f"{root}/tmp", 0o755)
    _mount("tmpfs", f"{root}/tmp", "tmpfs", _MS_NOSUID | _MS_NODEV, f"mode=1777,size={tmp_bytes}")


def can_become_nobody() -> bool:
    """Whether this process is root and its user namespace knows `NOBODY`; root of a container may know itself alone."""
    if os.geteuid() != 0:
        return False
    with open("/proc/self/uid_map", encoding="ascii") as file:
        # user_namespaces(7): first id inside, first id outside, count.
        ranges = [[int(field) for field in line.split()] for line in file]
    return any(first <= NOBODY < first + count for first, _, count in ranges)


def drop_privileges() -> None:
    """Give up root for `NOBODY` where there is one, every capability, and any way to gain one again."""
    # Fails without CAP_SETPCAP, when there is nothing to give up, and past the kernel's last capability.
    for capability in range(_CAPABILITY_LIMIT):
        _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    if can_become_nobody():
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    _libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(header, (ctypes.c_uint32 * 6)()), "capset")
    _check(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), "no_new_privs")


def limit_resources() -> None:
    """Bound open files, forbid core dumps (they would hold the module's secrets), and stand first for the OOM killer."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(_OPEN_FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with open("/proc/self/oom_score_adj", encoding="ascii") as file:
        # Lowering is not for everyone: a pod without reservations, for one, begins at 1000.
        score = max(_OOM_SCORE, int(file.read()))
    _write("/proc/self/oom_score_adj", str(score))


def die_with_parent(parent: int) -> None:
    """Be killed when the parent dies. To be called after every change of user, which would undo it (prctl(2))."""
    _check(_libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "parent death signal")
    if os.getppid() != parent:
        os._exit(128 + signal.SIGKILL)


def adopt_orphans() -> None:
    """Become the parent of every descendant whose own parent dies."""
    _check(_libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "child subreaper")


def descendants(ancestor: int) -> list[int]:
    """Process ids beneath `ancestor`, from /proc; those that came or went meanwhile may be missing."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            children.setdefault(_parent_of(entry), []).append(int(entry))
    found = children.pop(ancestor, [])
    for process in found:
        found.extend(children.pop(process, []))
    return found


def _parent_of(process: str) -> int:
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            # proc(5): the command's name is in parentheses and may hold any byte; state and parent follow it.
            return int(file.read().rpartition(b")")[2].split()[1])
    except OSError:
        return 0


def memory_bytes(processes: list[int]) -> int:
    """Resident bytes of the processes together; shared pages count in each, as `docker stats` does not."""
    pages = 0
    for process in processes:
        try:
            with open(f"/proc/{process}/statm", "rb") as file:
                pages += int(file.read().split()[1])
        except OSError:
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")


def cpu_s(process: int) -> float:
    """Processor time the process has used, in user and kernel mode."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            # proc(5): fields 14 and 15, counted from field 3 behind the name.
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def kill_descendants(ancestor: int) -> None:
    """Kill everything beneath `ancestor`; again and again, since what is killed may just have forked."""
    for _ in range(100):
        processes = descendants(ancestor)
        if not processes:
            return
        for process in processes:
            try:
                os.kill(process, signal.SIGKILL)
            except OSError:
                continue
        reap()


def reap() -> dict[int, int]:
    """Wait status of every child that has ended by now."""
    ended: dict[int, int] = {}
    while True:
        try:
            process, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended
        if process == 0:
            return ended
        ended[process] = status

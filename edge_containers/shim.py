"""The small process beside each module: starts it in its sandbox, keeps its sockets and its log, records its end.

    python -I -S shim.py SPEC       SPEC is an instance's spec.json, in the instance's folder

The program forks and returns once the module's program has been executed, or with the reason why not; what it prints
is one JSON object, `{"shim": PID, "module": PID}` or `{"error": TEXT}`, and the former is in `shim.json` by then.
The fork stays, one per instance, in its own session, so it outlives whoever started it:

    tier namespaces          shim (process 1 of its pid namespace) ── module ── …
    other tiers     keeper ── shim ── module ── …

When the shim dies, by whatever cause, nothing beneath it survives: the kernel ends a pid namespace with its first
process; the keeper, to whom orphans fall, kills them in the other tiers. When the module ends, the shim kills what is
left of its tree, writes `exit.json` and ends.

SIGTERM stops the module: SIGTERM to it, SIGKILL after the spec's time. The Unix socket `control.sock` takes one JSON
object per connection and answers with one: `{"op": "sockets"}` (the public listening socket comes along, SCM_RIGHTS),
`{"op": "activate"}` (SIGUSR1 to the module), `{"op": "stop", "timeoutS": N}`.

Runs under `-I -S`: standard library only, and only its light parts, since its memory is paid once per module.
"""

# Importing pathlib would take a fifth more memory, in every shim.
# ruff: noqa: PTH100, PTH105, PTH108, PTH110, PTH120, PTH123
from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import sys
import time

if __name__ == "__main__":
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from edge_containers import landlock, sandbox

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

NAMESPACES, LANDLOCK = "namespaces", "landlock"
MEMORY_LIMIT = "memory limit"
START_FAILED = 126
"""Exit code of a module whose program was never executed, as of a shell that may not execute a command."""

_MEMORY_INTERVAL_S = 1.0
_HANDSHAKE_TIMEOUT_S = 20.0
_CONTROL_TIMEOUT_S = 2.0
_DRAIN_S = 1.0
_READ_BYTES = 65536
_CREDENTIALS = struct.Struct("3i")
_NEVER = float("inf")


def write_json(path: str, document: Mapping[str, object]) -> None:
    """Write by rename, durably: a reader, the owner alone, finds the old document or the new, also after a power cut."""
    temporary = f"{path}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            json.dump(document, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise
    folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def start_time(process: int) -> int:
    """When the process started, in clock ticks after boot: with its id, the identity of a process."""
    with open(f"/proc/{process}/stat", "rb") as file:
        # proc(5): field 22; the count starts anew behind the name's closing parenthesis, with field 3.
        return int(file.read().rpartition(b")")[2].split()[19])


class RotatingLog:
    """`log`, and behind it `log.1` (newer) to `log.N`, each at most `limit_bytes`; a full disk loses lines, no module."""

    def __init__(self, path: str, limit_bytes: int, files: int) -> None:
        self.path = path
        self.limit_bytes = limit_bytes
        self.files = files
        self._descriptor = self._open()
        self._size = os.fstat(self._descriptor).st_size

    def _open(self) -> int:
        return os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def write(self, data: bytes) -> None:
        if self._size and self._size + len(data) > self.limit_bytes:
            self._rotate()
        try:
            self._size += os.write(self._descriptor, data)
        except OSError:
            return

    def _rotate(self) -> None:
        os.close(self._descriptor)
        for number in range(self.files - 1, 0, -1):
            newer = self.path if number == 1 else f"{self.path}.{number - 1}"
            if os.path.exists(newer):
                os.replace(newer, f"{self.path}.{number}")
        self._descriptor = self._open()
        self._size = 0


class Shim:
    """Supervises one module from its first instruction to its recorded end."""

    def __init__(self, spec: dict[str, Any], handshake: socket.socket, launcher: int) -> None:
        """Args: launcher: read end of a pipe on which the launcher says that shim.json is written."""
        self.spec = spec
        self.handshake = handshake
        self.launcher = launcher
        self.log = RotatingLog("log", spec["logBytes"], spec["logFiles"])
        self.module = 0
        self.status: int | None = None
        self.reason: str | None = None
        self.kill_at = _NEVER
        self.measure_at = 0.0 if spec["memoryLimitBytes"] else _NEVER

    def run(self) -> None:
        """Start the module and stay until it has ended."""
        if self.spec["tier"] == NAMESPACES:
            sandbox.mount_own_proc()
        else:
            sandbox.adopt_orphans()
        self.woken = self._catch_signals()
        self.control = self._listen()
        self.output, module_output = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        os.set_blocking(module_output, True)
        self.handshake.send(b'{"shim": true}')
        self.module = os.fork()
        if self.module == 0:
            become_module(self.spec, self.handshake, module_output)
        os.close(module_output)
        self.handshake.close()
        self._supervise()
        self._finish()

    def _catch_signals(self) -> int:
        woken, wake = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        return woken

    def _listen(self) -> socket.socket:
        # Relative to the instance's folder: a socket's path has at most 107 bytes.
        control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        control.bind("control.sock")
        control.listen(8)
        return control

    def _supervise(self) -> None:
        handlers = {
            self.woken: self._on_signal,
            self.output: self._on_output,
            self.control.fileno(): self._on_control,
            self.launcher: self._on_launcher,
        }
        poll = select.poll()
        for descriptor in handlers:
            poll.register(descriptor, select.POLLIN)
        while self.status is None:
            due = min(self.kill_at, self.measure_at)
            timeout_ms = None if due == _NEVER else max(0.0, due - time.monotonic()) * 1000
            for descriptor, _ in poll.poll(timeout_ms):
                if not handlers[descriptor]():
                    poll.unregister(descriptor)
            if self.status is None:
                self._on_time(time.monotonic())

    def _on_signal(self) -> bool:
        if signal.SIGTERM in os.read(self.woken, _READ_BYTES):
            self.stop(self.spec["stopTimeoutS"])
        self.status = sandbox.reap().get(self.module)
        return True

    def _on_output(self) -> bool:
        try:
            data = os.read(self.output, _READ_BYTES)
        except BlockingIOError:
            return True
        if data:
            self.log.write(data)
        return bool(data)

    def _on_control(self) -> bool:
        connection, _ = self.control.accept()
        with connection:
            connection.settimeout(_CONTROL_TIMEOUT_S)
            try:
                self._answer(connection)
            except (OSError, ValueError, KeyError):
                return True
        return True

    def _on_launcher(self) -> bool:
        if not os.read(self.launcher, 1):
            # It was killed before it wrote shim.json: nobody would ever find this instance.
            self.stop(0)
        return False

    def _on_time(self, now: float) -> None:
        if now >= self.kill_at:
            os.kill(self.module, signal.SIGKILL)
            self.kill_at = _NEVER
        if now >= self.measure_at:
            self.measure_at = now + _MEMORY_INTERVAL_S
            if sandbox.memory_bytes(sandbox.descendants(os.getpid())) > self.spec["memoryLimitBytes"]:
                self.reason = MEMORY_LIMIT
                self.log.write(b"edgewright: memory limit exceeded, killed\n")
                os.kill(self.module, signal.SIGKILL)

    def _answer(self, connection: socket.socket) -> None:
        peer, user, _ = _CREDENTIALS.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        # Landlock does not keep a module of the same user from this socket.
        if user != os.geteuid() or peer in sandbox.descendants(os.getpid()):
            return
        request = json.loads(connection.recv(_READ_BYTES))
        sockets: list[int] = []
        error = None
        if request["op"] == "sockets":
            sockets = [self.spec["sockets"]["public"]] if self.spec["sockets"]["public"] is not None else []
        elif request["op"] == "activate":
            error = self.activate()
        elif request["op"] == "stop":
            self.stop(request["timeoutS"])
        else:
            error = f"unknown operation {request['op']!r}"
        socket.send_fds(connection, [json.dumps({"error": error}).encode()], sockets)

    def activate(self) -> str | None:
        """Tell the module to serve its public socket; what stands in the way, if anything does."""
        if os.path.exists("serving"):
            return None
        # Not handled yet, the signal would end the module.
        if not catches(self.module, signal.SIGUSR1):
            return "the module does not handle SIGUSR1 (yet): activate it once it is ready"
        os.kill(self.module, signal.SIGUSR1)
        os.close(os.open("serving", os.O_CREAT | os.O_CLOEXEC, 0o600))
        return None

    def stop(self, timeout_s: float) -> None:
        """Ask the module to end; it has `timeout_s`, or what a former request left it, if that is less."""
        if self.kill_at == _NEVER:
            os.kill(self.module, signal.SIGTERM)
        self.kill_at = min(self.kill_at, time.monotonic() + timeout_s)

    def _finish(self) -> None:
        sandbox.kill_descendants(os.getpid())
        until = time.monotonic() + _DRAIN_S
        poll = select.poll()
        poll.register(self.output, select.POLLIN)
        while time.monotonic() < until and poll.poll(100) and self._on_output():
            pass
        # Before the end is known: whoever reads of it may bind the same port at once.
        for descriptor in filter(None, self.spec["sockets"].values()):
            os.close(descriptor)
        code = os.waitstatus_to_exitcode(self.status or 0)
        write_json(
            "exit.json",
            {
                "exitCode": code if code >= 0 else 128 - code,
                "reason": self.reason,
                "finishedAt": time.time(),
            },
        )


def catches(process: int, number: int) -> bool:
    """Whether the process has a handler for the signal."""
    with open(f"/proc/{process}/status", encoding="ascii", errors="replace") as file:
        for line in file:
            if line.startswith("SigCgt:"):
                return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False


def become_module(spec: dict[str, Any], handshake: socket.socket, output: int) -> None:
    """Turn this forked process into the module's program; never returns."""
    try:
        parent = os.getppid()
        handshake.send(b'{"module": true}')
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.umask(0o022)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sandbox.limit_resources()
        if spec["tier"] == NAMESPACES:
            root = spec["root"]
            sandbox.enter_root(root["mountpoint"], root["steps"], root["tmpBytes"])
        sandbox.drop_privileges()
        if spec["tier"] == LANDLOCK:
            landlock.restrict(spec["landlock"]["read"], spec["landlock"]["write"])
        sandbox.die_with_parent(parent)
        os.chdir(spec["cwd"])
        os.execve(spec["argv"][0], spec["argv"], spec["env"])  # noqa: S606 (the module's program, from a file only we can write)
    except BaseException as error:
        handshake.send(json.dumps({"error": describe(error)}).encode())
    finally:
        os._exit(START_FAILED)


def describe(error: BaseException) -> str:
    """What failed, without Python's numbers and quotes."""
    if not isinstance(error, OSError):
        return f"{type(error).__name__}: {error}"
    text = error.strerror or str(error)
    return f"{error.filename}: {text}" if error.filename else text


def launch(spec: dict[str, Any]) -> dict[str, Any]:
    """Fork the shim and wait until the module's program runs, or has failed to."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
    ours.settimeout(_HANDSHAKE_TIMEOUT_S)
    if spec["tier"] == NAMESPACES:
        try:
            sandbox.enter_pid_namespace(user_namespace=spec["userNamespace"])
        except OSError as error:
            return {"error": describe(error)}
    acknowledged, acknowledge = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        ours.close()
        os.close(acknowledge)
        run_detached(spec, theirs, acknowledged)
    theirs.close()
    started = receive_handshake(ours)
    if "error" in started:
        # Nothing is left when the caller hears of it. The keeper outlives the shim, so it is waited for, not killed.
        victim = started.pop("shim", {"pid": child})
        try:
            os.kill(victim["pid"], signal.SIGKILL)
        except ProcessLookupError:
            pass
        os.waitpid(child, 0)
    else:
        write_json("shim.json", started)
        os.write(acknowledge, b"1")
    return started


def receive_handshake(ours: socket.socket) -> dict[str, Any]:
    """Collect who was started, under the ids that this process sees, until the module's exec closes the other end."""
    found: dict[str, Any] = {}
    try:
        while True:
            data, ancillary, _, _ = ours.recvmsg(_READ_BYTES, socket.CMSG_SPACE(_CREDENTIALS.size))
            if not data:
                break
            message = json.loads(data)
            if "error" in message:
                return {**found, **message}
            # unix(7), SCM_CREDENTIALS: the kernel translates the sender's id into the receiver's pid namespace.
            process = _CREDENTIALS.unpack(ancillary[0][2])[0]
            for role in message:
                found[role] = {"pid": process, "startTime": start_time(process)}
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            found["boot"] = file.read().strip()
    except OSError as error:
        return {**found, "error": f"no answer from the shim: {describe(error)}"}
    return found if "module" in found else {**found, "error": "the shim ended before it started the module"}


def run_detached(spec: dict[str, Any], handshake: socket.socket, launcher: int) -> None:
    """Be the shim, or its keeper and the shim; never returns."""
    code = 1
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for descriptor in (0, 1, 2):
            os.dup2(null, descriptor)
        if spec["tier"] != NAMESPACES:
            become_keeper()
        Shim(spec, handshake, launcher).run()
        code = 0
    except BaseException as error:
        with open("log", "ab") as log:
            log.write(f"edgewright shim: {describe(error)}\n".encode())
        try:
            handshake.send(json.dumps({"error": describe(error)}).encode())
        except OSError:
            pass
    finally:
        os._exit(code)


def become_keeper() -> None:
    """Fork the shim, which returns; the keeper waits for its end and kills whatever it left behind."""
    sandbox.adopt_orphans()
    shim = os.fork()
    if shim == 0:
        return
    # Sockets and the instance's lock belong to the shim alone.
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    while os.waitpid(-1, 0)[0] != shim:
        continue
    sandbox.kill_descendants(os.getpid())
    os._exit(0)


def main(path: str) -> None:
    os.umask(0o077)
    folder, name = os.path.split(os.path.abspath(path))
    os.chdir(folder)
    with open(name, encoding="utf-8") as file:
        spec = json.load(file)
    # It says that the instance lives, so the module must not inherit it.
    os.set_inheritable(spec["lock"], False)
    print(json.dumps(launch(spec)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])

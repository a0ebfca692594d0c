# SPDX-License-Identifier: Apache-2.0
"""Whether the announced process really is the parked init of a container with namespace and cgroup of its own.

An announcement carries a number that somebody else chose. So the process is pinned by a pidfd first, then ``/proc``
is read, and then the pidfd is asked whether the process still runs: as long as it does, its number cannot have been
given to another, and all that was read is its own. :func:`recheck` repeats the reading after the kernel took the
workload up, because a cgroup can be changed meanwhile.

Every refusal has a reason of its own. A container without a mount namespace or a cgroup of its own is refused: the
kernel would have nothing to tell it from its neighbours by.
"""

from __future__ import annotations

import errno
import os
import re
import select
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final, Self

from guest_agent.workloads.registry import Identity, Observation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

_NAMESPACE: Final = re.compile(r"(?:mnt|net):\[(\d+)\]")
_SAMPLE_BYTES: Final = 1 << 16
_MAXIMUM_PROC_BYTES: Final = 1 << 20
_START_TIME: Final = 19  # field 22 of /proc/PID/stat, counted from the state (field 3), the first after the command
_STATE: Final = 0
_ENDED_STATES: Final = ("Z", "X", "x")
_DELETED: Final = " (deleted)"
_MOUNT_DEVICE, _MOUNT_ROOT, _MOUNT_POINT = 2, 3, 4  # fields of /proc/PID/mountinfo, counted from 0


class VerificationError(Exception):
    """The process is not what was announced, or cannot be told apart. The message says what was found and expected."""


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the machine is looked at; tests bring a tree of their own.

    ``cgroup_root`` is where cgroup v2 is mounted (None: found in the agent's own mountinfo). ``open_pidfd`` returns a
    descriptor that polls readable once the process has ended, and raises OSError(ESRCH) when there is none.
    """

    proc_root: Path = Path("/proc")
    cgroup_root: Path | None = None
    open_pidfd: Callable[[int], int] = field(default=os.pidfd_open)

    def cgroup_mount(self) -> Path:
        """Return the directory of the cgroup v2 root. Raises VerificationError when there is none."""
        if self.cgroup_root is not None:
            return self.cgroup_root
        mount, device = find_cgroup_mount(_read(self.proc_root / "self" / "mountinfo", "the agent's own mounts"))
        try:
            found = mount.stat().st_dev
        except OSError as error:
            message = f"the cgroup v2 mount {mount} cannot be looked at ({error.strerror}), expected a directory"
            raise VerificationError(message) from error
        if f"{os.major(found)}:{os.minor(found)}" != device:
            message = (
                f"something else is mounted over the cgroup v2 mount {mount}, expected device {device} there; unmount "
                "it: what lives cannot be told from what is gone"
            )
            raise VerificationError(message)
        return mount


@dataclass(frozen=True, slots=True)
class VerifiedInit:
    """A container's init as found. ``uid`` is its real user id. Owns ``pidfd`` until :meth:`close`."""

    identity: Identity
    uid: int
    pidfd: int

    def running(self) -> bool:
        """Whether the process still runs."""
        poll = select.poll()
        poll.register(self.pidfd, select.POLLIN)
        return not poll.poll(0)

    def close(self) -> None:
        """Close the pidfd."""
        os.close(self.pidfd)

    def __enter__(self) -> Self:
        """Return itself; the pidfd is closed at the end of the block."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the pidfd."""
        self.close()


def find_cgroup_mount(mountinfo: str) -> tuple[Path, str]:
    """Find the cgroup v2 mount (unified at /sys/fs/cgroup, hybrid at /sys/fs/cgroup/unified, or elsewhere).

    Gives directory and device ("major:minor"). Raises VerificationError when no mount shows the hierarchy's root.
    """
    for line in mountinfo.splitlines():
        fields, _, after = line.partition(" - ")
        columns = fields.split()
        if after.split(" ", 1)[0] == "cgroup2" and len(columns) > _MOUNT_POINT and columns[_MOUNT_ROOT] == "/":
            return Path(unescape(columns[_MOUNT_POINT])), columns[_MOUNT_DEVICE]
    message = (
        "found no mount of cgroup v2 that shows the root of the hierarchy, expected /sys/fs/cgroup or "
        "/sys/fs/cgroup/unified; mount it, and run the agent in the root cgroup namespace"
    )
    raise VerificationError(message)


def unescape(text: str) -> str:
    r"""Undo the octal escapes (``\040``) of ``/proc/PID/mountinfo``."""
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), text)


def verify(
    pid: int, machine: Machine, managers: tuple[str, ...], *, foreign_namespaces: frozenset[int] = frozenset()
) -> VerifiedInit:
    """Verify the parked init of a container.

    ``managers`` are the executables of container managers; the init must still run one of them.
    ``foreign_namespaces`` are mount namespaces besides the agent's own and PID 1's that no container may be in (the
    caller's). The caller closes the result. Raises VerificationError.
    """
    if pid <= 0:
        message = "the announcement carries no pid, expected that of the container's parked init; the runtime sent none"
        raise VerificationError(message)
    try:
        pidfd = machine.open_pidfd(pid)
    except OSError as error:
        message = (
            f"process {pid} does not exist (any more), expected a parked init: the container ended before registration"
            if error.errno == errno.ESRCH
            else f"process {pid} cannot be pinned ({error.strerror}), expected a pidfd; run the agent as root"
        )
        raise VerificationError(message) from error
    try:
        identity, uid = _examine(pid, machine, managers, foreign_namespaces)
        verified = VerifiedInit(identity, uid, pidfd)
        _still_running(verified)
    except BaseException:
        os.close(pidfd)
        raise
    return verified


def recheck(
    verified: VerifiedInit,
    machine: Machine,
    managers: tuple[str, ...],
    *,
    foreign_namespaces: frozenset[int] = frozenset(),
) -> None:
    """Examine the init once more: same process, same cgroup, same namespace, still parked. Raises VerificationError."""
    identity, uid = _examine(verified.identity.pid, machine, managers, foreign_namespaces)
    _still_running(verified)
    if identity != verified.identity or uid != verified.uid:
        message = (
            f"process {verified.identity.pid} changed while it was registered: found {identity}, uid {uid}, "
            f"expected {verified.identity}, uid {verified.uid}"
        )
        raise VerificationError(message)


def observe(identity: Identity, machine: Machine) -> Observation:
    """Look whether a workload has ended. What cannot be told counts as alive.

    Raises VerificationError only when there is no cgroup v2 mount to look at.
    """
    return Observation(
        init_alive=_init_alive(identity, machine),
        cgroup_populated=_cgroup_populated(identity, machine),
    )


def is_parked(pid: int, machine: Machine, managers: tuple[str, ...]) -> bool:
    """Tell whether a container's init still runs its manager's program; False when that cannot be told."""
    try:
        _parked(pid, machine, managers)
    except VerificationError:
        return False
    return True


def cgroup_path_of(cgroup_id: int, machine: Machine, guess: str = "") -> str:
    """Find the path of a cgroup by its id; "" when it is gone. Looks at ``guess`` first.

    Raises VerificationError or OSError when not every cgroup can be looked at: not found would not mean gone.
    """
    mount = machine.cgroup_mount()
    with suppress(FileNotFoundError):
        if guess and (mount / guess.lstrip("/")).stat().st_ino == cgroup_id:
            return guess
    for directory, names, _ in os.walk(mount, onerror=_unless_removed):
        for name in names:
            path = Path(directory) / name
            try:
                if path.stat().st_ino == cgroup_id:
                    return "/" + str(path.relative_to(mount))
            except FileNotFoundError:
                continue
    return ""


def cgroups_of(pid: int, machine: Machine) -> frozenset[int]:
    """Give the ids of a process's cgroup and of those above it. Raises VerificationError or OSError."""
    directory = machine.cgroup_mount()
    found = {directory.stat().st_ino}
    for part in _cgroup_of(pid, machine).split("/"):
        if part:
            directory /= part
            found.add(directory.stat().st_ino)
    return frozenset(found)


def _unless_removed(error: OSError) -> None:
    if error.errno not in (errno.ENOENT, errno.ENODEV):
        raise error


def mount_namespace(pid: int | str, machine: Machine) -> int:
    """Return the inode number of a process's mount namespace. Raises VerificationError."""
    return _namespace(pid, "mnt", "mount", machine)


def network_namespace(pid: int | str, machine: Machine) -> int:
    """Return the inode number of a process's network namespace. Raises VerificationError."""
    return _namespace(pid, "net", "network", machine)


def _namespace(pid: int | str, kind: str, name: str, machine: Machine) -> int:
    path = machine.proc_root / str(pid) / "ns" / kind
    try:
        target = str(path.readlink())
    except OSError as error:
        message = f"the {name} namespace of process {pid} cannot be read ({error.strerror}); it needs CAP_SYS_PTRACE"
        raise VerificationError(message) from error
    match = _NAMESPACE.fullmatch(target)
    if match is None:
        message = f"the {name} namespace of process {pid} reads {target!r}, expected {kind}:[NUMBER]"
        raise VerificationError(message)
    return int(match[1])


def processes_of(identity: Identity, machine: Machine) -> Iterator[int]:
    """Give the processes of a workload: its init, and those in its cgroup and below, as far as they can be read."""
    if _init_alive(identity, machine):
        yield identity.pid
    if not identity.cgroup_path:
        return
    top = machine.cgroup_mount() / identity.cgroup_path.lstrip("/")
    for directory, _, _ in os.walk(top):
        with suppress(OSError):
            for line in (Path(directory) / "cgroup.procs").read_text().split():
                if line.isdigit() and int(line) != identity.pid:
                    yield int(line)


def _examine(
    pid: int, machine: Machine, managers: tuple[str, ...], foreign_namespaces: frozenset[int]
) -> tuple[Identity, int]:
    """Read everything that identifies the process, refusing what no parked init looks like."""
    state, start_time = _stat(pid, machine)
    if state in _ENDED_STATES:
        message = f"process {pid} has ended already (state {state}), expected a parked init"
        raise VerificationError(message)
    namespace = mount_namespace(pid, machine)
    own = {"the agent": mount_namespace("self", machine), "PID 1": mount_namespace(1, machine)}
    for owner, number in own.items():
        if namespace == number:
            message = (
                f"process {pid} shares the mount namespace of {owner}, expected one of its own; "
                "a container without a mount namespace cannot be protected"
            )
            raise VerificationError(message)
    if namespace in foreign_namespaces:
        message = f"process {pid} shares the mount namespace of the process that announced it, expected one of its own"
        raise VerificationError(message)
    path, cgroup_id = _own_cgroup(pid, machine)
    _parked(pid, machine, managers)
    return Identity(pid, start_time, cgroup_id, path, namespace), _uid(pid, machine)


def _own_cgroup(pid: int, machine: Machine) -> tuple[str, int]:
    path = _cgroup_of(pid, machine)
    if path == "/":
        message = f"process {pid} is in the root cgroup, expected one of its own; set linux.cgroupsPath or resources"
        raise VerificationError(message)
    own = _cgroup_of("self", machine)
    if path == own:
        message = f"process {pid} is in the agent's own cgroup {path}, expected one of its own"
        raise VerificationError(message)
    if (own + "/").startswith(path + "/"):
        message = f"cgroup {path} of process {pid} holds the agent itself ({own}), expected one of the container's own"
        raise VerificationError(message)
    directory = machine.cgroup_mount() / path.lstrip("/")
    try:
        status = directory.stat()
        members = _members(directory)
        below = [child for child in directory.iterdir() if child.is_dir()]
        populated = [child.name for child in below if _populated(child)]
    except OSError as error:
        message = f"cgroup {path} of process {pid} cannot be read ({error.strerror}), expected a cgroup v2 directory"
        raise VerificationError(message) from error
    if not stat.S_ISDIR(status.st_mode):
        message = f"cgroup {path} of process {pid} is no directory, expected a cgroup v2 directory"
        raise VerificationError(message)
    others = members - {pid}
    if pid not in members or others:
        found = "not the process itself" if pid not in members else f"also {len(others)} other process(es)"
        message = (
            f"cgroup {path} holds {found}, expected the container's init alone: without a cgroup of its own it cannot "
            "be told from its neighbours"
        )
        raise VerificationError(message)
    if populated:
        message = f"cgroup {path} has populated children ({populated[0]}, …), expected the container's init alone"
        raise VerificationError(message)
    return path, status.st_ino


def _cgroup_of(pid: int | str, machine: Machine) -> str:
    """Return the cgroup v2 path of a process, as seen from the agent's cgroup namespace."""
    text = _read(machine.proc_root / str(pid) / "cgroup", f"the cgroup of process {pid}")
    lines = [line.removeprefix("0::") for line in text.splitlines() if line.startswith("0::")]
    if len(lines) != 1 or not lines[0].startswith("/"):
        message = f"process {pid} has no cgroup v2 entry (0::/…), expected one; the machine needs the unified hierarchy"
        raise VerificationError(message)
    path = lines[0]
    if path.endswith(_DELETED):
        message = f"cgroup {path} of process {pid} was removed, expected one that exists"
        raise VerificationError(message)
    if ".." in path.split("/"):
        message = f"cgroup {path} of process {pid} lies outside the agent's cgroup namespace; run it in the root one"
        raise VerificationError(message)
    return path


def _members(directory: Path) -> set[int]:
    return {int(line) for line in (directory / "cgroup.procs").read_text().split()}


def _populated(directory: Path) -> bool:
    """Whether a process is in the cgroup or below it (cgroup.events counts the whole subtree)."""
    for line in (directory / "cgroup.events").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "populated":
            return value.strip() != "0"
    return True


def _parked(pid: int, machine: Machine, managers: tuple[str, ...]) -> None:
    """Refuse a process that runs anything but a container manager's executable (or its sealed copy in memory)."""
    path = machine.proc_root / str(pid) / "exe"
    try:
        target = str(path.readlink())
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        message = f"the executable of process {pid} cannot be read ({error.strerror}), expected a container runtime"
        raise VerificationError(message) from error
    try:
        if any(_same_program(descriptor, manager) for manager in managers):
            return
    finally:
        os.close(descriptor)
    message = (
        f"process {pid} runs {target!r}, expected a parked init that still runs {', '.join(managers) or 'none'}; "
        "register a container before it starts, and list its runtime under managers"
    )
    raise VerificationError(message)


def _same_program(descriptor: int, manager: str) -> bool:
    """Whether an open executable is a manager's file, or a copy of it.

    Runtimes run their init from a copy of themselves (a sealed memfd, an overlay), to keep containers from writing to
    the binary (CVE-2019-5736): such a copy has the size, the first and the last 64 KiB of the original.
    """
    try:
        original = os.open(manager, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError as error:
        message = f"the container manager {manager} cannot be read ({error.strerror}); check managers"
        raise VerificationError(message) from error
    try:
        found, expected = os.fstat(descriptor), os.fstat(original)
        if (found.st_dev, found.st_ino) == (expected.st_dev, expected.st_ino):
            return True
        if found.st_size != expected.st_size:
            return False
        last = max(0, expected.st_size - _SAMPLE_BYTES)
        return all(
            os.pread(descriptor, _SAMPLE_BYTES, offset) == os.pread(original, _SAMPLE_BYTES, offset)
            for offset in (0, last)
        )
    finally:
        os.close(original)


def _stat(pid: int, machine: Machine) -> tuple[str, int]:
    """Return state and start time (clock ticks since boot) of a process."""
    text = _read(machine.proc_root / str(pid) / "stat", f"the status of process {pid}")
    fields = text.rpartition(")")[2].split()
    if len(fields) <= _START_TIME:
        message = f"/proc/{pid}/stat has {len(fields) + 2} fields, expected at least 22"
        raise VerificationError(message)
    return fields[_STATE], int(fields[_START_TIME])


def _uid(pid: int, machine: Machine) -> int:
    for line in _read(machine.proc_root / str(pid) / "status", f"the status of process {pid}").splitlines():
        if line.startswith("Uid:"):
            return int(line.split()[1])
    message = f"/proc/{pid}/status has no Uid line"
    raise VerificationError(message)


def _still_running(verified: VerifiedInit) -> None:
    if not verified.running():
        message = f"process {verified.identity.pid} ended while it was verified, expected a parked init"
        raise VerificationError(message)


def _init_alive(identity: Identity, machine: Machine) -> bool:
    if identity.pid == 0:
        return False  # taken up without a record: the cgroup alone decides
    try:
        text = (machine.proc_root / str(identity.pid) / "stat").read_text(errors="surrogateescape")
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError:
        return True
    fields = text.rpartition(")")[2].split()
    if len(fields) <= _START_TIME:
        return True
    return fields[_START_TIME] == str(identity.start_time) and fields[_STATE] not in _ENDED_STATES


def _cgroup_populated(identity: Identity, machine: Machine) -> bool:
    if not identity.cgroup_path:
        return False  # it was gone when the workload was taken up, and a cgroup id is never given out again
    directory = machine.cgroup_mount() / identity.cgroup_path.lstrip("/")
    try:
        if directory.stat().st_ino != identity.cgroup_id:
            return False  # another cgroup of the same name: ours was removed, so it was empty
        return _populated(directory)
    except (FileNotFoundError, ProcessLookupError):
        return False
    except OSError as error:
        return error.errno != errno.ENODEV  # removed between the two readings


def _read(path: Path, what: str) -> str:
    """Read one small file of /proc. Raises VerificationError."""
    try:
        with path.open("rb") as file:
            data = file.read(_MAXIMUM_PROC_BYTES + 1)
    except OSError as error:
        message = f"{what} cannot be read from {path} ({error.strerror}); the process may have ended"
        raise VerificationError(message) from error
    if len(data) > _MAXIMUM_PROC_BYTES:
        message = f"{what}: {path} is larger than {_MAXIMUM_PROC_BYTES} bytes, expected less"
        raise VerificationError(message)
    return os.fsdecode(data)

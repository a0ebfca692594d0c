# SPDX-License-Identifier: Apache-2.0
"""The structures that ``hauberk.bpf.h`` shares with the kernel side, as data and nothing else.

A pure module, so that the encoding can be tested without a kernel; ``test_layout.py`` compiles the C header and
compares sizes and offsets, since a silent difference here would be a policy that enforces something else.
"""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING, Final, NamedTuple, cast

from guest_agent.engines.port import EngineError, KernelEvent

if TYPE_CHECKING:
    from guest_agent.engines.port import EventOperation, EventVerdict

MAXIMUM_WORKLOADS: Final = 1024
TABLE_WORDS: Final = 524288
REGION_BYTES: Final = TABLE_WORDS * 8
NAME_BYTES: Final = 128
DIGEST_BYTES: Final = 32

GATE_OFF: Final = 0
GATE_SEALED: Final = 1
EXECUTABLE_MANAGER: Final = 1
EXECUTABLE_HELPER: Final = 2
EXECUTABLE_KERNEL: Final = 4
MOUNT_POINT: Final = 8
MARK_MANAGER: Final = 2

RULES_MASK: Final = 7  # RULES_FILE | RULES_PROCESS | RULES_PATH: flags of a table's header and of a workload

KEY: Final = struct.Struct("<I")
CGROUP: Final = struct.Struct("<Q")
GATE: Final = struct.Struct("<IIQIIQ")
AGENT: Final = struct.Struct("<II")
EPOCH: Final = struct.Struct("<I")
SUCCESSOR: Final = struct.Struct(f"<{DIGEST_BYTES}sII")
WORKLOAD: Final = struct.Struct(f"<IIQIIIIII{DIGEST_BYTES}s{NAME_BYTES}s")
EXECUTABLE: Final = struct.Struct("<IIQ")
SEAL: Final = struct.Struct(f"<{DIGEST_BYTES}sII{NAME_BYTES}s")
MARK: Final = struct.Struct("<IIIIIIQQQ256s")
EVENT: Final = struct.Struct("<QIIIIBBBBHH16s256s")
COUNTER: Final = struct.Struct("<Q")

COUNTERS: Final = ("events", "events_lost", "walk_retries", "untold")

_HEADER: Final = struct.Struct("<16I")
_MAGIC: Final = 0x314B4248

_OPERATIONS: Final = (
    "", "execute", "map", "read", "write", "gate", "mount", "namespace", "chroot", "ptrace", "signal", "bpf", "pin",
    "connect", "module", "network",
)  # fmt: skip
_DETAILS: Final = (
    "", "exec", "mmap", "mprotect", "open", "receive", "truncate", "create", "mkdir", "rmdir", "symlink", "unlink",
    "link", "rename", "chmod", "chown", "mount", "umount", "pivot_root", "move_mount", "chroot", "user_namespace",
    "ptrace", "kill", "bpf", "unpin", "connect", "load", "net_admin", "net_raw", "socket", "file_system",
)  # fmt: skip
_VERDICTS: Final = {1: "audit", 2: "deny"}
_EVENT_OWNER: Final = 1
_EVENT_PATH_KNOWN: Final = 2


def kernel_device(device: int) -> int:
    """Return ``st_dev`` in the kernel's own encoding, ``MKDEV`` (include/linux/kdev_t.h)."""
    return os.major(device) << 20 | os.minor(device)


class WorkloadRecord(NamedTuple):
    """``struct workload``; ``table`` and ``table_words`` in words of eight bytes, ``epoch`` the one it holds in."""

    workload_id: int
    flags: int
    cgroup: int
    mount_namespace: int
    region: int
    table: int
    table_words: int
    epoch: int
    network_namespace: int
    digest: bytes
    container: str

    def encode(self) -> bytes:
        """Bytes for the kernel. Raises EngineError for a container id that does not fit."""
        container = os.fsencode(self.container)
        if len(container) >= NAME_BYTES or b"\0" in container:
            message = f"container id of {len(container)} bytes; up to {NAME_BYTES - 1} are kept, use a shorter one"
            raise EngineError(message)
        return WORKLOAD.pack(
            self.workload_id, self.flags, self.cgroup, self.mount_namespace, self.region, self.table, self.table_words,
            self.epoch, self.network_namespace, self.digest, container,
        )  # fmt: skip

    @classmethod
    def decode(cls, data: bytes) -> WorkloadRecord:
        """Read what :meth:`encode` wrote."""
        values = WORKLOAD.unpack(data)
        *numbers, digest, container = values
        return cls._make((*numbers, digest, os.fsdecode(container.rstrip(b"\0"))))


def table_flags(blob: bytes) -> int:
    """Check a compiled table's header and return its flags. Raises EngineError when it is no table."""
    if len(blob) < _HEADER.size or len(blob) % 8 or len(blob) > REGION_BYTES:
        message = f"a compiled table has {_HEADER.size} to {REGION_BYTES} bytes in words of eight, got {len(blob)}"
        raise EngineError(message)
    header = _HEADER.unpack_from(blob)
    if header[0] != _MAGIC:
        message = f"not a compiled table: it begins with {header[0]:#x}, expected {_MAGIC:#x}"
        raise EngineError(message)
    return int(header[13]) & RULES_MASK


def decode_event(data: bytes) -> KernelEvent:
    """Turn one ring buffer sample into the port's event.

    Raises EngineError for one that the kernel side cannot have written.
    """
    if len(data) < EVENT.size:
        message = (
            f"an event has at least {EVENT.size} bytes, got {len(data)}; agent and BPF object do not belong together"
        )
        raise EngineError(message)
    (
        timestamp, workload, pid, parent, uid, verdict, operation, detail, flags, path_length, other_length, command,
        source,
    ) = EVENT.unpack_from(data)  # fmt: skip
    strings = data[EVENT.size :]
    if verdict not in _VERDICTS or not 0 < operation < len(_OPERATIONS) or detail >= len(_DETAILS):
        message = (
            f"unknown event (verdict {verdict}, operation {operation}, detail {detail});"
            " agent and BPF object do not belong together"
        )
        raise EngineError(message)
    return KernelEvent(
        timestamp_ns=timestamp,
        workload_id=workload,
        pid=pid,
        parent_pid=parent,
        uid=uid,
        verdict=cast("EventVerdict", _VERDICTS[verdict]),
        operation=cast("EventOperation", _OPERATIONS[operation]),
        detail=_DETAILS[detail],
        path=os.fsdecode(strings[:path_length]),
        other_path=os.fsdecode(strings[path_length : path_length + other_length]),
        source=os.fsdecode(source.split(b"\0", 1)[0]),
        command=command.split(b"\0", 1)[0].decode(errors="replace"),
        owner=bool(flags & _EVENT_OWNER),
        path_known=bool(flags & _EVENT_PATH_KNOWN),
    )

# SPDX-License-Identifier: Apache-2.0
"""The bpf_lsm engine's kernel adapter: loads, seals, registers, advances, releases.

What the kernel holds is the truth, and this process may be killed between any two lines:

* Programs and maps are pinned into a directory of their own that gets its final name in one rename; a start that was
  killed before leaves a directory of another name, which the next start removes.
* A workload is in force from the one moment its cgroup enters the ``cgroups`` map, the last step of ``register``, and
  no longer from its removal, the first step of ``release``. A slot without a cgroup is a leftover and is cleared.
* Every workload has two places, of which the epoch chooses one for all at once. ``advance`` fills the places of the
  next epoch, where nothing looks, and then counts the epoch up, which changes the one byte that programs go by.
  Killed before, the next epoch's places are leftovers; killed after, nothing is left to do.
* Which parts of the table memory are in use follows from the slots, never from this process's memory. What left use
  (slots and tables of workloads let go, places of an epoch before) may still be read by a program that began before,
  and a preemptible kernel may put such a program off for long: it is written over only after a wait for all of them.
* In sealed mode everything the gate goes by is frozen (BPF_MAP_FREEZE): neither a later agent nor any other holder of
  a descriptor can write it.
"""

from __future__ import annotations

import errno
import mmap
import os
import select
import shutil
import stat
import threading
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

from guest_agent.engines.bpf_lsm import layout
from guest_agent.engines.bpf_lsm.layout import WorkloadRecord
from guest_agent.engines.bpf_lsm.libbpf import Libbpf, LibbpfError, Map, Object, RingBuffer
from guest_agent.engines.port import (
    EngineError,
    EngineUnavailableError,
    KernelWorkload,
    Probe,
    SealError,
    SuccessorRecord,
    check_advance,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from guest_agent.engines.port import EnforcedWorkload, GateSettings, KernelEvent

BPFFS: Final = Path("/sys/fs/bpf")
OBJECT: Final = Path(__file__).with_name("hauberk.bpf.o")
DEFAULT_REGIONS: Final = 4  # of 4 MiB each: the kernel memory that all tables share

_MAPS: Final = (
    "marks", "pendings", "scratches", "reports", "cgroups", "workloads", "epoch", "successors", "tables",
    "gate", "agent", "seal", "executables", "service_cgroups", "guarded_mounts", "guarded_maps", "events", "counters",
)  # fmt: skip
_FROZEN_WHEN_SEALED: Final = ("executables", "service_cgroups", "guarded_mounts", "guarded_maps", "gate")
_MINIMUM_KERNEL: Final = (6, 1)
_RECURSION_FIXED: Final = (6, 2)
_ZERO: Final = layout.KEY.pack(0)


class _NoRoomError(EngineError):
    """No table memory is free."""


class BpfLsmEngine:
    """The port :class:`guest_agent.engines.port.Engine` on a real kernel. Needs root; see :meth:`probe`."""

    def __init__(self, bpffs: Path = BPFFS, *, regions: int = DEFAULT_REGIONS) -> None:
        """``regions``: table memory in units of 4 MiB, fixed when the engine is first loaded."""
        self._directory = bpffs / "hauberk"
        self._bpffs = bpffs
        self._regions = regions
        self._lock = threading.RLock()
        self._library: Libbpf | None = None
        self._maps: dict[str, Map] = {}
        self._ring: RingBuffer | None = None
        self._waiting: list[KernelEvent] = []
        self._records: dict[int, WorkloadRecord] = {}  # by slot, of the present epoch
        # Let go, or of the epoch before, with its slot: a program that began then may still read record and table.
        self._stale: list[tuple[int, WorkloadRecord]] = []

    @property
    def name(self) -> str:
        """Name shown in status."""
        return "bpf_lsm"

    # ---- what the kernel offers -------------------------------------------------------------------------------

    def probe(self) -> Probe:
        """Tell whether this kernel can hold a policy by BPF LSM; changes nothing."""
        release = os.uname().release
        details = {"kernel": release}
        reason = next(self._missing(details), "")
        return Probe(available=not reason, reason=reason or f"BPF LSM on Linux {release}", details=details)

    def _missing(self, details: dict[str, str]) -> Iterator[str]:
        version = tuple(int("".join(filter(str.isdigit, part)) or 0) for part in os.uname().release.split(".")[:2])
        if version < _MINIMUM_KERNEL:
            yield f"Linux {os.uname().release} is older than 6.1; boot 6.1 or later"
        lsm = _read("/sys/kernel/security/lsm")
        details["lsm"] = lsm or "unknown (securityfs is not mounted)"
        if "bpf" not in lsm.split(","):
            yield (
                "BPF LSM is not active; boot with bpf in lsm= (and CONFIG_BPF_LSM=y), and mount securityfs at"
                f" /sys/kernel/security. Active now: {lsm or 'unknown'}"
            )
        if not Path("/sys/kernel/btf/vmlinux").exists():
            yield "the kernel has no BTF (CONFIG_DEBUG_INFO_BTF=y is needed)"
        if "[confidentiality]" in _read("/sys/kernel/security/lockdown"):
            yield "kernel lockdown is at 'confidentiality', which forbids BPF to read kernel memory; use 'integrity'"
        if version < _RECURSION_FIXED and _fully_preemptible():
            yield (
                "Linux before 6.2 skips a BPF LSM program that was preempted on the same CPU;"
                " boot with preempt=voluntary or a later kernel"
            )
        if not OBJECT.exists():
            yield f"{OBJECT} is missing; build it with `make build`"
        if _file_system_type(self._bpffs) != "bpf":
            yield f"no bpffs at {self._bpffs}; mount one: mount -t bpf bpf {self._bpffs}"
        try:
            self._lib()
        except LibbpfError as error:
            yield str(error.strerror)

    def _lib(self) -> Libbpf:
        if self._library is None:
            self._library = Libbpf()
        return self._library

    # ---- the seal ----------------------------------------------------------------------------------------------

    def sealed_digest(self) -> str | None:
        """Return the digest the kernel is sealed with, or None."""
        with self._lock:
            if not self._is_loaded():
                return None
            return self._read_seal()[0]

    def _is_loaded(self) -> bool:
        try:
            self._directory.stat()
        except FileNotFoundError:
            return False
        except OSError as error:
            message = f"{self._directory} cannot be read ({error.strerror}); is the agent running as root?"
            raise EngineError(message) from error
        return True

    def _read_seal(self) -> tuple[str, bool]:
        try:
            kept = self._maps.get("seal") or Map.pinned(self._lib(), self._directory / "seal")
            digest, sealed, *_ = layout.SEAL.unpack(kept.get(_ZERO) or b"")
        except (LibbpfError, OSError) as error:
            message = f"the seal in {self._directory} cannot be read: {error}; reboot to start over"
            raise EngineError(message) from error
        return digest.hex(), bool(sealed)

    def seal(self, digest: str, gate: GateSettings) -> None:
        """Put the gate in force with this bundle's digest; see the port."""
        with self._lock:
            probe = self.probe()
            if not probe.available:
                raise EngineUnavailableError(probe.reason)
            try:
                self._remove_unfinished()
                if not self._is_loaded():
                    self._load(digest, gate)
                held, sealed = self._read_seal()
                if held != digest or sealed != (gate.mode == "sealed"):
                    message = (
                        f"the kernel is {'sealed' if sealed else 'loaded'} with bundle {held}, not with {digest}"
                        f" in {gate.mode} mode; another bundle or mode needs a reboot"
                    )
                    raise SealError(message)
                self._take_up(gate)
            except (LibbpfError, OSError) as error:
                self.close()
                message = f"the bpf_lsm engine could not be put in force: {error}"
                raise EngineError(message) from error

    def _remove_unfinished(self) -> None:
        for leftover in self._bpffs.glob("hauberk-new-*"):
            shutil.rmtree(leftover)

    def _load(self, digest: str, gate: GateSettings) -> None:
        library = self._lib()
        unfinished = self._bpffs / f"hauberk-new-{os.getpid()}"
        with Object(library, OBJECT) as loaded, ExitStack() as undo:
            loaded.size_map("tables", self._regions)
            loaded.load()
            maps = loaded.maps()
            sealed = int(gate.mode == "sealed")
            maps["seal"].put(_ZERO, layout.SEAL.pack(bytes.fromhex(digest), sealed, 0, b""))
            maps["seal"].freeze()
            for kept in maps.values():
                maps["guarded_maps"].put(layout.KEY.pack(kept.information.identifier), layout.KEY.pack(1))
            loaded.attach_all()
            unfinished.mkdir(mode=0o700)
            undo.callback(shutil.rmtree, unfinished, ignore_errors=True)
            loaded.pin_maps(unfinished)
            loaded.pin_links(unfinished)
            if not sealed:
                # for who may not open the seal: only a hook that finds this may consider letting a container through
                (unfinished / "host").mkdir(mode=0o700)
            unfinished.rename(self._directory)
            undo.pop_all()
            for kept in maps.values():
                os.close(kept.descriptor)

    def _take_up(self, gate: GateSettings) -> None:
        library = self._lib()
        if not self._maps:
            self._maps = {name: Map.pinned(library, self._directory / name) for name in _MAPS}
            self._regions = self._maps["tables"].information.maximum_entries
            self._ring = RingBuffer(library, self._maps["events"].descriptor, self._receive)
            self._read_records()
        self._maps["agent"].put(_ZERO, layout.AGENT.pack(gate.agent_pid, 0))
        mode, *_ = layout.GATE.unpack(self._maps["gate"].get(_ZERO) or b"")
        if mode == layout.GATE_SEALED:
            return  # frozen: what the gate goes by does not change until reboot
        self._describe_gate(gate)
        if gate.mode == "sealed":
            self._close_gate()

    def _describe_gate(self, gate: GateSettings) -> None:
        kinds: dict[bytes, int] = {}
        for paths, kind in (
            (gate.managers, layout.EXECUTABLE_MANAGER),
            (gate.helpers, layout.EXECUTABLE_HELPER),
            (gate.kernel_helpers, layout.EXECUTABLE_KERNEL),
            (gate.mount_points, layout.MOUNT_POINT),
        ):
            for path in paths:
                found = os.stat(path)  # noqa: PTH116 - no Path for every executable
                if not stat.S_ISREG(found.st_mode):
                    message = f"{path} is no regular file; the gate's lists name executables"
                    raise EngineError(message)
                key = layout.EXECUTABLE.pack(layout.kernel_device(found.st_dev), 0, found.st_ino)
                kinds[key] = kinds.get(key, 0) | kind
        executables = self._maps["executables"]
        for key in executables.keys(layout.EXECUTABLE.size):
            if key not in kinds:
                executables.remove(key)
        for key, kind in kinds.items():
            executables.put(key, layout.KEY.pack(kind))
        root = cgroup_root()
        for path in gate.service_cgroups:
            # a slice that does not exist has no services
            with suppress(FileNotFoundError):
                identifier = (root / path.lstrip("/")).stat().st_ino
                self._maps["service_cgroups"].put(layout.CGROUP.pack(identifier), layout.KEY.pack(1))
        self._mark_running_managers(set(kinds))

    def _mark_running_managers(self, executables: set[bytes]) -> None:
        """Mark managers that were running before the engine; their threads are known by their leader's mark."""
        for process in Path("/proc").iterdir():
            if not process.name.isdigit():
                continue
            try:
                found = (process / "exe").stat()
                descriptor = os.pidfd_open(int(process.name))
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # gone, or a kernel thread
            try:
                key = layout.EXECUTABLE.pack(layout.kernel_device(found.st_dev), 0, found.st_ino)
                kind = self._maps["executables"].get(key) if key in executables else None
                if kind is not None and layout.KEY.unpack(kind)[0] & layout.EXECUTABLE_MANAGER:
                    mark = layout.MARK.pack(layout.MARK_MANAGER, 0, 0, 0, 1, 0, 0, 0, 0, b"")
                    self._maps["marks"].put(layout.KEY.pack(descriptor), mark)
            except LibbpfError as error:
                if error.errno != errno.ESRCH:
                    raise
            finally:
                os.close(descriptor)

    def _close_gate(self) -> None:
        root = os.stat("/")  # noqa: PTH116 - as above
        pins = self._directory.stat()
        for identifier in _mounts_above(self._bpffs, pins.st_dev):
            self._maps["guarded_mounts"].put(layout.KEY.pack(identifier), layout.KEY.pack(1))
        self._maps["gate"].put(
            _ZERO,
            layout.GATE.pack(
                layout.GATE_SEALED, layout.kernel_device(root.st_dev), root.st_ino,
                layout.kernel_device(pins.st_dev), 0, pins.st_ino,
            ),
        )  # fmt: skip
        for name in _FROZEN_WHEN_SEALED:
            self._maps[name].freeze()

    # ---- workloads -----------------------------------------------------------------------------------------------

    def _read_records(self) -> None:
        in_force = {
            layout.KEY.unpack(self._maps["cgroups"].get(key) or b"\xff" * 4)[0]: layout.CGROUP.unpack(key)[0]
            for key in self._maps["cgroups"].keys(layout.CGROUP.size)
        }
        self._records.clear()
        self._wait_for_readers()  # also of what an earlier agent let go
        epoch = self._epoch()
        for slot in range(layout.MAXIMUM_WORKLOADS):
            record, other = (self._read_place(_place_of(slot, number)) for number in (epoch, epoch + 1))
            if in_force.get(slot) != record.cgroup or not record.workload_id:
                if record.workload_id or other.workload_id:  # killed in the middle of register, release or advance
                    self._clear(slot)
                continue
            self._records[slot] = record

    def _wait_for_readers(self) -> None:
        """Wait until no program reads what is out of use any more. Raises LibbpfError."""
        self._lib().wait_for_programs()
        self._stale.clear()

    def _read_place(self, place: int) -> WorkloadRecord:
        return WorkloadRecord.decode(self._maps["workloads"].get(layout.KEY.pack(place)) or b"")

    def _clear(self, slot: int) -> None:
        """Take the workload's id away and nothing else: a program that has read the id already goes by the rest."""
        for epoch in (0, 1):
            kept = self._read_place(_place_of(slot, epoch))._replace(workload_id=0)
            self._maps["workloads"].put(layout.KEY.pack(_place_of(slot, epoch)), kept.encode())

    def _epoch(self) -> int:
        return int(layout.EPOCH.unpack(self._maps["epoch"].get(_ZERO) or b"")[0])

    def register(self, workload: EnforcedWorkload) -> None:
        """Put a workload in force; see the port."""
        flags, digest = layout.table_flags(workload.table), _digest(workload.table_digest)
        with self._lock:
            self._require_open()
            for record in self._records.values():
                if record.workload_id == workload.workload_id or record.cgroup == workload.cgroup_id:
                    message = (
                        f"workload {record.workload_id} ({record.container}) already has id {workload.workload_id}"
                        f" or cgroup {workload.cgroup_id}"
                    )
                    raise EngineError(message)
            if len(self._records) >= layout.MAXIMUM_WORKLOADS:
                message = f"{layout.MAXIMUM_WORKLOADS} workloads are in force, which is the most the engine holds"
                raise EngineError(message)
            try:
                epoch = self._epoch()
                slot, (region, offset) = self._room_for(workload.table, digest)
                record = WorkloadRecord(
                    workload.workload_id, flags, workload.cgroup_id, workload.mount_namespace, region, offset,
                    len(workload.table) // 8, epoch, workload.network_namespace, digest, workload.container_id,
                )  # fmt: skip
            except (LibbpfError, OSError) as error:
                message = f"workload {workload.container_id} could not be put in force: {error}"
                raise EngineError(message) from error
            try:
                self._maps["workloads"].put(layout.KEY.pack(_place_of(slot, epoch)), record.encode())
                self._maps["cgroups"].put(layout.CGROUP.pack(workload.cgroup_id), layout.KEY.pack(slot))
            except LibbpfError as error:
                with suppress(LibbpfError):
                    self._clear(slot)
                message = f"workload {workload.container_id} could not be put in force: {error}"
                raise EngineError(message) from error
            self._records[slot] = record

    def _room_for(self, table: bytes, digest: bytes) -> tuple[int, tuple[int, int]]:
        """Give a slot and a place for a table, of what nobody reads: after a wait only if there is no other.

        Raises EngineError when there is no room, LibbpfError or OSError.
        """
        if self._stale:
            taken = {*self._records, *(slot for slot, _ in self._stale)}
            slot = next((number for number in range(layout.MAXIMUM_WORKLOADS) if number not in taken), None)
            with suppress(_NoRoomError):
                used = (*self._records.values(), *(record for _, record in self._stale))
                if slot is not None:
                    return slot, self._place(table, digest, used)
            self._wait_for_readers()
        slot = next(number for number in range(layout.MAXIMUM_WORKLOADS) if number not in self._records)
        return slot, self._place(table, digest, tuple(self._records.values()))

    def successor(self) -> SuccessorRecord | None:
        """Tell which bundle succeeded the sealed one; see the port."""
        with self._lock:
            if not self._is_loaded():
                return None
            try:
                return self._read_successor()
            except (LibbpfError, OSError) as error:
                message = (
                    f"the record of the successor in {self._directory} cannot be read: {error}; reboot to start over"
                )
                raise EngineError(message) from error

    def _read_successor(self) -> SuccessorRecord | None:
        found: dict[str, Map] = {}
        try:
            for name in ("epoch", "successors"):
                found[name] = self._maps.get(name) or Map.pinned(self._lib(), self._directory / name)
            (epoch,) = layout.EPOCH.unpack(found["epoch"].get(_ZERO) or b"")
            if epoch == 0:
                return None
            data = found["successors"].get(layout.KEY.pack(epoch & 1)) or b""
        finally:
            for name, opened in found.items():
                if name not in self._maps:
                    os.close(opened.descriptor)
        digest, number, version = layout.SUCCESSOR.unpack(data)
        if number != epoch:
            message = f"the kernel's record of successor {epoch} is of number {number}; reboot to start over"
            raise EngineError(message)
        return SuccessorRecord(digest.hex(), version, number)

    def advance(self, successor: SuccessorRecord, workloads: Sequence[EnforcedWorkload]) -> None:
        """Put a successor's rules in force for every workload at one instant; see the port."""
        bundle = _digest(successor.digest)
        with self._lock:
            self._require_open()
            present = self.successor()
            check_advance(present, successor, [record.workload_id for record in self._records.values()], workloads)
            new = {workload.workload_id: workload for workload in workloads}
            following: dict[int, WorkloadRecord] = {}
            try:
                # The places of the epoch before the present one, and their tables, are written over.
                self._wait_for_readers()
                for slot, record in self._records.items():
                    workload = new[record.workload_id]
                    digest = _digest(workload.table_digest)
                    used = (*following.values(), *self._records.values())
                    region, offset = self._place(workload.table, digest, used)
                    following[slot] = record._replace(
                        flags=layout.table_flags(workload.table), region=region, table=offset,
                        table_words=len(workload.table) // 8, epoch=successor.number,
                        network_namespace=workload.network_namespace, digest=digest,
                    )  # fmt: skip
                for slot, record in following.items():
                    self._maps["workloads"].put(layout.KEY.pack(_place_of(slot, successor.number)), record.encode())
                self._maps["successors"].put(
                    layout.KEY.pack(successor.number & 1),
                    layout.SUCCESSOR.pack(bundle, successor.number, successor.version),
                )
                self._maps["epoch"].put(_ZERO, layout.EPOCH.pack(successor.number))
            except (LibbpfError, OSError) as error:
                message = f"successor {successor.digest} could not be put in force, all is as before: {error}"
                raise EngineError(message) from error
            self._stale = list(self._records.items())
            self._records = following

    def _place(self, table: bytes, digest: bytes, used_by: Sequence[WorkloadRecord]) -> tuple[int, int]:
        """Where a table stands in the shared memory, in (region, words); one that is there already is shared."""
        for record in used_by:
            if record.digest == digest and self._holds(record.region * layout.REGION_BYTES + record.table * 8, table):
                return record.region, record.table
        words = len(table) // 8
        for region in range(self._regions):
            used = sorted({(r.table, r.table_words) for r in used_by if r.region == region})
            offset = 0
            for start, length in used:
                if offset + words <= start:
                    break
                offset = max(offset, start + length)
            if offset + words <= layout.TABLE_WORDS:
                with self._window(region * layout.REGION_BYTES + offset * 8, len(table)) as (memory, start):
                    memory[start : start + len(table)] = table
                return region, offset
        message = (
            f"no room for a table of {len(table)} bytes in {self._regions} regions of {layout.REGION_BYTES} bytes;"
            " raise tableRegions in the agent's configuration and restart the machine"
        )
        raise _NoRoomError(message)

    def _holds(self, start: int, table: bytes) -> bool:
        with self._window(start, len(table)) as (memory, begin):
            return memory[begin : begin + len(table)] == table

    @contextmanager
    def _window(self, start: int, length: int) -> Iterator[tuple[mmap.mmap, int]]:
        """Map a part of the table memory (bytes); gives the mapping and where the part starts in it.

        No longer and no more than needed: all pages of a mapped map count as this process's resident memory at once.
        """
        within = start % mmap.ALLOCATIONGRANULARITY
        with mmap.mmap(self._maps["tables"].descriptor, within + length, offset=start - within) as memory:
            yield memory, within

    def release(self, workload_id: int) -> None:
        """Let go of a workload; see the port."""
        with self._lock:
            self._require_open()
            for slot, record in list(self._records.items()):
                if record.workload_id != workload_id:
                    continue
                try:
                    self._maps["cgroups"].remove(layout.CGROUP.pack(record.cgroup))
                    self._clear(slot)
                except LibbpfError as error:
                    message = f"workload {record.container} could not be let go: {error}"
                    raise EngineError(message) from error
                del self._records[slot]
                self._stale.append((slot, record))

    def registered(self) -> Sequence[KernelWorkload]:
        """Tell what the kernel holds, in the order of workload ids."""
        with self._lock:
            self._require_open()
            return [
                KernelWorkload(
                    record.workload_id,
                    record.cgroup,
                    record.mount_namespace,
                    record.container,
                    record.digest.hex(),
                    record.network_namespace,
                )
                for record in sorted(self._records.values(), key=lambda kept: kept.workload_id)
            ]

    def is_armed(self, pidfd: int) -> bool:
        """Tell whether a process (by pidfd) acts inside a registered workload, whatever cgroup it is in now."""
        with self._lock:
            self._require_open()
            try:
                mark = self._maps["marks"].get(layout.KEY.pack(pidfd))
            except LibbpfError as error:
                if error.errno == errno.ESRCH:
                    return False
                raise EngineError(str(error)) from error
        return mark is not None and layout.MARK.unpack(mark)[0] not in (0, layout.MARK_MANAGER)

    def _require_open(self) -> None:
        if not self._maps:
            message = "the engine is not open; call seal first"
            raise EngineError(message)

    # ---- events --------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Descriptor that polls readable when events wait."""
        if self._ring is None:
            message = "the engine is not open; call seal first"
            raise EngineError(message)
        return self._ring.fileno()

    def _receive(self, sample: bytes) -> None:
        self._waiting.append(layout.decode_event(sample))

    def drain(self) -> Iterator[KernelEvent]:
        """Take every event that waits."""
        if self._ring is None:
            return
        self._ring.consume()
        waiting, self._waiting = self._waiting, []
        yield from waiting

    def wait(self, seconds: float) -> bool:
        """Wait until events are there; False when none came in time."""
        return bool(select.select([self.fileno()], [], [], seconds)[0])

    def statistics(self) -> Mapping[str, int]:
        """Counters since the engine was loaded."""
        with self._lock:
            self._require_open()
            return {
                name: layout.COUNTER.unpack(self._maps["counters"].get(layout.KEY.pack(number)) or bytes(8))[0]
                for number, name in enumerate(layout.COUNTERS)
            } | {"workloads": len(self._records)}

    def close(self) -> None:
        """Give up this process's descriptors; enforcement stays."""
        with self._lock:
            if self._ring is not None:
                self._ring.close()
                self._ring = None
            for kept in self._maps.values():
                os.close(kept.descriptor)
            self._maps.clear()
            self._records.clear()
            self._stale.clear()

    def unload(self) -> None:
        """Host mode only: take programs and maps out of the kernel. Raises SealError when the kernel is sealed."""
        with self._lock:
            if not self._is_loaded():
                return
            digest, sealed = self._read_seal()
            if sealed:
                message = f"the kernel is sealed with bundle {digest}; only a reboot takes the engine out"
                raise SealError(message)
            self.close()
            shutil.rmtree(self._directory)


def _place_of(slot: int, epoch: int) -> int:
    return slot + (epoch & 1) * layout.MAXIMUM_WORKLOADS


def _digest(text: str) -> bytes:
    """Raises EngineError for what is no SHA-256 in hexadecimal."""
    try:
        digest = bytes.fromhex(text)
    except ValueError as error:
        message = f"digest {text!r} is not hexadecimal"
        raise EngineError(message) from error
    if len(digest) != layout.DIGEST_BYTES:
        message = f"digest has {len(digest)} bytes, expected {layout.DIGEST_BYTES}"
        raise EngineError(message)
    return digest


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""


def _fully_preemptible() -> bool:
    mode = _read("/sys/kernel/debug/sched/preempt")
    if mode:
        return "(full)" in mode
    return "preempt=full" in _read("/proc/cmdline").split() or "PREEMPT_RT" in os.uname().version


def _mount_lines(process: str) -> list[list[str]]:
    return [line.split(" ") for line in Path(f"/proc/{process}/mountinfo").read_text(encoding="utf-8").splitlines()]


def _file_system_type(path: Path) -> str:
    """Type of what is mounted exactly at a path, "" for nothing."""
    found = ""
    for fields in _mount_lines("self"):
        if fields[4] == str(path):
            found = fields[fields.index("-") + 1]
    return found


def cgroup_root() -> Path:
    """Where cgroup v2 is mounted. Raises EngineError when it is not."""
    for fields in _mount_lines("self"):
        if fields[fields.index("-") + 1] == "cgroup2":
            return Path(fields[4])
    message = "no cgroup v2 hierarchy is mounted; mount one: mount -t cgroup2 cgroup2 /sys/fs/cgroup"
    raise EngineError(message)


def _mounts_above(bpffs: Path, device: int) -> list[int]:
    """Mount ids of the pins' file system and of every mount it stands on, in the first process's mount namespace.

    As long as that one mount stays, the file system and so every pin stays, whatever other namespaces unmount.
    Raises EngineError when the first process has no such mount.
    """
    wanted = f"{os.major(device)}:{os.minor(device)}"
    lines = _mount_lines("1")
    parents = {int(fields[0]): int(fields[1]) for fields in lines}
    identifier = next((int(fields[0]) for fields in lines if fields[2] == wanted), None)
    if identifier is None:
        message = f"the bpffs at {bpffs} is not mounted in the init process's mount namespace; mount it there at boot"
        raise EngineError(message)
    chain: list[int] = []
    current: int | None = identifier
    while current is not None and current not in chain:
        chain.append(current)
        current = parents.get(current)
    return chain

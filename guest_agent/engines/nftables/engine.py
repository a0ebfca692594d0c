# SPDX-License-Identifier: Apache-2.0
"""The nftables engine's kernel adapter: keeps each network namespace to what is desired of it.

* What the kernel holds is the truth. One netlink transaction leads from there to the plan, under the generation it was
  read at; it is the only step that changes anything, so a kill anywhere leaves the state before or after. What this
  process remembers follows from success, never comes before it.
* As long as nobody else touched the table (the kernel tells who did), what was applied last is what is there, and a
  change of elements costs those elements. Otherwise the table is read back and compared.
* A namespace that is held stays: by its descriptor and sockets, even when its processes end, until ``remove``.
"""

from __future__ import annotations

import errno
import os
import select
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal

from guest_agent.engines.network_port import (
    Applied,
    Desired,
    EngineError,
    NameAnswer,
    NetworkEvent,
    Probe,
)
from guest_agent.engines.nftables import engine_cut, engine_probe, engine_reconcile
from guest_agent.engines.nftables import netlink_table as kernel
from guest_agent.engines.nftables.engine_compile import Compiler
from guest_agent.engines.nftables.engine_elements import elements, encode
from guest_agent.engines.nftables.namespace import NamespaceGoneError, open_namespace, run_inside
from guest_agent.engines.nftables.netlink import MalformedError, NetlinkError, NetlinkSocket
from guest_agent.engines.nftables.netlink_watch import Watch
from guest_agent.engines.nftables.nflog import RECEIVE_BUFFER_BYTES, LogReader
from guest_agent.engines.nftables.nft import Nft
from guest_agent.engines.nftables.plan import PlanError, difference, plan
from hauberk.collecting import suspended_collection

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from guest_agent.engines.network_port import GroupMembers, Namespace, QuotaUsage
    from guest_agent.engines.nftables.engine_reconcile import Step
    from guest_agent.engines.nftables.netlink_table import Quota, Table
    from guest_agent.engines.nftables.ruleset import ElementChange, Key, Ruleset
    from hauberk.policy.rules import PeerGroup

_ATTEMPTS: Final = 20
_Kind = Literal["nothing", "elements", "table"]


@dataclass(frozen=True, slots=True)
class _InForce:
    """What was put in force last: the ruleset, its structure as compiled, sums of the sets' elements, and when."""

    desired: Desired
    ruleset: Ruleset
    structure: Table
    sums: Mapping[str, int]
    member_times: Mapping[PeerGroup, float]
    moment: float

    @property
    def digest(self) -> str:
        return self.structure.digest(self.sums)


@dataclass
class _Held:
    """One namespace: what keeps it and speaks with it, and what is in force there as far as is known."""

    namespace: Namespace
    descriptor: int
    channel: NetlinkSocket
    watch: Watch
    reader: LogReader | None = None
    group: int = 0
    in_force: _InForce | None = None
    culprit: str | None = None  # who touched the table since it was last compared; "": not told; None: nobody
    uncut: bool = False  # flows that are forbidden now may be there still
    usage: Mapping[str, Quota] = field(default_factory=dict)
    lock: threading.RLock = field(default_factory=threading.RLock)
    reading: threading.Lock = field(default_factory=threading.Lock)


class NftablesEngine:
    """The port :class:`guest_agent.engines.network_port.NetworkEngine` on a real kernel. Needs root."""

    def __init__(self, nft: str | None = None, *, log_buffer: int = RECEIVE_BUFFER_BYTES) -> None:
        """``nft``: the program's path, None for the machine's own; ``log_buffer`` in bytes, for each namespace."""
        self._nft = Nft(nft)
        self._compiler = Compiler(self._nft)
        self._log_buffer = log_buffer
        self._lock = threading.Lock()
        self._held: dict[int, _Held] = {}
        self._events: list[NetworkEvent] = []
        self._poll = select.epoll()
        self._signal = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._poll.register(self._signal, select.EPOLLIN)
        self._counts = dict.fromkeys(("tampered", "flows_cut", "flow_cuts_failed"), 0)
        self._past = {"events": 0, "events_lost": 0, "events_unread": 0}  # of readers that were closed

    @property
    def name(self) -> str:
        """Name shown in status."""
        return "nftables"

    def probe(self) -> Probe:
        """Tell whether this kernel and its nft can hold rules about packets; changes nothing."""
        return engine_probe.probe(self._nft)

    # ---- what holds --------------------------------------------------------------------------------------------------

    def apply(self, namespace: Namespace, desired: Desired) -> Applied:
        """Put in force what is desired of a namespace; see the port."""
        with self._using(namespace) as held, suspended_collection():
            now = time.monotonic()
            times = dict.fromkeys(desired.groups, now)
            self._listen(held, desired)
            first = held.in_force is None
            kind, _ = self._put(held, desired, times, now)
            # What was there already may be of one that was killed before it came to the flows.
            if first or kind != "nothing":
                held.uncut = True
            cut = self._cut(held)
            digest = held.in_force.digest if held.in_force else ""
            return Applied(digest, kind, cut)

    def set_members(self, namespace: Namespace, group: PeerGroup, members: GroupMembers) -> None:
        """Make these the members of a group; see the port."""
        with self._using(namespace) as held, suspended_collection():
            before = held.in_force
            if before is None:
                message = (
                    f"nothing is in force in network namespace {namespace.inode}, expected rules; apply them first"
                )
                raise EngineError(message)
            now = time.monotonic()
            groups = {**_aged(before, now), group: members}
            times = {**dict.fromkeys(groups, now), group: now}
            kind, _ = self._put(held, replace(before.desired, groups=groups), times, now)
            # The flows that a name's addresses allowed outlive the answer they were learned from, as everywhere.
            if kind != "nothing" and group.kind != "name":
                held.uncut = True
                self._cut(held)

    def remove(self, namespace: Namespace) -> None:
        """Take our table out of a namespace; see the port."""
        try:
            with self._using(namespace) as held:
                self._delete(held)
                held.in_force = None
        except NamespaceGoneError:
            return  # and its tables with it

    def held(self, namespace: Namespace) -> str | None:
        """Tell the digest of what is read back; see the port."""
        with self._using(namespace) as held:
            table, _ = self._read(held)
            return table.digest() if table is not None else None

    def verify(self) -> Sequence[Namespace]:
        """Put right what somebody changed; see the port."""
        with self._lock:
            every = list(self._held.values())
        changed: list[Namespace] = []
        failures: list[str] = []
        for held in every:
            with held.lock:
                try:
                    if self._assert(held):
                        changed.append(held.namespace)
                    self._cut(held)
                    if held.in_force is not None:
                        self._listen(held, held.in_force.desired)
                except EngineError as error:
                    failures.append(f"network namespace {held.namespace.inode}: {error}")
        if failures:
            raise EngineError("; ".join(failures))
        return changed

    # ---- quotas ------------------------------------------------------------------------------------------------------

    def usage(self, namespace: Namespace) -> Sequence[QuotaUsage]:
        """Tell how much of each quota is used; see the port."""
        with self._using(namespace) as held:
            in_force = held.in_force
            if in_force is None or not in_force.ruleset.quotas:
                return ()
            self._note_usage(held)
            quotas = in_force.ruleset.quotas
            return tuple(
                quotas[name].usage(held.usage[name].used) for name in sorted(quotas.keys() & held.usage.keys())
            )

    def reset_quota(self, namespace: Namespace, name: str) -> None:
        """Begin a new period of a quota; see the port."""
        with self._using(namespace) as held:
            try:
                kernel.reset_quota(held.channel, name)
            except NetlinkError as error:
                if error.errno != errno.ENOENT:
                    message = f"quota {name} cannot be reset: {error.strerror}"
                    raise EngineError(message) from error
            self._note_usage(held)

    def _note_usage(self, held: _Held) -> None:
        """Remember what is used, for a table that has to be made anew."""
        try:
            held.usage = kernel.read_quotas(held.channel)
        except (OSError, ValueError, KeyError) as error:
            message = f"the quotas of network namespace {held.namespace.inode} cannot be read: {error}"
            raise EngineError(message) from error

    # ---- events ------------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Descriptor that polls readable when events wait."""
        return self._poll.fileno()

    def drain(self) -> Iterator[NetworkEvent | NameAnswer]:
        """Take what waits, and put right at once what somebody changed; see the port."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._signal)
        with self._lock:
            every = list(self._held.values())
        for held in every:
            # While somebody applies there, that one looks too.
            if held.lock.acquire(blocking=False):
                try:
                    with suppress(EngineError):  # what could not be put right, ``verify`` tries again and tells of
                        self._assert(held)
                finally:
                    held.lock.release()
        with self._lock:
            waiting, self._events = self._events, []
        yield from waiting
        for held in every:
            yield from self._logged(held)

    def _logged(self, held: _Held) -> list[NetworkEvent | NameAnswer]:
        with held.reading:
            if held.reader is None:
                return []
            return list(held.reader.drain())

    def statistics(self) -> Mapping[str, int]:
        """Counters since the engine was made; see the port. ``logs_unread`` is how many logs somebody else reads."""
        with self._lock:
            totals = {**self._past, **self._counts, "logs_unread": 0}
            for held in self._held.values():
                if held.reader is None:
                    totals["logs_unread"] += 1
                else:
                    for name, value in _counted(held.reader).items():
                        totals[name] += value
        return totals

    def close(self) -> None:
        """Let go of every descriptor. What is in force stays in force."""
        for inode in list(self._held):
            self._let_go(inode)
        self._poll.close()
        with suppress(OSError):
            os.close(self._signal)

    # ---- namespaces --------------------------------------------------------------------------------------------------

    @contextmanager
    def _using(self, namespace: Namespace) -> Iterator[_Held]:
        """Speak with a namespace, for a moment only where nothing is in force there. Raises EngineError."""
        while True:
            with self._lock:
                held = self._held.get(namespace.inode)
                if held is None:
                    held = self._held[namespace.inode] = _open(namespace)
                    self._poll.register(held.watch, select.EPOLLIN)
            with held.lock:
                if self._held.get(namespace.inode) is not held:
                    continue  # let go of while we waited
                try:
                    yield held
                finally:
                    if held.in_force is None:
                        self._let_go(namespace.inode)
                return

    def _let_go(self, inode: int) -> None:
        with self._lock:
            held = self._held.pop(inode, None)
        if held is None:
            return
        with held.lock:
            self._stop_listening(held)
            with suppress(OSError, ValueError):
                self._poll.unregister(held.watch)
            held.watch.close()
            held.channel.close()
            os.close(held.descriptor)

    def _listen(self, held: _Held, desired: Desired) -> None:
        """Read the log of a namespace. Where somebody else does, statistics say so, and ``verify`` tries again."""
        group = desired.settings.log_group
        if held.reader is not None and held.group == group:
            return
        self._stop_listening(held)
        inode, buffer = held.namespace.inode, self._log_buffer
        try:
            reader = run_inside(held.descriptor, lambda: LogReader(inode, group, receive_buffer=buffer))
        except OSError:
            return
        with held.reading:
            held.reader, held.group = reader, group
        self._poll.register(reader, select.EPOLLIN)

    def _stop_listening(self, held: _Held) -> None:
        with held.reading:
            reader, held.reader = held.reader, None
            if reader is None:
                return
            with suppress(OSError, ValueError):
                self._poll.unregister(reader)
            with self._lock:
                for name, value in _counted(reader).items():
                    self._past[name] += value
            reader.close()

    # ---- from what is held to what is desired -----------------------------------------------------------------------

    def _put(self, held: _Held, desired: Desired, times: Mapping[PeerGroup, float], now: float) -> tuple[_Kind, str]:
        """Put a plan in force and remember it; tell what changed, and what somebody else had changed.

        Raises EngineError with nothing changed.
        """
        before = held.in_force
        try:
            ruleset = plan(desired, before.ruleset if before else None)
        except PlanError as error:
            raise EngineError(str(error)) from error
        self._look(held)
        kind: _Kind | None = None
        tampered = ""
        structure, sums = (before.structure, dict(before.sums)) if before else (None, {})
        touched = held.culprit is not None
        if before is not None and not touched:
            changes = difference(before.ruleset, ruleset)
            if changes is not None:
                try:
                    kind = self._change_elements(held, before, ruleset, changes, sums)
                except (OSError, MalformedError, KeyError):
                    touched = True  # the table is not what it was; reading all of it tells
        if kind is None or structure is None:
            structure = self._compiler.compile(ruleset.commands())
            wanted = _filled(structure, ruleset)
            expected = _filled(before.structure, before.ruleset) if before and touched else None
            kind, tampered = self._reconcile(held, wanted, expected)
            sums = {name: kernel.element_sum(one.elements) for name, one in wanted.sets.items()}
        held.in_force = _InForce(desired, ruleset, structure, sums, times, now)
        self._tell(held, tampered)
        self._look(held)
        return kind, tampered

    def _change_elements(
        self,
        held: _Held,
        before: _InForce,
        ruleset: Ruleset,
        changes: Sequence[ElementChange],
        sums: dict[str, int],
    ) -> _Kind | None:
        """Change elements alone, and ``sums`` with them; None when that is not faster.

        Raises OSError, MalformedError, KeyError with nothing changed when the table is not what it was.
        """
        steps: list[Step] = []
        for change in changes:
            if change.set.timeout:
                continue
            name, old = change.set.name, before.ruleset.sets[change.set.name]
            definition = before.structure.sets[name].definition
            slow = engine_reconcile.too_many_to_delete(len(change.removed), len(change.set.elements))
            if slow and kernel.is_slow_to_shrink(definition):
                return None
            gone = encode(old, {key: old.elements[key] for key in change.removed})
            come = encode(change.set, change.added)
            sums[name] = kernel.changed_sum(sums[name], gone, come)
            steps += engine_reconcile.exchange(name, definition, gone, come)
        for name, one in ruleset.sets.items():
            if one.timeout:
                present = kernel.read_set(held.channel, name, before.structure.sets[name].definition)
                wanted = encode(one, one.elements, _milliseconds(one.timeouts))
                sums[name] = kernel.element_sum(encoded for encoded, time in wanted.items() if not time)
                steps += engine_reconcile.members(present, wanted, name)
        held.channel.commit([step.message for step in steps])
        return "elements" if steps else "nothing"

    def _reconcile(self, held: _Held, wanted: Table, expected: Table | None) -> tuple[_Kind, str]:
        """Lead the kernel from what is there to what is wanted, by one transaction. Raises EngineError.

        Tells what changed, and how what was there differed from what was ``expected`` there.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            present, generation = self._read(held)
            if present is None:
                wanted = engine_reconcile.with_usage(wanted, held.usage)
            change = engine_reconcile.reconcile(present, wanted)
            steps = change.steps
            try:
                held.channel.commit([step.message for step in steps], generation)
            except NetlinkError as error:
                # Somebody changed some table meanwhile, or the time of an element that was to go is over.
                if error.errno in {errno.ERESTART, errno.ENOENT, errno.EEXIST} and attempt < _ATTEMPTS:
                    continue
                what = steps[error.index].what if 0 <= error.index < len(steps) else "the transaction"
                message = f"the kernel refused {what}: {error.strerror}; nothing changed"
                raise EngineError(message) from error
            except OSError as error:
                message = f"the transaction could not be sent to the kernel: {error.strerror}; nothing changed"
                raise EngineError(message) from error
            return change.kind, engine_reconcile.differs(present, expected) if expected is not None else ""
        raise AssertionError  # pragma: no cover - the last attempt returns or raises

    def _read(self, held: _Held) -> tuple[Table | None, int]:
        try:
            return kernel.read_table(held.channel)
        except (OSError, ValueError, KeyError) as error:
            message = (
                f"table {kernel.TABLE} of network namespace {held.namespace.inode} cannot be read: {error};"
                " does the agent have CAP_NET_ADMIN there?"
            )
            raise EngineError(message) from error

    def _delete(self, held: _Held) -> None:
        try:
            held.channel.commit([kernel.delete_table()])
        except NetlinkError as error:
            if error.errno != errno.ENOENT:
                message = f"the kernel would not delete table {kernel.TABLE}: {error.strerror}"
                raise EngineError(message) from error
        except OSError as error:
            message = f"table {kernel.TABLE} cannot be deleted: {error.strerror}"
            raise EngineError(message) from error

    # ---- somebody else's changes ------------------------------------------------------------------------------------

    def _look(self, held: _Held) -> None:
        """Take notifications: did anybody else touch the table?"""
        try:
            culprit = held.watch.changed_by(held.channel.port)
        except OSError:
            culprit = ""
        if culprit is not None:
            held.culprit = culprit or held.culprit or ""

    def _assert(self, held: _Held) -> bool:
        """Put in force again what somebody changed; tell whether that was needed. Raises EngineError."""
        self._look(held)
        in_force = held.in_force
        if in_force is None or held.culprit is None:
            return False
        now = time.monotonic()
        desired = replace(in_force.desired, groups=_aged(in_force, now))
        _, tampered = self._put(held, desired, dict.fromkeys(desired.groups, now), now)
        held.uncut = held.uncut or bool(tampered)
        return bool(tampered)

    def _tell(self, held: _Held, tampered: str) -> None:
        """Make an event of what somebody did, now that it is put right."""
        culprit, held.culprit = held.culprit, None
        if not tampered:
            return
        detail = f"{tampered}, by {culprit}" if culprit else tampered
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        event = NetworkEvent(now, held.namespace.inode, "tampered", detail=detail)
        with self._lock:
            self._events.append(event)
            self._counts["tampered"] += 1
        os.eventfd_write(self._signal, 1)

    # ---- flows ------------------------------------------------------------------------------------------------------

    def _cut(self, held: _Held) -> int:
        """End flows that are forbidden now. What fails is counted, and tried again by ``verify``."""
        if not held.uncut or held.in_force is None:
            return 0
        try:
            cut = engine_cut.cut(held.descriptor, held.in_force.ruleset)
        except (OSError, ValueError, KeyError, EngineError):
            self._counts["flow_cuts_failed"] += 1
            return 0
        held.uncut = False
        self._counts["flows_cut"] += cut
        return cut


def _open(namespace: Namespace) -> _Held:
    descriptor = open_namespace(namespace)
    with ExitStack() as undo:
        undo.callback(os.close, descriptor)
        try:
            channel, watch = run_inside(descriptor, lambda: (NetlinkSocket(), Watch()))
        except OSError as error:
            message = f"no netlink socket in network namespace {namespace.inode}: {error.strerror}"
            raise EngineError(message) from error
        undo.pop_all()
    return _Held(namespace, descriptor, channel, watch)


def _filled(structure: Table, ruleset: Ruleset) -> Table:
    """Give a compiled structure with the elements of its sets."""
    sets = dict(structure.sets)
    for name, described in ruleset.sets.items():
        stay, end = elements(described)
        sets[name] = replace(sets[name], elements=stay, timed=end)
    return replace(structure, sets=sets)


def _milliseconds(seconds: Mapping[Key, int]) -> dict[Key, int]:
    return {key: 1000 * time for key, time in seconds.items()}


def _aged(in_force: _InForce, now: float) -> dict[PeerGroup, GroupMembers]:
    """Give the members of groups with what is left of their time."""
    aged = {}
    for group, members in in_force.desired.groups.items():
        passed = int(now - in_force.member_times.get(group, in_force.moment))
        aged[group] = tuple(
            (address, seconds if seconds is None else seconds - passed)
            for address, seconds in members
            if seconds is None or seconds > passed
        )
    return aged


def _counted(reader: LogReader) -> dict[str, int]:
    counts = reader.counts
    return {"events": counts.events, "events_lost": counts.lost, "events_unread": counts.unread}

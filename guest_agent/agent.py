# SPDX-License-Identifier: Apache-2.0
"""The agent: joins trust, registry, facts and engine; decides in which order things happen, and little else.

Start: verify the bundle (against the digest the kernel is sealed with, if it is) and the chain of its successors up to
the one the kernel has in force, seal, take up what the kernel still enforces, and only then listen. A registration:
announce, verify, read the container's own configuration, choose its policies, gather facts, compile, put in force,
verify once more, and only then answer. Whatever fails on the way undoes what was done and refuses; an undo that fails
leaves the workload in force, never half let go.

A submission of a successor: verify the whole chain, wait until no registration is under way, compute what every
container in force is held to from then on, write that down beside what holds now, subject packets to the old and the
new rules, switch all containers in one step, and let the old rules about packets go. Killed before that step, the next
agent finds the old state and forgets the rest; killed after it, the new one.

There may be two engines: one for programs and files, which also says what is registered and which bundle is in force,
and one for packets. A container is registered when both hold it.

Letting go asks the machine whether the container has ended, whoever wants it gone: a poststop, or the reaper that
looks at all workloads every two seconds (crun sends no poststop after a refused start, and a host may send none).
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import select
import threading
import time
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from guest_agent import activation, child, successor
from guest_agent.api.hook_socket import HookAnswer, Stage
from guest_agent.engines.bpf_lsm.plan import PlanError, compile_table, fingerprint
from guest_agent.engines.port import EnforcedWorkload, EngineError, GateSettings, SuccessorRecord
from guest_agent.events.alerts import Alert, AlertMaker, Subject
from guest_agent.events.folding import Folding, peer_of
from guest_agent.events.network import NetworkAlertMaker
from guest_agent.events.stream import AlertStream, FileSink
from guest_agent.network import places
from guest_agent.network.controller import Network
from guest_agent.records import MAXIMUM_CHAIN, MAXIMUM_CHAIN_BYTES, Record, RecordStore
from guest_agent.successor import SubmitError, Submitted
from guest_agent.workloads import facts, oci_state, selection, succession, verification
from guest_agent.workloads.interchange import rule_set_to_json
from guest_agent.workloads.registry import Identity, Registry, RegistryError, Release, State, Workload
from hauberk.errors import HauberkError
from hauberk.policy import coverage
from hauberk.policy.selectors import WorkloadIdentity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from guest_agent.api.hook_socket import Peer
    from guest_agent.configuration import Configuration
    from guest_agent.engines.network_port import NetworkEngine, NetworkEvent
    from guest_agent.engines.port import Engine, KernelEvent, KernelWorkload
    from guest_agent.network.places import Links
    from guest_agent.network.topology import Placement
    from hauberk.policy.rules import RuleSet

logger = logging.getLogger(__name__)

REAP_SECONDS: Final = 2.0
UPKEEP_SECONDS: Final = 1.0
"""How often it is looked whether anything has changed that rules about packets follow."""
POSTSTOP_PATIENCE_SECONDS: Final = 1.0
LARGE_RULE_SET: Final = 400
"""From this many rules on, a table is compiled in a child: it takes memory that a long-lived process would keep."""
_CACHED_TABLES: Final = 32
_CACHED_TABLE_BYTES: Final = 8 << 20
_REMEMBERED_SUBJECTS: Final = 256
_REMEMBERED_RULES: Final = 20_000
"""Of workloads that are gone, for events that are told after their end."""
_PAUSE_AFTER_ERROR_SECONDS: Final = 0.5
_PATIENCE_AT_THE_END_SECONDS: Final = 5.0
_RESERVED_IDS: Final = 256
"""So many workload ids are reserved on disk at a time: an agent that is killed skips the rest of them."""
MAXIMUM_BUNDLE_BYTES: Final = 8 << 20
MAXIMUM_SIGNATURE_BYTES: Final = 12 << 20  # an envelope holds the bundle too, in base64
_MAXIMUM_SMALL_BYTES: Final = 1 << 20

_BUNDLE_REFUSALS: Final = (
    HauberkError, child.ChildError, EngineError, RegistryError, verification.VerificationError, OSError, ValueError,
)  # fmt: skip
"""What refuses a bundle, at start or as a successor, with a message of its own."""

_REFUSALS: Final = (
    RegistryError, verification.VerificationError, facts.ConfigError, selection.SelectionError, EngineError, PlanError,
    child.ChildError, oci_state.OciStateError, HauberkError, OSError,
)  # fmt: skip
"""What refuses a container with a message of its own; anything else is a defect, refuses too and is logged whole."""


class StartError(Exception):
    """The agent cannot start. The message says why and what to do."""


@dataclass(slots=True)
class _Tables:
    """The last compiled tables by fingerprint: containers of one image share theirs."""

    kept: OrderedDict[str, bytes] = field(default_factory=OrderedDict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, digest: str, rule_set: RuleSet) -> bytes:
        with self.lock:
            found = self.kept.get(digest)
            if found is not None:
                self.kept.move_to_end(digest)
                return found
        if len(rule_set.rules) < LARGE_RULE_SET:
            made = compile_table(rule_set).blob
        else:
            answer = child.ask("table", {"ruleSet": rule_set_to_json(rule_set)})
            made = base64.b64decode(str(answer["blob"]), validate=True)
        with self.lock:
            self.kept[digest] = made
            while len(self.kept) > _CACHED_TABLES or sum(map(len, self.kept.values())) > _CACHED_TABLE_BYTES:
                if len(self.kept) == 1:
                    break
                self.kept.popitem(last=False)
        return made


@dataclass(slots=True)
class _Turn:
    """Whose turn it is with one container, and how many want it."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    waiting: int = 0


class Agent:
    """One agent on one engine, or two. :meth:`start`, then the hook socket's handler and the readers of its state."""

    def __init__(
        self,
        configuration: Configuration,
        engine: Engine,
        machine: verification.Machine | None = None,
        packets: NetworkEngine | None = None,
        links: Links | None = None,
    ) -> None:
        """Nothing is touched before :meth:`start`. Without a ``packets`` that works, no rule about them is enforced.

        Whether that refuses the start is for the bundle to say: one without such rules needs no such engine.
        """
        self.configuration = configuration
        self.engine = engine
        self.machine = machine or verification.Machine()
        self.packets = packets
        self._host_name = Path("/proc/sys/kernel/hostname").read_text(encoding="utf-8").strip()
        self._packet_maker = NetworkAlertMaker(self._host_name, packets.name if packets is not None else "")
        self._folding = Folding()
        # Asked once: that takes a child and a network namespace, and status is asked often.
        self.packets_probe = packets.probe() if packets is not None else None
        works = packets is not None and self.packets_probe is not None and self.packets_probe.available
        self.network = Network(packets, configuration, self.machine, links=links) if packets and works else None
        self.registry = Registry()
        self.policy_set: selection.PolicySet | None = None
        self.alerts = AlertStream()
        self.event_errors = 0
        self._records: RecordStore | None = None
        self._reserved_below = 0
        self._known: dict[int, Record] = {}
        self._gone: OrderedDict[int, Subject] = OrderedDict()
        self._maker = AlertMaker(self._host_name, engine.name)
        self._sink: FileSink | None = None
        self._tables = _Tables()
        self._lock = threading.RLock()
        self._busy: dict[str, _Turn] = {}
        self._turnstile = successor.Turnstile()
        self._submitting = threading.Lock()
        self._stopping = threading.Event()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)  # readable once the agent is to end
        self._threads: list[threading.Thread] = []

    # ---- start and stop ----------------------------------------------------------------------------------------

    def start(self) -> None:
        """Verify, seal, take up. When it returns, the gate is in force.

        Raises StartError. What was in force before stays so, and a seal that was made stays too.
        """
        try:
            self._begin()
        except BaseException:
            if self._records is not None:
                self._records.give_up()
            raise
        threads = [("events", self._follow_events), ("reaper", self._reap)]
        if self.network is not None:
            threads += [("packets", self._follow_packets), ("upkeep", self._keep_up)]
        for name, work in threads:
            thread = threading.Thread(target=self._guarded, args=(name, work), name=name, daemon=True)
            thread.start()
            self._threads.append(thread)

    def _begin(self) -> None:
        configuration = self.configuration
        if self.packets_probe is not None and not self.packets_probe.available:
            logger.warning("no rule about packets can be enforced here: %s", self.packets_probe.reason)
        try:
            self._records = RecordStore(configuration.state_directory)
            self._records.claim()
            sealed = self.engine.sealed_digest()
            accepted = self.engine.successor() if sealed is not None else None
            first, policy_set = self._verify_bundle(sealed, accepted, self._records)
            self.engine.seal(first, self.gate_settings())
            self.policy_set = policy_set
            self.registry = Registry(_first_workload_id(self._records, sealed_before=sealed is not None))
            self._take_up(policy_set, self._records)
            if self.network is not None:
                self.network.begin(selection.host_packets(policy_set, self.host), self._records.read_network())
            if configuration.alert_log is not None:
                self._sink = FileSink(configuration.alert_log)
        except _BUNDLE_REFUSALS as error:
            raise StartError(str(error)) from error
        logger.info(
            "bundle %s version %d (%s) is %s, %d workload(s) taken up", policy_set.name, policy_set.version,
            policy_set.digest, "sealed" if configuration.mode == "sealed" else "loaded", len(self.registry),
        )  # fmt: skip

    def stop(self) -> None:
        """End the agent's own threads. What is in force stays in force."""
        self._stopping.set()
        os.eventfd_write(self._wake, 1)
        for thread in self._threads:
            thread.join(timeout=5)
        self.alerts.end()
        if self._sink is not None:
            self._sink.close()
        try:
            with self._turnstile.alone(_PATIENCE_AT_THE_END_SECONDS):
                if self._records is not None:
                    self._records.give_up()
        except SubmitError as error:
            # Another agent must not begin while this one still changes things: the lock ends with the process.
            logger.warning("the state directory stays locked until this process ends: %s", error)

    @property
    def healthy(self) -> bool:
        """Whether every thread of the agent still does its work."""
        return not self._stopping.is_set() and all(thread.is_alive() for thread in self._threads)

    def gate_settings(self) -> GateSettings:
        """Say what may execute without being registered."""
        configuration = self.configuration
        return GateSettings(
            mode=configuration.mode,
            managers=configuration.managers,
            helpers=configuration.helpers,
            kernel_helpers=configuration.kernel_helpers,
            mount_points=configuration.mount_points,
            service_cgroups=configuration.service_cgroups,
            agent_pid=int(Path("/proc/self").readlink().name),
        )

    def _verify_bundle(
        self, sealed: str | None, accepted: SuccessorRecord | None, records: RecordStore
    ) -> tuple[str, selection.PolicySet]:
        """Give the first bundle's digest and what is in force: that bundle, or the last of its successors."""
        try:
            chain = records.read_chain(accepted.number if accepted else 0)
            first = self._first_bundle(accepted, records)
        except OSError as error:
            if accepted is None:
                raise
            message = (
                f"the kernel has successor {accepted.number} in force and the chain of bundles up to it cannot be read"
                f" ({error}); restore {self.configuration.state_directory}, or reboot: no older bundle is taken instead"
            )
            raise StartError(message) from error
        policy_set = self._ask_for_bundle(first, sealed, accepted, chain)
        _check_digest(policy_set, chain[-1][0] if chain else first[0])
        activation.check(policy_set, self.configuration.mode)
        return hashlib.sha256(first[0]).hexdigest(), policy_set

    def _first_bundle(self, accepted: SuccessorRecord | None, records: RecordStore) -> tuple[bytes, bytes]:
        """Give the bundle this boot began with, and its signature.

        Of a chain, the copy that was kept with it: on a host, the configured file may be the next boot's by now.
        """
        if accepted is not None:
            return records.read_first()
        return (
            _read_bounded(self.configuration.bundle, MAXIMUM_BUNDLE_BYTES),
            _read_bounded(self.configuration.bundle_signature, MAXIMUM_SIGNATURE_BYTES),
        )

    def _ask_for_bundle(
        self,
        first: tuple[bytes, bytes],
        sealed: str | None,
        accepted: SuccessorRecord | None,
        chain: Sequence[tuple[bytes, bytes]],
    ) -> selection.PolicySet:
        """Let a child go the way from the trust root to the end of the chain.

        Raises ChildError, OSError or ValueError.
        """
        request: dict[str, object] = {
            "trustRoot": _base64(_read_bounded(self.configuration.trust_root, _MAXIMUM_SMALL_BYTES)),
            "bundle": _base64(first[0]),
            "signature": _base64(first[1]),
            "sealedDigest": sealed,
            "successors": [[_base64(part) for part in link] for link in chain],
            "accepted": [accepted.digest, accepted.version, accepted.number] if accepted else None,
            "engines": sorted(self.engines),
            "entities": [name for name, _ in self.configuration.entities],
            "resolvers": bool(self.configuration.resolvers),
        }
        return selection.PolicySet.from_json(child.ask("bundle", request))

    @property
    def engines(self) -> frozenset[str]:
        """The engines that work here, as coverage knows them."""
        of_packets = {coverage.NFTABLES} if self.network is not None else set()
        return frozenset(of_packets | ({coverage.ENGINE} & set(self.configuration.engines)))

    @property
    def host(self) -> WorkloadIdentity:
        """What host policies select this machine by."""
        return WorkloadIdentity(labels=dict(self.configuration.node_labels), host=True, host_name=self._host_name)

    def _take_up(self, policy_set: selection.PolicySet, records: RecordStore) -> None:
        for held in self.engine.registered():
            record = records.read(held.workload_id)
            if record is None or not _is_of(record, held):
                following = records.read_next(held.workload_id)  # killed after a successor came into force
                if following is not None and _is_of(following, held):
                    records.promote(held.workload_id)
                    record = following
            if record is not None and not _is_of(record, held):
                logger.warning("the record of workload %d is of another one and not used", held.workload_id)
                record = None
            # The path is looked up in any case: a wrong one would make a workload that lives look gone.
            guess = record.identity.cgroup_path if record else ""
            path = verification.cgroup_path_of(held.cgroup_id, self.machine, guess)
            pid, start_time = (record.identity.pid, record.identity.start_time) if record else (0, 0)
            identity = Identity(pid, start_time, held.cgroup_id, path, held.mount_namespace)
            self.registry.take_up(held.workload_id, held.container_id, identity, held.table_digest)
            if record is not None:
                self._known[held.workload_id] = self._sharing(record)
            if self.network is not None:
                names = record.names if record else WorkloadIdentity()
                namespace = record.network_namespace if record else held.network_namespace
                packets = _packets_of(record, held, policy_set)
                exposed = record is not None and record.exposed
                self.network.take_up(held.workload_id, identity, names, packets, namespace, exposed=exposed)
            logger.info("workload %d (container %s) taken up", held.workload_id, held.container_id)
        records.forget_next()
        records.keep_only(set(self._known))

    # ---- hooks -------------------------------------------------------------------------------------------------

    def check_peer(self, peer: Peer) -> str | None:
        """Say why a peer of the hook socket is not listened to, None when it is."""
        try:
            if self.engine.is_armed(peer.pidfd):
                return "it acts inside a registered workload; only the container runtime's hooks register containers"
        except EngineError as error:
            return f"it cannot be told whether it acts inside a workload ({error})"
        return None

    def handle(self, stage: Stage, state: bytes, peer: Peer) -> HookAnswer:
        """Answer one hook. Every failure is a refusal."""
        container_id = ""
        try:
            announced = oci_state.parse(state)
            container_id = announced.id
            with self._alone(container_id):
                if stage is Stage.POSTSTOP:
                    return self._poststop(container_id)
                with self._turnstile.passage():
                    self._register(announced, peer)
        except _REFUSALS as error:
            logger.warning("container %s refused: %s", container_id or "(unknown)", error)
            return HookAnswer(accepted=False, message=" ".join(str(error).split()))
        except Exception:
            logger.exception("container %s refused by a defect of the agent", container_id or "(unknown)")
            return HookAnswer(accepted=False, message="internal error of the agent; its log has the details")
        return HookAnswer(accepted=True, message="enforced")

    @contextmanager
    def _alone(self, container_id: str) -> Iterator[None]:
        """Do one thing at a time for one container; different ones go on side by side."""
        with self._lock:
            turn = self._busy.setdefault(container_id, _Turn())
            turn.waiting += 1
        try:
            with turn.lock:
                yield
        finally:
            with self._lock:
                turn.waiting -= 1
                if not turn.waiting:
                    del self._busy[container_id]

    def _register(self, announced: oci_state.OciState, peer: Peer) -> None:
        started = time.monotonic()
        policy_set, records = self.policy_set, self._records
        if policy_set is None or records is None or self._stopping.is_set():
            message = "the agent is not ready, or ending; start the container again later"
            raise RegistryError(message)
        # A container without a mount namespace of its own is in its runtime's, which need not be the agent's.
        foreign = frozenset({verification.mount_namespace(peer.pid, self.machine)})
        with self._lock:
            self._forget_if_over(announced.id)
            known = self.registry.find(announced.id)
        if known is not None and self._is_that(known, announced):
            logger.info("container %s is announced again and enforced already", announced.id)
            return
        with self._lock:
            if self.registry.next_workload_id >= self._reserved_below:
                below = self.registry.next_workload_id + _RESERVED_IDS
                records.reserve(below)
                self._reserved_below = below
            workload = self.registry.announce(announced.id)
        try:
            record = self._enforce(workload, announced, policy_set, records, foreign)
        except BaseException:
            self._undo(workload)
            raise
        logger.info(
            "container %s enforced as workload %d by %s in %.1f ms", workload.container_id, workload.workload_id,
            ", ".join(record.policies) or f"the default {policy_set.default}", (time.monotonic() - started) * 1000,
        )  # fmt: skip

    def _is_that(self, known: Workload, announced: oci_state.OciState) -> bool:
        """Whether a container announced again is the very one in force: kata-agent may run a hook twice."""
        if known.state is not State.ENFORCED or known.identity is None or not known.table_digest:
            return False
        if announced.pid != known.identity.pid:
            return False
        with verification.verify(known.identity.pid, self.machine, self.configuration.managers) as init:
            return init.identity == known.identity

    def _enforce(
        self,
        workload: Workload,
        announced: oci_state.OciState,
        policy_set: selection.PolicySet,
        records: RecordStore,
        foreign: frozenset[int],
    ) -> Record:
        managers = self.configuration.managers
        with verification.verify(announced.pid or 0, self.machine, managers, foreign_namespaces=foreign) as init:
            with self._lock:
                self.registry.verify(workload.container_id, init.identity)
            config = facts.read_config(announced.bundle)
            names = selection.identify(config.annotations, workload.container_id)
            chosen = selection.select(policy_set, names)
            found = facts.gather(init.identity.pid, config, chosen.rule_set, self.machine)
            placement = places.place(init.identity, self.machine) if self.network is not None else None
            digest = fingerprint(found.rule_set)
            record = Record.make(
                workload_id=workload.workload_id,
                container_id=workload.container_id,
                table_digest=digest,
                identity=init.identity,
                names=names,
                policies=chosen.policies,
                aliases=found.aliases,
                unenforced=chosen.unenforced,
                rule_set=found.rule_set,
                root_path=found.root_path,
                held=succession.has_rules(found.rule_set),
                forms=found.forms,
                network_namespace=placement.namespace if placement else 0,
                exposed=self._is_exposed(config, chosen.packets),
            )
            table = self._tables.of(digest, found.rule_set)
            records.write(record)
            with self._lock:
                record = self._known[workload.workload_id] = self._sharing(record)
            if self.network is not None and placement is not None:
                self.network.register(
                    workload.workload_id, init.identity, names, chosen.packets, placement, exposed=record.exposed
                )
            self.engine.register(
                EnforcedWorkload(
                    workload.workload_id,
                    workload.container_id,
                    init.identity.cgroup_id,
                    init.identity.mount_namespace,
                    table,
                    digest,
                    placement.namespace if placement is not None and chosen.packets.rules else 0,
                )
            )
            verification.recheck(init, self.machine, managers, foreign_namespaces=foreign)
            _recheck_place(init.identity, placement, self.machine)
            with self._lock:
                self.registry.enforce(workload.container_id, digest)
        return record

    def _is_exposed(self, config: facts.BundleConfig, packets: RuleSet) -> bool:
        """Whether a container may have rights to undo rules about packets that nothing refuses it."""
        if coverage.ENGINE in self.engines or not config.network_capabilities:
            return False
        if packets.rules:
            logger.warning(
                "a container has network rules and may have %s, expected neither: without %s nothing keeps it from "
                "undoing them; drop these capabilities", " and ".join(config.network_capabilities), coverage.ENGINE,
            )  # fmt: skip
        return True

    def _undo(self, workload: Workload) -> None:
        """Leave nothing of a failed registration. If the kernel will not let go, the workload stays, in force."""
        with self._lock:
            current = self.registry.find(workload.container_id)
            if current is not None and current.state is State.ANNOUNCED:
                # The engine never heard of it: whether it would let go is no question.
                self.registry.abandon(workload.container_id, workload.workload_id)
                return
            if current is not None and current.state is State.ENFORCED:
                return  # entirely in force: only its end lets go of it
            try:
                self.engine.release(workload.workload_id)
            except Exception:
                logger.exception("workload %d cannot be let go and stays in force", workload.workload_id)
                self.registry.enforce(workload.container_id, "")
                return
            if self.network is not None:
                self.network.release(workload.workload_id)
            self.registry.abandon(workload.container_id, workload.workload_id)
            self._forget(workload.workload_id)

    # ---- successors --------------------------------------------------------------------------------------------

    def submit(self, bundle: bytes, signature: bytes) -> Submitted:
        """Put a successor of the bundle in force in its place, for every container at one instant.

        Containers go on being registered while it is verified, which may take long, and wait only for the switch.
        Raises SubmitError; everything is as before then.
        """
        records = self._records
        if self.policy_set is None or records is None:
            message = "found an agent that has not started, expected one that has; submit the bundle again later"
            raise SubmitError(message)
        with self._one_submission():
            try:
                accepted = self.engine.successor()
                first, policy_set = self._verify_successor(bundle, signature, accepted, records)
                with self._turnstile.alone():
                    if self._stopping.is_set():
                        message = "found an agent that is ending, expected one that stays; submit it to the next one"
                        raise SubmitError(message)
                    return self._succeed(first, (bundle, signature), policy_set, accepted, records)
            except _BUNDLE_REFUSALS as error:
                logger.warning("successor refused: %s", error)
                raise SubmitError(str(error)) from error

    @contextmanager
    def _one_submission(self) -> Iterator[None]:
        if not self._submitting.acquire(timeout=successor.PATIENCE_SECONDS):
            message = "found another submission under way, expected its end; submit the bundle again later"
            raise SubmitError(message)
        try:
            yield
        finally:
            self._submitting.release()

    def _verify_successor(
        self, bundle: bytes, signature: bytes, accepted: SuccessorRecord | None, records: RecordStore
    ) -> tuple[tuple[bytes, bytes], selection.PolicySet]:
        """Give the bundle that the chain begins with, and what the successor of ``accepted`` says."""
        number = accepted.number + 1 if accepted else 1
        chain = records.read_chain(number - 1)
        if number > MAXIMUM_CHAIN or _size_of([*chain, (bundle, signature)]) > MAXIMUM_CHAIN_BYTES:
            message = (
                f"found {number} successors within this boot, expected at most {MAXIMUM_CHAIN} of at most "
                f"{MAXIMUM_CHAIN_BYTES} bytes in all; reboot with the newest bundle"
            )
            raise SubmitError(message)
        first = self._first_bundle(accepted, records)
        policy_set = self._ask_for_bundle(first, self.engine.sealed_digest(), accepted, [*chain, (bundle, signature)])
        _check_digest(policy_set, bundle)
        activation.check(policy_set, self.configuration.mode)
        return first, policy_set

    def _succeed(
        self,
        first: tuple[bytes, bytes],
        link: tuple[bytes, bytes],
        policy_set: selection.PolicySet,
        accepted: SuccessorRecord | None,
        records: RecordStore,
    ) -> Submitted:
        started = time.monotonic()
        number = accepted.number + 1 if accepted else 1
        following = {held.workload_id: self._follow(held, policy_set) for held in self.engine.registered()}
        record = SuccessorRecord(policy_set.digest, policy_set.version, number)
        try:
            if accepted is None:
                records.write_link(0, *first)
            records.write_link(number, *link)
            for one in following.values():
                if one.record is not None:
                    records.write_next(one.record)
            if self.network is not None:
                packets = {workload_id: one.packets for workload_id, one in following.items()}
                self.network.tighten(packets, selection.host_packets(policy_set, self.host))
            held = self._switch(record, following)
        except BaseException:
            self._take_back(accepted, number, records)
            raise
        refused = tuple((one.container_id, following[one.workload_id].refused) for one in held)
        refused = tuple((container, reason) for container, reason in refused if reason)
        self._adopt(policy_set, held, following, records)
        logger.info(
            "bundle %s version %d (%s) is successor %d, %d workload(s) follow in %.1f ms", policy_set.name,
            policy_set.version, policy_set.digest, number, len(held), (time.monotonic() - started) * 1000,
        )  # fmt: skip
        for container, reason in refused:
            logger.warning("container %s is refused everything from now on: %s", container, reason)
        return Submitted(policy_set.name, policy_set.version, policy_set.digest, number, len(held), refused)

    def _take_back(self, accepted: SuccessorRecord | None, number: int, records: RecordStore) -> None:
        """Forget a successor that did not come into force.

        Should the kernel have taken it all the same, or not say, the next start must find all of it; until then nothing
        is registered by a bundle that may not be in force any more.
        """
        try:
            taken = self.engine.successor() != accepted
        except EngineError as error:
            logger.warning("it cannot be told which bundle the kernel has in force: %s", error)
            taken = True
        if taken:
            self.policy_set = None
            logger.error("the kernel may have another bundle in force than this agent: restart the agent")
            return
        if self.network is not None:
            self.network.take_back()
        records.forget_next()
        records.cut_chain(number - 1)

    def _follow(self, held: KernelWorkload, policy_set: selection.PolicySet) -> successor.Following:
        with self._lock:
            record = self._known.get(held.workload_id)
        if record is not None and not _is_of(record, held):
            record = None
        return successor.follow(record, policy_set, self.machine, self.configuration.managers, self._tables.of)

    def _switch(self, record: SuccessorRecord, following: dict[int, successor.Following]) -> Sequence[KernelWorkload]:
        """Let the kernel go over to the successor. What has ended since is not asked about any more."""
        with self._lock:  # no release between the question and the switch
            held = self.engine.registered()
            workloads = [
                EnforcedWorkload(
                    one.workload_id,
                    one.container_id,
                    one.cgroup_id,
                    one.mount_namespace,
                    following[one.workload_id].table,
                    following[one.workload_id].digest,
                    self._filtered_in(one.workload_id, following[one.workload_id]),
                )
                for one in held
            ]
            self.engine.advance(record, workloads)
        return held

    def _filtered_in(self, workload_id: int, following: successor.Following) -> int:
        """Give the network namespace where packets of a workload are filtered under a successor, 0 for none."""
        return self.network.namespace_of(workload_id) if self.network is not None and following.packets.rules else 0

    def _adopt(
        self,
        policy_set: selection.PolicySet,
        held: Sequence[KernelWorkload],
        following: dict[int, successor.Following],
        records: RecordStore,
    ) -> None:
        """Make the agent's own state that of the kernel. It is in force already: nothing here may undo it."""
        if self.network is not None:
            self.network.settle()
        renewed: list[int] = []
        with self._lock:
            self.policy_set = policy_set
            for one in held:
                new = following[one.workload_id]
                workload = self.registry.find(one.container_id)
                if workload is None or workload.workload_id != one.workload_id:
                    continue  # ended meanwhile
                # Without a digest it is one the kernel would not let go of: no announcement may find it in order.
                self.registry.renew(one.container_id, new.digest if workload.table_digest else "")
                if new.record is not None:
                    self._known[one.workload_id] = self._sharing(new.record)
                    renewed.append(one.workload_id)
            try:
                for workload_id in renewed:
                    records.promote(workload_id)
                records.forget_next()
            except OSError as error:
                # What was not promoted is found under its next name by the next start, and must stay there.
                logger.warning("the records of the workloads cannot be renewed: %s", error)

    # ---- letting go --------------------------------------------------------------------------------------------

    def _poststop(self, container_id: str) -> HookAnswer:
        end = time.monotonic() + POSTSTOP_PATIENCE_SECONDS
        while True:
            with self._lock:
                answer = self._release_if_over(container_id)
            if answer is not Release.ALIVE:
                return HookAnswer(accepted=True, message=answer.value)
            if time.monotonic() > end:
                message = (
                    "it is alive (its init or a process in its cgroup): nothing was freed; it is let go when it ends"
                )
                return HookAnswer(accepted=False, message=message)
            time.sleep(0.02)

    def _forget_if_over(self, container_id: str) -> None:
        """Make room for a container whose predecessor of the same id has ended unnoticed."""
        known = self.registry.find(container_id)
        if known is not None and known.state is State.ENFORCED:
            self._release_if_over(container_id)

    def _release_if_over(self, container_id: str) -> Release:
        workload = self.registry.find(container_id)
        if workload is None or workload.identity is None or workload.state is not State.ENFORCED:
            return self.registry.request_stop(container_id, None)
        observation = verification.observe(workload.identity, self.machine)
        answer = self.registry.request_stop(container_id, observation)
        if answer is Release.GONE:
            self.engine.release(workload.workload_id)
            if self.network is not None:
                self.network.release(workload.workload_id)
            self.registry.release(container_id, workload.workload_id, observation)
            self._forget(workload.workload_id)
            logger.info("container %s (workload %d) is gone", container_id, workload.workload_id)
        return answer

    def _forget(self, workload_id: int) -> None:
        record = self._known.pop(workload_id, None)
        if record is not None:
            self._gone[workload_id] = _subject(record)
            while len(self._gone) > 1 and (
                len(self._gone) > _REMEMBERED_SUBJECTS or sum(map(_size, self._gone.values())) > _REMEMBERED_RULES
            ):
                self._gone.popitem(last=False)
        if self._records is not None:
            self._records.remove(workload_id)

    def _reap(self) -> None:
        while not self._stopping.wait(REAP_SECONDS):
            with self._lock:
                enforced = [workload.container_id for workload in self.registry if workload.state is State.ENFORCED]
            for container_id in enforced:
                try:
                    with self._alone(container_id), self._lock:
                        self._release_if_over(container_id)
                except (EngineError, RegistryError, verification.VerificationError, OSError) as error:
                    logger.warning("container %s cannot be let go yet: %s", container_id, error)

    # ---- events ------------------------------------------------------------------------------------------------

    def _follow_events(self) -> None:
        poll = select.poll()
        poll.register(self.engine.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while not self._stopping.is_set():
            poll.poll(500)
            try:
                for event in self.engine.drain():
                    self._tell(event)
            except EngineError:
                self.event_errors += 1
                logger.exception("events could not be read")
                self._stopping.wait(_PAUSE_AFTER_ERROR_SECONDS)

    def _follow_packets(self) -> None:
        network = self.network
        if network is None:
            return
        poll = select.poll()
        poll.register(network.engine.fileno(), select.POLLIN)
        poll.register(self._wake, select.POLLIN)
        while not self._stopping.is_set():
            poll.poll(500)
            try:
                for event in network.drain():
                    told = self._folding.add(event)
                    if told is not None:
                        self._tell_packets(network, told)
            except EngineError:
                self.event_errors += 1
                logger.exception("events of packets could not be read")
                self._stopping.wait(_PAUSE_AFTER_ERROR_SECONDS)
            for event in self._folding.due(time.clock_gettime_ns(time.CLOCK_BOOTTIME)):
                self._tell_packets(network, event)
        for event in self._folding.flush():
            self._tell_packets(network, event)

    def _tell_packets(self, network: Network, event: NetworkEvent) -> None:
        """Publish one event about packets; as :meth:`_tell`."""
        try:
            subject = replace(self._subject_of(event.endpoint), rule_set=network.rule_set_of(event.endpoint))
            facts_of_peer = network.facts_of(event.namespace, peer_of(event))
            self._publish(self._packet_maker.make(event, subject, facts_of_peer))
        except Exception:
            self.event_errors += 1
            logger.exception("an event of packets of workload %d could not be told", event.endpoint)

    def _keep_up(self) -> None:
        """Follow what changes in the machine, and write down what is to outlive the agent."""
        network, records = self.network, self._records
        if network is None or records is None:
            return
        while not self._stopping.wait(UPKEEP_SECONDS):
            try:
                network.upkeep()
                remembered = network.remember()
                if remembered is not None:
                    records.write_network(remembered)
            except (EngineError, verification.VerificationError, OSError) as error:
                logger.warning("what rules about packets follow cannot be looked at: %s", error)

    def _tell(self, event: KernelEvent) -> None:
        """Publish one event. One that cannot be told is counted: what a workload does must not end the agent."""
        try:
            self._publish(self._maker.make(event, self._subject_of(event.workload_id)))
        except Exception:
            self.event_errors += 1
            logger.exception("an event of workload %d could not be told", event.workload_id)

    def _sharing(self, record: Record) -> Record:
        """Give the record the very rules another one holds that are equal: containers of one image cost them once."""
        for other in self._known.values():
            if other.table_digest == record.table_digest and other.rule_set == record.rule_set:
                return replace(record, rule_set=other.rule_set)
        return record

    def _subject_of(self, workload_id: int) -> Subject:
        with self._lock:
            record = self._known.get(workload_id)
            return _subject(record) if record is not None else self._gone.get(workload_id, Subject())

    def _publish(self, alert: Alert) -> None:
        self.alerts.publish(alert)
        if self._sink is not None:
            self._sink.write(alert)

    # ---- what is told ------------------------------------------------------------------------------------------

    def workloads(self) -> list[tuple[Workload, Record | None]]:
        """Every workload that is not gone, with what is remembered of it."""
        with self._lock:
            return [(workload, self._known.get(workload.workload_id)) for workload in self.registry]

    def selected(self) -> list[tuple[str, int]]:
        """Give each policy of the bundle and how many of the workloads here, or hosts, it selects now."""
        policy_set = self.policy_set
        if policy_set is None:
            return []
        with self._lock:
            there = [self.host, *(record.names for record in self._known.values())]
        chosen = [{id(policy) for policy in selection.selected_by(policy_set, names)} for names in there]
        return [(policy.name, sum(id(policy) in one for one in chosen)) for policy in policy_set.policies]

    def flush_network(self) -> int:
        """Remove all rules about packets from this machine, until the agent starts again; see ``Network.flush``."""
        if self.network is None:
            message = "found no engine for packets, expected one: there is nothing to flush"
            raise EngineError(message)
        return self.network.flush()

    def counters(self) -> dict[str, int]:
        """Numbers for status."""
        found = {**self.engine.statistics(), **self.alerts.statistics(), "event_errors": self.event_errors}
        if self.network is not None:
            found |= {f"network_{name}": number for name, number in self.network.engine.statistics().items()}
            found |= self._folding.statistics()
        if self._sink is not None:
            found["alert_log_lost"] = self._sink.lost
        return found

    def warnings(self) -> list[str]:
        """What an operator should know about this machine's protection."""
        found: list[str] = []
        policy_set = self.policy_set
        if self.configuration.mode == "host":
            found.append("host mode: containers that nobody registers are not gated")
        if policy_set is None:
            found.append("nothing is registered: which bundle is in force cannot be told; restart the agent")
        if policy_set is not None and len(policy_set.policies) > 1:
            found.append(
                "several policies are chosen by names the host sets: protection is that of the weakest of them"
            )
        if policy_set is not None and policy_set.unenforced_count:
            found.append(f"{policy_set.unenforced_count} rule(s) of the bundle are not enforced as they are written")
        if policy_set is not None and policy_set.default != "deny":
            found.append(f"containers that no policy covers get the default '{policy_set.default}'")
        if policy_set is not None:
            found += _of_succession(policy_set.succession)
        for name, count in self.selected():
            if not count:
                found.append(f"policy {name} selects nothing on this machine now")
        found += self._of_networks()
        if not self.configuration.helpers and self.configuration.mode == "sealed":
            found.append("no helper is listed: the gate will not let container managers run the hook")
        return found

    def _of_networks(self) -> list[str]:
        found = [] if self.network is None else self.network.problems()
        with self._lock:
            exposed = [
                record.container_id
                for record in self._known.values()
                if record.exposed and self.network is not None and self.network.is_held_inside_alone(record.workload_id)
            ]
        found += [
            f"container {container} may have CAP_NET_ADMIN or CAP_NET_RAW, and could get past its network rules"
            for container in exposed
        ]
        if coverage.ENGINE not in self.engines:
            found.append(f"without the engine {coverage.ENGINE} no program and no file is refused to anybody")
        return found

    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        """Run a thread's work; one that fails is logged and ends the agent's health, which the watchdog sees."""
        try:
            work()
        except Exception:
            logger.exception("the agent's %s thread failed", name)


def _packets_of(record: Record | None, held: KernelWorkload, policy_set: selection.PolicySet) -> RuleSet:
    """Give the rules about packets of a workload taken up: what the bundle in force says of its names.

    One whose names are lost had such rules if the kernel says so, and then gets those that refuse everything.
    """
    if record is None:
        refused = succession.refuse_packets(successor.NOTHING_HOLDS)
        return refused if held.network_namespace else selection.NO_PACKETS
    try:
        chosen = selection.select(policy_set, record.names)
    except selection.SelectionError:
        return succession.refuse_packets(successor.NOTHING_HOLDS)
    return succession.refuse_packets(successor.NOTHING_HOLDS) if record.refused else chosen.packets


def _recheck_place(identity: Identity, placement: Placement | None, machine: verification.Machine) -> None:
    """Refuse a container whose init went to another network namespace while it was registered."""
    if placement is not None and places.place(identity, machine) != placement:
        message = f"process {identity.pid} changed its network namespace while it was registered; start it again"
        raise verification.VerificationError(message)


def _size_of(chain: Sequence[tuple[bytes, bytes]]) -> int:
    return sum(len(bundle) + len(signature) for bundle, signature in chain)


def _check_digest(policy_set: selection.PolicySet, bundle: bytes) -> None:
    digest = hashlib.sha256(bundle).hexdigest()
    if policy_set.digest != digest:
        message = f"the parser answered for bundle {policy_set.digest}, expected {digest}; this is a defect"
        raise ValueError(message)


def _of_succession(told: selection.Succession) -> list[str]:
    """Warn of a bundle that has expired, and of one that is easier to replace than it was to seal."""
    found: list[str] = []
    if told.expires and told.expires <= time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()):
        found.append(
            f"the bundle has expired ({told.expires}, by a clock that nobody vouches for): nothing stops, put a newer"
            " one in its place"
        )
    if told.weaker:
        found.append("a successor needs fewer signatures than the trust root asks of the first bundle")
    return found


def _is_of(record: Record, held: KernelWorkload) -> bool:
    identity = record.identity
    return (record.container_id, record.table_digest, identity.cgroup_id, identity.mount_namespace) == (
        held.container_id, held.table_digest, held.cgroup_id, held.mount_namespace,
    )  # fmt: skip


def _size(subject: Subject) -> int:
    return len(subject.rule_set.rules) if subject.rule_set is not None else 0


def _subject(record: Record) -> Subject:
    return Subject(
        container_id=record.container_id,
        container_name=record.container_name,
        namespace=record.namespace,
        pod=record.name,
        image=record.image,
        labels=",".join(f"{key}={value}" for key, value in record.labels),
        rule_set=record.rule_set,
    )


def _first_workload_id(records: RecordStore, *, sealed_before: bool) -> int:
    """Give an id above every one this boot has used: a task marked with an old id must never meet a new workload's.

    Should the reservation be lost although the kernel was sealed before, the time since boot in tenths of a second is
    above it: nothing registers ten workloads a second for as long as the machine runs.
    """
    reserved = records.reserved_below()
    if reserved is None:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 100_000_000 + 1 if sealed_before else 1
    return reserved


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _read_bounded(path: Path, limit: int) -> bytes:
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        message = f"{path} is larger than {limit} bytes, expected less"
        raise ValueError(message)
    return data

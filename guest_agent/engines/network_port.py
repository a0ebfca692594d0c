# SPDX-License-Identifier: Apache-2.0
"""What an engine for packets offers the agent, and what it tells back.

Packets belong to network namespaces, and a namespace can hold several workloads or only a part of one: so the unit that
is put in force is not the workload but the namespace with everything that holds in it. The agent says what is desired
of a namespace; whether that takes nothing, a few elements of sets or a whole table is the engine's own affair.

Rules every engine keeps:

* ``apply`` is atomic: when it returns, all that is desired of the namespace is in force and nothing else of ours; when
  it raises, what was in force still is.
* What is in force survives the agent: ``held`` of a fresh instance tells what the kernel still holds.
* Rules, tables and objects of others are neither changed nor removed.
* Usage of quotas survives every ``apply`` that keeps the quota, whatever its limit becomes.
* ``remove`` is idempotent.
* Losing events is counted in ``statistics`` and never changes a verdict.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, Protocol, runtime_checkable

# EngineError and Probe are part of this port as of the other: the agent treats engines alike.
from guest_agent.engines.port import EngineError, EngineUnavailableError, Probe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from hauberk.policy.exemptions import Exemption
    from hauberk.policy.rules import PeerGroup, RuleSet, Section

__all__ = [
    "HOST_ENDPOINT",
    "LOG_GROUP",
    "MAXIMUM_LEVEL",
    "Applied",
    "Attachment",
    "Cgroup",
    "Desired",
    "Endpoint",
    "EngineError",
    "EngineUnavailableError",
    "GroupMembers",
    "Interface",
    "NameAnswer",
    "Namespace",
    "NetworkEngine",
    "NetworkEvent",
    "NetworkVerdict",
    "Probe",
    "QuotaUsage",
    "Settings",
    "Whole",
]

HOST_ENDPOINT: Final = 0
"""The endpoint of the machine itself; workloads have the registry's numbers, which start at 1."""
LOG_GROUP: Final = 0x4842
"""NFLOG group of our own ("HB"): nobody else's logger reads it, and we read nobody else's."""
MAXIMUM_LEVEL: Final = 255
"""Deepest cgroup that the kernel can match a socket by (nft_socket)."""

NetworkVerdict = Literal["audit", "deny", "tampered"]
"""What an event is about. "tampered": somebody changed or deleted our table, and it was put in force again."""

GroupMembers = tuple[tuple[str, int | None], ...]
"""Members of a group of peers: an address or a network, and the seconds it counts as a member (None: until told)."""


@dataclass(frozen=True, slots=True)
class Namespace:
    """A network namespace.

    ``inode`` is the number that identifies it; ``path`` opens it now ("/proc/4711/ns/net"). The engine compares the two
    and keeps a descriptor, since a path's process can end and its number be used again.
    """

    inode: int
    path: str


@dataclass(frozen=True, slots=True)
class Whole:
    """Every packet of the namespace: of the machine, or of a namespace that holds one workload alone.

    Of the machine (:data:`HOST_ENDPOINT`) what it sends and receives; of a workload also what its namespace forwards,
    which both directions' rules then have to let pass.
    """


@dataclass(frozen=True, slots=True)
class Cgroup:
    """Packets of the sockets made in a cgroup v2 or below it.

    ``identifier`` is the inode number of the directory; ``level`` how many directories it lies below the root of
    cgroup v2, 1 for the root's own children.
    """

    identifier: int
    level: int


@dataclass(frozen=True, slots=True)
class Interface:
    """A workload seen from outside, by the end of its virtual Ethernet pair that is in this namespace.

    What comes in by that interface is what the workload sends (egress), what goes out by it is what it gets (ingress).
    Rules that name interfaces are refused here: the workload's own cannot be seen.
    """

    name: str


Attachment = Whole | Cgroup | Interface
"""By what the packets of an endpoint are known."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Somebody whose packets are subject to rules.

    ``identifier`` is the workload's number (:data:`HOST_ENDPOINT` for the machine). A packet passes when it passes
    *each* of ``rule_sets``: while rules change, the old and the new ones hold together.
    """

    identifier: int
    rule_sets: tuple[RuleSet, ...]
    attachment: Attachment


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for a namespace beside rules.

    ``management`` are the machine's own exemptions; they count for :data:`HOST_ENDPOINT` known by :class:`Whole` alone.
    ``resolvers`` are the addresses whose answers to look-ups are copied to the agent. ``log_rate`` is how many packets
    a second each rule of the ruleset tells of at most, ``log_burst`` how many at once; ``log_bytes`` how much of a
    packet is told. ``drop_unknown_transport``: packets to this namespace of a transport whose socket the kernel cannot
    find (SCTP, DCCP, UDP-Lite, L2TP) are dropped where the cgroup of some endpoint restricts what comes in.
    """

    management: tuple[Exemption, ...] = ()
    resolvers: tuple[str, ...] = ()
    log_group: int = LOG_GROUP
    log_rate: int = 100
    log_burst: int = 200
    log_bytes: int = 96
    drop_unknown_transport: bool = True


@dataclass(frozen=True, slots=True)
class Desired:
    """All that is to hold in one namespace.

    ``groups`` has the members of each group of peers that is known. A group of names without an entry has no members
    yet. Any other group without one is unresolved: Allow rules match nothing by it, Block rules every peer.
    """

    endpoints: tuple[Endpoint, ...] = ()
    settings: Settings = field(default_factory=Settings)
    groups: Mapping[PeerGroup, GroupMembers] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class QuotaUsage:
    """A quota as the kernel counts it.

    ``name`` is what the kernel knows it by; it stays the same as long as the rule says the same but for its limit.
    ``endpoint`` is None for a quota that all workloads of a policy share. ``seconds`` is the period after which the
    agent resets it.
    """

    name: str
    endpoint: int | None
    direction: Section
    policy: str
    used_bytes: int
    limit_bytes: int
    seconds: int


@dataclass(frozen=True, slots=True)
class Applied:
    """What ``apply`` did.

    ``digest`` is what ``held`` says from now on, until somebody changes the table. ``flows_cut`` is how many
    established flows were forbidden by the change and ended.
    """

    digest: str
    change: Literal["nothing", "elements", "table"]
    flows_cut: int = 0


@dataclass(frozen=True, slots=True)
class NetworkEvent:
    """Packets that got one verdict and are to be told of.

    ``timestamp_ns`` counts from CLOCK_BOOTTIME; ``namespace`` is the inode number. ``direction`` is as the endpoint
    sees it. ``protocol`` is a name as in rules ("tcp", "icmpv6") or a decimal number. Ports are None where there are
    none or they could not be read. ``reason``: a rule matched; nothing did, and the default decided; a quota was used
    up; no socket could be found for the packet ("unattributed"). Which rule it was, ``decide`` tells.
    An event with verdict "tampered" has nothing but time, namespace and ``detail``.
    """

    timestamp_ns: int
    namespace: int
    verdict: NetworkVerdict
    endpoint: int = HOST_ENDPOINT
    direction: Section | None = None
    reason: Literal["rule", "default", "quota", "unattributed"] = "rule"
    protocol: str = ""
    source_address: str = ""
    destination_address: str = ""
    source_port: int | None = None
    destination_port: int | None = None
    icmp_type: int | None = None
    icmp_code: int | None = None
    interface_in: str = ""
    interface_out: str = ""
    count: int = 1
    detail: str = ""


@dataclass(frozen=True, slots=True)
class NameAnswer:
    """A resolver's answer as it came in, for the agent to learn addresses of names from.

    It belongs to a flow that this machine opened to one of ``Settings.resolvers``; ``payload`` is what UDP carried and
    is as hostile as anything from the network.
    """

    timestamp_ns: int
    namespace: int
    resolver: str
    payload: bytes


@runtime_checkable
class NetworkEngine(Protocol):
    """One mechanism for packets, or its simulator. Methods may be called from several threads unless they say else."""

    @property
    def name(self) -> str:
        """Short name for status and logs ("nftables")."""

    def probe(self) -> Probe:
        """Find out whether this kernel offers what the engine needs. Changes nothing and raises nothing."""

    def apply(self, namespace: Namespace, desired: Desired) -> Applied:
        """Put in force what is desired of a namespace, in one transaction, and end flows that are forbidden now.

        Raises EngineError with nothing changed; its message names the rule or the cause.
        """

    def remove(self, namespace: Namespace) -> None:
        """Take everything of ours out of a namespace. Idempotent; raises EngineError when the kernel would not."""

    def held(self, namespace: Namespace) -> str | None:
        """Tell the digest of what the kernel holds of ours, computed from what is read back; None: nothing.

        Raises EngineError when that cannot be read: unknown is not "nothing".
        """

    def verify(self) -> Sequence[Namespace]:
        """Compare every namespace with what was applied, put it in force again where it differs, and tell which.

        Each of them gives an event "tampered". Raises EngineError when a namespace could not be put right.
        """

    def set_members(self, namespace: Namespace, group: PeerGroup, members: GroupMembers) -> None:
        """Make these the members of a group, without a reload: others go, those that stay get their new time.

        Raises EngineError with nothing changed. A group that no rule of the namespace names is no error.
        """

    def usage(self, namespace: Namespace) -> Sequence[QuotaUsage]:
        """Tell how much of each quota of a namespace is used. Raises EngineError."""

    def reset_quota(self, namespace: Namespace, name: str) -> None:
        """Begin a new period of a quota. Raises EngineError; one that is not there is no error."""

    def fileno(self) -> int:
        """Descriptor that polls readable when events wait."""

    def drain(self) -> Iterator[NetworkEvent | NameAnswer]:
        """Take what waits, without blocking. Only one thread may drain at a time."""

    def statistics(self) -> Mapping[str, int]:
        """Counters since the engine was made: at least ``events`` and ``events_lost``."""

    def close(self) -> None:
        """Let go of this process's own descriptors. What is in force stays in force."""

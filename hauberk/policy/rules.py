# SPDX-License-Identifier: Apache-2.0
"""The one normal form of every policy kind, and the one place where precedence is decided.

Everything that answers "may this be done?" (``hauberk policy explain``, an engine's planner, the naming of an alert)
asks :func:`decide`. A planner groups paths by the set of rules that match them and asks for each group; so what
``explain`` says and what the kernel does cannot drift apart.

Invariants, for every section:

* A section is a deny list until one Allow rule of that section exists; then what no rule matches gets the section's
  posture. A rule about packets can say otherwise of itself (``default_deny``), and where only Audit rules do, what is
  not on the list is reported and not refused. Look-ups of names (``DNS``) are a list
  of their own, and so is each direction of packets: one Allow rule for a protocol does not refuse every look-up, and
  one for what goes out does not refuse what comes in. System calls are only ever audited; presets are audited or
  blocked; neither is ever an allow-list.
* A rule never grants more than it says. ``ownerOnly``, ``readOnly``, ``allowedArgs``, ``pts: false`` and a quota
  narrow a rule: on the far side of such a condition, Allow and Block refuse and Audit reports. On the near side Allow
  allows, and Block and Audit say nothing: they do not turn an allow-list's default into a grant.
* What is not known of an access (its arguments, its terminal, whether a quota is used up) is taken as the far side.
* The more specific rule decides, then the stronger action: Block beats Audit beats Allow. Of packets only the action
  decides, whatever a rule says of networks and ports. What is specific, in this order:

  - processes and files: limited to this source; an exact path before an executable name before a directory or pattern;
    a longer literal prefix
  - sockets: limited to this source; a protocol before a socket type before all of them
  - names: limited to this source; more labels of the domain
  - capabilities: limited to this source
  - system calls: limited to this source; limited to a path
  - devices: class and level said before one of them before none; a subclass; a protocol; a class before a level

* The order of policies, files and rules decides nothing. Of rules that are equal in all this, the one first by policy
  and place is named.
* Rules that Hauberk implies (``implied``) never turn a section into an allow-list.
* Packets that no policy is about (:mod:`hauberk.policy.exemptions`) pass before any rule is asked.
* Adding a Block rule never allows more, but for one thing: what nobody may write any more, a source with rights of its
  own may then map.
* An answer about paths depends on the rules that match and on nothing else of the path, and of a directory or pattern
  only on the order of the literal prefixes. Planners rely on this to ask once for many paths.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from hauberk.policy.exemptions import Exemption


class Action(StrEnum):
    """What a policy author wrote (KubeArmor's spelling)."""

    ALLOW = "Allow"
    AUDIT = "Audit"
    BLOCK = "Block"


class Section(StrEnum):
    """The part of a policy a rule stands in; each is an allow-list or a deny list of its own."""

    PROCESS = "process"
    FILE = "file"
    NETWORK = "network"  # kinds of sockets
    DNS = "dns"  # names looked up; written in ``network``, but a list of its own
    CAPABILITIES = "capabilities"
    SYSCALLS = "syscalls"  # only ever Audit
    PRESETS = "presets"  # only Audit or Block
    DEVICE = "device"
    INGRESS = "ingress"
    EGRESS = "egress"
    APPARMOR = "apparmor"  # raw text for one engine; nobody else can say what it means


class Operation(StrEnum):
    """What is asked of an object.

    ``EXECUTE`` starts a program; ``MAP`` maps a file executable (``ld.so /bin/denied`` is one). ``WRITE`` is every
    change: open for writing, create, unlink, rename, link, truncate, chmod, chown. ``SOCKET`` makes or uses a socket of
    some kind, ``RESOLVE`` asks for a domain name, ``CAPABILITY`` uses one, ``SYSCALL`` calls the kernel, ``PRESET``
    does what a preset is about, ``ATTACH`` plugs a device in, ``RECEIVE`` and ``SEND`` exchange packets with a peer.
    """

    EXECUTE = "execute"
    MAP = "map"
    READ = "read"
    WRITE = "write"
    SOCKET = "socket"
    RESOLVE = "resolve"
    CAPABILITY = "capability"
    SYSCALL = "syscall"
    PRESET = "preset"
    ATTACH = "attach"
    RECEIVE = "receive"
    SEND = "send"


OPERATIONS_OF: dict[Section, tuple[Operation, ...]] = {
    Section.PROCESS: (Operation.EXECUTE, Operation.MAP),
    Section.FILE: (Operation.READ, Operation.WRITE),
    Section.NETWORK: (Operation.SOCKET,),
    Section.DNS: (Operation.RESOLVE,),
    Section.CAPABILITIES: (Operation.CAPABILITY,),
    Section.SYSCALLS: (Operation.SYSCALL,),
    Section.PRESETS: (Operation.PRESET,),
    Section.DEVICE: (Operation.ATTACH,),
    Section.INGRESS: (Operation.RECEIVE,),
    Section.EGRESS: (Operation.SEND,),
    Section.APPARMOR: (),
}
PATH_SECTIONS = frozenset({Section.PROCESS, Section.FILE})
"""The sections whose rules name files."""
SECTION_OF: dict[Operation, Section] = {op: section for section, ops in OPERATIONS_OF.items() for op in ops}


class ObjectKind(StrEnum):
    """How a rule names its object."""

    PATH = "path"  # exactly this path
    DIRECTORY = "directory"  # the directory itself and its children; with recursive, everything below it
    PATTERN = "pattern"  # AppArmor glob
    EXECNAME = "execname"  # last component of the path
    PROTOCOL = "protocol"  # kind of socket: "tcp", "raw", …, "all"
    DOMAIN = "domain"  # this domain and what is below it
    CAPABILITY = "capability"  # "net_raw"
    SYSCALL = "syscall"  # see SyscallMatch
    PRESET = "preset"  # "filelessExec"
    DEVICE = "device"  # see DeviceMatch
    PEER = "peer"  # see PeerMatch
    PROFILE = "profile"  # AppArmor text


PATH_KINDS = frozenset({ObjectKind.PATH, ObjectKind.DIRECTORY, ObjectKind.PATTERN, ObjectKind.EXECNAME})
"""The kinds that name files."""


class Verdict(IntEnum):
    """The kernel's three answers. The numbers are the two-bit values in the kernel's tables."""

    ALLOW = 0
    AUDIT = 1
    DENY = 2


POSTURES = {"block": Verdict.DENY, "audit": Verdict.AUDIT, "allow": Verdict.ALLOW}
"""The words for what an allow-list leaves unmatched."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a rule came from, so that an error, an explanation and an alert can name it."""

    policy: str  # "namespace/name" or "name"
    field: str  # "spec.process.matchPaths[0]"
    file: str = ""
    line: int = 0
    column: int = 0


@dataclass(frozen=True, slots=True)
class DeviceMatch:
    """Which devices a rule is about; None: any. ``level`` is the number of ports in the chain, 1 for a root port."""

    device_class: int | None = None
    subclass: int | None = None
    protocol: int | None = None
    level: int | None = None


NAMESPACE_NAME_LABEL = "kubernetes.io/metadata.name"
"""The one label of a namespace that can be known: Kubernetes gives it to each, with the namespace's own name."""
DEFAULT_NAMESPACE = "default"
"""The namespace of what names none."""


@dataclass(frozen=True, slots=True)
class LabelRequirement:
    """What Kubernetes' set-based selectors ask of one label. ``values`` are of ``In`` and ``NotIn`` alone."""

    key: str
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()

    def holds(self, labels: Mapping[str, str]) -> bool:
        """Tell whether these labels are as asked. What has no such label has none of the values either."""
        match self.operator:
            case "In":
                return labels.get(self.key) in self.values
            case "NotIn":
                return labels.get(self.key) not in self.values
            case "Exists":
                return self.key in labels
            case _:
                return self.key not in labels

    def __str__(self) -> str:
        """Render as ``kubectl --selector`` takes it: ``tier in (a,b)``, ``!canary``."""
        match self.operator:
            case "In" if len(self.values) == 1:
                return f"{self.key}={self.values[0]}"
            case "In" | "NotIn":
                return f"{self.key} {self.operator.lower()} ({','.join(self.values)})"
            case "Exists":
                return self.key
            case _:
                return f"!{self.key}"


@dataclass(frozen=True, slots=True)
class PeerSelector:
    """Workloads of this machine as peers: by their labels, their namespace's name and its labels.

    ``namespaces`` None: those of every namespace. Of a namespace's labels only :data:`NAMESPACE_NAME_LABEL` is known
    here; a requirement on another is met by no namespace, whatever it asks, since rules that select peers allow.
    """

    labels: tuple[LabelRequirement, ...] = ()
    namespaces: tuple[str, ...] | None = None
    namespace_labels: tuple[LabelRequirement, ...] = ()

    def selects(self, labels: Mapping[str, str], namespace: str) -> bool:
        """Tell whether a workload is one of these peers. One whose namespace is not known is in ``default``."""
        return self.selects_namespace(namespace) and all(asked.holds(labels) for asked in self.labels)

    def selects_namespace(self, namespace: str) -> bool:
        """Tell whether workloads of a namespace are meant; one that is not known is ``default``."""
        namespace = namespace or DEFAULT_NAMESPACE
        of_namespace = {NAMESPACE_NAME_LABEL: namespace}
        return (self.namespaces is None or namespace in self.namespaces) and all(
            asked.key == NAMESPACE_NAME_LABEL and asked.holds(of_namespace) for asked in self.namespace_labels
        )

    def __str__(self) -> str:
        """Render in one line: ``app=web,!canary in namespaces shop``."""
        words = [",".join(map(str, self.labels)) or "any"]
        if self.namespaces is not None:
            words.append(f"in namespaces {','.join(self.namespaces) or 'none'}")
        if self.namespace_labels:
            words.append(f"in namespaces with {','.join(map(str, self.namespace_labels))}")
        return " ".join(words)


@dataclass(frozen=True, slots=True)
class PeerGroup:
    """Peers whose addresses are known at run time only; the agent keeps them in sets.

    ``value`` is what names the group: a domain name in lower case, which may have ``*`` for a part of a label
    (:func:`hauberk.policy.peers.name_matches`); an entity (``host``, ``world``); the text of ``selector``.
    """

    kind: Literal["name", "entity", "workloads"]
    value: str
    selector: PeerSelector | None = None

    @classmethod
    def of_workloads(cls, selector: PeerSelector) -> PeerGroup:
        """Give the group of the workloads that a selector selects."""
        return cls("workloads", str(selector), selector)

    def __str__(self) -> str:
        """Render as ``entity world``."""
        return f"{self.kind} {self.value}"


@dataclass(frozen=True, slots=True)
class PeerMatch:
    """Which packets a rule is about: those of a peer, of a kind and on an interface that it names.

    *Peers* are ``cidrs`` (networks in canonical text) without their ``exceptions``, and the members of ``groups``; with
    neither, any. A family of which there is no network is not meant. *Kinds* are ``ports``, ranges ``(first, last,
    protocol)`` of destination ports, from 0 to 65535 for all of a protocol, also of one without ports; and ``icmp``,
    ``(4 or 6, type or None for any)``; with neither, everything. ``interfaces`` are names (empty: any). ``quota`` is
    ``(bytes, seconds, "pod" or "policy")``: the rule narrows to what stays within so many bytes in so many seconds.
    ``nothing``: no packet at all, as a policy that isolates and allows nothing says. Raises ValueError for exceptions
    without networks, which would be read in two ways.
    """

    cidrs: tuple[str, ...] = ()
    interfaces: tuple[str, ...] = ()
    ports: tuple[tuple[int, int, str], ...] = ()
    quota: tuple[int, int, str] | None = None
    exceptions: tuple[str, ...] = ()
    icmp: tuple[tuple[int, int | None], ...] = ()
    groups: tuple[PeerGroup, ...] = ()
    nothing: bool = False

    def __post_init__(self) -> None:
        """Refuse exceptions from nothing."""
        if self.exceptions and not self.cidrs:
            message = f"found the exceptions {', '.join(self.exceptions)} and no networks, expected networks too"
            raise ValueError(message)


@dataclass(frozen=True, slots=True)
class SyscallMatch:
    """Which system calls a rule is about.

    ``path`` limits it to calls about this path, with ``recursive`` to what is below it; ``source_directories`` are
    ``(directory with a slash at its end, recursive)`` and add to the rule's ``sources``.
    """

    names: tuple[str, ...]
    path: str | None = None
    recursive: bool = False
    source_directories: tuple[tuple[str, bool], ...] = ()


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a packet: its address and the destination port.

    ``protocol`` is "tcp", "udp", "sctp", "icmp", "icmpv6" or another's name; ``port`` and ``icmp_type`` are None for
    what has none, ``interface`` is "" for one that no rule names. ``names`` are the domain names it was found by,
    ``entities`` what it is to this machine, ``labels`` (None: it is no workload of this machine) and ``namespace``
    those of the workload. ``source_port`` tells of packets that policies are not about.
    """

    address: str
    protocol: str = ""
    port: int | None = None
    interface: str = ""
    icmp_type: int | None = None
    names: tuple[str, ...] = ()
    entities: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] | None = None
    namespace: str = ""
    source_port: int | None = None


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What is known of an access beside who does what to what; None: not known.

    ``arguments`` are those of a program behind its own name, ``terminal`` is whether there is a controlling terminal,
    ``beyond_quota`` whether more was sent or received than rules with a quota allow. ``peer`` belongs to packets, as do
    the ``exemptions`` that hold where they are seen (None: those that hold everywhere).
    """

    arguments: tuple[str, ...] | None = None
    terminal: bool | None = None
    beyond_quota: bool | None = None
    peer: Peer | None = None
    exemptions: tuple[Exemption, ...] | None = None


NOTHING_KNOWN = Circumstances()


@dataclass(frozen=True, slots=True)
class Rule:
    """One matcher with an action.

    ``value`` is an absolute path without trailing slash (PATH), with one (DIRECTORY); for what is not a file, the
    canonical text for people, and ``match`` has the parts where there are several. ``default_deny`` is whether the rule
    makes its section an allow-list; None: as an Allow rule does.
    """

    section: Section
    kind: ObjectKind
    value: str
    action: Action
    origin: Origin
    recursive: bool = False
    read_only: bool = False
    owner_only: bool = False
    sources: tuple[str, ...] = ()  # executables the rule is limited to; empty: any
    severity: int = 0
    tags: tuple[str, ...] = ()
    message: str = ""
    operations: tuple[Operation, ...] = ()  # empty: those of the section
    implied: bool = False
    allowed_arguments: tuple[str, ...] = ()  # of a program; empty: any
    terminal: bool | None = None  # False: only where there is no controlling terminal; None: both
    match: DeviceMatch | PeerMatch | SyscallMatch | None = None
    default_deny: bool | None = None

    def effect(self, operation: Operation, *, owner: bool, known: Circumstances | None = None) -> Verdict | None:
        """Give what the rule says about an operation on an object it matches; None when it says nothing."""
        if operation not in (self.operations or OPERATIONS_OF[self.section]):
            return None
        known = known or NOTHING_KNOWN
        if self._beyond(operation, owner=owner, known=known):
            return Verdict.AUDIT if self.action is Action.AUDIT else Verdict.DENY
        if self.section is Section.SYSCALLS:
            return Verdict.AUDIT
        if self.action is not Action.ALLOW and self.conditional:
            return None
        return {Action.ALLOW: Verdict.ALLOW, Action.AUDIT: Verdict.AUDIT, Action.BLOCK: Verdict.DENY}[self.action]

    @property
    def quota(self) -> tuple[int, int, str] | None:
        """The rule's quota: bytes, seconds, level."""
        return self.match.quota if isinstance(self.match, PeerMatch) else None

    @property
    def conditional(self) -> bool:
        """Whether the rule is narrowed by a condition on whoever acts, on what is done or on how much."""
        return (
            self.owner_only
            or self.read_only
            or self.terminal is False
            or bool(self.allowed_arguments)
            or self.quota is not None
        )

    @property
    def source_directories(self) -> tuple[tuple[str, bool], ...]:
        """Directories of executables that the rule is limited to, beside ``sources``."""
        return self.match.source_directories if isinstance(self.match, SyscallMatch) else ()

    @property
    def sourced(self) -> bool:
        """Whether the rule is limited to some executables."""
        return bool(self.sources or self.source_directories)

    def covers_source(self, source: str | None) -> bool:
        """Whether the rule is about what this executable does; None is one that no rule names."""
        if not self.sourced or source in self.sources:
            return True
        return source is not None and any(
            source.startswith(directory) and (recursive or "/" not in source[len(directory) :])
            for directory, recursive in self.source_directories
        )

    def _beyond(self, operation: Operation, *, owner: bool, known: Circumstances) -> bool:
        """Whether the access is on the far side of one of the rule's conditions."""
        return (
            (self.owner_only and not owner)
            or (self.read_only and operation is Operation.WRITE)
            or (self.terminal is False and known.terminal is not False)
            or (bool(self.allowed_arguments) and not self._permits_arguments(operation, known.arguments))
            or (self.quota is not None and known.beyond_quota is not False)
        )

    def _permits_arguments(self, operation: Operation, arguments: tuple[str, ...] | None) -> bool:
        """Whether a program is started with one argument at least, and with none but those listed.

        The program's own name (``argv[0]``) is not among ``arguments``. Who maps a program passes it what it likes.
        """
        return (
            operation is Operation.EXECUTE
            and bool(arguments)
            and all(argument in self.allowed_arguments for argument in arguments or ())
        )

    def literal_prefix(self) -> int:
        """Length in bytes of the part before the first wildcard: how specific a directory or pattern is."""
        if self.kind is not ObjectKind.PATTERN:
            return len(self.value.encode("utf-8", "surrogateescape"))
        literal: list[str] = []
        characters = iter(self.value)
        for character in characters:
            if character in "*?[{":
                break
            literal.append(next(characters, "") if character == "\\" else character)
        return len("".join(literal).encode("utf-8", "surrogateescape"))

    @property
    def makes_allow_list(self) -> bool:
        """Whether what no rule of its section matches gets the posture because of this rule."""
        isolates = self.action is Action.ALLOW if self.default_deny is None else self.default_deny
        return isolates and not self.implied and self.section not in NEVER_ALLOW_LISTS

    def specificity(self) -> tuple[int, ...]:  # noqa: PLR0911 - one key a section
        """Ordering key: larger decides. See the module's invariants."""
        match self.section:
            case Section.PROCESS | Section.FILE:
                prefix = 0 if self.kind is ObjectKind.EXECNAME else self.literal_prefix()
                return (int(self.sourced), _PATH_RANKS.get(self.kind, 0), prefix)
            case Section.NETWORK:
                return (int(self.sourced), SOCKET_RANKS.get(self.value, PROTOCOL_RANK))
            case Section.DNS:
                return (int(self.sourced), self.value.count(".") + 1)
            case Section.SYSCALLS:
                return (int(self.sourced), int(isinstance(self.match, SyscallMatch) and self.match.path is not None))
            case Section.DEVICE if isinstance(self.match, DeviceMatch):
                said = [
                    int(part is not None)
                    for part in (self.match.device_class, self.match.subclass, self.match.protocol, self.match.level)
                ]
                return (said[0] + said[3], said[1], said[2], said[0])
            case Section.INGRESS | Section.EGRESS:
                return ()
            case _:
                return (int(self.sourced),)


_PATH_RANKS = {ObjectKind.PATH: 3, ObjectKind.EXECNAME: 2, ObjectKind.DIRECTORY: 1, ObjectKind.PATTERN: 1}
PROTOCOL_RANK = 2
SOCKET_RANKS = {"all": 0} | dict.fromkeys(("raw", "stream", "dgram", "rdm", "seqpacket", "dccp", "packet"), 1)
"""How exactly the words of ``matchProtocols`` name a socket: all, a type, and else a protocol."""


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All rules of one workload.

    ``posture`` is the verdict on what an allow-list leaves unmatched; ``postures`` has other ones for single sections.
    """

    rules: tuple[Rule, ...]
    posture: Verdict = Verdict.DENY
    postures: tuple[tuple[Section, Verdict], ...] = ()

    def posture_of(self, section: Section) -> Verdict:
        """Give the verdict on what an allow-list of this section leaves unmatched.

        A section without a posture of its own follows another: names and packets the network, processes the files. A
        list of packets that only Audit rules make is reported where it would be refused.
        """
        postures = dict(self.postures)
        posture = postures.get(section, postures.get(_FOLLOWS.get(section, section), self.posture))
        if posture is Verdict.DENY and section in PACKET_SECTIONS:
            makers = {rule.action for rule in self.rules if rule.section is section and rule.makes_allow_list}
            return Verdict.AUDIT if makers == {Action.AUDIT} else posture
        return posture

    def is_allow_list(self, section: Section) -> bool:
        """Whether unmatched accesses of this section get the posture."""
        return any(rule.section is section and rule.makes_allow_list for rule in self.rules)

    def privileged_sources(self) -> frozenset[str]:
        """Give the executables to which some rule grants what others may not do: their identity is worth stealing."""
        return _privileged(self.rules)


NEVER_ALLOW_LISTS = frozenset({Section.SYSCALLS, Section.PRESETS, Section.APPARMOR})
"""Sections in which nothing can be allowed: what no rule matches passes."""
PACKET_SECTIONS = frozenset({Section.INGRESS, Section.EGRESS})
"""The sections whose rules are about packets."""
_FOLLOWS = {
    Section.PROCESS: Section.FILE,
    Section.DNS: Section.NETWORK,
    Section.INGRESS: Section.NETWORK,
    Section.EGRESS: Section.NETWORK,
}


GRANTING_SECTIONS = PATH_SECTIONS
"""Sections in which a source can have rights of its own: those that an engine holds.

A right that nobody else is refused is no right, and what implied rules take away in its name would be lost for nothing.
"""


def _privileged(rules: Iterable[Rule]) -> frozenset[str]:
    """Give the sources of Allow rules, and of Audit rules, which let pass too, where their section can refuse."""
    written = [rule for rule in rules if not rule.implied and rule.section in GRANTING_SECTIONS]
    refusing = {rule.section for rule in written if rule.action is not Action.AUDIT}
    return frozenset(
        source
        for rule in written
        if rule.action is Action.ALLOW or (rule.action is Action.AUDIT and rule.section in refusing)
        for source in rule.sources
    )


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict and why: the deciding rule (None: a default) and the rules that lost, most specific first."""

    verdict: Verdict
    rule: Rule | None
    reason: str
    lost: tuple[tuple[Rule, str], ...] = ()


def decide(  # noqa: PLR0913 - who does what, to what, and what else is known of it
    rule_set: RuleSet,
    matching: Iterable[Rule],
    operation: Operation,
    *,
    source: str | None,
    owner: bool,
    known: Circumstances | None = None,
) -> Decision:
    """Decide an operation on an object, given the rules whose object matches it.

    ``source`` is the resolved path of the acting executable (for EXECUTE the one that calls exec), ``owner`` whether
    the acting fsuid owns the object, ``known`` what else is known (by default nothing). Rules whose sources do not
    contain the source are taken as not matching.
    """
    section = SECTION_OF[operation]
    known = known or NOTHING_KNOWN
    exempt = _exempt(section, known)
    if exempt is not None:
        return exempt
    applicable: list[tuple[tuple[int, ...], Rule, Verdict]] = []
    lost: list[tuple[Rule, str]] = []
    matching = tuple(matching)
    for rule in matching:
        if rule.section is not section:
            continue
        if not rule.covers_source(source):
            directories = (directory for directory, _ in rule.source_directories)
            lost.append((rule, f"limited to source {', '.join((*rule.sources, *directories))}"))
            continue
        effect = rule.effect(operation, owner=owner, known=known)
        if effect is None:
            lost.append((rule, f"says nothing about {_side(rule, operation)}"))
            continue
        applicable.append(((*rule.specificity(), int(effect)), rule, effect))
    if len(applicable) > 1:
        applicable.sort(key=lambda entry: (_negative(entry[0]), _place(entry[1])))
    if applicable:
        key, winner, verdict = applicable[0]
        losers = (*((rule, _why_weaker(section, key, other)) for other, rule, _ in applicable[1:]), *lost)
        decision = Decision(verdict, winner, "rule", losers)
    elif rule_set.is_allow_list(section):
        reason = f"no {section.value} rule matches and the section is an allow-list"
        decision = Decision(rule_set.posture_of(section), None, reason, tuple(lost))
    else:
        reason = f"no {section.value} rule matches and the section is a deny list"
        decision = Decision(Verdict.ALLOW, None, reason, tuple(lost))
    if operation is Operation.MAP and decision.verdict is not Verdict.DENY:
        return _map_by_privileged(rule_set, matching, source, decision)
    return decision


def _exempt(section: Section, known: Circumstances) -> Decision | None:
    """Let pass packets that no policy is about."""
    if known.peer is None or section not in PACKET_SECTIONS:
        return None
    from hauberk.policy import exemptions  # noqa: PLC0415 - few questions are about packets

    exemption = exemptions.exempting(known.peer, section, known.exemptions)
    return None if exemption is None else Decision(Verdict.ALLOW, None, exemption.reason)


def _map_by_privileged(
    rule_set: RuleSet, matching: tuple[Rule, ...], source: str | None, decision: Decision
) -> Decision:
    """Restrict what a source with rights of its own maps.

    What is mapped becomes that source, so the workload must not have made it, with a terminal or without. A rule that
    names the source is the author's own word that it may.
    """
    if source not in rule_set.privileged_sources() or (decision.rule is not None and decision.rule.sources):
        return decision
    terminals = (False, True) if any(rule.terminal is not None for rule in matching) else (False,)
    writing = (
        decide(rule_set, matching, Operation.WRITE, source=None, owner=True, known=Circumstances(terminal=terminal))
        for terminal in terminals
    )
    if all(decided.verdict is Verdict.DENY for decided in writing):
        return decision
    lost = decision.lost if decision.rule is None else ((decision.rule, "does not name the source"), *decision.lost)
    reason = "a source with rights of its own maps only what the workload cannot write, or what a rule for it allows"
    return Decision(Verdict.DENY, None, reason, lost)


def _side(rule: Rule, operation: Operation) -> str:
    """Say which side of a rule's conditions it leaves to other rules."""
    sides = (
        (rule.owner_only, "by the owner"),
        (rule.terminal is False, "without a terminal"),
        (bool(rule.allowed_arguments), "with the listed arguments"),
        (rule.quota is not None, "within the quota"),
    )
    return " ".join((operation.value, *(words for holds, words in sides if holds)))


def _negative(key: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(-part for part in key)


def _place(rule: Rule) -> tuple[str, str, int, int, str]:
    origin = rule.origin
    return (origin.policy, origin.file, origin.line, origin.column, origin.field)


_BY_SOURCE = "not limited to the source, unlike the deciding rule"
_STEPS: dict[Section, tuple[str, ...]] = {
    Section.PROCESS: (_BY_SOURCE, "names the object less exactly", "has the shorter literal prefix"),
    Section.FILE: (_BY_SOURCE, "names the object less exactly", "has the shorter literal prefix"),
    Section.NETWORK: (_BY_SOURCE, "names the kind of socket less exactly"),
    Section.DNS: (_BY_SOURCE, "names a wider domain"),
    Section.SYSCALLS: (_BY_SOURCE, "not limited to a path, unlike the deciding rule"),
    Section.DEVICE: (
        "says less about class and level",
        "names no subclass, unlike the deciding rule",
        "names no protocol, unlike the deciding rule",
        "names a level and no class",
    ),
    **dict.fromkeys(PACKET_SECTIONS, ()),
}


def _why_weaker(section: Section, winner: tuple[int, ...], loser: tuple[int, ...]) -> str:
    """Say at which step of the order of precedence a rule lost."""
    last = "is the weaker action" if section in PACKET_SECTIONS else "is the weaker action for the same object"
    reasons = (*_STEPS.get(section, (_BY_SOURCE,)), last)
    return next(
        (reason for reason, theirs, mine in zip(reasons, winner, loser, strict=True) if theirs != mine),
        "says the same",
    )


def join(
    written: Iterable[Rule], posture: Verdict = Verdict.DENY, postures: tuple[tuple[Section, Verdict], ...] = ()
) -> RuleSet:
    """Give the rule set of these rules and of what Hauberk implies by them."""
    alone = RuleSet(tuple(written), posture, postures)
    implied = implied_rules(alone.rules, alone.posture_of(Section.PROCESS))
    return RuleSet((*alone.rules, *implied), posture, postures)


LIBRARY_DIRECTORIES = (
    "/lib",
    "/lib32",
    "/lib64",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/local/lib",
    "/usr/local/lib64",
)


def implied_rules(rules: Iterable[Rule], posture: Verdict = Verdict.DENY) -> tuple[Rule, ...]:
    """Give the rules that follow from the author's.

    * Shared objects in the system's library directories may be mapped executable, unless a rule says otherwise: an
      allow-list of programs lists programs, not libraries.
    * Where there is an allow-list of programs (and ``posture`` refuses the rest), those shared objects may not be
      changed: else what is not on the list runs as a library of what is.
    * If some source is granted rights of its own, its executable and the library directories are read-only: who can
      replace them can act as that source.

    An author's rule that is more specific prevails, as everywhere.
    """
    rules = tuple(rules)
    libraries = [f"{directory}/**.so{suffix}" for directory in LIBRARY_DIRECTORIES for suffix in ("", ".*")]
    implied = [
        _implied(
            Section.PROCESS,
            ObjectKind.PATTERN,
            library,
            Action.ALLOW,
            "shared libraries may be mapped",
            (Operation.MAP,),
        )
        for library in libraries
    ]
    privileged = sorted(_privileged(rules))
    if privileged:
        message = "what a source with rights of its own is made of may not be changed"
        implied += [
            _implied(Section.FILE, ObjectKind.DIRECTORY, f"{directory}/", Action.BLOCK, message)
            for directory in LIBRARY_DIRECTORIES
        ]
        implied += [_implied(Section.FILE, ObjectKind.PATH, source, Action.BLOCK, message) for source in privileged]
    elif posture is Verdict.DENY and RuleSet(rules).is_allow_list(Section.PROCESS):
        message = "what an allow-list of programs may map may not be changed"
        implied += [_implied(Section.FILE, ObjectKind.PATTERN, library, Action.BLOCK, message) for library in libraries]
    return tuple(implied)


def _implied(  # noqa: PLR0913, PLR0917 - the parts of a rule
    section: Section,
    kind: ObjectKind,
    value: str,
    action: Action,
    message: str,
    operations: tuple[Operation, ...] = (),
) -> Rule:
    """Make an implied rule; Block means "read only" here, for directories with all that is below."""
    return Rule(
        section=section,
        kind=kind,
        value=value,
        action=action,
        origin=Origin(policy="(implied)", field=""),
        recursive=kind is ObjectKind.DIRECTORY,
        read_only=action is Action.BLOCK,
        message=message,
        operations=operations,
        implied=True,
    )

# SPDX-License-Identifier: Apache-2.0
"""What is desired of a network namespace -> the ruleset that holds it.

The shape follows from two facts. A packet may have to pass several judges, say the machine's rules and those of the
cgroup its socket is in, and while rules change each of them twice; and in nftables a chain that another one jumped to
cannot say "this passes, ask the next judge". But the kernel asks *every* chain of a hook: so each judge has a hook
chain of its own, ``accept`` ends that chain alone, and ``drop`` ends it all. Every decision then stands wherever it is
found, however deep. (Chains that go on from one another would do too, but on loading, kernels check every path.)

A hook chain: established and related flows pass (where a quota counts, through its chains), loopback passes, then the
packet goes to the chain of its endpoint: directly, by the cgroup of its socket, or by the interface. There: what
conntrack calls invalid is dropped; what no policy is about passes; quotas count; then Block, Audit, Allow, default.

What one quota refuses no longer counts for the others; otherwise all that are about a packet count it, each once: its
look-ups stand in a chain that is left by the first of them that finds the packet.

Ports are looked up only where the packet's transport has some. A packet whose ports cannot be read (conntrack puts
fragments together, and calls invalid what is cut short) matches only what is about every port; it is never allowed by
a rule that names one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from guest_agent.engines.network_port import HOST_ENDPOINT, MAXIMUM_LEVEL, Cgroup, Endpoint, Interface, Whole
from guest_agent.engines.nftables import expressions, protocols, ranges
from guest_agent.engines.nftables.analysis import Analysis, analyse
from guest_agent.engines.nftables.expressions import ACCEPT, DROP, ESTABLISHED, INTERFACE, INVALID
from guest_agent.engines.nftables.matching import located, product
from guest_agent.engines.nftables.revising import revise
from guest_agent.engines.nftables.ruleset import ANSWER_PREFIX, LogMark, Ruleset, Set, difference
from guest_agent.engines.nftables.steps import PlanError, Sets, short
from guest_agent.engines.nftables.writing import Writer
from hauberk.collecting import suspended_collection
from hauberk.policy import exemptions
from hauberk.policy.rules import Section, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from guest_agent.engines.network_port import Desired, GroupMembers
    from guest_agent.engines.nftables.analysis import Limit
    from guest_agent.engines.nftables.matching import Alternative
    from guest_agent.engines.nftables.ranges import Range
    from guest_agent.engines.nftables.ruleset import Expression, FieldType, Hook, Key, Reason
    from guest_agent.engines.nftables.ruleset import Verdict as Outcome
    from guest_agent.engines.nftables.steps import Dynamic
    from hauberk.policy.exemptions import Exemption
    from hauberk.policy.rules import PeerGroup, RuleSet

__all__ = ["PlanError", "difference", "plan"]

ANSWER_RATE: Final = 1000
"""Answers of resolvers that are looked at in a second; a flood of them must not drown the agent."""
ANSWER_BYTES: Final = 4096 + 64
"""What is copied of an answer: the largest that EDNS has in use, and headers."""
_NAME_PORT: Final = 53
_HOP_LIMIT: Final = expressions.payload("ip6", "hoplimit")
_SOURCE_PORT: Final = expressions.payload("th", "sport")
_LETTER: Final = {Section.INGRESS: "i", Section.EGRESS: "o"}
_OTHER: Final = {Section.INGRESS: Section.EGRESS, Section.EGRESS: Section.INGRESS}
_HOOK: Final[Mapping[Section, Hook]] = {Section.INGRESS: "input", Section.EGRESS: "output"}
_LOOPBACK_OUT: Final = "lo.o"
_LOOPBACK: Final = (("ip", "127.0.0.0", 8), ("ip6", "::1", 128))
_FAMILY: Final[Mapping[int, tuple[FieldType, str]]] = {4: ("ipv4_addr", "ip"), 6: ("ipv6_addr", "ip6")}


def plan(desired: Desired, previous: Ruleset | None = None) -> Ruleset:
    """Give the ruleset that holds what is desired.

    ``previous`` only saves time: what it found out about rule sets that are still desired is taken over. The result
    does not depend on it. Raises PlanError, whose message names the rule or the limit.
    """
    with suspended_collection():  # planning makes no cycles, but a hundred thousand keys
        return _Planner(desired, previous or Ruleset()).ruleset()


@dataclass(frozen=True, slots=True)
class _Place:
    """Where packets that are known in one way come by: the hooks, and what leads from a packet to its endpoint.

    ``token`` begins the names of the chains; ``loopback`` is the key of meta by which loopback shows; ``key`` is that
    of the map, None where every packet is the endpoint's.
    """

    token: str
    section: Section
    hooks: tuple[Hook, ...]
    loopback: str | None = None
    key: str | None = None
    level: int = 0


def _place(endpoint: Endpoint, number: int, section: Section) -> tuple[_Place, Range]:
    """Give where an endpoint's packets of a direction come by, and the endpoint's key there."""
    suffix = f".{number}{_LETTER[section]}"
    match endpoint.attachment:
        case Cgroup(identifier, level):
            if not 0 < level <= MAXIMUM_LEVEL:
                message = f"found a cgroup {level} directories below the root, expected 1 to {MAXIMUM_LEVEL}; move it"
                raise PlanError(message)
            place = _Place(f"c{level}{suffix}", section, (_HOOK[section],), INTERFACE[section], "socket", level)
            return place, (identifier, identifier)
        case Interface(text):
            # From outside, the workload's ingress is what goes out to it.
            outside = _OTHER[section]
            return _Place(f"v{suffix}", section, (_HOOK[outside], "forward"), None, INTERFACE[outside]), (
                ranges.interface(text)
            )
        case Whole():
            hooks: tuple[Hook, ...] = (_HOOK[section],)
            if endpoint.identifier != HOST_ENDPOINT:
                hooks = (*hooks, "forward")  # what a workload's namespace forwards is the workload's doing
            return _Place(f"h{endpoint.identifier:x}{suffix}", section, hooks, INTERFACE[section]), (0, 0)


@dataclass(frozen=True, slots=True)
class _Judge:
    """The chains of an endpoint for one direction and rule set: for new flows, and for established ones."""

    chain: str
    established: str | None


class _Planner:
    """One run. See :func:`plan`."""

    def __init__(self, desired: Desired, previous: Ruleset) -> None:
        self._desired = desired
        self._writer = Writer(desired.settings, previous.sets)
        self._known = previous.analyses
        self._analyses: dict[str, Analysis] = {}
        self._owners: dict[int, str] = {}
        self._exempt = Sets("x")
        self._counted: dict[tuple[str, Section], set[str]] = {}
        self._judges: dict[str, _Judge] = {}

    def ruleset(self) -> Ruleset:
        """Make everything, in the order of the endpoints' numbers."""
        places: dict[_Place, dict[Range, _Judge]] = {}
        endpoints = sorted(self._desired.endpoints, key=_order)
        for endpoint in endpoints:
            for number, rule_set in enumerate(endpoint.rule_sets):
                for section in (Section.INGRESS, Section.EGRESS):
                    analysis = self._analysis(rule_set, section, f"s{_known_by(endpoint)}.{number}")
                    if analysis.says_nothing:
                        continue
                    place, key = _place(endpoint, number, section)
                    if key in places.setdefault(place, {}):
                        message = f"found two endpoints with {endpoint.attachment}, expected one; a defect of the agent"
                        raise PlanError(message)
                    places[place][key] = self._judge(endpoint, number, section, analysis)
        for place, judges in places.items():
            self._hooked(place, judges)
        if any(place.key == "socket" and place.section is Section.INGRESS for place in places):
            self._unattributed()
        if any(group.kind == "name" for analysis in self._analyses.values() for group in analysis.groups):
            self._answers(endpoints)
        for analysis in self._analyses.values():
            self._take(analysis.sets)
        self._take(self._exempt)
        writer = self._writer
        sets = {one: writer.sets[one] for one in sorted(writer.sets)}
        return Ruleset(tuple(writer.chains.values()), tuple(writer.rules), sets, writer.quotas, self._analyses)

    def _analysis(self, rule_set: RuleSet, section: Section, owner: str) -> Analysis:
        """Give what a rule set says of a direction, from the previous plan where that was asked there.

        The first endpoint that has the rule set gives its name to the sets, which all of them share.
        """
        owner = self._owners.setdefault(id(rule_set), owner) + _LETTER[section]
        if owner not in self._analyses:
            self._analyses[owner] = self._known_of(rule_set, section, owner) or analyse(
                rule_set, section, owner, self._desired.groups
            )
        if self._analyses[owner].rule_set is not rule_set:
            message = f"found two rule sets for {owner!r}, expected one for each endpoint; a defect of the agent"
            raise PlanError(message)
        return self._analyses[owner]

    def _known_of(self, rule_set: RuleSet, section: Section, owner: str) -> Analysis | None:
        """Give what the previous plan knew of a rule set, or can tell from what it knew of the one in its place."""
        held = self._known.get(owner)
        if not isinstance(held, Analysis) or held.resolved != held.groups.intersection(self._desired.groups):
            return None
        return held if held.rule_set is rule_set else revise(held, rule_set, section)

    def _take(self, sets: Sets) -> None:
        """Take over the sets of look-ups, those of groups with the members they have now."""
        for one in sets.known.values():
            self._writer.put(one)
        for dynamic in sets.dynamic.values():
            found = _members(dynamic, self._desired.groups)
            timeouts = {key: seconds for key, seconds in found.items() if seconds is not None}
            fields = (_FAMILY[dynamic.family][0],)
            elements: dict[Key, Outcome | None] = dict.fromkeys(found)
            self._writer.put(
                Set(dynamic.name, fields, interval=True, timeout=True, elements=elements, timeouts=timeouts)
            )

    # What packets come by first.

    def _hooked(self, place: _Place, judges: Mapping[Range, _Judge]) -> None:
        """Make the hook chains of a place."""
        writer = self._writer
        counting = {key: judge.established for key, judge in judges.items() if judge.established is not None}
        for hook in place.hooks:
            chain = writer.chain(f"{place.token}.{hook}", hook)
            if not counting:  # the fast way: most packets end here
                self._pass_judged(place, chain, ACCEPT)
            if place.loopback and hook != "forward":
                self._pass_loopback(chain, place.loopback)
            if counting:
                self._pass_judged(place, chain, ("goto", f"{place.token}.e"))
            self._lead(place, chain, place.token, {key: ("goto", judge.chain) for key, judge in judges.items()})
        if counting:
            chain = writer.chain(f"{place.token}.e")
            self._lead(place, chain, chain, {key: ("jump", one) for key, one in counting.items()})
            writer.verdict(chain, ACCEPT)

    def _pass_judged(self, place: _Place, chain: str, verdict: Outcome) -> None:
        """Send what belongs to a flow that was let pass another way than what begins one.

        Where sockets of several workloads share a namespace, only a connection of TCP stays with the socket that was
        judged: a port of UDP that one workload leaves, another can take, with the flows that are remembered of it. So
        there each packet is judged that does not answer one.
        """
        writer = self._writer
        if place.key != "socket":
            writer.rule(chain, ESTABLISHED, expressions.statement(verdict))
            return
        tcp = expressions.equals(expressions.meta("l4proto"), protocols.number("tcp"))
        for guard in (tcp, expressions.REPLY):
            writer.rule(chain, guard, expressions.JUDGED, expressions.statement(verdict))
        writer.rule(chain, expressions.RELATED, expressions.statement(verdict))

    def _pass_loopback(self, chain: str, key: str) -> None:
        """Let pass what stays within the namespace.

        Where packets go out, the kernel says by which interface they were to go before their destination was
        translated: so what was sent to an address of the machine's own may be on its way to another machine.
        """
        writer = self._writer
        found = expressions.equals(expressions.meta(key), "lo")
        if key != INTERFACE[Section.EGRESS]:
            writer.rule(chain, found, expressions.statement(ACCEPT))
            return
        if _LOOPBACK_OUT not in writer.chains:
            out = writer.chain(_LOOPBACK_OUT)
            writer.rule(out, expressions.UNTRANSLATED, expressions.statement(ACCEPT))
            for protocol, network, length in _LOOPBACK:
                address = expressions.payload(protocol, "daddr")
                writer.rule(out, expressions.within(address, network, length), expressions.statement(ACCEPT))
        writer.rule(chain, found, expressions.statement(("jump", _LOOPBACK_OUT)))

    def _lead(self, place: _Place, chain: str, map_name: str, verdicts: Mapping[Range, Outcome]) -> None:
        """Lead from a chain to those of the endpoints."""
        if place.key is None:
            for verdict in verdicts.values():
                self._writer.verdict(chain, verdict)
            return
        key: Expression = expressions.meta(place.key)
        field: FieldType = "ifname"
        if place.key == "socket":
            key, field = {"socket": {"key": "cgroupv2", "level": place.level}}, "cgroupsv2"
        self._writer.map(map_name, (field,), {(one,): verdict for one, verdict in verdicts.items()}, interval=False)
        self._writer.rule(chain, {"vmap": {"key": key, "data": f"@{map_name}"}})

    def _unattributed(self) -> None:
        """Refuse what no socket, or only one of several, can be found for: another's cgroup may restrict what comes in.

        Those are some transports, and what UDP sends to many, which every socket of the port gets.
        """
        writer = self._writer
        if not writer.settings.drop_unknown_transport:
            return
        chain = writer.chain("unattributed.input", "input")
        keys: dict[Key, Outcome | None] = {((one, one),): None for one in protocols.SOCKETS_NOT_FOUND}
        writer.put(Set("unattributed", ("inet_proto",), elements=keys))
        told = expressions.statement(writer.told(LogMark(HOST_ENDPOINT, Section.INGRESS, "deny", "unattributed")))
        udp = expressions.equals(expressions.meta("l4proto"), protocols.number("udp"))
        self._pass_loopback(chain, INTERFACE[Section.INGRESS])
        for one in exemptions.CONFIGURATION:  # what a server of DHCP answers to everybody
            if one.direction is Section.INGRESS:
                ((port, _, _),) = one.match.ports
                sent = expressions.equals(_SOURCE_PORT, one.source_port)
                asked = expressions.equals(expressions.payload("th", "dport"), port)
                writer.rule(chain, udp, sent, asked, expressions.statement(ACCEPT))
        for kind in expressions.MANY:
            writer.rule(chain, udp, expressions.destination_is(kind), told)
        writer.rule(chain, ESTABLISHED, expressions.statement(ACCEPT))
        writer.rule(chain, expressions.equals(expressions.meta("l4proto"), "@unattributed"), told)

    def _answers(self, endpoints: Iterable[Endpoint]) -> None:
        """Copy resolvers' answers to the agent, since rules name peers."""
        writer = self._writer
        families: dict[int, list[Range]] = {4: [], 6: []}
        for resolver in writer.settings.resolvers:
            family, first, last = ranges.network(resolver)
            families[family].append((first, last))
        outside = any(isinstance(endpoint.attachment, Interface) for endpoint in endpoints)
        hooks: tuple[Hook, ...] = ("input", "forward") if outside else ("input",)
        log = {"prefix": ANSWER_PREFIX, "group": writer.settings.log_group, "snaplen": ANSWER_BYTES}
        for family, found in families.items():
            if not found:
                continue
            field, protocol = _FAMILY[family]
            keys: dict[Key, Outcome | None] = {(one,): None for one in ranges.merge(found)}
            writer.put(Set(f"r{family}", (field,), interval=True, elements=keys))
            for hook in hooks:
                writer.rule(
                    writer.chain(f"answers.{hook}", hook),
                    # On loopback a workload could answer itself.
                    *([expressions.differs(expressions.meta("iifname"), "lo")] if hook == "input" else []),
                    expressions.equals(expressions.payload(protocol, "saddr"), f"@r{family}"),
                    expressions.equals(expressions.payload("udp", "sport"), _NAME_PORT),
                    ESTABLISHED,
                    {"limit": {"rate": ANSWER_RATE, "burst": ANSWER_RATE, "per": "second"}},
                    {"log": log},
                )

    # What an endpoint's packets meet.

    def _judge(self, endpoint: Endpoint, number: int, section: Section, analysis: Analysis) -> _Judge:
        """Make the chains of an endpoint for a direction and a rule set, once for each way to know the endpoint."""
        if isinstance(endpoint.attachment, Interface) and analysis.outside is not None:
            what = "found names of interfaces, expected none: a workload's own cannot be seen from outside of it"
            raise located(analysis.outside, what)
        token = f"{_known_by(endpoint)}.{number}{_LETTER[section]}"
        if token not in self._judges:
            listed = self._writer.settings.management
            machine = endpoint.identifier == HOST_ENDPOINT
            whole = not isinstance(endpoint.attachment, Cgroup)
            exempt = exemptions.holding(whole=whole, machine=machine, listed=listed)
            # While rules change, old and new rule sets have the same quotas: each is counted by the first.
            counted = self._counted.setdefault((_known_by(endpoint), section), set())
            limits = [one for one in analysis.limits if one.quota(endpoint.identifier).name not in counted]
            counted.update(one.quota(endpoint.identifier).name for one in limits)
            for limit in analysis.limits:
                self._writer.limit(limit.quota(endpoint.identifier))
            maker = _Maker(self._writer, endpoint.identifier, section, token, self._exempt)
            self._judges[token] = maker.judge(analysis, limits, exempt)
        return self._judges[token]


@dataclass(frozen=True, slots=True)
class _Maker:
    """Makes the chains of one endpoint, direction and rule set. ``token`` begins their names."""

    writer: Writer
    endpoint: int
    section: Section
    token: str
    exempt: Sets

    def judge(self, analysis: Analysis, limits: Sequence[Limit], exempt: tuple[Exemption, ...]) -> _Judge:
        """Make the chains. ``limits`` are those of the analysis that are counted here."""
        writer, chain = self.writer, self.writer.chain(self.token)
        reporting = [limit for limit in limits if limit.reports]
        counting = [
            *(self._refusal(number, limit) for number, limit in enumerate(limits) if not limit.reports),
            *(reports := [self._report(number, limit) for number, limit in enumerate(reporting)]),
        ]
        refusing = counting[: len(limits) - len(reporting)]
        writer.rule(chain, INVALID, expressions.statement(DROP))
        self._exemptions(chain, exempt, replies=False)
        for entry in refusing:
            writer.verdict(chain, ("jump", entry))
        if analysis.block:
            writer.steps(analysis.block, self.section, chain, self.token, self._told("deny", "rule"))
        for number, limit in enumerate(reporting):
            self._passing(number, limit, reports[number + 1 :], chain)
        if analysis.audit:
            writer.steps(analysis.audit, self.section, chain, self.token, self._told("audit", "rule"))
        writer.steps(analysis.allow, self.section, chain, self.token, ACCEPT)
        if analysis.default is not Verdict.ALLOW:
            told = self._told("deny" if analysis.default is Verdict.DENY else "audit", "default")
            writer.verdict(chain, told)
        if not limits:
            return _Judge(chain, None)
        established = writer.chain(f"{self.token}.e")
        self._exemptions(established, exempt, replies=True)
        for entry in counting:
            writer.verdict(established, ("jump", entry))
        return _Judge(chain, established)

    def _told(self, verdict: Literal["audit", "deny"], reason: Reason) -> Outcome:
        return self.writer.told(LogMark(self.endpoint, self.section, verdict, reason))

    def _counted(self, limit: Limit, entry: str, beyond: Sequence[Expression]) -> str:
        """Make a chain that counts a packet for a quota if it is about it, and what is done beyond."""
        counter = self.writer.chain(f"{entry}.c")
        quota = limit.quota(self.endpoint).name
        self.writer.rule(counter, {"quota": quota}, *beyond)
        self.writer.alternatives(limit.alternatives, self.section, self.writer.chain(entry), ("goto", counter))
        return entry

    def _refusal(self, number: int, limit: Limit) -> str:
        """Give the chain that refuses what is beyond a quota."""
        beyond = expressions.statement(self._told("deny", "quota"))
        return self._counted(limit, f"{self.token}.q{number}", (beyond,))

    def _report(self, number: int, limit: Limit) -> str:
        """Give the chain that tells of what is beyond a quota, and lets others decide."""
        telling = self.writer.telling(LogMark(self.endpoint, self.section, "audit", "quota"))
        return self._counted(limit, f"{self.token}.r{number}", telling)

    def _passing(self, number: int, limit: Limit, others: Iterable[str], chain: str) -> None:
        """Let pass what is beyond a quota of an Audit rule and begins a flow, once the other quotas counted it, too."""
        beyond = self.writer.chain(f"{self.token}.p{number}.b")
        for other in others:
            self.writer.verdict(beyond, ("jump", other))
        self.writer.verdict(beyond, self._told("audit", "quota"))
        entry = self._counted(limit, f"{self.token}.p{number}", (expressions.statement(("goto", beyond)),))
        self.writer.verdict(chain, ("jump", entry))

    def _exemptions(self, chain: str, exempt: Iterable[Exemption], *, replies: bool) -> None:
        """Let pass what no policy is about; with ``replies``, also the other half of such flows."""
        for one in exempt:
            if one == exemptions.LOOPBACK:
                continue  # the hook chains see to it
            alternatives = product(one.match, (), self.exempt, f"e{short(one.match)}")
            if one.direction in {None, self.section}:
                guards = [] if one.hop_limit is None else [expressions.equals(_HOP_LIMIT, one.hop_limit)]
                if one.source_port is not None:
                    guards.append(expressions.equals(_SOURCE_PORT, one.source_port))
                self._pass(chain, alternatives, guards, reply=False)
            if (
                replies
                and one.match.ports
                and one.source_port is None
                and one.direction in {None, _OTHER[self.section]}
            ):
                self._pass(chain, alternatives, [expressions.REPLY], reply=True)

    def _pass(
        self, chain: str, alternatives: Iterable[Alternative], guards: Sequence[Expression], *, reply: bool
    ) -> None:
        for alternative in alternatives:
            matches = (part for step in alternative for part in expressions.lookup(step, self.section, reply=reply))
            self.writer.rule(chain, *matches, *guards, expressions.statement(ACCEPT))


def _known_by(endpoint: Endpoint) -> str:
    """Give an endpoint's number and how it is known, which begins the names of all that is its own."""
    kind = {Whole: "w", Cgroup: "g", Interface: "o"}[type(endpoint.attachment)]
    return f"{kind}{endpoint.identifier:x}"


def _order(endpoint: Endpoint) -> tuple[int, str, str]:
    return endpoint.identifier, type(endpoint.attachment).__name__, repr(endpoint.attachment)


def _members(dynamic: Dynamic, groups: Mapping[PeerGroup, GroupMembers]) -> dict[Key, int | None]:
    """Give the members of groups in one family as ranges that do not overlap, with the longest of their times."""
    lasting: list[Range] = []
    timed: dict[tuple[int, int, int], tuple[Range]] = {}
    for group in dynamic.groups:
        for text, seconds in groups.get(group, ()):
            family, first, last = ranges.network(text)
            if family != dynamic.family:
                continue
            if seconds is None:
                lasting.append((first, last))
            elif seconds > 0:
                timed[first, last, seconds] = ((first, last),)
    always = ranges.merge(lasting)
    found: dict[Key, int | None] = dict.fromkeys(((one,) for one in always), None)
    cut = ranges.atoms({item: ranges.subtract(where, always) for item, where in timed.items()})
    for one, items in cut:
        found[(one,)] = max(seconds for _, _, seconds in items)
    return found

# SPDX-License-Identifier: Apache-2.0
"""Which rules of the normal form an engine holds, why none holds the others, and what is held instead.

The language is wider than the engines. A rule that nothing enforces must not look like protection, so whoever puts
rules in force asks here first, rule by rule, and refuses or reports what is left; nobody may leave a rule out in
silence. The answer depends on the rule, on whom its policy covers and on which engines there are: ``bpf_lsm`` holds
rules about paths for containers, ``nftables`` those about packets, for containers and for the host. What else depends
on the machine (whether it knows the members of a group of peers) is for the agent to add.

A machine that goes on without such a rule may become stricter by that, never more open. Rules of a section that no
engine enforces have no effect. In a section that is enforced, a rule may have a condition that the kernel's program
cannot see (a program's arguments, its terminal): there :func:`in_force` gives the strictest reading. An Allow rule
then refuses what it names, and its section stays an allow-list; a Block rule refuses on both sides of its conditions;
an Audit rule, which lets pass what a wider rule may refuse, is left out.

Groups of peers are the like for packets. Their members are never known for certain to be all: the addresses of a name
are those that this machine was answered, the workloads those of this machine. So a group only ever adds to what an
Allow rule allows. A Block rule that names one refuses every peer instead, an Audit rule is held without it
(:func:`without`).

An engine that learns to hold more changes this module; a further section, also ``GRANTING_SECTIONS`` of the rules.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from hauberk.policy.documents import printable
from hauberk.policy.rules import PACKET_SECTIONS, PATH_SECTIONS, Action, PeerMatch, Section
from hauberk.policy.selectors import Scope

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from hauberk.policy.rules import Origin, PeerGroup, Rule

ENGINE: Final = "bpf_lsm"
"""The engine for rules about paths."""
NFTABLES: Final = "nftables"
"""The engine for rules about packets."""
EVERY_ENGINE: Final = frozenset({ENGINE, NFTABLES})

ENFORCED_SECTIONS: Final = PATH_SECTIONS
"""The sections whose rules ``bpf_lsm`` is given; ``nftables`` is given those in ``PACKET_SECTIONS``."""

BY_DEFAULT: Final = "no engine enforces any rule of these policies: on a machine the bundle's default decides"
"""What holds where no rule is :func:`enforced`."""

_INCOMPLETE: Final = {
    "name": "the addresses of a domain name are learned from answers and never known to be all",
    "workloads": "the workloads that a selector means are known on this machine alone",
}
"""Kinds of groups of which only an Allow rule may speak, and why."""
_SHOWN_CHARACTERS: Final = 80


@dataclass(frozen=True, slots=True)
class Unenforced:
    """A rule that no engine enforces as it is written, in words: what it says, why not, what happens instead."""

    origin: Origin
    rule: str
    reason: str
    instead: str

    def __str__(self) -> str:
        """Render as ``file:line:column: policy field: rule: reason; instead``."""
        return f"{self.place}: {self.rule}: {self.reason}; {self.instead}"

    @property
    def place(self) -> str:
        """Where the rule stands: ``file:line:column: policy field``."""
        origin = self.origin
        file = f"{origin.file}:{origin.line}:{origin.column}: " if origin.file else ""
        return f"{file}{origin.policy} {origin.field}"


def unenforced(rule: Rule, scope: Scope, engines: frozenset[str] = EVERY_ENGINE) -> str | None:
    """Say in one sentence why none of ``engines`` enforces a rule of a policy for ``scope``; None if one does."""
    engine = NFTABLES if rule.section in PACKET_SECTIONS else ENGINE
    absent = (
        f"the engine {engine}, which enforces {rule.section.value}, is not there" if engine not in engines else None
    )
    if rule.section in PACKET_SECTIONS:
        return absent or _of_packets(rule)
    if scope is not Scope.CONTAINER:
        return "no engine enforces policies for the host yet, only those for containers and those about packets"
    if rule.section not in ENFORCED_SECTIONS:
        sections = [section.value for section in Section if section in ENFORCED_SECTIONS | PACKET_SECTIONS]
        return f"no engine enforces the section {rule.section.value} yet, only {', '.join(sections)}"
    if absent is None and rule.allowed_arguments:
        return "no engine looks at a program's arguments (allowedArgs) yet"
    if absent is None and rule.terminal is False:
        return "no engine looks at whether there is a terminal (pts: false) yet"
    return absent


def enforced(rule: Rule, scope: Scope) -> bool:
    """Whether the rule's section is one that an engine enforces for ``scope``, even if not all that the rule says."""
    return rule.section in PACKET_SECTIONS or (scope is Scope.CONTAINER and rule.section in ENFORCED_SECTIONS)


def _of_packets(rule: Rule) -> str | None:
    if rule.action is Action.ALLOW or not isinstance(rule.match, PeerMatch):
        return None
    known = next((why for group in rule.match.groups if (why := _INCOMPLETE.get(group.kind))), None)
    if known is not None:
        return f"{known}, so only an Allow rule may name such peers"
    if "lo" in rule.match.interfaces:
        return "no network policy is about the loopback interface"
    return None


def report(rules: Iterable[Rule], scope: Scope, engines: frozenset[str] = EVERY_ENGINE) -> tuple[Unenforced, ...]:
    """Tell of every rule that is not enforced as it is written, in the order given."""
    return tuple(
        Unenforced(rule.origin, said(rule), reason, _instead(rule, scope, engines))
        for rule in rules
        if (reason := unenforced(rule, scope, engines)) is not None
    )


def in_force(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Give what ``bpf_lsm`` is to hold of rules of policies for containers: none grants more than is written."""
    return strictest(rule for rule in rules if rule.section in ENFORCED_SECTIONS)


def packets_in_force(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Give what ``nftables`` is to hold of rules, for containers or for the host: none grants more than is written.

    Entities are left to the agent, which knows what its configuration tells of them.
    """
    return tuple(_held_of_packets(rule) for rule in rules if rule.section in PACKET_SECTIONS)


def _held_of_packets(rule: Rule) -> Rule:
    if rule.action is Action.ALLOW or not isinstance(rule.match, PeerMatch):
        return rule
    return without(rule, [group for group in rule.match.groups if group.kind in _INCOMPLETE])


def without(rule: Rule, groups: Collection[PeerGroup]) -> Rule:
    """Give a rule about packets as it is to be held where the members of these groups of its are not known.

    A Block rule then refuses every peer; of an Allow or Audit rule the rest is left, be it no packet at all.
    """
    if not isinstance(rule.match, PeerMatch) or not any(group in groups for group in rule.match.groups):
        return rule
    if rule.action is Action.BLOCK:
        match = replace(rule.match, cidrs=(), exceptions=(), groups=())
        return replace(
            rule, match=match, message=rule.message or "not all it names can be known: every peer is refused"
        )
    known = tuple(group for group in rule.match.groups if group not in groups)
    nothing = rule.match.nothing or not (known or rule.match.cidrs)
    return replace(rule, match=replace(rule.match, groups=known, nothing=nothing))


def strictest(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Replace rules of enforced sections whose conditions the engine cannot see by the strictest without them."""
    return tuple(held for rule in rules for held in _held(rule))


def _held(rule: Rule) -> tuple[Rule, ...]:
    reason = unenforced(rule, Scope.CONTAINER)
    if reason is None or rule.section not in ENFORCED_SECTIONS:
        return (rule,)
    plain = replace(rule, allowed_arguments=(), terminal=None)
    if rule.action is Action.AUDIT:
        return ()
    # The far side of any one condition is refused: without that one, the others no longer narrow the refusal.
    refusal = replace(plain, action=Action.BLOCK, read_only=False, owner_only=False)
    if rule.action is Action.BLOCK:
        return (refusal,)
    # Beside it rather than in its place: the Allow rule, which loses to it, keeps the section an allow-list.
    return (plain, replace(refusal, message=f"{reason}, so what the rule allows is refused"))


def _instead(rule: Rule, scope: Scope, engines: frozenset[str]) -> str:
    if rule.section in PACKET_SECTIONS and NFTABLES in engines:
        return _instead_of_packets(rule)
    if scope is not Scope.CONTAINER or rule.section not in ENFORCED_SECTIONS or ENGINE not in engines:
        return "it has no effect"
    if rule.action is Action.ALLOW:
        return "what it allows is refused, and the section stays an allow-list"
    if rule.action is Action.AUDIT:
        return "it is left out: what it is about is neither let pass nor told of by it"
    return "it refuses on either side of its conditions"


def _instead_of_packets(rule: Rule) -> str:
    named = isinstance(rule.match, PeerMatch) and any(group.kind in _INCOMPLETE for group in rule.match.groups)
    if not named:
        return "it has no effect there"
    return "it refuses every peer" if rule.action is Action.BLOCK else "it does not tell of them and lets none pass"


def said(rule: Rule) -> str:
    """Say in one line what a rule says; the text of a whole profile only by its beginning."""
    value = printable(" ".join(rule.value.splitlines()), _SHOWN_CHARACTERS)
    words = [rule.action.value, rule.section.value, rule.kind.value, value, *["recursive"] * rule.recursive]
    if rule.allowed_arguments:
        words.append("allowedArgs")
    words += ["readOnly"] * rule.read_only + ["ownerOnly"] * rule.owner_only
    if rule.terminal is False:
        words.append("pts: false")
    if rule.sourced:
        sources = (*rule.sources, *(directory for directory, _ in rule.source_directories))
        words.append("fromSource " + ", ".join(map(printable, sources)))
    return " ".join(words)

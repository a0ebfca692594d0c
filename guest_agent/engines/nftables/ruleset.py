# SPDX-License-Identifier: Apache-2.0
"""What the kernel is to hold of one network namespace, as data.

*Structure* is chains, rules, quotas and the sets they look into; *elements* are what is in the sets. Only the structure
ever meets nft's language, and nothing of a policy is in it but numbers: addresses, ports and names of interfaces are
elements. So a change of elements needs no new structure, and the cost of the structure does not depend on how many
addresses there are.

Every name is made of a letter, numbers and hashes, at most :data:`MAXIMUM_NAME` characters.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal

from guest_agent.engines.network_port import QuotaUsage
from hauberk.policy.rules import Section

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

TABLE: Final = "hauberk"
FAMILY: Final = "inet"
PRIORITY: Final = -5
"""Just before the priority "filter", so that others' filters still see what we let pass, and not what we refuse."""
MAXIMUM_NAME: Final = 31
ANSWER_PREFIX: Final = "hb answer"
"""Log prefix of a resolver's answer."""

Hook = Literal["input", "output", "forward"]
FieldType = Literal[
    "ipv4_addr", "ipv6_addr", "inet_proto", "inet_service", "icmp_type", "icmpv6_type", "ifname", "cgroupsv2"
]
WIDTHS: Final[Mapping[str, int]] = {
    "ipv4_addr": 32, "ipv6_addr": 128, "inet_proto": 8, "inet_service": 16, "icmp_type": 8, "icmpv6_type": 8,
    "ifname": 128, "cgroupsv2": 64,
}  # fmt: skip
"""Bits of a key, by its type."""

Key = tuple[tuple[int, int], ...]
"""For each field the first and the last value. Names of interfaces are 16 bytes, zeros behind, as one number."""
Verdict = tuple[str] | tuple[str, str]
"""``("accept",)``, ``("drop",)``, ``("jump", chain)`` or ``("goto", chain)``."""
Expression = dict[str, Any]
"""One expression of nft's JSON."""

Reason = Literal["rule", "default", "quota", "unattributed"]
_SECTIONS: Final = {"i": Section.INGRESS, "o": Section.EGRESS}
_VERDICTS: Final[Mapping[str, Literal["audit", "deny"]]] = {"a": "audit", "d": "deny"}
_REASONS: Final[Mapping[str, Reason]] = {"r": "rule", "d": "default", "q": "quota", "u": "unattributed"}


def _letter(words: Mapping[str, Any], word: object) -> str:
    return next(letter for letter, meaning in words.items() if meaning == word)


@dataclass(frozen=True, slots=True)
class LogMark:
    """What a log prefix says of a packet: whose it was, in which direction, what it got and why."""

    endpoint: int
    section: Section
    verdict: Literal["audit", "deny"]
    reason: Reason

    def letters(self) -> str:
        """Give direction, verdict and reason as a letter each."""
        return _letter(_SECTIONS, self.section) + _letter(_VERDICTS, self.verdict) + _letter(_REASONS, self.reason)

    def text(self) -> str:
        """Give the prefix: ``hb 2a idr``."""
        return f"hb {self.endpoint:x} {self.letters()}"

    @classmethod
    def read(cls, text: str) -> LogMark:
        """Read a prefix. Raises ValueError for one that is not ours."""
        words = text.split(" ")
        try:
            mark, endpoint, letters = words
            direction, verdict, reason = list(letters)
            found = cls(int(endpoint, 16), _SECTIONS[direction], _VERDICTS[verdict], _REASONS[reason])
        except (KeyError, ValueError):
            mark = ""
        if mark != "hb" or found.text() != text:
            message = f"found the log prefix {text!r}, expected one such as 'hb 2a idr'"
            raise ValueError(message)
        return found


@dataclass(frozen=True, slots=True)
class Chain:
    """A chain. One with a hook is where packets come in; it accepts what reaches its end."""

    name: str
    hook: Hook | None = None
    priority: int = PRIORITY


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule of nft at the end of a chain; rules of a chain stand in the order of the ruleset.

    All of nft's JSON but for one key of a map, which nft cannot write there:
    ``{"vmap": {"key": {"socket": {"key": "cgroupv2", "level": 2}}, "data": "@name"}}``, alone in its rule.
    """

    chain: str
    expressions: tuple[Expression, ...]


@dataclass(frozen=True)
class Set:
    """A named set or, with ``verdicts``, a named verdict map.

    ``elements`` maps keys to verdicts (None in a set). ``timeouts`` are seconds after which the kernel drops an
    element. Elements of an interval set never overlap; those of one field do not even touch, unless their verdicts
    differ.
    """

    name: str
    fields: tuple[FieldType, ...]
    interval: bool = False
    timeout: bool = False
    verdicts: bool = False
    elements: Mapping[Key, Verdict | None] = field(default_factory=dict)
    timeouts: Mapping[Key, int] = field(default_factory=dict)

    @cached_property
    def digest(self) -> bytes:
        """SHA-256 of the elements, whatever their order; without those that have a time, which end by themselves."""
        timeouts = self.timeouts
        lines = sorted([f"{key}{verdict}" for key, verdict in self.elements.items() if key not in timeouts])
        return hashlib.sha256("\n".join(lines).encode()).digest()

    def command(self) -> dict[str, Any]:
        """Give nft's command that adds the set without elements."""
        body: dict[str, Any] = {
            "family": FAMILY,
            "table": TABLE,
            "name": self.name,
            "type": self.fields[0] if len(self.fields) == 1 else list(self.fields),
        }
        flags = ["interval"] * self.interval + ["timeout"] * self.timeout
        if flags:
            body["flags"] = flags
        if self.verdicts:
            body["map"] = "verdict"
        return {"add": {"map" if self.verdicts else "set": body}}


@dataclass(frozen=True, slots=True)
class Quota:
    """A quota that the kernel counts: a rule with ``{"quota": name}`` matches when it is used up.

    ``endpoint`` is None for one that all workloads of a policy share. Usage belongs to the name.
    """

    name: str
    limit: int
    seconds: int
    endpoint: int | None
    section: Section
    policy: str

    def command(self) -> dict[str, Any]:
        """Give nft's command that adds the quota, unused."""
        body = {"family": FAMILY, "table": TABLE, "name": self.name, "bytes": self.limit, "used": 0, "inv": True}
        return {"add": {"quota": body}}

    def usage(self, used: int) -> QuotaUsage:
        """Give what the port tells of it."""
        return QuotaUsage(self.name, self.endpoint, self.section, self.policy, used, self.limit, self.seconds)


@dataclass(frozen=True)
class Ruleset:
    """All that the kernel is to hold of ours in a namespace. Sets and quotas are by name.

    ``analyses`` is what the planner found out about rule sets, for the next plan to begin with.
    """

    chains: tuple[Chain, ...] = ()
    rules: tuple[Rule, ...] = ()
    sets: Mapping[str, Set] = field(default_factory=dict)
    quotas: Mapping[str, Quota] = field(default_factory=dict)
    analyses: Mapping[str, object] = field(default_factory=dict, compare=False, repr=False)

    def commands(self) -> list[dict[str, Any]]:
        """Give the structure as commands of nft's JSON, in an order that nft takes: nothing is used before it is there.

        Elements, the table itself, and what goes before them are the adapter's.
        """
        chains = [{"add": {"chain": _chain(chain)}} for chain in self.chains]
        sets = [one.command() for one in self.sets.values()]
        quotas = [quota.command() for quota in self.quotas.values()]
        rules = [
            {"add": {"rule": {"family": FAMILY, "table": TABLE, "chain": rule.chain, "expr": list(rule.expressions)}}}
            for rule in self.rules
        ]
        return [*chains, *sets, *quotas, *rules]

    @cached_property
    def structure_digest(self) -> str:
        """SHA-256 (hexadecimal) of the structure; rulesets with equal ones differ in elements at most."""
        return hashlib.sha256(json.dumps(self.commands(), sort_keys=True).encode()).hexdigest()

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hexadecimal) of structure and elements, but for those that end by themselves."""
        digest = hashlib.sha256(self.structure_digest.encode())
        for name in sorted(self.sets):
            digest.update(name.encode() + b"\0" + self.sets[name].digest)
        return digest.hexdigest()

    def rules_of(self, chain: str) -> Sequence[Rule]:
        """Give a chain's rules in their order."""
        return self._by_chain.get(chain, ())

    @cached_property
    def _by_chain(self) -> Mapping[str, list[Rule]]:
        found: dict[str, list[Rule]] = {}
        for rule in self.rules:
            found.setdefault(rule.chain, []).append(rule)
        return found


def _chain(chain: Chain) -> dict[str, Any]:
    body: dict[str, Any] = {"family": FAMILY, "table": TABLE, "name": chain.name}
    if chain.hook is not None:
        body |= {"type": "filter", "hook": chain.hook, "prio": chain.priority, "policy": "accept"}
    return body


@dataclass(frozen=True, slots=True)
class ElementChange:
    """What changes in one set: first ``removed`` go, then ``added`` come. One whose time or verdict is new is in both.

    ``timeouts`` are those of ``added``.
    """

    set: Set
    removed: tuple[Key, ...]
    added: Mapping[Key, Verdict | None]
    timeouts: Mapping[Key, int]


def difference(old: Ruleset, new: Ruleset) -> tuple[ElementChange, ...] | None:
    """Give the elements that lead from one ruleset to another; None when more than elements differs."""
    if old is not new and old.structure_digest != new.structure_digest:
        return None
    return tuple(_changes(old, new))


def _changes(old: Ruleset, new: Ruleset) -> Iterator[ElementChange]:
    for name, fresh in new.sets.items():
        held = old.sets[name]
        if held is fresh or (held.elements == fresh.elements and held.timeouts == fresh.timeouts):
            continue
        before, after = held.elements, fresh.elements
        changed = (
            {key for key in before.keys() & after.keys() if before[key] != after[key]} if fresh.verdicts else set()
        )
        timed = held.timeouts.keys() | fresh.timeouts.keys()
        changed |= {
            key for key in timed & before.keys() & after.keys() if held.timeouts.get(key) != fresh.timeouts.get(key)
        }
        added = {key: after[key] for key in sorted((after.keys() - before.keys()) | changed)}
        timeouts = {key: fresh.timeouts[key] for key in added if key in fresh.timeouts}
        yield ElementChange(fresh, tuple(sorted((before.keys() - after.keys()) | changed)), added, timeouts)

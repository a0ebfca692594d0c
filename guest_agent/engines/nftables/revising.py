# SPDX-License-Identifier: Apache-2.0
"""What a rule set says of one direction, found out from what an earlier one said of it.

Among thousands of rules one is added, or a network to a list of thousands: then nearly everything stays, and only the
parts of sets that the few networks are in have to be made again. Whatever is not as simple as that is left to the
analysis of the whole, and what comes out is the same.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from guest_agent.engines.nftables import boxes, matching, ranges
from guest_agent.engines.nftables.analysis import STAGES, checked
from guest_agent.engines.nftables.boxes import ANY_PROTOCOL
from guest_agent.engines.nftables.matching import EVERYTHING, PORTS, kinds_of
from guest_agent.engines.nftables.steps import short
from hauberk.policy.rules import Action, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from guest_agent.engines.nftables.analysis import Analysis
    from guest_agent.engines.nftables.boxes import Table
    from guest_agent.engines.nftables.ranges import Union
    from guest_agent.engines.nftables.steps import Sets
    from hauberk.policy.rules import PeerMatch, Rule, RuleSet, Section

FEW: Final = 64
"""Most rules that may differ, and most networks: beyond that nothing is saved."""

_Kind = tuple[str, "Union"]
"""Role of what is looked up, and ports (none for packets of every kind)."""


@dataclass(slots=True)
class _Change:
    """Networks that go and come, for one role of boxes."""

    without: Table = field(default_factory=dict)
    more: Table = field(default_factory=dict)


def revise(held: Analysis, rule_set: RuleSet, section: Section) -> Analysis | None:
    """Give the analysis of a rule set that differs little from the one of another; None where that is not so easy."""
    before = held.rule_set
    if (before.posture, before.postures) != (rule_set.posture, rule_set.postures):
        return None
    default = rule_set.posture_of(section) if rule_set.is_allow_list(section) else Verdict.ALLOW
    old, new = _differing(before.rules, rule_set.rules)
    if default is not held.default or len(old) + len(new) > FEW:
        return None
    networks = _networks(old, new, section, default)
    if networks is None:
        return None
    changes = _changes(held.sets, networks)
    if changes is None:
        return None
    sets = replace(held.sets, known=dict(held.sets.known), boxes=dict(held.sets.boxes), counts=dict(held.sets.counts))
    for role, change in changes.items():
        revised = held.sets.boxes[role].revised(held.sets, change.without, change.more)
        if revised is None:
            return None
        sets.boxes[role] = revised[0]
        sets.known.update(revised[1])
    for (role, ports), found in networks.items():
        for cidr, count in found.items():
            place = (role, ranges.network(cidr)[0], ports)
            sets.counts[place] = sets.counts.get(place, 0) + count
    return replace(held, rule_set=rule_set, sets=sets)


def _networks(
    old: Sequence[Rule], new: Sequence[Rule], section: Section, default: Verdict
) -> dict[_Kind, Counter[str]] | None:
    """Give how many times more, or less, networks are named for what; None for rules that are not simple."""
    named: dict[_Kind, tuple[Counter[str], Counter[str]]] = {}
    for rules, place in ((old, 0), (new, 1)):
        for rule in rules:
            if rule.section is not section:
                continue
            match = checked(rule)
            kinds = _kinds(rule, match, default)
            if kinds is None:
                return None
            for kind in kinds:
                named.setdefault(kind, (Counter(), Counter()))[place].update(match.cidrs)
    return {
        kind: Counter({cidr: after[cidr] - before[cidr] for cidr, _ in before.items() ^ after.items()})
        for kind, (before, after) in named.items()
    }


def _differing(old: Sequence[Rule], new: Sequence[Rule]) -> tuple[Sequence[Rule], Sequence[Rule]]:
    """Give what two lists have between what they begin and end with alike."""
    start, most = 0, min(len(old), len(new))
    while start < most and (old[start] is new[start] or old[start] == new[start]):
        start += 1
    end = 0
    while end < most - start and (old[-1 - end] is new[-1 - end] or old[-1 - end] == new[-1 - end]):
        end += 1
    return old[start : len(old) - end], new[start : len(new) - end]


def _kinds(rule: Rule, match: PeerMatch, default: Verdict) -> tuple[_Kind, ...] | None:
    """Give what a rule's networks are looked up for: nothing, or one kind. None for a rule that is not that simple."""
    plain = match.cidrs and not (match.exceptions or match.groups or match.interfaces or match.quota or match.nothing)
    if not plain:
        return None
    if rule.action is Action.ALLOW and default is Verdict.ALLOW:
        return ()
    kinds = kinds_of(match.ports, match.icmp)
    if kinds.protocols or any(kinds.icmp):
        return None
    return ((STAGES[rule.action] + (EVERYTHING if kinds.everything else PORTS), kinds.ports),)


def _changes(sets: Sets, networks: dict[_Kind, Counter[str]]) -> dict[str, _Change] | None:
    """Give the changes by the role of boxes; None where networks change the way they are looked up."""
    changes: dict[str, _Change] = {}
    for (role, ports), found in networks.items():
        differing = [(*ranges.network(cidr), count) for cidr, count in found.items() if count]
        if len(differing) > FEW:
            return None
        for family in {family for family, *_ in differing}:
            total = sum(count for one, _, _, count in differing if one == family)
            place = _place(sets, role, family, ports, total)
            if place is None:
                return None
            change = changes.setdefault(place[0], _Change())
            for one, first, last, count in differing:
                if one == family:
                    table = change.more if count > 0 else change.without
                    for network in ranges.blocks(first, last):
                        table[network] = (*table.get(network, ()), *_many(place[1], abs(count)))
    return changes


def _many(ports: Union, count: int) -> Iterator[tuple[int, int]]:
    for _ in range(count):
        yield from ports


def _place(sets: Sets, role: str, family: int, ports: Union, change: int) -> tuple[str, Union] | None:
    """Give the role of the boxes that networks are in before a change and after it, and what goes with them there.

    None where the change moves them, or where they are in no boxes.
    """
    count = sets.counts.get((role, family, ports), 0)
    least, most = sorted((count, count + change))
    if ports and most < matching.SHARED and len(ports) <= boxes.LIST:
        place, stays = (f"{role}{family}", ports), (role, ports) not in sets.everywhere
    elif ports:
        place = (f"{role}{short(*ports)}-{family}", ANY_PROTOCOL)
        stays = least > max(matching.MANY, matching.SHARED - 1) and not _crowded(sets, role)
    else:
        place, stays = (f"{role}{family}", ANY_PROTOCOL), least > matching.MANY
    return place if stays and place[0] in sets.boxes else None


def _crowded(sets: Sets, role: str) -> bool:
    """Whether there may be more lists of ports that many networks share than get sets of their own."""
    shared = sum(count >= matching.SHARED for (one, _, _), count in sets.counts.items() if one == role)
    return shared > matching.SHARED_LISTS

# SPDX-License-Identifier: Apache-2.0
"""What a rule set says of one direction of packets, as look-ups.

The same for every endpoint that has the rule set, and the costly part of planning: so it is kept from plan to plan.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from guest_agent.engines.nftables.matching import located, members_of, product, union
from guest_agent.engines.nftables.ruleset import Quota
from guest_agent.engines.nftables.steps import Sets, short
from hauberk.policy.rules import Action, PeerMatch, Verdict

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from guest_agent.engines.nftables.matching import Alternative
    from guest_agent.engines.nftables.steps import Step
    from hauberk.policy.rules import PeerGroup, Rule, RuleSet, Section

MAXIMUM_QUOTAS: Final = 64
"""Most quotas of one rule set and direction: each is asked by itself, for every packet."""
STAGES: Final = {Action.BLOCK: "b", Action.AUDIT: "a", Action.ALLOW: "l"}
"""What the roles of each action's look-ups begin with."""
_PER_ENDPOINT: Final = "pod"


@dataclass(frozen=True, slots=True)
class Limit:
    """A rule with a quota, and the packets that it is about. ``identity`` is what it says but for its limit."""

    identity: tuple[str, ...]
    rule: Rule
    alternatives: tuple[Alternative, ...]

    @property
    def reports(self) -> bool:
        """Whether what is beyond the quota is only told."""
        return self.rule.action is Action.AUDIT

    def quota(self, endpoint: int) -> Quota:
        """Give the quota for an endpoint. Its name stays while the rule says the same but for its limit."""
        limit, seconds, level = self.rule.quota or (0, 0, "")
        owner = endpoint if level == _PER_ENDPOINT else None
        name = f"q{short(owner, *self.identity)}"
        return Quota(name, limit, seconds, owner, self.rule.section, self.rule.origin.policy)


@dataclass(frozen=True, slots=True)
class Analysis:
    """Look-ups for each action, the default, and quotas in the order of their limits.

    ``groups`` are those that rules name, ``resolved`` those of them whose members were known. ``outside`` is a rule
    that names interfaces, if there is one.
    """

    rule_set: RuleSet
    sets: Sets
    block: tuple[Step, ...]
    audit: tuple[Step, ...]
    allow: tuple[Step, ...]
    default: Verdict
    limits: tuple[Limit, ...]
    groups: frozenset[PeerGroup]
    resolved: frozenset[PeerGroup]
    outside: Rule | None

    @property
    def says_nothing(self) -> bool:
        """Whether every packet passes untold and uncounted."""
        return not self.block and not self.audit and not self.limits and self.default is Verdict.ALLOW


def analyse(rule_set: RuleSet, section: Section, owner: str, resolved: Mapping[PeerGroup, object]) -> Analysis:
    """Turn the rules of a direction into look-ups in sets whose names begin with ``owner``. Raises PlanError."""
    by_action: dict[Action, list[Rule]] = {action: [] for action in Action}
    limited: list[Rule] = []
    groups: set[PeerGroup] = set()
    outside: Rule | None = None
    for rule in rule_set.rules:
        if rule.section is not section:
            continue
        match = checked(rule)
        if match.interfaces:
            outside = rule
        if match.groups:
            groups.update(match.groups)
        if match.quota is not None:
            limited.append(rule)
            if rule.action is not Action.ALLOW:
                continue  # within the quota it says nothing
        by_action[rule.action].append(rule)
    default = rule_set.posture_of(section) if rule_set.is_allow_list(section) else Verdict.ALLOW
    if default is Verdict.ALLOW:
        by_action[Action.ALLOW] = []
    sets = Sets(owner)
    return Analysis(
        rule_set,
        sets,
        union(by_action[Action.BLOCK], sets, STAGES[Action.BLOCK], resolved),
        union(by_action[Action.AUDIT], sets, STAGES[Action.AUDIT], resolved),
        union(by_action[Action.ALLOW], sets, STAGES[Action.ALLOW], resolved),
        default,
        _limits(limited, sets, resolved),
        frozenset(groups),
        frozenset(groups.intersection(resolved)),
        outside,
    )


def checked(rule: Rule) -> PeerMatch:
    """Give a rule's match, or refuse a rule that says more than packets can answer."""
    if not isinstance(rule.match, PeerMatch):
        raise located(rule, "found no peer, expected addresses, ports or interfaces; a defect of whoever made the rule")
    if rule.sourced or rule.owner_only or rule.read_only or rule.allowed_arguments or rule.terminal is False:
        raise located(rule, "found a condition on who acts, expected none, since packets do not say; leave it out")
    return rule.match


def _limits(limited: Iterable[Rule], sets: Sets, resolved: Mapping[PeerGroup, object]) -> tuple[Limit, ...]:
    found: list[Limit] = []
    seen: Counter[tuple[str, ...]] = Counter()
    for rule in sorted(limited, key=lambda one: one.quota or ()):
        match, groups = members_of(rule, checked(rule), resolved)
        named = (match.cidrs, match.exceptions, match.interfaces, match.ports, match.icmp, match.groups)
        words = (
            rule.origin.policy,
            rule.section.value,
            rule.action.value,
            *map(str, (rule.quota or ())[1:]),
            *(",".join(sorted(map(str, names))) for names in named),
            str(match.nothing),
        )
        seen[words] += 1  # rules that differ in nothing but their limits are told apart by the order of these
        identity = (*words, str(seen[words]))
        try:
            alternatives = product(match, groups, sets, f"u{short(*identity)}")
        except (ValueError, OSError) as error:
            raise located(rule, str(error)) from error
        found.append(Limit(identity, rule, alternatives))
    if len(found) > MAXIMUM_QUOTAS:
        what = f"found {len(found)} quotas for one direction, expected at most {MAXIMUM_QUOTAS}; name more peers in one"
        raise located(found[-1].rule, what)
    return tuple(found)

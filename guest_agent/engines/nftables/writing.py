# SPDX-License-Identifier: Apache-2.0
"""A ruleset as it is written down, chain by chain.

The writer knows how look-ups, maps and telling become rules; who is asked what in which order, others say.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from guest_agent.engines.nftables import expressions
from guest_agent.engines.nftables.expressions import ACCEPT, DROP
from guest_agent.engines.nftables.ruleset import Chain, LogMark, Quota, Rule, Set
from guest_agent.engines.nftables.steps import Dispatch, Enter, Lookup, name

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from guest_agent.engines.network_port import Settings
    from guest_agent.engines.nftables.matching import Alternative
    from guest_agent.engines.nftables.ruleset import Expression, FieldType, Hook, Key, Verdict
    from guest_agent.engines.nftables.steps import Step
    from hauberk.policy.rules import Section


class Writer:
    """Collects chains, rules, sets and quotas.

    ``held`` are sets of a previous ruleset: an equal one is taken in place of a new one, with what was computed of it.
    """

    def __init__(self, settings: Settings, held: Mapping[str, Set]) -> None:
        """Begin with nothing."""
        self.settings = settings
        self.chains: dict[str, Chain] = {}
        self.rules: list[Rule] = []
        self.sets: dict[str, Set] = {}
        self.quotas: dict[str, Quota] = {}
        self._held = held

    def chain(self, one: str, hook: Hook | None = None) -> str:
        """Add a chain, if it is not there yet."""
        self.chains.setdefault(one, Chain(one, hook))
        return one

    def rule(self, chain: str, *written: Expression) -> None:
        """Add a rule at the end of a chain."""
        self.rules.append(Rule(chain, written))

    def verdict(self, chain: str, verdict: Verdict) -> None:
        """Add a rule for every packet."""
        self.rule(chain, expressions.statement(verdict))

    def put(self, one: Set) -> None:
        """Add a set."""
        held = self._held.get(one.name)
        self.sets[one.name] = held if held is not None and held == one else one

    def map(
        self, one: str, fields: tuple[FieldType, ...], verdicts: Mapping[Key, Verdict], *, interval: bool = True
    ) -> None:
        """Add a verdict map."""
        self.put(Set(one, fields, interval=interval, verdicts=True, elements=verdicts))

    def limit(self, quota: Quota) -> None:
        """Add a quota. While rules change there can be two limits for one: the smaller holds."""
        held = self.quotas.get(quota.name)
        if held is None or quota.limit < held.limit:
            self.quotas[quota.name] = quota

    def telling(self, mark: LogMark) -> tuple[Expression, Expression]:
        """Give the expressions that tell of a packet, or end the rule when there are too many."""
        settings = self.settings
        return (
            {"limit": {"rate": settings.log_rate, "burst": settings.log_burst, "per": "second"}},
            {"log": {"prefix": mark.text(), "group": settings.log_group, "snaplen": settings.log_bytes}},
        )

    def told(self, mark: LogMark) -> Verdict:
        """Give the verdict that tells of a packet and then drops or accepts it."""
        chain = f"t{mark.endpoint:x}{mark.letters()}"
        if chain not in self.chains:
            self.chain(chain)
            if mark.verdict == "audit" and mark.reason != "quota":  # of a flow, the first packet is told
                self.rule(chain, expressions.JUDGED, expressions.statement(ACCEPT))
            self.rule(chain, *self.telling(mark))
            self.verdict(chain, DROP if mark.verdict == "deny" else ACCEPT)
        return ("goto", chain)

    def alternatives(self, found: Iterable[Alternative], section: Section, chain: str, verdict: Verdict) -> None:
        """Add a rule for each alternative of look-ups that leads to a verdict."""
        for alternative in found:
            matches = (part for step in alternative for part in expressions.lookup(step, section))
            self.rule(chain, *matches, expressions.statement(verdict))

    def steps(self, steps: Iterable[Step], section: Section, chain: str, token: str, verdict: Verdict) -> None:
        """Add rules that give a verdict to what the steps find; names of chains and maps begin with ``token``."""
        for step in steps:
            match step:
                case Lookup():
                    self.rule(chain, *expressions.lookup(step, section), expressions.statement(verdict))
                case Enter():
                    self.verdict(chain, self._entered(step, section, token, verdict))
                case Dispatch(role, parts, entries):
                    verdicts = {
                        key: verdict if enter is None else self._entered(enter, section, token, verdict)
                        for key, enter in entries
                    }
                    map_name = name(token, role)
                    self.map(map_name, step.fields, verdicts)
                    data = {"vmap": {"key": expressions.key(parts, section), "data": f"@{map_name}"}}
                    self.rule(chain, *expressions.guards(parts), data)
                case _:
                    self.verdict(chain, verdict)

    def _entered(self, step: Enter, section: Section, token: str, verdict: Verdict) -> Verdict:
        """Make the chain of further steps, once, and give the jump to it."""
        chain = name(token, step.role)
        if chain not in self.chains:
            self.chain(chain)
            self.steps(step.steps, section, chain, token, verdict)
        return ("jump", chain)

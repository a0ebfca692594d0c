# SPDX-License-Identifier: Apache-2.0
"""Annotations of pods, nodes and namespaces that change what policies do, as KubeArmor knows them.

``kubearmor-policy`` of a pod or node switches its policies: ``enabled``, ``disabled``, or ``audited``, where what would
be refused passes and is reported (``patched`` is what KubeArmor itself writes for ``enabled``).
``kubearmor-file-posture``, ``-network-posture`` and ``-capabilities-posture`` of a namespace are the postures of its
allow-lists.

Whoever runs the host writes annotations. A sealed agent therefore does not look at them, and nothing in it calls this
module; it is there to explain what policies do where KubeArmor reads them, and for hosts that trust themselves. Where
KubeArmor takes an invalid value for the default, here it is an error: a posture with a typing mistake is not the one
that was meant.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

from hauberk.errors import PolicyError, Problem
from hauberk.policy.rules import Decision, Section, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from hauberk.policy.rules import RuleSet

MODE = "kubearmor-policy"
POSTURES: dict[str, tuple[Section, ...]] = {
    "kubearmor-file-posture": (Section.PROCESS, Section.FILE),
    "kubearmor-network-posture": (Section.NETWORK, Section.DNS, Section.INGRESS, Section.EGRESS),
    "kubearmor-capabilities-posture": (Section.CAPABILITIES,),
}
"""The sections whose posture each annotation of a namespace sets."""
_VERDICTS = {"audit": Verdict.AUDIT, "block": Verdict.DENY}
_PREFIX = "kubearmor-"


class Mode(StrEnum):
    """What becomes of the decisions of policies."""

    ENABLED = "enabled"
    AUDITED = "audited"
    DISABLED = "disabled"

    def apply(self, decision: Decision) -> Decision:
        """Give what a decision becomes in this mode; the rules that won and lost stay."""
        if self is Mode.DISABLED and decision.verdict is not Verdict.ALLOW:
            return replace(decision, verdict=Verdict.ALLOW, reason=f"policies are {self.value} by {MODE}")
        if self is Mode.AUDITED and decision.verdict is Verdict.DENY:
            return replace(decision, verdict=Verdict.AUDIT, reason=f"policies are {self.value} by {MODE}")
        return decision


_MODES = {mode.value: mode for mode in Mode} | {"patched": Mode.ENABLED}


@dataclass(frozen=True, slots=True)
class Settings:
    """What annotations say: the mode, and postures of single sections, as a rule set takes them."""

    mode: Mode = Mode.ENABLED
    postures: tuple[tuple[Section, Verdict], ...] = ()

    def apply(self, rule_set: RuleSet) -> RuleSet:
        """Give the rule set with these postures in place of its own."""
        return replace(rule_set, postures=tuple((dict(rule_set.postures) | dict(self.postures)).items()))


def read(
    annotations: Mapping[str, str], place: Callable[[str], tuple[int, int]] | None = None, file: str = "annotations"
) -> Settings:
    """Read annotations; those that are not about policies, and visibility, say nothing here.

    ``place`` gives line and column of an annotation in ``file``. Raises :class:`hauberk.errors.PolicyError` with every
    invalid value, and every name that is nearly one of these.
    """
    problems: list[Problem] = []
    mode = Mode.ENABLED
    postures: dict[Section, Verdict] = {}

    def refuse(name: str, found: str, expected: str, advice: str) -> None:
        line, column = place(name) if place else (0, 0)
        problems.append(Problem(file, line, column, f"metadata.annotations.{name}", found, expected, advice))

    for name, value in annotations.items():
        if name == MODE:
            mode = _MODES.get(value, mode)
            if value not in _MODES:
                refuse(name, repr(value), "enabled, audited or disabled", _advice(value, [one.value for one in Mode]))
        elif name in POSTURES:
            if value not in _VERDICTS:
                refuse(name, repr(value), "audit or block", _advice(value, list(_VERDICTS)))
            postures |= dict.fromkeys(POSTURES[name], _VERDICTS.get(value, Verdict.DENY))
        elif name.startswith(_PREFIX) and name != "kubearmor-visibility":
            known = [MODE, *POSTURES]
            refuse(name, f"the unknown annotation {name!r}", f"one of {', '.join(known)}", _advice(name, known))
    if problems:
        raise PolicyError(problems)
    return Settings(mode, tuple(postures.items()))


def _advice(word: str, choices: Sequence[str]) -> str:
    import difflib  # noqa: PLC0415 - only where something is wrong

    close = difflib.get_close_matches(word.lower(), choices, n=1)
    return f"Did you mean {close[0]!r}?" if close else f"Write {' or '.join(choices)}"

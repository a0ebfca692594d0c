# SPDX-License-Identifier: Apache-2.0
"""Which rules of the normal form the bpf_lsm engine holds, and why it does not hold the others.

The language is wider than the engines. A rule that nothing enforces must not look like protection, so whoever puts
rules in force asks here first, rule by rule, and refuses or reports what is left; nobody may leave a rule out in
silence. The answer is one sentence for people. It depends on the rule and on whom its policy covers, and on nothing of
the machine.

An engine that learns to hold more changes this module and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from hauberk.policy.rules import Section
from hauberk.policy.selectors import Scope

if TYPE_CHECKING:
    from hauberk.policy.rules import Rule

ENGINE: Final = "bpf_lsm"
"""The engine these answers are about."""

ENFORCED_SECTIONS: Final = frozenset({Section.PROCESS, Section.FILE})
"""The sections whose rules the kernel is given; each is an allow-list or deny list of its own."""


def unenforced(rule: Rule, scope: Scope) -> str | None:
    """Say in one sentence why no engine enforces a rule of a policy for ``scope``; None if the engine does."""
    if scope is not Scope.CONTAINER:
        return "no engine enforces policies for the host yet, only those for containers"
    if rule.section not in ENFORCED_SECTIONS:
        return f"no engine enforces the section {rule.section.value} yet, only {_named(ENFORCED_SECTIONS)}"
    return None


def _named(sections: frozenset[Section]) -> str:
    return " and ".join(section.value for section in Section if section in sections)

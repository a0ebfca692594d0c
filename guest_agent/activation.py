# SPDX-License-Identifier: Apache-2.0
"""What becomes of a bundle with rules that no engine enforces as they are written: refused, or reported rule by rule.

A sealed machine answers for all that was signed. A bundle it cannot hold in full is refused before the kernel is
touched, and every rule is named, so that one round of corrections is enough. On a host its operator decides: what can
be enforced is, and what cannot is told at every start and for as long as it lasts (log, status, workloads). Either
way what the engine holds in place of such a rule is never more open than the rule (``hauberk.policy.coverage``).
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from hauberk.errors import HauberkError

if TYPE_CHECKING:
    from guest_agent.workloads.selection import PolicySet

logger = logging.getLogger(__name__)


class ActivationError(HauberkError):
    """The bundle says more than this machine enforces. The message names each rule and says what to do."""


def check(policy_set: PolicySet, mode: str) -> None:
    """Refuse (mode "sealed") or report (mode "host") what no engine enforces as it is written.

    Raises ActivationError.
    """
    count = policy_set.unenforced_count
    if not count:
        return
    bundle = f"bundle {policy_set.name} version {policy_set.version}"
    more = count - len(policy_set.unenforced)
    if mode != "host":
        advice = (
            f"{bundle} holds {count} rule(s) that no engine enforces as written, and a sealed machine enforces all of "
            "its bundle or does not start; take them out, or write them with what is enforced (docs/enforcement.md), "
            "and sign the bundle again"
        )
        lines = [advice, *(f"{one.place}: {one.rule}: {one.reason}" for one in policy_set.unenforced)]
        if more > 0:
            lines.append(f"and {more} more")
        raise ActivationError("\n".join(lines))
    logger.warning("%s holds %d rule(s) that are not enforced as written; see `hauberk status`", bundle, count)
    for one in policy_set.unenforced:
        logger.warning("not enforced as written: %s", one)
    if more > 0:
        logger.warning("not enforced as written: %d more rule(s)", more)

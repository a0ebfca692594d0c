# SPDX-License-Identifier: Apache-2.0
"""What each running container is to be held to under a successor, and who waits for whom meanwhile.

For one container nothing may veto a new bundle: whatever cannot be established of it (names that lead in circles, so
many second names that no table holds them, an init that is gone) gives it the rules that refuse everything, and says
so. A bundle whose rules cannot be compiled as they were recorded is at fault itself and is refused as a whole.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from guest_agent.child import ChildError
from guest_agent.engines.bpf_lsm.plan import PlanError, fingerprint
from guest_agent.workloads import facts, selection, succession, verification
from hauberk.errors import FactsError, HauberkError
from hauberk.policy.resolution import expand

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from guest_agent.records import Record
    from guest_agent.workloads.selection import PolicySet
    from hauberk.policy.rules import RuleSet


_NO_ANSWER: Final = ("OSError", "ChildProcessError")
"""Kinds of a child's error that say nothing of what was asked: it was not started, or ended without an answer."""
NOTHING_HOLDS: Final = "the bundle in force has no rules that this container can be held to"
PATIENCE_SECONDS: Final = 60.0
"""How long a submission waits for registrations under way."""


class SubmitError(HauberkError):
    """A successor is not taken: everything is as before. The message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Following:
    """One container under a successor: its table, its record (None: it has none) and why it is refused everything.

    ``packets`` are its rules about packets.
    """

    digest: str
    table: bytes
    record: Record | None
    refused: str = ""
    packets: RuleSet = selection.NO_PACKETS


@dataclass(frozen=True, slots=True)
class Submitted:
    """What became of a submission: the bundle in force now, how many containers changed, and those refused everything.

    ``refused`` has container ids and reasons.
    """

    name: str
    version: int
    digest: str
    number: int
    workloads: int
    refused: tuple[tuple[str, str], ...]


def follow(
    record: Record | None,
    policy_set: PolicySet,
    machine: verification.Machine,
    managers: tuple[str, ...],
    compiled: Callable[[str, RuleSet], bytes],
) -> Following:
    """Give what a container is held to under ``policy_set``. ``compiled`` gives the table of a rule set.

    Raises PlanError or ChildError when the bundle's own rules cannot be compiled, or when no child could be asked.
    """
    if record is None:
        return _refused(None, "nothing is recorded of the container", compiled)
    try:
        chosen = selection.select(policy_set, record.names)
    except selection.SelectionError as error:
        return _refused(record, str(error), compiled)
    if not record.held and succession.has_rules(chosen.rule_set):
        reason = "the container ran without rules and may have rearranged its file system; start it again"
        return _refused(record, reason, compiled)
    recorded = succession.recorded_forms(record.forms)
    granted = succession.granting(chosen.rule_set, record.rule_set, recorded)
    limiting = succession.limiting(chosen.rule_set)
    aliases: tuple[str, ...] = ()
    try:
        if limiting.rules:
            found = facts.gather_running(record.identity, record.root_path, limiting, recorded, machine, managers)
            limiting, aliases = found.rule_set, found.aliases
        rule_set = succession.joined(chosen.rule_set, granted, limiting, resolve=recorded)
        digest = fingerprint(rule_set)
        table = compiled(digest, rule_set)
    except (FactsError, verification.VerificationError, OSError) as error:
        return _refused(record, f"what its rules lead to cannot be established: {error}", compiled)
    except (PlanError, ChildError) as error:
        if isinstance(error, ChildError) and error.kind in _NO_ANSWER:
            raise  # that says nothing of the container
        # The bundle's fault, or that of the names the container has made? As recorded it has made none.
        plain = expand(succession.limiting(chosen.rule_set), recorded)
        as_recorded = succession.joined(chosen.rule_set, granted, plain, resolve=recorded)
        compiled(fingerprint(as_recorded), as_recorded)
        return _refused(record, "its second names for what the rules name do not fit into a table", compiled)
    following = replace(
        record,
        table_digest=digest,
        policies=chosen.policies,
        aliases=aliases,
        unenforced=chosen.unenforced,
        rule_set=rule_set,
        held=record.held and succession.has_rules(rule_set),  # what is let go once is never again as it was recorded
        refused=False,
    )
    return Following(digest, table, following, packets=chosen.packets)


def _refused(record: Record | None, reason: str, compiled: Callable[[str, RuleSet], bytes]) -> Following:
    rule_set = succession.refuse_everything(NOTHING_HOLDS)
    digest = fingerprint(rule_set)
    following = None
    if record is not None:
        following = replace(
            record, table_digest=digest, policies=(), aliases=(), unenforced=0, rule_set=rule_set, refused=True
        )
    packets = succession.refuse_packets(NOTHING_HOLDS)
    return Following(digest, compiled(digest, rule_set), following, " ".join(reason.split()), packets)


@dataclass(slots=True)
class Turnstile:
    """Registrations pass side by side; a submission waits until none is under way and holds up those that come.

    Otherwise a registration might choose its rules from one bundle and come into force under the next.
    """

    condition: threading.Condition = field(default_factory=threading.Condition)
    passing: int = 0
    closed: bool = False

    @contextmanager
    def passage(self) -> Iterator[None]:
        """Do what may go on side by side."""
        with self.condition:
            self.condition.wait_for(lambda: not self.closed)
            self.passing += 1
        try:
            yield
        finally:
            with self.condition:
                self.passing -= 1
                self.condition.notify_all()

    @contextmanager
    def alone(self, patience: float = PATIENCE_SECONDS) -> Iterator[None]:
        """Do what must be alone.

        Raises SubmitError when those under way, or another that must be alone, do not end within ``patience`` seconds:
        one that hangs must not keep all that come after it waiting too.
        """
        with self.condition:
            if not self.condition.wait_for(lambda: not self.closed, patience):
                message = (
                    f"found another submission under way for {patience:g} s, expected its end; submit it again later"
                )
                raise SubmitError(message)
            self.closed = True
            if not self.condition.wait_for(lambda: not self.passing, patience):
                self.closed = False
                self.condition.notify_all()
                message = (
                    f"found {self.passing} registrations under way for {patience:g} s, expected them to end; "
                    "submit the bundle again"
                )
                raise SubmitError(message)
        try:
            yield
        finally:
            with self.condition:
                self.closed = False
                self.condition.notify_all()

# SPDX-License-Identifier: Apache-2.0
"""From a kernel event to an alert that names policy, rule, process, path and container.

An alert carries KubeArmor's field names (``feeder.LogService``, message ``Alert``), so that what reads KubeArmor's
alerts reads ours, plus ``Rule``: the field of the policy and the file and line it stands at. The rule is found by
asking ``hauberk.policy.rules.decide`` again, with the rules the kernel's table was made of; an alert can therefore
not tell another story than the kernel's answer. Where asking again gives no rule (a default, the gate, a path the
kernel could not tell), the alert says so instead of guessing.
"""

from __future__ import annotations

import os
import posixpath
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, TypedDict

from hauberk.policy import globs
from hauberk.policy.rules import Decision, ObjectKind, Operation, Rule, RuleSet, Verdict, decide

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from guest_agent.engines.port import KernelEvent

DEFAULT_POSTURE: Final = "DefaultPosture"
"""Policy name of a decision that no rule took (KubeArmor's word for it)."""
OWN_POLICY: Final = "Hauberk"
"""Policy name of what Hauberk refuses by itself: the gate, and what would take a workload out of its rules."""
_POLICY_OPERATIONS: Final = frozenset(operation.value for operation in Operation)
_KINDS: Final[Mapping[str, str]] = {
    "execute": "Process", "map": "Process", "gate": "Process", "read": "File", "write": "File", "connect": "Network",
    "network": "Network",
}  # fmt: skip
_OWN_REASONS: Final[Mapping[str, str]] = {
    "gate": "only registered workloads and the machine's own services may execute programs",
    "mount": (
        "no workload with path rules changes mounts, none with network rules mounts file systems of the network,"
        " no container manager covers the guest's own root"
    ),
    "namespace": "a workload with path rules may not make user namespaces",
    "chroot": "a workload with path rules may not change its root",
    "ptrace": "a process may not take over another one's rights",
    "signal": "a workload may not signal the agent",
    "bpf": "only the agent may change what is enforced",
    "pin": "what is enforced may not be unpinned or unmounted",
    "connect": "a workload may not talk to the agent",
    "module": "a workload may not load kernel code",
    "network": "a workload with network rules uses only IP sockets of its own, and no right over the network itself",
}
_MAXIMUM_CACHED_DECISIONS: Final = 4096


class Alert(TypedDict):
    """One alert, by KubeArmor's field names. Numbers are numbers, ``Severity`` is a string as there."""

    Timestamp: int
    UpdatedTime: str
    HostName: str
    NamespaceName: str
    PodName: str
    ContainerID: str
    ContainerName: str
    HostPID: int
    PPID: int
    UID: int
    PolicyName: str
    Severity: str
    Tags: str
    ATags: list[str]
    Message: str
    Type: str
    Source: str
    Operation: str
    Resource: str
    Data: str
    Action: str
    Result: str
    ProcessName: str
    ParentProcessName: str
    Labels: str
    ContainerImage: str
    Enforcer: str
    Rule: str


@dataclass(frozen=True, slots=True)
class Subject:
    """The workload an event belongs to, as far as alerts need it. ``rule_set``: expanded; None: not known."""

    container_id: str = ""
    container_name: str = ""
    namespace: str = ""
    pod: str = ""
    image: str = ""
    labels: str = ""
    rule_set: RuleSet | None = None


@dataclass(slots=True)
class Named:
    """Who decided, for the fields of an alert."""

    policy: str
    rule: str
    message: str = ""
    severity: int = 0
    tags: tuple[str, ...] = ()


@dataclass(slots=True)
class AlertMaker:
    """Makes alerts. ``clock`` gives (wall, boottime) in nanoseconds; ``executable_of`` a process's program or ""."""

    host_name: str
    enforcer: str
    clock: Callable[[], tuple[int, int]] = field(
        default=lambda: (time.time_ns(), time.clock_gettime_ns(time.CLOCK_BOOTTIME))
    )
    executable_of: Callable[[int], str] = field(default_factory=lambda: executable_of)
    _cache: dict[tuple[object, ...], Named] = field(default_factory=dict)

    def make(self, event: KernelEvent, subject: Subject) -> Alert:
        """Turn one kernel event into an alert."""
        wall, boot = self.clock()
        nanoseconds = max(0, wall - max(0, boot - event.timestamp_ns))
        named = self._named(event, subject)
        denied = event.verdict == "deny"
        data = f"operation={event.operation} detail={event.detail} command={printable(event.command)}"
        if event.other_path:
            data += f" other={printable(event.other_path)}"
        return Alert(
            Timestamp=nanoseconds // 1_000_000_000,
            UpdatedTime=iso_time(nanoseconds),
            HostName=self.host_name,
            NamespaceName=subject.namespace,
            PodName=subject.pod,
            ContainerID=subject.container_id,
            ContainerName=subject.container_name,
            HostPID=event.pid,
            PPID=event.parent_pid,
            UID=event.uid,
            PolicyName=named.policy,
            Severity=str(named.severity) if named.severity else "",
            Tags=",".join(named.tags),
            ATags=list(named.tags),
            Message=named.message,
            Type="MatchedPolicy" if event.workload_id else "MatchedHostPolicy",
            Source=printable(event.source),
            Operation=_KINDS.get(event.operation, "Syscall"),
            Resource=printable(event.path),
            Data=data,
            Action="Block" if denied else "Audit",
            Result="Permission denied" if denied else "Passed",
            ProcessName=printable(event.path if event.operation == "execute" else event.source),
            ParentProcessName=printable(self.executable_of(event.parent_pid)),
            Labels=subject.labels,
            ContainerImage=subject.image,
            Enforcer=self.enforcer,
            Rule=named.rule,
        )

    def _named(self, event: KernelEvent, subject: Subject) -> Named:
        if event.operation not in _POLICY_OPERATIONS:
            reason = _OWN_REASONS.get(event.operation, event.operation)
            return Named(OWN_POLICY, event.operation, reason)
        if not event.path_known:
            reason = "the kernel could not tell the path, and denies what it cannot tell"
            return Named(OWN_POLICY, "unknown path", reason)
        if subject.rule_set is None:
            return Named("", "", "the rules of this workload are not known (any more)")
        paths = (event.path, event.other_path, event.source)
        # A workload id is never given out twice and its rules never change: nothing in here grows stale.
        key = (event.workload_id, event.operation, *paths, event.owner, event.verdict)
        named = self._cache.get(key)
        if named is None:
            if len(self._cache) >= _MAXIMUM_CACHED_DECISIONS:
                self._cache.clear()
            named = self._cache[key] = name_rule(event, subject.rule_set)
        return named


def name_rule(event: KernelEvent, rule_set: RuleSet) -> Named:
    """Name the rule that decided an event, by deciding again."""
    expected = Verdict.DENY if event.verdict == "deny" else Verdict.AUDIT
    operation = Operation(event.operation)
    first: Decision | None = None
    for path in filter(None, (event.path, event.other_path)):
        matching = [rule for rule in rule_set.rules if globs.matches(rule, os.fsencode(path))]
        decision = decide(rule_set, matching, operation, source=event.source or None, owner=event.owner)
        first = first or decision
        if decision.verdict is expected:
            return named_by(decision)
    above = _rule_below(event, rule_set)
    if above is not None:
        return named_after(above, f"{above.message or above.origin.field}: it names something below this directory")
    if first is not None and first.rule is not None:
        return named_by(first)
    return Named(DEFAULT_POSTURE, first.reason if first else "", "")


def executable_of(pid: int) -> str:
    """Give the executable of a process, "" when it is gone or may not be seen."""
    try:
        return str(posixpath.normpath(os.readlink(f"/proc/{pid}/exe"))) if pid > 0 else ""  # noqa: PTH115
    except OSError:
        return ""


def _rule_below(event: KernelEvent, rule_set: RuleSet) -> Rule | None:
    """Find a rule on something below a directory that was to be renamed or removed."""
    for path in filter(None, (event.path, event.other_path)):
        prefix = path.rstrip("/") + "/"
        for rule in rule_set.rules:
            literal = globs.literal_directory(rule.value)[0] + "/" if rule.kind is ObjectKind.PATTERN else rule.value
            if rule.kind is not ObjectKind.EXECNAME and literal.startswith(prefix):
                return rule
    return None


def named_by(decision: Decision) -> Named:
    """Name what decided."""
    if decision.rule is None:
        return Named(DEFAULT_POSTURE, decision.reason, "")
    return named_after(decision.rule, decision.rule.message)


def named_after(rule: Rule, message: str) -> Named:
    """Name a rule as what decided."""
    place = f" ({rule.origin.file}:{rule.origin.line})" if rule.origin.file else ""
    return Named(rule.origin.policy, f"{rule.origin.field}{place}", message, rule.severity, rule.tags)


def iso_time(nanoseconds: int) -> str:
    """Render nanoseconds since 1970 as ISO 8601 in UTC."""
    seconds, rest = divmod(nanoseconds, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest // 1000:06d}Z"


def printable(text: str) -> str:
    """Make a kernel path (any bytes) text that every reader can take: undecodable bytes become escapes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")

# SPDX-License-Identifier: Apache-2.0
"""Reads ``tests/data/scenarios``: policies, commands, and what KubeArmor's own tests say must come of them.

The data are facts in a form of our own. Each scenario names where the fact comes from (a path at the commit that the
file names) and has policies with the same rules; ``kind``, ``namespace`` and ``metadata`` are added here. A command is
what it comes to for a policy: the executable that acts (``by``), as whom (root, or ``user1`` who owns what is below
/home/user1), in which workload, one operation on one object, and the outcome stated:

``passed``   it goes through; with the action Audit it is told of, with any other it is not
``failed``   it is refused, by a rule of the scenario
``default``  what is stated is that no rule gives it leave: the posture decides, where there is an allow-list
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import yaml

from hauberk.policy import models, normalise
from hauberk.policy.explain import Question
from hauberk.policy.rules import Operation, RuleSet, Section, Verdict
from hauberk.policy.selectors import WorkloadIdentity

DIRECTORY: Final = Path(__file__).parent / "data" / "scenarios"
DEFAULT_NAMESPACE: Final = "multiubuntu"
HOME: Final = "/home/user1"
USERS: Final = {"root": 0, "user1": 1000}
OPERATIONS: Final = {
    "execute": Operation.EXECUTE, "read": Operation.READ, "write": Operation.WRITE, "create": Operation.WRITE,
    "socket": Operation.SOCKET, "resolve": Operation.RESOLVE, "capability": Operation.CAPABILITY,
    "syscall": Operation.SYSCALL, "preset": Operation.PRESET, "send": Operation.SEND,
}  # fmt: skip
"""The operation that each word of the data stands for."""
_NAMESPACED: Final = "KubeArmorPolicy"


@dataclass(frozen=True)
class Command:
    """One command and what is stated about it. ``word`` is the data's word for the operation."""

    name: str
    workload: WorkloadIdentity
    by: str
    user: str
    word: str
    object: str
    outcome: str
    action: str
    arguments: tuple[str, ...] | None
    terminal: bool | None

    def __str__(self) -> str:
        """Name the command in test names."""
        return self.name

    @property
    def question(self) -> Question:
        """The command as ``explain`` is asked about it."""
        owner = self.user == self.owner
        return Question(
            OPERATIONS[self.word], self.object, self.by, owner, arguments=self.arguments, terminal=self.terminal
        )

    @property
    def owner(self) -> str:
        """Whose the object is."""
        return "user1" if self.object.startswith(f"{HOME}/") else "root"

    def expected(self, rule_set: RuleSet, section: Section) -> Verdict:
        """Give the verdict that the statement comes to."""
        if self.outcome == "default":
            return rule_set.posture_of(section) if rule_set.is_allow_list(section) else Verdict.ALLOW
        if self.outcome == "failed":
            return Verdict.DENY
        return Verdict.AUDIT if self.action == "Audit" else Verdict.ALLOW


@dataclass(frozen=True)
class Scenario:
    """Some policies, and commands under them."""

    name: str
    upstream: str
    policies: tuple[models.Policy, ...]
    commands: tuple[Command, ...]

    def __str__(self) -> str:
        """Name the scenario in test names."""
        return self.name

    def rule_set(self, command: Command) -> RuleSet:
        """Give the rules of the command's workload; none where no policy covers it."""
        return normalise.rule_set(self.policies, command.workload) or RuleSet(())


@lru_cache(maxsize=1)
def load() -> tuple[Scenario, ...]:
    """Read all files."""
    found = tuple(scenario for path in sorted(DIRECTORY.glob("*.yaml")) for scenario in _of_file(path))
    assert len({scenario.name for scenario in found}) == len(found)
    return found


def _of_file(path: Path) -> list[Scenario]:
    document = yaml.safe_load(path.read_text("utf-8"))
    workloads = {name: _workload(name, **parts) for name, parts in document["workloads"].items()}
    return [
        Scenario(
            entry["name"],
            f"{entry['upstream']} @ {document['commit']}",
            _policies(entry, document.get("kind", _NAMESPACED)),
            tuple(_command(entry["name"], number, workloads, **parts) for number, parts in _numbered(entry)),
        )
        for entry in document["scenarios"]
    ]


def _numbered(entry: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    return list(enumerate(entry["commands"], 1))


def _workload(
    name: str, *, namespace: str = "", labels: dict[str, str] | None = None, container: str = "", host: str = ""
) -> WorkloadIdentity:
    return WorkloadIdentity(name, namespace, labels or {}, container, host=bool(host), host_name=host)


def _policies(entry: dict[str, Any], kind: str) -> tuple[models.Policy, ...]:
    kind = entry.get("kind", kind)
    specs = entry["policies"] if "policies" in entry else [entry["policy"]]
    files = []
    for number, spec in enumerate(specs, 1):
        metadata = {"name": entry["name"] + (f"-{number}" if len(specs) > 1 else "")}
        namespace = entry.get("namespace", DEFAULT_NAMESPACE)
        if kind == _NAMESPACED and namespace:
            metadata["namespace"] = namespace
        document = {"apiVersion": models.API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}
        files.append((f"{metadata['name']}.yaml", json.dumps(document, indent=1).encode()))
    return models.load(files)


def _command(
    scenario: str, number: int, workloads: dict[str, WorkloadIdentity], *, outcome: str, by: str, **parts: Any  # noqa: ANN401
) -> Command:  # fmt: skip
    [word] = OPERATIONS.keys() & parts.keys()
    target = parts.pop(word)
    if word == "send":
        address, protocol, port = target
        target = f"{address} {protocol}/{port}"
    elif word == "syscall":
        target = f"{target} {parts.pop('path')}"
    arguments = parts.pop("arguments", None)
    parts.pop("of", None)
    command = Command(
        name=f"{scenario}-{number}",
        workload=workloads[parts.pop("in")],
        by=by,
        user=parts.pop("as", "root"),
        word=word,
        object=target,
        outcome=outcome,
        action=parts.pop("action", ""),
        arguments=None if arguments is None else tuple(arguments),
        terminal=parts.pop("terminal", None),
    )
    assert not parts, parts
    assert command.user in USERS
    assert outcome in {"passed", "failed", "default"}
    return command

# SPDX-License-Identifier: Apache-2.0
"""The published scenarios about programs and files in containers come out as stated, in a real kernel.

One container holds every file and program that a command of the data is about, so that nothing but a policy refuses
anything; that is shown first. Each program is a copy of the prober: the kernel knows a source by its path, and what
``cat`` would do the prober does under its name. The container has no merged ``/usr``, as those of the scenarios.
"""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Final

import pytest

from guest_agent.engines.bpf_lsm.plan import compile_table, fingerprint
from guest_agent.events.alerts import DEFAULT_POSTURE, AlertMaker, Subject
from hauberk.policy import coverage
from hauberk.policy.globs import to_bytes
from hauberk.policy.objects import PATH_OPERATIONS
from hauberk.policy.resolution import RootResolver, expand
from hauberk.policy.rules import SECTION_OF, Operation, RuleSet, Verdict
from hauberk.policy.selectors import Scope
from tests import scenarios
from tests.vm.differential.generator import Question
from tests.vm.differential.laboratory import PROGRAM, Laboratory
from tests.vm.differential.oracle import DENIED

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from guest_agent.engines.port import KernelEvent
    from tests.scenarios import Command, Scenario

ASKED: Final = {"execute": "exec", "read": "open-read", "write": "open-append", "create": "creat"}
THROUGH: Final = "0"
CASES: Final = [
    (scenario, command)
    for scenario in scenarios.load()
    for command in scenario.commands
    if command.question.operation in PATH_OPERATIONS and not command.workload.host
]
IN_MOUNTS: Final = "/dev/"
"""Where the runtime mounts file systems of its own over the container's root."""


@dataclass(frozen=True)
class Observed:
    """What became of one command under its scenario's policies, and what the prober answered without any."""

    free: str
    held: str
    events: tuple[KernelEvent, ...]
    rule_set: RuleSet


class Theatre(Laboratory):
    """A container with the files and programs of all commands."""

    def fill(self, lower: Path) -> None:
        """Make every program a prober and every other object a file, user1's in user1's home."""
        programs = {command.by for _, command in CASES}
        programs |= {command.object for _, command in CASES if command.question.operation is Operation.EXECUTE}
        for path in sorted(programs):
            self._put(lower, path, program=True)
        for _, command in CASES:
            if command.object not in programs and not command.object.startswith(IN_MOUNTS):
                self._put(lower, command.object, program=False, made=command.word != "create")

    def furnish(self) -> None:
        """Make what stands in file systems that the runtime mounts."""
        for _, command in CASES:
            if command.object.startswith(IN_MOUNTS) and command.word != "create":
                self._put(Path(self.root), command.object, program=False)

    @staticmethod
    def _put(root: Path, path: str, *, program: bool, made: bool = True) -> None:
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if not made:
            return
        if program:
            shutil.copyfile(PROGRAM, place)
        else:
            place.write_text("data\n", encoding="ascii")
        place.chmod(0o755 if program else 0o666)
        user = scenarios.USERS["user1" if path.startswith(f"{scenarios.HOME}/") else "root"]
        os.chown(place, user, user)

    def run(self, commands: Iterable[Command]) -> dict[str, tuple[str, tuple[KernelEvent, ...]]]:
        """Let probers do what commands do, one prober for each program and user; give answers and events by name."""
        found: dict[str, tuple[str, tuple[KernelEvent, ...]]] = {}
        commands = list(commands)
        for by, name in dict.fromkeys((command.by, command.user) for command in commands):
            alike = [command for command in commands if (command.by, command.user) == (by, name)]
            user = scenarios.USERS[name]
            questions = [Question(ASKED[one.word], to_bytes(one.object), b"", by, user) for one in alike]
            batch = self.ask(by, user, questions)
            assert batch is not None, f"{by} was not started, but is no question itself"
            asked = [(command.question.operation.value, command.object) for command in alike]
            strange = [event for event in batch.events if (event.operation, event.path) not in asked]
            assert not strange, "events that no command explains"
            for command, about, answer in zip(alike, asked, batch.answers, strict=True):
                told = tuple(event for event in batch.events if (event.operation, event.path) == about)
                found[command.name] = answer, told
        return found

    @contextmanager
    def holding(self, rule_set: RuleSet) -> Iterator[RuleSet]:
        """Put rules in force, resolved as this container needs them."""
        with RootResolver(self.root) as resolver:
            resolved = expand(rule_set, resolver.resolve)
        self.enforce(compile_table(resolved).blob, fingerprint(resolved))
        try:
            yield resolved
        finally:
            self.release()


@pytest.fixture(scope="module")
def theatre(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Theatre]:
    with Theatre(tmp_path_factory.mktemp("theatre")) as made:
        made.furnish()
        yield made


@pytest.fixture(scope="module")
def observed(theatre: Theatre) -> dict[str, Observed]:
    """Every command without policies, then each under its scenario's."""
    free = theatre.run(command for _, command in CASES)
    assert not any(events for _, events in free.values())
    found: dict[str, Observed] = {}
    for _, cases in groupby(CASES, key=lambda case: (str(case[0]), case[1].workload.name)):
        together = list(cases)
        with theatre.holding(together[0][0].rule_set(together[0][1])) as rule_set:
            for name, (answer, events) in theatre.run(command for _, command in together).items():
                found[name] = Observed(free[name][0], answer, events, rule_set)
    return found


def test_nothing_but_a_policy_refuses(observed: dict[str, Observed]) -> None:
    assert len(observed) == len(CASES)
    assert {name: one.free for name, one in observed.items() if one.free != THROUGH} == {}


@pytest.mark.parametrize(("scenario", "command"), CASES, ids=[str(command) for _, command in CASES])
def test_the_kernel_does_what_is_stated(
    observed: dict[str, Observed], theatre: Theatre, scenario: Scenario, command: Command
) -> None:
    seen = observed[command.name]
    rule_set = seen.rule_set
    expected = command.expected(rule_set, SECTION_OF[command.question.operation])
    held = [rule for rule in rule_set.rules if rule.section in coverage.ENFORCED_SECTIONS]
    if coverage.report(held, Scope.CONTAINER):
        expected = Verdict.DENY  # a condition that the kernel does not see is taken at its strictest
    assert seen.held == (DENIED if expected is Verdict.DENY else THROUGH), scenario.upstream
    if expected is Verdict.ALLOW:
        assert not seen.events
        return
    assert seen.events
    names = {policy.name for policy in scenario.policies}
    severities = {str(rule.severity) if rule.severity else "" for rule in rule_set.rules if not rule.implied}
    for event in seen.events:
        alert = AlertMaker("guest", theatre.engine.name).make(event, Subject(rule_set=rule_set))
        told = (alert["Action"], alert["Result"])
        assert told == (("Block", "Permission denied") if expected is Verdict.DENY else ("Audit", "Passed"))
        assert alert["Operation"] == ("Process" if command.word == "execute" else "File")
        if command.outcome == "default" and alert["PolicyName"] == DEFAULT_POSTURE:
            assert alert["Severity"] == ""
        else:
            assert alert["PolicyName"] in names
            assert alert["Severity"] in severities

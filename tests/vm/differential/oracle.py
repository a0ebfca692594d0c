# SPDX-License-Identifier: Apache-2.0
"""What must come of a question, in terms of what ``hauberk policy explain`` answers.

The prober makes one or more system calls for a question, and undoes what it did by more of them. Each call is one or
two steps the policy is asked about; the first step that is denied ends the question. So the answers of ``explain`` to
the steps give the prober's answer and the alerts, to the last one.

Where a step is about one object, ``explain`` is asked as anybody would ask it: with the path as written and the root
file system. Where it gives an object a second name, the documented rule is spelled out here: both names may be written
to, and under the new one nobody comes to more than under the old. What a rename of a directory means for all that is
below it, only a plan knows; there the plan's simulator is asked.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from guest_agent.engines.bpf_lsm.plan import Table, compile_table, directory_change, fingerprint
from hauberk import cli
from hauberk.policy import models, normalise
from hauberk.policy.globs import to_bytes, to_text
from hauberk.policy.index import RuleIndex
from hauberk.policy.objects import PATH_OPERATIONS
from hauberk.policy.resolution import RootResolver, expand
from hauberk.policy.rules import POSTURES, Operation, RuleSet, Verdict, decide
from tests.vm.differential.universe import ENTRIES, SOURCES

if TYPE_CHECKING:
    from collections.abc import Iterable

    from guest_agent.engines.port import KernelEvent
    from tests.vm.differential.generator import Case, Question

DENIED: Final = str(errno.EACCES)
FOREIGN: Final = str(errno.EXDEV)
INTERPRETER: Final = b"/bin/sh"
NOT_EXECUTABLE: Final = str(errno.ENOEXEC)
_READ = (Operation.READ,)
_WRITE = (Operation.WRITE,)
_BOTH = (Operation.READ, Operation.WRITE)
_OPENS: Final = {
    "open-read": _READ, "open-write": _WRITE, "open-read-write": _BOTH, "open-append": _WRITE,
    "open-trunc-read": _BOTH, "open-trunc-write": _WRITE, "opendir": _READ,
}  # fmt: skip


class Subject(NamedTuple):
    """One thing ``explain`` can be asked."""

    operation: Operation
    path: str  # as written in the question
    follow: bool  # False: the object is what stands there, be it a link
    source: str
    owner: bool


class Step(NamedTuple):
    """One hook of the kernel about one object. ``maybe``: asked by some kernels only, after the same was granted."""

    operations: tuple[Operation, ...]
    path: bytes
    owner: bool
    detail: str
    follow: bool = False
    refusal: str = DENIED
    maybe: bool = False


class Naming(NamedTuple):
    """One hook of the kernel about a second name. ``taken``: whether who asks owns what is replaced; None: nothing."""

    old: bytes
    new: bytes
    owner: bool
    taken: bool | None
    directory: bool
    detail: str
    refusal: str = DENIED


class Alert(NamedTuple):
    """An event as it must come; ``owner`` is None where events do not tell."""

    verdict: str
    operation: str
    detail: str
    path: str
    other: str
    source: str
    owner: bool | None
    maybe: bool = False

    def told_by(self, event: KernelEvent) -> bool:
        """Whether an event is this alert."""
        return (
            (event.verdict, event.operation, event.detail, event.path, event.other_path, event.source)
            == (self.verdict, self.operation, self.detail, self.path, self.other, self.source)
            and event.path_known
            and self.owner in (None, event.owner)
        )


@dataclass(frozen=True, slots=True)
class Expectation:
    """What must come of a question."""

    answer: str
    alerts: tuple[Alert, ...]
    decisions: tuple[Verdict, ...]

    @property
    def denied(self) -> bool:
        """Whether the policy refuses the question itself (not only its being undone)."""
        return self.answer == DENIED


class Oracle:
    """The policies of one case in one container, asked for its questions."""

    def __init__(self, case: Case, root: str, directory: str) -> None:
        """Read, expand and compile the policies; ``root`` is the container's, ``directory`` holds the policy file."""
        self.case = case
        self.root = root
        with tempfile.NamedTemporaryFile("w", suffix=".yaml", dir=directory, delete=False, encoding="utf-8") as stream:
            stream.write(case.text)
        self.file = stream.name
        self.posture = POSTURES[case.posture]
        written = normalise.build(models.load([(self.file, case.text.encode())]), self.posture)
        with RootResolver(root) as resolver:
            self.rule_set: RuleSet = expand(written, resolver.resolve)
            spelled = {path for question in case.questions for path in (question.path, question.other) if path}
            spelled.add(INTERPRETER)
            parents = {path.rpartition(b"/")[0] or b"/" for path in spelled}
            self._forms = {path: tuple(map(to_bytes, resolver.resolve(to_text(path)))) for path in spelled | parents}
        self.table: Table = compile_table(self.rule_set)
        self.digest = fingerprint(self.rule_set)
        self._index = RuleIndex(self.rule_set.rules)
        self._answers: dict[Subject, Verdict] = {}

    # ---- where and whose

    def place(self, path: bytes, *, follow: bool) -> bytes:
        """Give the path the kernel sees."""
        if follow:
            return self._forms[path][-1]
        parent, _, name = path.rpartition(b"/")
        return self._forms[parent or b"/"][-1].rstrip(b"/") + b"/" + name

    def forms(self, question: Question) -> tuple[bytes, ...]:
        """Give every spelling of a question's paths, each link on the way resolved or not."""
        return tuple(form for path in (question.path, question.other) if path for form in self._forms[path])

    def _owns(self, place: bytes, user: int) -> bool:
        entry = ENTRIES.get(place)
        return entry is None or entry.owner == user

    # ---- the kernel's hooks of one question

    def steps(self, question: Question, baseline: str) -> tuple[Step | Naming, ...]:
        """Give the hooks in the order in which they run when nothing is refused."""
        operation, path, other, _, user = question
        if operation in ("creat", "creat-read", "mkdir", "mknod", "symlink"):
            return self._making(operation, path)
        if operation in ("unlink", "rmdir"):
            return self._removing(operation, path, user)
        if operation in ("link", "rename", "exchange"):
            return self._naming(operation, path, other, user, baseline)
        return self._following(operation, path, user)

    def _following(self, operation: str, path: bytes, user: int) -> tuple[Step, ...]:
        place = self.place(path, follow=True)
        owner = self._owns(place, user)

        def step(operations: tuple[Operation, ...], detail: str, *, maybe: bool = False) -> Step:
            return Step(operations, path, owner, detail, follow=True, maybe=maybe)

        if operation in ("exec", "execveat"):
            execute = step((Operation.EXECUTE,), "exec")
            entry = ENTRIES.get(place)
            if entry is None or entry.kind != "script":
                return (execute,)
            interpreter = self._owns(self.place(INTERPRETER, follow=True), user)
            return (execute, Step((Operation.EXECUTE,), INTERPRETER, interpreter, "exec", follow=True))
        if operation in _OPENS:
            opened = step(_OPENS[operation], "open")
            return (opened, step(_WRITE, "truncate", maybe=True)) if "trunc" in operation else (opened,)
        return {
            "stat": (),
            "truncate": (step(_WRITE, "truncate"),),
            "ftruncate": (step(_WRITE, "open"), step(_WRITE, "truncate", maybe=True)),
            "chmod": (step(_WRITE, "chmod"),),
            "chown": (step(_WRITE, "chown"),),
            "fchmod": (step(_READ, "open"), step(_WRITE, "chmod")),
            "map-exec": (step(_READ, "open"), step((Operation.MAP,), "mmap")),
            "mprotect-exec": (step(_READ, "open"), step((Operation.MAP,), "mprotect")),
        }[operation]

    def _making(self, operation: str, path: bytes) -> tuple[Step, ...]:
        def step(operations: tuple[Operation, ...], detail: str) -> Step:
            return Step(operations, path, owner=True, detail=detail)

        match operation:
            case "creat":
                return (step(_WRITE, "create"), step(_WRITE, "open"), step(_WRITE, "unlink"))
            case "creat-read":
                return (step(_WRITE, "create"), step(_READ, "open"), step(_WRITE, "unlink"))
            case "mkdir":
                return (step(_WRITE, "mkdir"), step(_WRITE, "rmdir"))
            case "mknod":
                return (step(_WRITE, "create"), step(_WRITE, "unlink"))
            case _:
                return (step(_WRITE, "symlink"), step(_WRITE, "unlink"))

    def _removing(self, operation: str, path: bytes, user: int) -> tuple[Step, ...]:
        owner = self._owns(self.place(path, follow=False), user)
        removal = Step(_WRITE, path, owner, operation)
        refusal = f"! undo-{operation} {DENIED}"
        if operation == "rmdir":
            return (removal, Step(_WRITE, path, owner=True, detail="mkdir", refusal=refusal),
                    Step(_WRITE, path, owner=True, detail="chmod", refusal=refusal))  # fmt: skip
        details = ("create", "open", "chmod", *(() if owner else ("chown",)))
        return (removal, *(Step(_WRITE, path, owner=True, detail=detail, refusal=refusal) for detail in details))

    def _naming(self, operation: str, path: bytes, other: bytes, user: int, baseline: str) -> tuple[Step | Naming, ...]:
        old, new = self.place(path, follow=False), self.place(other, follow=False)
        entry = ENTRIES[old]
        owner = self._owns(old, user)
        directory = entry.kind == "directory"
        if operation == "link":
            return (Naming(old, new, owner, None, directory, "link"), Step(_WRITE, other, owner, "unlink"))
        if operation == "rename":
            there = Naming(old, new, owner, None, directory, "rename")
            back = Naming(new, old, owner, None, directory, "rename", f"! undo-rename {DENIED}")
            return (there,) if baseline == FOREIGN else (there, back)
        taken = self._owns(new, user)
        swapped = Naming(new, old, taken, owner, ENTRIES[new].kind == "directory", "rename")
        straight = Naming(old, new, owner, taken, directory, "rename")
        if baseline == FOREIGN:
            return (straight, swapped)
        # going back, what is at ``other`` is what came from ``path``
        undone = (
            Naming(new, old, owner, taken, directory, "rename"),
            Naming(old, new, taken, owner, ENTRIES[new].kind == "directory", "rename"),
        )
        return (straight, swapped, *(each._replace(refusal=f"! undo-rename {DENIED}") for each in undone))

    # ---- verdicts

    def _subjects(self, question: Question, step: Step) -> list[tuple[Operation, Subject]]:
        return [
            (one, Subject(one, to_text(step.path), step.follow, question.source, step.owner)) for one in step.operations
        ]

    def prepare(self, questions: Iterable[tuple[Question, str]]) -> None:
        """Ask ``explain`` everything that these questions (with what came of each without policy) need, at once."""
        subjects = {
            subject
            for question, baseline in questions
            for step in self.steps(question, baseline)
            if isinstance(step, Step)
            for _, subject in self._subjects(question, step)
        }
        subjects |= {Subject(Operation.EXECUTE, source, follow=True, source="", owner=True) for source in SOURCES}
        wanted = sorted(subjects - self._answers.keys())
        for subject in wanted:
            if not subject.follow and self._is_link(subject.path):
                self._answers[subject] = self._of_link(subject)
        wanted = [subject for subject in wanted if subject not in self._answers]
        for subject, verdict in zip(wanted, self.explain(wanted), strict=True):
            self._answers[subject] = verdict

    def _is_link(self, path: str) -> bool:
        entry = ENTRIES.get(self.place(to_bytes(path), follow=False))
        return entry is not None and entry.kind == "link"

    def _of_link(self, subject: Subject) -> Verdict:
        """Answer for a link itself: the command line always asks for where it leads."""
        place = self.place(to_bytes(subject.path), follow=False)
        return self.decide(place, subject.operation, subject.source, owner=subject.owner)

    def arguments(self) -> list[str]:
        """Give the command line that asks, without ``hauberk`` and without the question."""
        return ["policy", "explain", self.file, "--rootfs", self.root, "--posture", self.case.posture]

    def lines(self, subjects: Iterable[Subject]) -> str:
        """Give the questions as the command reads them."""
        return "".join(
            json.dumps({"operation": one.operation, "path": one.path, "source": one.source or None, "owner": one.owner})
            + "\n"
            for one in subjects
        )

    def explain(self, subjects: list[Subject]) -> list[Verdict]:
        """Ask the command, many questions at once."""
        with tempfile.NamedTemporaryFile("w", encoding="utf-8") as stream:
            stream.write(self.lines(subjects))
            stream.flush()
            output = io.StringIO()
            with contextlib.redirect_stdout(output):
                status = cli.main([*self.arguments(), "--questions", stream.name])
        assert status == 0, f"explain ended with {status}: {output.getvalue()[-500:]}"
        return read_answers(output.getvalue())

    def decide(self, place: bytes, operation: Operation, source: str | None, *, owner: bool) -> Verdict:
        """Answer for a path without links."""
        return decide(self.rule_set, self._index.matching(place), operation, source=source, owner=owner).verdict

    def asked(self) -> dict[Subject, Verdict]:
        """Give what the command line was asked, with its answers."""
        return {one: verdict for one, verdict in self._answers.items() if one.follow or not self._is_link(one.path)}

    def admits(self, source: str) -> bool:
        """Whether the policies let the prober start at all; who starts it is nobody's source."""
        return self._answers[Subject(Operation.EXECUTE, source, follow=True, source="", owner=True)] is not Verdict.DENY

    def _naming_verdict(self, naming: Naming, source: str) -> Verdict:
        def write(place: bytes, *, owner: bool) -> Verdict:
            return self.decide(place, Operation.WRITE, source, owner=owner)

        verdicts = [write(naming.old, owner=naming.owner), write(naming.new, owner=naming.owner)]
        if naming.taken is not None:
            verdicts.append(write(naming.new, owner=naming.taken))
        if max(verdicts) is Verdict.DENY or self._widens(naming.old, naming.new):
            return Verdict.DENY
        if naming.directory:
            known = self.table.sources
            number = known.index(source) + 1 if source in known else 0
            if directory_change(self.table.blob, naming.old, naming.new, number, naming.owner) is Verdict.DENY:
                return Verdict.DENY
        return max(verdicts)

    def _widens(self, old: bytes, new: bytes) -> bool:
        """Whether some source is denied something under the old name and not under the new one."""
        return any(
            self.decide(old, operation, source, owner=owner) is Verdict.DENY
            and self.decide(new, operation, source, owner=owner) is not Verdict.DENY
            for source in (None, *self.table.sources)
            for operation in PATH_OPERATIONS
            for owner in (False, True)
        )

    def expect(self, question: Question, baseline: str) -> Expectation:
        """Say what must come of a question, ``baseline`` being what came of it without policy."""
        alerts: list[Alert] = []
        decisions: list[Verdict] = []
        for step in self.steps(question, baseline):
            if isinstance(step, Naming):
                verdict = self._naming_verdict(step, question.source)
                told = Alert("", "write", step.detail, to_text(step.old), to_text(step.new), question.source, None)
            else:
                answers = [(self._answers[subject], one) for one, subject in self._subjects(question, step)]
                verdict = max(answer for answer, _ in answers)
                first = next(one for answer, one in answers if answer is verdict)
                place = to_text(self.place(step.path, follow=step.follow))
                told = Alert("", first.value, step.detail, place, "", question.source, step.owner, step.maybe)
            decisions.append(verdict)
            if verdict is not Verdict.ALLOW:
                alerts.append(told._replace(verdict="deny" if verdict is Verdict.DENY else "audit"))
            if verdict is Verdict.DENY:
                return Expectation(step.refusal, tuple(alerts), tuple(decisions))
        return Expectation(baseline, tuple(alerts), tuple(decisions))

    def _row(self, place: bytes, source: str) -> str:
        """Give what is not allowed under a name, and to whom."""
        refused: dict[str, list[str]] = {}
        for one in dict.fromkeys((source, None, *self.table.sources)):
            for operation in sorted(PATH_OPERATIONS):
                for owner in (False, True):
                    verdict = self.decide(place, operation, one, owner=owner)
                    if verdict is not Verdict.ALLOW:
                        key = f"{verdict.name.lower()} {operation.value}"
                        refused.setdefault(key, []).append(f"{one or 'any'}{' owner' if owner else ''}")
        return "; ".join(f"{key} for {', '.join(who)}" for key, who in refused.items()) or "all allowed"

    def explained(self, question: Question, baseline: str) -> str:
        """Say why, for a person: each step with ``explain``'s own words."""
        words: list[str] = []
        for step in self.steps(question, baseline):
            if isinstance(step, Naming):
                words.append(f"{step} -> {self._naming_verdict(step, question.source).name}")
                words += [f"    {name!r}: {self._row(name, question.source)}" for name in (step.old, step.new)]
                continue
            for _, subject in self._subjects(question, step):
                words.append(f"{step.detail}: {subject} -> {self._answers[subject].name}")
                output = io.StringIO()
                with contextlib.redirect_stdout(output):
                    cli.main([
                        *self.arguments(), "--operation", subject.operation.value, "--path", subject.path,
                        *(["--source", subject.source] if subject.source else []),
                        "--owner" if subject.owner else "--not-owner",
                    ])  # fmt: skip
                words.append("    " + output.getvalue().strip().replace("\n", "\n    "))
        return "\n".join(words)


def read_answers(output: str) -> list[Verdict]:
    """Read the verdicts of ``explain --questions``."""
    return [Verdict[json.loads(line)["verdict"].upper()] for line in output.splitlines()]

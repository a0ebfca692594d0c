# SPDX-License-Identifier: Apache-2.0
"""Where two sets of policies disagree, a change says so; where none does, they agree."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hauberk.policy import collection, difference, globs, objects
from hauberk.policy.collection import NormalPolicy
from hauberk.policy.difference import Change, Side, compare
from hauberk.policy.explain import Explainer, Question
from hauberk.policy.path_classes import TooManyStatesError
from hauberk.policy.rules import (
    PACKET_SECTIONS,
    PATH_KINDS,
    SECTION_OF,
    Action,
    Circumstances,
    DeviceMatch,
    LabelRequirement,
    ObjectKind,
    Operation,
    Origin,
    Peer,
    PeerGroup,
    PeerMatch,
    PeerSelector,
    Rule,
    RuleSet,
    Section,
    SyscallMatch,
    Verdict,
    join,
)
from hauberk.policy.selectors import Scope, Selector, WorkloadIdentity

# ---- random policies and questions of a small world ----

COMPONENTS = ("a", "b", "ab")
paths = st.lists(st.sampled_from(COMPONENTS), min_size=1, max_size=2).map(lambda parts: "/" + "/".join(parts))
programs = st.sampled_from(("/a", "/b", "/a/b"))
sources = st.lists(programs, max_size=1).map(tuple)
actions = st.sampled_from(Action)
booleans = st.booleans()


@st.composite
def path_rules(draw: st.DrawFn) -> Rule:
    kind = draw(st.sampled_from(sorted(PATH_KINDS)))
    value = {
        ObjectKind.PATH: paths,
        ObjectKind.DIRECTORY: st.just("/") | paths.map(lambda path: path + "/"),
        ObjectKind.PATTERN: st.sampled_from(("/**", "/a*", "/*/b", "/{a,b}/?", "/**b")),
        ObjectKind.EXECNAME: st.sampled_from(COMPONENTS),
    }[kind]
    section = draw(st.sampled_from((Section.PROCESS, Section.FILE)))
    process = section is Section.PROCESS
    return Rule(
        section,
        kind,
        draw(value),
        draw(actions),
        Origin("p", "f"),
        recursive=kind is ObjectKind.DIRECTORY and draw(booleans),
        read_only=not process and draw(booleans),
        owner_only=draw(booleans),
        sources=draw(sources),
        terminal=draw(st.sampled_from((None, None, False))),
        allowed_arguments=draw(st.sampled_from(((), (), ("x",), ("x", "y"), ("y", "z")))) if process else (),
    )


def other(section: Section, kind: ObjectKind, value: str = "", match: object = None) -> st.SearchStrategy[Rule]:
    return st.builds(
        Rule,
        section=st.just(section),
        kind=st.just(kind),
        value=st.just(value),
        action=actions,
        origin=st.just(Origin("p", "f")),
        sources=sources if section not in {Section.DEVICE, Section.INGRESS, Section.EGRESS} else st.just(()),
        match=st.just(match),
    )


def words(section: Section, kind: ObjectKind, *values: str) -> st.SearchStrategy[Rule]:
    return st.one_of([other(section, kind, value) for value in values])


def matched(
    section: Section, kind: ObjectKind, *matches: DeviceMatch | PeerMatch | SyscallMatch
) -> st.SearchStrategy[Rule]:
    return st.one_of([other(section, kind, "", match) for match in matches])


def grouped(*groups: PeerGroup) -> st.SearchStrategy[Rule]:
    return st.builds(
        Rule,
        section=st.just(Section.EGRESS),
        kind=st.just(ObjectKind.PEER),
        value=st.just(""),
        action=actions,
        origin=st.just(Origin("p", "f")),
        default_deny=st.sampled_from((None, None, True, False)),
        match=st.builds(
            PeerMatch,
            st.sampled_from(((), ("10.1.0.0/16",))),
            groups=st.lists(st.sampled_from(groups), min_size=1, max_size=2, unique=True).map(tuple),
        ),
    )


rules = st.one_of(
    path_rules(),
    path_rules(),
    words(Section.NETWORK, ObjectKind.PROTOCOL, "tcp", "raw", "all"),
    words(Section.DNS, ObjectKind.DOMAIN, "example.com", "com"),
    words(Section.CAPABILITIES, ObjectKind.CAPABILITY, "net_raw", "kill"),
    words(Section.PRESETS, ObjectKind.PRESET, "exec"),
    matched(
        Section.SYSCALLS,
        ObjectKind.SYSCALL,
        SyscallMatch(("open",)),
        SyscallMatch(("open", "unlink"), "/a", recursive=True),
        SyscallMatch(("unlink",), source_directories=(("/a/", False),)),
    ),
    matched(Section.DEVICE, ObjectKind.DEVICE, DeviceMatch(), DeviceMatch(8, 1), DeviceMatch(level=2)),
    matched(
        Section.EGRESS,
        ObjectKind.PEER,
        PeerMatch(("10.0.0.0/8",), (), ((80, 90, "tcp"),)),
        PeerMatch(("10.1.0.0/16", "fd00::/8"), ("eth*",)),
        PeerMatch((), (), ((80, 80, "tcp"),), (1024, 60, "pod")),
        PeerMatch(("10.0.0.0/8", "::/0"), exceptions=("10.1.0.0/16", "fd00::/8")),
        PeerMatch(icmp=((4, 8), (6, None))),
        PeerMatch(ports=((0, 65535, "udp"), (0, 65535, "vrrp"))),
        PeerMatch(nothing=True),
    ),
    grouped(PeerGroup("name", "*.example.com"), PeerGroup("name", "www.example.com"), PeerGroup("name", "www.*")),
    grouped(PeerGroup("entity", "world"), PeerGroup("entity", "cluster"), PeerGroup("entity", "host")),
    grouped(
        PeerGroup.of_workloads(PeerSelector((LabelRequirement("app", "In", ("web", "db")),))),
        PeerGroup.of_workloads(PeerSelector((LabelRequirement("app", "NotIn", ("web",)),), ("default", "shop"))),
        PeerGroup.of_workloads(PeerSelector((LabelRequirement("tier", "Exists"),), ("shop",))),
        PeerGroup.of_workloads(PeerSelector((LabelRequirement("tier", "DoesNotExist"),))),
        PeerGroup.of_workloads(
            PeerSelector(namespace_labels=(LabelRequirement("kubernetes.io/metadata.name", "NotIn", ("shop",)),))
        ),
        PeerGroup.of_workloads(PeerSelector(namespace_labels=(LabelRequirement("team", "DoesNotExist"),))),
    ),
)
selectors = st.sampled_from(
    (
        Selector(labels=(("app", "web"),)),
        Selector(labels=(("app", "db"),)),
        Selector(container_name="web.*"),
        Selector(requirements=(LabelRequirement("app", "Exists"), LabelRequirement("app", "NotIn", ("db",)))),
        Selector(requirements=(LabelRequirement("app", "DoesNotExist"),)),
        Selector(scope=Scope.HOST),
    )
)
policies = st.builds(
    NormalPolicy,
    st.just("p"),
    st.just("KubeArmorPolicy"),
    st.just(""),
    st.just("p.yaml"),
    selectors,
    st.lists(rules, min_size=1, max_size=3).map(tuple),
)
verdicts = st.sampled_from(Verdict)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Side, Side]:
    """Give two sides that have most in common."""
    old: list[NormalPolicy] = draw(st.lists(policies, min_size=1, max_size=3))
    new = list(old)
    for _ in range(draw(st.integers(0, 2))):
        removes: bool = draw(booleans)
        if new and removes:
            new.pop(draw(st.integers(0, len(new) - 1)))
        else:
            added: NormalPolicy = draw(policies)
            new.append(added)
    frame: tuple[Verdict, tuple[tuple[Section, Verdict], ...], Verdict] = (
        draw(st.sampled_from((Verdict.DENY, Verdict.ALLOW))),
        (),
        draw(verdicts),
    )
    other_frame = draw(st.sampled_from((frame, frame, (Verdict.AUDIT, ((Section.FILE, Verdict.ALLOW),), Verdict.DENY))))
    return Side(tuple(old), *frame), Side(tuple(new), *other_frame)


workloads = st.sampled_from(
    (
        WorkloadIdentity(labels={"app": "web"}),
        WorkloadIdentity(labels={"app": "web"}, container_name="web-1"),
        WorkloadIdentity(labels={"app": "db"}, namespace="default"),
        WorkloadIdentity(labels={"app": "db"}, namespace="else"),
        WorkloadIdentity(container_name="website"),
        WorkloadIdentity(labels={"app": "else"}),
        WorkloadIdentity(host=True),
        WorkloadIdentity(),
    )
)
things = st.one_of(
    st.tuples(
        st.sampled_from((Operation.EXECUTE, Operation.MAP, Operation.READ, Operation.WRITE)),
        paths | st.sampled_from(("/", "/c", "/a/c", "/a/b/c", "/bb")),
    ),
    st.sampled_from(
        (
            (Operation.SOCKET, "tcp"),
            (Operation.SOCKET, "raw/icmp"),
            (Operation.SOCKET, "packet"),
            (Operation.RESOLVE, "www.example.com"),
            (Operation.RESOLVE, "x.org"),
            (Operation.CAPABILITY, "kill"),
            (Operation.CAPABILITY, "bpf"),
            (Operation.PRESET, "exec"),
            (Operation.SYSCALL, "open"),
            (Operation.SYSCALL, "unlink /a/b"),
            (Operation.ATTACH, "8/1/2@2"),
            (Operation.ATTACH, "HID"),
            (Operation.SEND, "10.1.2.3 tcp/80 on eth1"),
            (Operation.SEND, "10.2.3.4 tcp/85"),
            (Operation.SEND, "fd00::7"),
            (Operation.SEND, "fd00::7 icmpv6/128 labels tier=x namespace shop"),
            (Operation.SEND, "10.1.2.3 icmp/8 name www.example.com,www.example.org"),
            (Operation.SEND, "10.1.2.3 vrrp entity world,cluster,host name a.example.com labels app=x"),
            (Operation.SEND, "10.1.2.3 udp/53 labels app=web"),
            (Operation.SEND, "11.0.0.1 labels app=db,tier=x namespace shop"),
            (Operation.SEND, "11.0.0.1 tcp/80 namespace else"),
            (Operation.SEND, "10.0.0.1 tcp/80 on lo"),
            (Operation.RECEIVE, "10.1.2.3"),
        )
    ),
)


@st.composite
def questions(draw: st.DrawFn) -> Question:
    operation, thing = draw(things)
    return Question(
        operation,
        thing,
        draw(st.none() | programs | st.just("/a/c")),
        draw(booleans),
        arguments=draw(st.sampled_from((None, (), ("x",), ("x", "y"), ("y",), ("z", "q")))),
        terminal=draw(st.sampled_from((None, True, False))),
        beyond_quota=draw(booleans),
    )


# ---- the reference: sides answered as explain does, classes by the reference matchers ----


def rules_of(side: Side, workload: WorkloadIdentity) -> RuleSet | None:
    covering = [policy for policy in side.policies if policy.covers(workload)]
    if not covering:
        return None
    return join((rule for policy in covering for rule in policy.rules), side.posture, side.postures)


def verdict(side: Side, workload: WorkloadIdentity, question: Question) -> Verdict:
    rule_set = rules_of(side, workload)
    return side.default if rule_set is None else Explainer(rule_set).ask(question).decision.verdict


def profile(rule_sets: list[RuleSet | None], question: Question) -> object:
    """Give what rules can see of a question."""
    asked = objects.read(question.operation, question.object)
    known = Circumstances(
        question.arguments, question.terminal, question.beyond_quota, asked if isinstance(asked, Peer) else None
    )
    own_program = question.operation is Operation.MAP and question.source == question.object
    seen: list[object] = [question.operation, own_program]
    if own_program:
        return seen  # which no rule is asked about
    for rule_set in rule_sets:
        for rule in rule_set.rules if rule_set else ():
            named = globs.matches(rule, asked) if isinstance(asked, str) and rule.kind in PATH_KINDS else (
                not isinstance(asked, str) and rule.section is SECTION_OF[question.operation]
                and objects.matches(rule, asked)
            )  # fmt: skip
            if named:
                effect = rule.effect(question.operation, owner=question.owner, known=known)
                seen.append((rule, rule.covers_source(question.source), effect))
        if question.operation is Operation.MAP and rule_set:
            seen.append(question.source in rule_set.privileged_sources())
    return seen


def contains(change: Change, sides: tuple[Side, Side], workload: WorkloadIdentity, question: Question) -> bool:
    """Whether a question is of the class that a change is the example of."""
    rule_sets = [rules_of(side, workload) for side in sides]
    covered = tuple(rule_set is not None for rule_set in rule_sets)
    if change.covered != covered:
        return False
    of_workload = [[rules_of(side, example) for side in sides] for example in change.workloads]
    if any(covered) and rule_sets not in of_workload:
        return False
    if SECTION_OF[question.operation] in PACKET_SECTIONS:
        return change.question.operation is question.operation and (
            decisions(sides, workload, change.question) == decisions(sides, workload, question)
        )
    return profile(rule_sets, change.question) == profile(rule_sets, question)


def decisions(sides: tuple[Side, Side], workload: WorkloadIdentity, question: Question) -> list[object]:
    """Give what each side says of packets, and by which rule: many rules may be about one, and one decides."""
    found: list[object] = []
    for side in sides:
        rule_set = rules_of(side, workload)
        decision = None if rule_set is None else Explainer(rule_set).ask(question).decision
        found.append(side.default if decision is None else (decision.verdict, decision.rule))
    return found


def said(question: Question) -> list[Question]:
    """Give the questions that one with something left out may stand for: it gets the strictest of their answers."""
    arguments = [("x",), ("y",), ("x", "y"), ("y", "z"), ("none of these",)]
    return [
        dataclasses.replace(question, arguments=words, terminal=terminal)
        for words in (arguments if question.arguments is None else [question.arguments])
        for terminal in ((True, False) if question.terminal is None else (question.terminal,))
    ]


def hold_each_disagreement_to_a_change(
    sides: tuple[Side, Side], asked: list[tuple[WorkloadIdentity, Question]]
) -> None:
    changes = compare(*sides)
    for workload, question in asked:
        if verdict(sides[0], workload, question) is not verdict(sides[1], workload, question):
            assert any(contains(change, sides, workload, one) for one in said(question) for change in changes)


asking = st.lists(st.tuples(workloads, questions()), min_size=1, max_size=12)


@given(pairs(), asking)
@settings(max_examples=300)
def test_each_question_on_which_they_disagree_is_in_a_change(
    sides: tuple[Side, Side], asked: list[tuple[WorkloadIdentity, Question]]
) -> None:
    hold_each_disagreement_to_a_change(sides, asked)


@pytest.mark.long
@given(pairs(), asking)
@settings(max_examples=5000)
def test_each_question_on_which_they_disagree_is_in_a_change_at_length(
    sides: tuple[Side, Side], asked: list[tuple[WorkloadIdentity, Question]]
) -> None:
    hold_each_disagreement_to_a_change(sides, asked)


@given(pairs())
@settings(max_examples=60)
def test_each_change_is_one_for_all_its_workloads(sides: tuple[Side, Side]) -> None:
    for change in compare(*sides):
        assert change.before.verdict is not change.after.verdict
        strangers = [
            one
            for one in (WorkloadIdentity(labels={"no": "thing"}), WorkloadIdentity(labels={"app": "else"}))
            if all(rules_of(side, one) is None for side in sides)
        ]
        for workload in change.workloads or strangers:
            before, after = (verdict(side, workload, change.question) for side in sides)
            assert (before, after) == (change.before.verdict, change.after.verdict)


@given(pairs())
@settings(max_examples=30)
def test_nothing_differs_from_itself(sides: tuple[Side, Side]) -> None:
    renamed = tuple(
        policy._replace(
            name="renamed",
            rules=tuple(
                dataclasses.replace(
                    rule, origin=Origin("renamed", "x", "y", 7, 7), message="m", severity=3, tags=("t",)
                )
                for rule in reversed(policy.rules)
            ),
        )
        for policy in reversed(sides[0].policies)
    )
    assert compare(sides[0], dataclasses.replace(sides[0], policies=renamed)) == ()


# ---- what people see ----

OLD = b"""\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  file: {matchDirectories: [{dir: /etc/, recursive: true, readOnly: true}]}
"""


def side(*texts: bytes, default: Verdict = Verdict.DENY) -> Side:
    return Side(collection.load([(f"{number}.yaml", text) for number, text in enumerate(texts)]), default=default)


def told(old: Side, new: Side) -> set[tuple[str, str, str]]:
    return {(change.effect, change.question.operation.value, change.question.object) for change in compare(old, new)}


def test_another_way_to_say_the_same_is_no_change() -> None:
    other_words = OLD.replace(
        b"{matchDirectories: [{dir: /etc/, recursive: true, readOnly: true}]}",
        b'{matchPatterns: [{pattern: "/etc{,/**}", readOnly: true}]}',
    )
    assert other_words != OLD
    assert compare(side(OLD), side(other_words)) == ()


def test_what_a_rule_more_refuses() -> None:
    more = OLD.replace(b"readOnly: true}]", b"readOnly: true}], matchPaths: [{path: /etc/shadow}]")
    assert told(side(OLD), side(more)) == {("refused", "read", "/etc/shadow")}
    assert told(side(more), side(OLD)) == {("allowed", "read", "/etc/shadow")}


def test_an_audit_is_told_apart() -> None:
    audit = OLD.replace(b"file:", b"action: Audit\n  file:")
    assert told(side(OLD), side(audit)) == {("allowed", "write", "/etc")}
    assert told(side(audit), side(audit.replace(b"/etc/", b"/var/"))) == {
        ("unaudited", "write", "/etc"),
        ("audited", "write", "/var"),
    }


def test_what_is_left_out_hides_no_change() -> None:
    """Without arguments, the strictest answer is the same on both sides; with others than the listed, it is not."""
    block = b"{path: /a, action: Block}"
    audit = b"{path: /a, action: Audit, allowedArgs: [x], fromSource: [{path: /b}]}"
    start = OLD.partition(b"  file:")[0]
    old = start + b"  process: {matchPaths: [" + block + b", " + audit + b"]}\n"
    new = start + b"  process: {matchPaths: [" + block + b"]}\n"
    changes = compare(side(old), side(new))
    (refused,) = (change for change in changes if change.question.operation is Operation.EXECUTE)
    assert (refused.effect, refused.question.source, refused.question.arguments) == ("refused", "/b", ("other",))


def test_a_program_does_not_stand_for_what_lies_beside_it() -> None:
    """``/a`` is the shortest path of the class, and what it maps of itself is no question for rules."""
    start = OLD.partition(b"  file:")[0]
    rule = b"  process: {matchDirectories: [{dir: /a/, recursive: true, fromSource: [{path: /a}]}]}\n"
    allowed = told(side(start + rule), side(start + rule.replace(b"path: /a", b"path: /c")))
    assert ("allowed", "map", "/a/x") in allowed


def test_a_directory_does_not_stand_for_the_programs_in_it() -> None:
    start = OLD.partition(b"  file:")[0] + b"  file: {matchPaths: [{path: /x}]}\n"
    rule = b"  syscalls: {matchSyscalls: [{syscall: [unlink], fromSource: [{dir: /a/}]}]}\n"
    (audited,) = compare(side(start), side(start + rule))
    assert (audited.effect, audited.question.object, audited.question.source) == ("audited", "unlink", "/a/x")


def test_a_workload_that_no_policy_covers_any_more_gets_the_default() -> None:
    elsewhere = OLD.replace(b"app: web", b"app: db")
    changes = compare(side(OLD, default=Verdict.DENY), side(elsewhere, default=Verdict.DENY))
    lost = [change for change in changes if change.covered == (True, False)]
    gained = [change for change in changes if change.covered == (False, True)]
    assert len(lost) + len(gained) == len(changes)
    assert {change.effect for change in lost} == {"refused"}
    assert {change.effect for change in gained} == {"allowed"}
    assert lost[0].after.reason == difference.UNCOVERED
    assert [dict(workload.labels) for workload in lost[0].workloads] == [{"app": "web"}]


def test_another_default_is_told_once() -> None:
    changes = compare(side(OLD, default=Verdict.DENY), side(OLD, default=Verdict.ALLOW))
    assert {change.covered for change in changes} == {(False, False)}
    assert {change.workloads for change in changes} == {()}


def test_too_much_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hauberk.policy.path_classes.MAXIMUM_STATES", 3)
    with pytest.raises(TooManyStatesError):
        compare(side(OLD), side(OLD.replace(b"/etc/", b"/var/")))

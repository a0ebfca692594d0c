# SPDX-License-Identifier: Apache-2.0
"""Answers about everything: what is asked, what is seen, who decided, and what was left unsaid."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from hauberk.policy import coverage, explain, models, normalise
from hauberk.policy.annotations import Mode
from hauberk.policy.explain import Explainer, Question, QuestionError
from hauberk.policy.resolution import RootResolver, expand
from hauberk.policy.rules import (
    Action,
    ObjectKind,
    Operation,
    Origin,
    PeerGroup,
    PeerMatch,
    Rule,
    RuleSet,
    Section,
    Verdict,
    join,
)
from hauberk.policy.selectors import Scope
from tests.unit.policy.documents_of_each_kind import CONTAINER, HOST, NETWORK, QUOTA

if TYPE_CHECKING:
    from pathlib import Path


def rule_set(*texts: str) -> RuleSet:
    return normalise.build(models.load((f"{number}.yaml", text.encode()) for number, text in enumerate(texts)))


ALL = rule_set(CONTAINER, HOST, NETWORK)


def ask(question: dict[str, Any], rules: RuleSet = ALL, **how: Any) -> explain.Answer:  # noqa: ANN401
    return Explainer(rules, **how).ask(explain.parse_question(json.dumps(question)))


@pytest.mark.parametrize(
    ("question", "verdict", "field"),
    [
        ({"operation": "socket", "object": "tcp", "source": "/usr/bin/curl"}, "allow",
         "spec.network.matchProtocols[0]"),
        ({"operation": "socket", "object": "tcp"}, "deny", None),
        ({"operation": "socket", "object": "udp"}, "audit", "spec.network.matchProtocols[1]"),
        ({"operation": "resolve", "object": "www.a.example"}, "audit", "spec.network.matchDNSQueries[1]"),
        ({"operation": "resolve", "object": "other.org"}, "allow", None),
        ({"operation": "capability", "object": "bpf"}, "audit", "spec.capabilities.matchCapabilities[1]"),
        ({"operation": "syscall", "object": "openat2 /etc/x/y"}, "audit", "spec.syscalls.matchPaths[0]"),
        ({"operation": "syscall", "object": "unlink", "source": "/opt/a/b"}, "audit", "spec.syscalls.matchSyscalls[0]"),
        ({"operation": "syscall", "object": "unlink", "source": "/bin/x"}, "allow", None),
        ({"operation": "preset", "object": "filelessExec"}, "deny", "spec.presets[0]"),
        ({"operation": "preset", "object": "exec"}, "allow", None),
        ({"operation": "attach", "object": "8/6/80@1"}, "deny", "spec.device.matchDevice[0]"),
        ({"operation": "attach", "object": "8/6/80@2"}, "audit", "spec.device.matchDevice[4]"),
        ({"operation": "receive", "object": "10.1.2.3 tcp/22 on eth0"}, "deny", "spec.ingress[0]"),
        ({"operation": "receive", "object": "10.1.2.3 tcp/22"}, "allow", None),
        ({"operation": "send", "object": "192.0.2.7 udp/53"}, "allow", "spec.egress[0]"),
        ({"operation": "send", "object": "192.0.2.8"}, "allow", "spec.egress[1]"),
        ({"operation": "send", "object": "192.0.2.8", "beyondQuota": True}, "deny", "spec.egress[1]"),
        ({"operation": "execute", "path": "/bin/sh", "source": "/usr/bin/nginx", "arguments": ["-c"],
          "terminal": False}, "allow", "spec.process.matchPaths[0]"),
        ({"operation": "execute", "path": "/bin/sh", "source": "/usr/bin/nginx", "arguments": ["-i"],
          "terminal": False}, "deny", "spec.process.matchPaths[0]"),
        ({"operation": "execute", "object": "/bin/sh", "source": "/usr/bin/nginx"}, "deny",
         "spec.process.matchPaths[0]"),
    ],
)  # fmt: skip
def test_every_section_is_answered(question: dict[str, Any], verdict: str, field: str | None) -> None:
    answer = ask(question)
    plain = json.loads(json.dumps(explain.as_json(answer)))
    assert plain["verdict"] == verdict
    assert (plain["rule"] or {}).get("field") == field
    assert plain["operation"] == question["operation"]
    assert plain.get("path") == question.get("path") or "object" in question
    text = explain.as_text(answer)
    assert text.startswith(f"{verdict}: {question['operation']} ")
    if field:
        assert f" {field} at " in text
        assert plain["rule"]["line"] > 1


@pytest.mark.parametrize(
    ("question", "note"),
    [
        ({"operation": "execute", "path": "/bin/sh", "source": "/usr/bin/nginx"}, "says nothing of arguments"),
        ({"operation": "execute", "path": "/bin/sh", "source": "/usr/bin/nginx"}, "says nothing of a terminal"),
        ({"operation": "send", "object": "192.0.2.8"}, "as long as the quota lasts"),
        ({"operation": "syscall", "object": "unlink"}, "only ever report"),
        ({"operation": "execute", "path": "/bin/sh", "source": "/bin/x", "parent": "/usr/bin/nginx"},
         "the parent /usr/bin/nginx does not count"),
        ({"operation": "execute", "path": "/bin/sh", "parent": "/usr/bin/nginx"}, "a program that no rule names"),
        ({"operation": "execute", "path": "/bin/sh", "source": "/usr/bin/nginx", "uid": 5}, "names no owner's uid"),
    ],
)  # fmt: skip
def test_what_was_left_unsaid_and_mattered_is_noted(question: dict[str, Any], note: str) -> None:
    answer = ask(question)
    assert any(note in one for one in answer.notes)
    assert f"  note: {next(one for one in answer.notes if note in one)}" in explain.as_text(answer)
    assert explain.as_json(answer)["notes"] == list(answer.notes)


@pytest.mark.parametrize(
    "question",
    [
        {"operation": "execute", "path": "/bin/sh", "source": "/usr/bin/nginx", "arguments": [], "terminal": True},
        {"operation": "execute", "path": "/bin/ls", "parent": "/bin/x"},
        {"operation": "send", "object": "192.0.2.8", "beyondQuota": True},
        {"operation": "receive", "object": "192.0.2.8"},
        {"operation": "execute", "path": "/bin/sh", "source": "/x", "parent": "/x", "uid": 5, "ownerUid": 5},
    ],
)
def test_nothing_is_noted_that_does_not_matter(question: dict[str, Any]) -> None:
    assert [note for note in ask(question).notes if not note.startswith("no engine")] == []


@pytest.mark.parametrize(
    ("question", "note"),
    [
        ({"operation": "execute", "path": "/bin/sh", "source": "/usr/bin/nginx", "arguments": ["-c"]}, "allowedArgs"),
        ({"operation": "capability", "object": "bpf"}, "the section capabilities"),
        ({"operation": "read", "path": "/never/named"}, None),
        ({"operation": "execute", "path": "/never/named"}, None),
    ],
)
def test_an_answer_that_rests_on_what_no_engine_enforces_says_so(question: dict[str, Any], note: str | None) -> None:
    found = [one for one in ask(question).notes if one.startswith("no engine")]
    assert len(found) == (note is not None)
    assert all(note in one and one.endswith("the answer is what the policy says") for one in found if note)


def test_a_short_answer_says_so_too() -> None:
    short = [explain.verdict_as_json(ask({"operation": "capability", "object": one})) for one in ("bpf", "chown")]
    assert "the section capabilities" in short[0]["notes"][0]
    assert "notes" not in short[1]


@pytest.mark.parametrize("action", Action)
@pytest.mark.parametrize("conditions", [{"allowed_arguments": ("-l",)}, {"terminal": False}])
@pytest.mark.parametrize("near", [True, False])
def test_an_answer_that_the_engine_gives_otherwise_says_so(
    action: Action, conditions: dict[str, Any], *, near: bool
) -> None:
    rule = Rule(Section.PROCESS, ObjectKind.PATH, "/bin/a", action, Origin("p", "f"), **conditions)
    question = {"operation": "execute", "path": "/bin/a", "arguments": ["-l" if near else "-x"], "terminal": not near}
    answer = ask(question, join((rule,)))
    engine = Explainer(join(coverage.in_force((rule,)))).ask(answer.asked).decision.verdict
    said = [note for note in answer.notes if note.endswith("is what the engine does")]
    assert len(said) == (engine is not answer.decision.verdict)
    assert all(f"and {engine.name.lower()} is what the engine does" in note for note in said)
    assert engine >= answer.decision.verdict or action is Action.AUDIT


def test_what_another_section_says_makes_no_such_answer() -> None:
    rule = Rule(Section.FILE, ObjectKind.PATH, "/bin/a", Action.BLOCK, Origin("p", "f"), terminal=False)
    rules = join((rule,))
    assert ask({"operation": "execute", "path": "/bin/a"}, rules).notes == ()
    assert ask({"operation": "read", "path": "/bin/a", "terminal": False}, rules).notes != ()


def test_so_does_one_that_rests_on_an_allow_list_and_one_about_a_host() -> None:
    origin = Origin("p", "f")
    allow = Rule(Section.NETWORK, ObjectKind.PROTOCOL, "tcp", Action.ALLOW, origin)
    refused = Explainer(RuleSet((allow,))).ask(Question(Operation.SOCKET, "udp"))
    assert (refused.decision.rule, refused.decision.verdict) == (None, Verdict.DENY)
    assert refused.notes[0].startswith("no engine enforces the section network yet")
    block = Rule(Section.FILE, ObjectKind.PATH, "/x", Action.BLOCK, origin)
    on_host = Explainer(RuleSet((block,)), scope=Scope.HOST).ask(Question(Operation.READ, "/x"))
    assert on_host.notes[0].startswith("no engine enforces policies for the host yet")
    assert Explainer(RuleSet((block,))).ask(Question(Operation.READ, "/x")).notes == ()


@pytest.mark.parametrize(
    ("condition", "said"),
    [("pts: false", {"terminal": False}), ("allowedArgs: [-c]", {"arguments": ["-c"]})],
)
def test_where_nothing_is_said_the_strictest_answer_is_given(condition: str, said: dict[str, Any]) -> None:
    text = f"""\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: a}}
spec:
  process:
    matchPaths:
    - path: /bin/sh
      {condition}
      action: Audit
    matchDirectories:
    - dir: /bin/
      action: Block
"""
    question = {"operation": "execute", "path": "/bin/sh"}
    rules = rule_set(text)
    far = {"terminal": True} if "terminal" in said else {"arguments": ["-i"]}
    assert ask(question | far, rules).decision.verdict is Verdict.AUDIT
    assert ask(question | said, rules).decision.verdict is Verdict.DENY
    unsaid = ask(question, rules)
    assert unsaid.decision.verdict is Verdict.DENY
    assert any("this is the strict" in note for note in unsaid.notes)


def test_who_owns_what_is_a_matter_of_numbers() -> None:
    question: dict[str, Any] = {"operation": "execute", "path": "/bin/sh", "source": "/usr/bin/nginx"}
    question |= {"arguments": ["-c"], "terminal": False}
    for uids, verdict in (((0, 0), "allow"), ((1000, 0), "deny"), ((1000, None), "deny")):
        said = {"uid": uids[0]} | ({} if uids[1] is None else {"ownerUid": uids[1]})
        answer = explain.as_json(ask(question | said))
        assert answer["verdict"] == verdict
        assert answer["owner"] is (verdict == "allow")
        assert answer["uid"] == uids[0]
    devices = explain.as_json(ask({"operation": "attach", "object": "8", "uid": 0}))
    assert "owner" not in devices
    assert "owner" not in devices["seen"]


def test_in_a_root_file_system_the_owner_is_looked_up(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    (tmp_path / "usr/bin/dash").write_text("")
    (tmp_path / "bin").symlink_to("usr/bin")
    (tmp_path / "usr/bin/sh").symlink_to("dash")
    me = os.getuid()
    with RootResolver(tmp_path) as resolver:
        explainer = Explainer(expand(ALL, resolver.resolve), resolver.resolve, resolver.owner_of)
        shell = Question(
            Operation.EXECUTE, "/bin/sh", "/usr/bin/nginx", uid=me, arguments=("-c",), terminal=False
        )  # fmt: skip
        answer = explainer.ask(shell)
        assert answer.decision.verdict is Verdict.ALLOW
        assert (answer.seen.object, answer.seen.owner, answer.seen.owner_uid) == ("/usr/bin/dash", True, me)
        other = explainer.ask(Question(Operation.EXECUTE, "/bin/sh", "/usr/bin/nginx", uid=me + 1))
        assert (other.seen.owner, other.seen.owner_uid) == (False, me)
        new = explainer.ask(Question(Operation.WRITE, "/bin/new", uid=me + 1))
        assert (new.seen.owner, new.seen.owner_uid) == (True, None)  # whoever makes it owns it
        said = explainer.ask(Question(Operation.READ, "/bin/sh", uid=me, owner_uid=me + 1))
        assert said.seen.owner is False
        assert resolver.owner_of("/") == me
        assert resolver.owner_of("/usr/bin") == me
        assert resolver.owner_of("/none") is None


def test_in_a_root_file_system_calls_are_about_what_links_lead_to(tmp_path: Path) -> None:
    (tmp_path / "private/etc").mkdir(parents=True)
    (tmp_path / "etc").symlink_to("private/etc")
    (tmp_path / "opt").symlink_to("/usr/local/opt")
    with RootResolver(tmp_path) as resolver:
        expanded = expand(ALL, resolver.resolve)
        explainer = Explainer(expanded, resolver.resolve)
        answer = explainer.ask(Question(Operation.SYSCALL, "openat2 /etc/x"))
        assert answer.seen.object == "openat2 /private/etc/x"
        assert answer.decision.verdict is Verdict.AUDIT
        assert explainer.ask(Question(Operation.SYSCALL, "chmod /etc/passwd", "/usr/bin/x")).allowed
        unlink = explainer.ask(Question(Operation.SYSCALL, "unlink", "/opt/x"))
        assert unlink.seen.source == "/usr/local/opt/x"
        assert unlink.decision.verdict is Verdict.AUDIT
        assert explainer.ask(Question(Operation.SOCKET, "tcp")).seen.object == "tcp"
    assert {rule.section for rule in expanded.rules} == {rule.section for rule in ALL.rules}


@pytest.mark.parametrize(
    ("mode", "verdict"), [(Mode.ENABLED, "deny"), (Mode.AUDITED, "audit"), (Mode.DISABLED, "allow")]
)
def test_a_mode_changes_the_verdict_and_not_who_decided(mode: Mode, verdict: str) -> None:
    answer = ask({"operation": "preset", "object": "filelessExec"}, mode=mode)
    plain = explain.as_json(answer)
    assert plain["verdict"] == verdict
    assert plain["rule"]["field"] == "spec.presets[0]"
    assert ("but: policies are" in explain.as_text(answer)) is (mode is not Mode.ENABLED)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"operation": "socket", "path": "tcp"}', "object in place of path"),
        ('{"operation": "read", "path": "/x", "object": "/x"}', "object or path"),
        ('{"operation": "execute", "path": "/x", "arguments": "a"}', "arguments as a list of texts"),
        ('{"operation": "execute", "path": "/x", "arguments": [1]}', "arguments as a list of texts"),
        ('{"operation": "execute", "path": "/x", "terminal": 1}', "terminal as true or false"),
        ('{"operation": "execute", "path": "/x", "uid": "0"}', "uid as a whole number"),
        ('{"operation": "execute", "path": "/x", "uid": true}', "uid as a whole number"),
        ('{"operation": "execute", "path": "/x", "uid": -1}', "expected 0 to"),
        ('{"operation": "execute", "path": "/x", "uid": 0, "ownerUid": 4294967295}', "expected 0 to"),
        ('{"operation": "execute", "path": "/x", "ownerUid": 0}', "that of the acting user too"),
        ('{"operation": "execute", "path": "/x", "parent": "x"}', "the parent 'x'"),
        ('{"operation": "attach", "object": "stick"}', "a device such as"),
        ("[" * 100_000, "a JSON object"),
    ],
)
def test_a_question_that_cannot_be_asked(line: str, words: str) -> None:
    with pytest.raises(QuestionError, match=words):
        explain.parse_question(line)


def test_a_question_is_read_with_all_its_fields() -> None:
    question = {
        "operation": "execute", "path": "/x", "source": "/a", "parent": "/b", "owner": False, "uid": 1, "ownerUid": 2,
        "arguments": ["-c"], "terminal": True, "beyondQuota": True,
    }  # fmt: skip
    read = explain.parse_question(json.dumps(question))
    assert read == Question(Operation.EXECUTE, "/x", "/a", False, "/b", 1, 2, ("-c",), True, True)  # noqa: FBT003
    answered = explain.verdict_as_json(Explainer(RuleSet(())).ask(read))
    assert {name: answered[name] for name in question} == question


def test_rules_are_told_with_everything_they_say() -> None:
    written = [rule for rule in reversed(ALL.rules) if not rule.implied]  # of one field, that of the first policy
    found = {rule.origin.field: explain.rule_as_json(rule) for rule in written}
    shell = found["spec.process.matchPaths[0]"]
    assert (shell["allowedArgs"], shell["pts"], shell["ownerOnly"]) == (["-c", "true"], False, True)
    assert found["spec.device.matchDevice[0]"]["match"] == {"class": 8, "subClass": 6, "protocol": 80, "level": 1}
    assert found["spec.device.matchDevice[4]"]["match"] == {"class": "ALL"}
    assert found["spec.ingress[0]"]["match"]["ports"][2] == {"port": 8000, "endPort": 8080, "protocol": "sctp"}
    assert found["spec.egress[1]"]["match"] == {"quota": {"bytes": 500 * 2**20, "seconds": 5400, "level": "pod"}}
    assert found["spec.syscalls.matchSyscalls[0]"]["match"] == {
        "syscall": ["unlink", "unlinkat"], "fromSource": [{"dir": "/opt/", "recursive": True}],
    }  # fmt: skip
    assert found["spec.syscalls.matchPaths[0]"]["match"] == {
        "syscall": ["openat2"], "path": "/etc/", "recursive": True,
    }  # fmt: skip
    texts = [explain.rule_as_text(rule) for rule in ALL.rules if not rule.implied]
    assert any("allowedArgs -c, true pts false fromSource /usr/bin/nginx" in text for text in texts)
    assert any("fromSource /bin/rm, /opt/" in text for text in texts)
    assert any("apparmor profile deny /etc/ssl/** w, (" in text for text in texts)
    assert all("\n" not in text for text in texts)


def test_an_answer_holds_nothing_that_a_terminal_obeys() -> None:
    hostile = CONTAINER.replace("path: /etc/shadow", 'path: "/etc/\\e[2Jx"').replace(
        "message: spec", 'message: "a\\e]0;b\\nc"'
    )
    answer = ask({"operation": "write", "path": "/etc/\x1b[2Jx"}, rule_set(hostile))
    text = explain.as_text(answer)
    assert all(line.isprintable() for line in text.splitlines())
    assert "/etc/\\x1b[2Jx" in text
    assert "message: a\\x1b]0;b\\nc" in text
    assert explain.as_json(answer)["path"] == "/etc/\x1b[2Jx"


@pytest.mark.parametrize(
    ("question", "first"),
    [
        ({"operation": "attach", "object": "HID"}, "audit: attach HID"),
        ({"operation": "send", "object": "192.0.2.7 udp/53"}, "allow: send 192.0.2.7 udp/53"),
        ({"operation": "preset", "object": "exec"}, "allow: preset exec"),
        ({"operation": "socket", "object": "udp"}, "audit: socket udp by a program that no rule names"),
        ({"operation": "attach", "object": "HID", "source": "/x"}, "audit: attach HID by /x"),
        ({"operation": "read", "path": "/x"}, "allow: read /x by a program that no rule names, its owner"),
    ],
)
def test_programs_and_owners_are_named_where_rules_can(question: dict[str, Any], first: str) -> None:
    assert explain.as_text(ask(question)).splitlines()[0] == first


def test_a_long_profile_is_shown_by_its_beginning() -> None:
    long = rule_set(CONTAINER.replace("deny /etc/ssl/** w,", "deny /etc/ssl/** w, " * 20))
    (text,) = (explain.rule_as_text(rule) for rule in long.rules if rule.section is Section.APPARMOR)
    assert "…" in text
    assert len(text) < 200


def test_quotas_of_containers_are_explained_too() -> None:
    answer = ask({"operation": "receive", "object": "10.0.0.1", "beyondQuota": True}, rule_set(QUOTA))
    assert "up to 5368709120 bytes in 86400 s for each policy" in explain.as_text(answer)
    assert answer.decision.verdict is Verdict.DENY


def test_what_follows_from_a_rule_that_is_not_held_is_not_held_either() -> None:
    origin = Origin("p", "f")
    watched = Rule(Section.FILE, ObjectKind.PATH, "/data", Action.AUDIT, origin, sources=("/bin/s",), terminal=False)
    block = Rule(Section.FILE, ObjectKind.PATH, "/x", Action.BLOCK, origin)
    answer = ask({"operation": "write", "path": "/bin/s"}, join((watched, block)))
    assert answer.decision.verdict is Verdict.DENY  # who has rights of its own is kept from being replaced
    assert answer.notes[-1].endswith("and allow is what the engine does")
    engine = Explainer(join(coverage.in_force((watched, block)))).ask(answer.asked)
    assert engine.decision.verdict is Verdict.ALLOW


def test_an_engine_that_holds_more_of_packets_says_so_by_its_own_rules() -> None:
    origin = Origin("p", "f")
    match = PeerMatch(groups=(PeerGroup("name", "a.example.com"),), ports=((80, 80, "tcp"),))
    block = Rule(Section.EGRESS, ObjectKind.PEER, "x", Action.BLOCK, origin, match=match)
    answer = ask({"operation": "send", "object": "10.0.0.1 tcp/80"}, RuleSet((block,)))
    assert answer.decision.verdict is Verdict.ALLOW
    assert "and deny is what the engine does" in answer.notes[0]
    assert answer.notes[1].startswith("the question does not say by which domain name")
    assert ask({"operation": "send", "object": "10.0.0.1 tcp/81"}, RuleSet((block,))).notes == ()
    known = ask({"operation": "send", "object": "10.0.0.1 tcp/80 name a.example.com"}, RuleSet((block,)))
    assert known.decision.verdict is Verdict.DENY


def test_a_rule_about_packets_is_told_whole() -> None:
    match = PeerMatch(
        ("10.0.0.0/8",), exceptions=("10.1.0.0/16",), icmp=((4, 8), (6, None)), groups=(PeerGroup("entity", "world"),)
    )
    rule = Rule(Section.EGRESS, ObjectKind.PEER, "x", Action.BLOCK, Origin("p", "f"), match=match, default_deny=False)
    told = explain.rule_as_json(rule)
    assert told["defaultDeny"] is False
    assert told["match"] == {
        "cidrs": ["10.0.0.0/8"],
        "except": ["10.1.0.0/16"],
        "groups": [{"kind": "entity", "value": "world"}],
        "icmp": [{"family": "IPv4", "type": 8}, {"family": "IPv6", "type": None}],
    }
    assert "without default deny" in explain.rule_as_text(rule)
    nothing = Rule(
        Section.EGRESS, ObjectKind.PEER, "nothing", Action.ALLOW, Origin("p", "f"), match=PeerMatch(nothing=True),
        default_deny=True,
    )  # fmt: skip
    assert explain.rule_as_json(nothing)["match"] == {"nothing": True}
    assert "with default deny" in explain.rule_as_text(nothing)
    isolated = ask({"operation": "send", "object": "10.0.0.1"}, RuleSet((nothing,)))
    assert (isolated.decision.verdict, isolated.notes) == (Verdict.DENY, ())

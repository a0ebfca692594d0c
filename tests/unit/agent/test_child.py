# SPDX-License-Identifier: Apache-2.0
"""The child that parses: what it answers, and that it cannot hurt the agent."""

from __future__ import annotations

import base64
import json
import os
import sys
from hashlib import sha256
from typing import TYPE_CHECKING

import pytest

from guest_agent import child, parsing
from guest_agent.engines.bpf_lsm.plan import compile_table
from guest_agent.workloads.interchange import rule_set_to_json
from guest_agent.workloads.selection import PolicySet
from hauberk.policy.rules import Action, ObjectKind, Origin, Rule, RuleSet, Section

if TYPE_CHECKING:
    from collections.abc import Callable

    from guest_agent.configuration import Configuration

RULES = RuleSet((Rule(Section.PROCESS, ObjectKind.PATH, "/bin/sh", Action.BLOCK, Origin("p", "f")),))


def bundle_request(configuration: Configuration, sealed: str | None = None) -> dict[str, object]:
    def encoded(data: bytes) -> str:
        return base64.b64encode(data).decode()

    return {
        "trustRoot": encoded(configuration.trust_root.read_bytes()),
        "bundle": encoded(configuration.bundle.read_bytes()),
        "signature": encoded(configuration.bundle_signature.read_bytes()),
        "engines": ["bpf_lsm", "nftables"],
        "entities": [],
        "resolvers": False,
        "sealedDigest": sealed,
        "successors": [],
        "accepted": None,
    }


def test_a_bundle_is_verified_and_comes_back_in_the_normal_form(configure: Callable[..., Configuration]) -> None:
    configuration = configure(version=3)
    found = PolicySet.from_json(child.ask("bundle", bundle_request(configuration)))
    assert found.digest == sha256(configuration.bundle.read_bytes()).hexdigest()
    assert (found.name, found.version, found.default, found.signed_by) == ("demo", 3, "deny", "owner")
    [policy] = found.policies
    assert policy.name == "secrets"
    assert [rule.value for rule in policy.rules] == ["/bin/sh", "/secret/"]
    assert policy.rules[0].origin.file == "secrets.yaml"
    assert policy.rules[0].origin.line > 0


def test_a_refusal_keeps_its_reason(configure: Callable[..., Configuration]) -> None:
    configuration = configure()
    with pytest.raises(child.ChildError, match="sealed with") as refusal:
        child.ask("bundle", bundle_request(configuration, "0" * 64))
    assert refusal.value.kind == "NotTheSealedBundle"
    with pytest.raises(child.ChildError, match="seal"):
        child.ask("bundle", bundle_request(configuration, ""))


def test_a_table_of_a_child_is_the_table(configure: Callable[..., Configuration]) -> None:
    del configure
    answer = child.ask("table", {"ruleSet": rule_set_to_json(RULES)})
    assert base64.b64decode(str(answer["blob"])) == compile_table(RULES).blob


def test_what_it_cannot_do_it_says(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(child.ChildError, match="unknown task"):
        child.ask("dance", {})
    with pytest.raises(child.ChildError):
        child.ask("table", {"ruleSet": 3})
    assert capfd.readouterr() == ("", "")
    assert "error" in parsing.answer(b"{")
    assert "error" in parsing.answer(b"[]")


def test_it_inherits_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    monkeypatch.setenv("SECRET", "hunter2")
    code = "import json, os, sys; print(json.dumps({'env': sorted(os.environ), 'fds': os.listdir('/proc/self/fd')}))"
    monkeypatch.setattr(child, "_CODE", code.replace("{", "{{").replace("}", "}}"))
    read, write = os.pipe()
    try:
        os.set_inheritable(read, False)  # noqa: FBT003 - the function takes it by position only
        answer = child.ask("any", {})
    finally:
        os.close(read)
        os.close(write)
    assert "SECRET" not in json.dumps(answer)
    assert "PYTHONPATH" not in json.dumps(answer)
    assert sorted(str(name) for name in answer["fds"] if str(name) in "012") == ["0", "1", "2"]  # type: ignore[attr-defined] # a list
    assert len(answer["fds"]) <= 4  # type: ignore[arg-type] # three, and the one that reads the directory


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("while True: pass", "took longer"),
        ("import sys; sys.exit(3)", "ended with code 3"),
        ("import os; os.kill(os.getpid(), 9)", "ended with code -9"),
        ("print('nonsense')", "no JSON"),
        ("print('[' * 100000)", "no JSON"),
        ("print('[]')", "no object"),
        ("print('{\"error\": 1}')", "without a reason"),
    ],
)
def test_whatever_becomes_of_it_is_a_refusal(monkeypatch: pytest.MonkeyPatch, code: str, reason: str) -> None:
    monkeypatch.setattr(child, "_CODE", code.replace("{", "{{").replace("}", "}}"))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted, not looked at
    with pytest.raises(child.ChildError, match=reason):
        child.ask("any", {}, deadline=0.5 if "while" in code else 60)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208


def test_an_interpreter_that_is_gone_is_a_refusal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    with pytest.raises(child.ChildError, match="no child could be started"):
        child.ask("configuration", {})

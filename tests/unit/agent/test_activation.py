# SPDX-License-Identifier: Apache-2.0
"""Rules that no engine enforces refuse a sealed start and are told of on a host; nothing opens because of them."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guest_agent import parsing
from guest_agent.agent import Agent, StartError
from guest_agent.api.hook_socket import Peer, Stage
from guest_agent.api.service import AgentService
from guest_agent.engines.simulator import SimulatorEngine
from guest_agent.successor import SubmitError
from guest_agent.workloads.selection import Policy, PolicySet, SelectionError, identify, select, selector_to_json
from hauberk._wire import hauberk_v1_agent_pb2 as messages
from hauberk.bundle import PolicyFile, SuccessorRule, create, signatures
from hauberk.bundle.terms import Posture, Terms
from hauberk.policy.rules import Action, ObjectKind, Origin, Rule, RuleSet, Section, Verdict
from hauberk.policy.selectors import Scope, Selector, WorkloadIdentity
from tests.unit.agent.test_command_line import Served

if TYPE_CHECKING:
    from collections.abc import Callable

    from guest_agent.configuration import Configuration
    from hauberk.bundle.keys import PrivateKey
    from tests.unit.agent.machine import FakeMachine

    Start = Callable[..., Agent]
    Configure = Callable[..., Configuration]

PEER = Peer(pid=1, uid=0, gid=0, pidfd=-1, start_time=0)
LABELS = {"io.hauberk.label.app": "secrets"}
HEAD = """
apiVersion: security.kubearmor.com/v1
kind: {kind}
metadata:
  name: {name}
spec:
"""
SELECTOR = """
  selector:
    matchLabels:
      app: secrets
"""
MIXED = (
    HEAD.format(kind="KubeArmorPolicy", name="mixed")
    + SELECTOR
    + """
  process:
    matchPaths:
      - path: /bin/sh
        action: Block
      - path: /usr/bin/dash
        allowedArgs: ["-c"]
        action: Allow
  network:
    matchProtocols:
      - protocol: tcp,udp
        action: Block
  capabilities:
    matchCapabilities:
      - capability: net_raw
        action: Block
"""
)
NETWORK_ONLY = (
    HEAD.format(kind="KubeArmorPolicy", name="quiet")
    + SELECTOR
    + """
  network:
    matchProtocols:
      - protocol: raw
        action: Block
"""
)
HOST = (
    HEAD.format(kind="KubeArmorHostPolicy", name="machine")
    + """
  nodeSelector:
    matchLabels:
      kubearmor.io/hostname: "*"
  process:
    matchPaths:
      - path: /usr/bin/curl
        action: Block
"""
)
PACKETS = (
    HEAD.format(kind="KubeArmorNetworkPolicy", name="packets")
    + """
  nodeSelector:
    matchLabels:
      kubearmor.io/hostname: "*"
  egress:
    - to:
        - ipBlock:
            cidr: 192.0.2.0/24
      action: Block
"""
)
CLUSTER = (
    HEAD.format(kind="KubeArmorClusterPolicy", name="everywhere")
    + """
  selector:
    matchExpressions:
      - key: namespace
        operator: In
        values: [shop]
      - key: label
        operator: NotIn
        values: [app=other]
  process:
    matchPaths:
      - path: /bin/sh
        action: Block
"""
)


def status_of(agent: Agent) -> messages.Status:
    return AgentService(agent).GetStatus(messages.GetStatusRequest(), None)


def test_a_sealed_agent_does_not_start_and_names_each_rule(agents: Start, configure: Configure) -> None:
    with pytest.raises(StartError) as refusal:
        agents(configure(policy=MIXED))
    lines = str(refusal.value).splitlines()
    assert "4 rule(s)" in lines[0]
    assert "sign the bundle again" in lines[0]
    expected = [
        ("spec.process.matchPaths[1]", "allowedArgs", 16),
        ("spec.network.matchProtocols[0]", "protocol tcp", 21),
        ("spec.network.matchProtocols[0]", "protocol udp", 21),
        ("spec.capabilities.matchCapabilities[0]", "net_raw", 25),
    ]
    assert len(lines) == 1 + len(expected)
    for line, (field, words, number) in zip(lines[1:], expected, strict=True):
        assert line.startswith(f"secrets.yaml:{number}:")
        assert f": mixed {field}: " in line
        assert words in line
        assert "no engine" in line


@pytest.mark.parametrize("policy", [NETWORK_ONLY, HOST, PACKETS])
def test_a_sealed_kernel_is_not_touched_before_the_refusal(
    fake: FakeMachine, parse_here: None, configure: Configure, policy: str
) -> None:
    del parse_here
    engine = SimulatorEngine()
    agent = Agent(configure(policy=policy), engine, fake.machine)
    with pytest.raises(StartError, match="no engine enforces"):
        agent.start()
    assert engine.sealed_digest() is None
    agent.stop()
    engine.close()


def test_a_host_enforces_the_rest_and_tells(
    fake: FakeMachine, agents: Start, configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        agent = agents(configure(policy=MIXED, mode="host"))
    told = [record.getMessage() for record in caplog.records if "not enforced as written" in record.getMessage()]
    assert len(told) == 1 + 4
    container = fake.container(annotations=LABELS)
    assert agent.handle(Stage.CREATE_RUNTIME, container.state(), PEER).accepted
    [(_, record)] = agent.workloads()
    assert record is not None
    assert record.unenforced == 4
    rule_set = record.rule_set
    assert rule_set.is_allow_list(Section.PROCESS)
    assert {rule.section for rule in rule_set.rules if not rule.implied} == {Section.PROCESS}
    status = status_of(agent)
    assert status.unenforced[0].field == "spec.process.matchPaths[1]"
    assert status.unenforced[0].line == 16
    assert "refused" in status.unenforced[0].instead
    assert all(rule.policy == "mixed" and rule.reason and rule.rule for rule in status.unenforced)
    assert any("4 rule(s)" in warning for warning in status.warnings)
    [listed] = AgentService(agent).ListWorkloads(messages.ListWorkloadsRequest(), None).workloads
    assert listed.unenforced == 4


def test_the_command_line_shows_what_is_not_enforced(
    fake: FakeMachine, parse_here: None, configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    del parse_here
    served = Served(fake, configure(policy=MIXED, mode="host"))
    try:
        served.register()
        _, status, _ = served.ask(capsys, "status")
        _, status_json, _ = served.ask(capsys, "status", "--json")
        _, workloads, _ = served.ask(capsys, "workloads")
        _, workloads_json, _ = served.ask(capsys, "workloads", "--json")
    finally:
        served.agent.stop()
        served.server.stop(grace=None).wait()
    lines = [line for line in status.splitlines() if line.startswith("unenforced ")]
    assert len(lines) == 4
    assert lines[0].startswith("unenforced secrets.yaml:16:")
    assert "mixed spec.process.matchPaths[1]: Allow process path /usr/bin/dash allowedArgs: no engine looks" in lines[0]
    assert "posture    file block" in status
    found = json.loads(status_json)
    assert [rule["rule"] for rule in found["unenforced"]][1:] == [
        "Block network protocol tcp", "Block network protocol udp", "Block capabilities capability net_raw",
    ]  # fmt: skip
    assert found["postures"] == {"file": "block"}
    assert "mixed (4 rule(s) not enforced as written)" in workloads
    assert json.loads(workloads_json)[0]["unenforced"] == 4


def test_postures_of_all_classes_are_shown(
    fake: FakeMachine, parse_here: None, configure: Configure, signer: PrivateKey, capsys: pytest.CaptureFixture[str]
) -> None:
    del parse_here
    configuration = configure()
    terms = Terms(postures=(("device", Posture.AUDIT), ("network", Posture.BLOCK)))
    data = create("demo", 1, (PolicyFile("secrets.yaml", CLUSTER),), conditions=terms)
    configuration.bundle.write_bytes(data)
    configuration.bundle_signature.write_bytes(signatures.sign(signer, data))
    served = Served(fake, configuration)
    try:
        _, status, _ = served.ask(capsys, "status")
    finally:
        served.agent.stop()
        served.server.stop(grace=None).wait()
    assert "posture    file block, device audit (not enforced), network block (not enforced)" in status


def test_nothing_is_told_where_all_is_enforced(
    agents: Start, configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        agent = agents(configure(policy=CLUSTER))
    assert not caplog.records
    assert not status_of(agent).unenforced
    assert not any("not enforced" in warning for warning in agent.warnings())


def test_a_policy_of_which_nothing_is_enforced_takes_nobody_out_of_the_default(
    fake: FakeMachine, agents: Start, configure: Configure
) -> None:
    agent = agents(configure(policy=NETWORK_ONLY, mode="host"))
    answer = agent.handle(Stage.CREATE_RUNTIME, fake.container(annotations=LABELS).state(), PEER)
    assert not answer.accepted
    assert "no engine enforces any rule (quiet)" in answer.message
    assert "default" in answer.message


@pytest.mark.parametrize("policy", [HOST, PACKETS])
def test_host_policies_cover_no_container(fake: FakeMachine, agents: Start, configure: Configure, policy: str) -> None:
    agent = agents(configure(policy=policy, mode="host", default="allow"))
    assert agent.handle(Stage.CREATE_RUNTIME, fake.container(annotations=LABELS).state(), PEER).accepted
    [(_, record)] = agent.workloads()
    assert record is not None
    assert record.policies == ()
    assert record.unenforced == 0  # none of the container's own
    assert len(status_of(agent).unenforced) == 1


@pytest.mark.parametrize(
    ("annotations", "covered"),
    [
        ({"io.hauberk.namespace": "shop"}, True),
        ({"io.hauberk.namespace": "shop", "io.hauberk.label.app": "secrets"}, True),
        ({"io.hauberk.namespace": "shop", "io.hauberk.label.app": "other"}, False),
        ({"io.hauberk.namespace": "bank"}, False),
        ({}, True),  # an unknown namespace is not compared
    ],
)
def test_cluster_policies_are_enforced_by_namespace_and_label(
    fake: FakeMachine, agents: Start, configure: Configure, annotations: dict[str, str], covered: bool  # noqa: FBT001
) -> None:  # fmt: skip
    agent = agents(configure(policy=CLUSTER))
    answer = agent.handle(Stage.CREATE_RUNTIME, fake.container(annotations=annotations).state(), PEER)
    assert answer.accepted is covered
    if covered:
        [(_, record)] = agent.workloads()
        assert record is not None
        assert record.policies == ("everywhere",)
        assert any(rule.value == "/usr/bin/dash" and rule.action is Action.BLOCK for rule in record.rule_set.rules)


def test_more_rules_than_are_told_are_counted(
    monkeypatch: pytest.MonkeyPatch, agents: Start, configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(parsing, "MAXIMUM_TOLD", 3)
    configuration = configure(policy=MIXED + "---" + NETWORK_ONLY)
    with pytest.raises(StartError) as refusal:
        agents(configuration)
    assert str(refusal.value).splitlines()[-1] == "and 2 more"
    with caplog.at_level(logging.WARNING):
        agent = agents(configure(policy=MIXED + "---" + NETWORK_ONLY, mode="host"))
    assert any("2 more rule(s)" in record.getMessage() for record in caplog.records)
    assert agent.policy_set is not None
    assert len(agent.policy_set.unenforced) == 3
    assert agent.policy_set.unenforced_count == 5


@pytest.mark.parametrize("mode", ["sealed", "host"])
def test_a_successor_is_held_to_the_same(
    fake: FakeMachine, agents: Start, configure: Configure, signer: PrivateKey, mode: str
) -> None:
    terms = Terms(successor=SuccessorRule())
    configuration = configure(mode=mode)
    first, second = (create("demo", version, (PolicyFile("s.yaml", policy),), conditions=terms)
                     for version, policy in ((1, CLUSTER), (2, MIXED)))  # fmt: skip
    configuration.bundle.write_bytes(first)
    configuration.bundle_signature.write_bytes(signatures.sign(signer, first))
    agent = agents(configuration)
    container = fake.container(annotations=LABELS)
    assert agent.handle(Stage.CREATE_RUNTIME, container.state(), PEER).accepted
    fake.start(container)
    signature = signatures.sign(signer, second)
    if mode == "sealed":
        with pytest.raises(SubmitError, match=r"s\.yaml:16:[0-9]+: mixed spec\.process\.matchPaths\[1\]"):
            agent.submit(second, signature)
        assert not status_of(agent).unenforced
        assert agent.policy_set is not None
        assert agent.policy_set.version == 1
        return
    agent.submit(second, signature)
    assert len(status_of(agent).unenforced) == 4
    [(_, record)] = agent.workloads()
    assert record is not None
    assert (record.policies, record.unenforced) == (("mixed",), 4)
    assert record.rule_set.is_allow_list(Section.PROCESS)


RULE = Rule(Section.PROCESS, ObjectKind.PATH, "/bin/sh", Action.BLOCK, Origin("p", "f"))


def policy_set(*policies: Policy, default: str = "deny") -> PolicySet:
    return PolicySet("d" * 64, "demo", 1, default, Verdict.DENY, "owner", policies)


def test_counts_are_those_of_all_policies_that_select() -> None:
    app = Selector(labels=(("app", "secrets"),))
    held = Policy("held", "", app, (RULE,), 2)
    quiet = Policy("quiet", "", app, (), 3)
    elsewhere = Policy("elsewhere", "", Selector(labels=(("app", "x"),)), (RULE,), 7)
    machine = Policy("machine", "", Selector(scope=Scope.HOST, host_names=(("kubearmor.io/hostname", "*"),)), (), 9)
    identity = identify(LABELS, "id-1")
    chosen = select(policy_set(held, quiet, elsewhere, machine), identity)
    assert (chosen.policies, chosen.unenforced) == (("held",), 5)
    with pytest.raises(SelectionError, match=r"only by policies of which no engine enforces any rule \(quiet\)"):
        select(policy_set(quiet, elsewhere), identity)
    for default in ("allow", "audit"):
        chosen = select(policy_set(quiet, machine, default=default), identity)
        assert (chosen.policies, chosen.unenforced) == ((), 3)
        assert chosen.rule_set != RuleSet(())


PAIRS = st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), max_size=2).map(tuple)
TEXTS = st.lists(st.text(max_size=5), max_size=2).map(tuple)


@given(
    st.builds(
        Selector,
        labels=PAIRS,
        within=TEXTS,
        without=TEXTS,
        container_name=st.none() | st.text(max_size=5),
        scope=st.sampled_from(Scope),
        cluster=st.booleans(),
        namespaces=TEXTS,
        excluded_namespaces=TEXTS,
        host_names=PAIRS,
        host_expressions=PAIRS,
    )
)
def test_selectors_come_back_as_they_went(selector: Selector) -> None:
    written: dict[str, object] = {
        "digest": "d", "name": "n", "version": 1, "default": "deny", "posture": "block", "signedBy": "o",
        "policies": [
            {"name": "a", "namespace": "", "selector": selector_to_json(selector), "rules": [], "unenforced": 0}
        ],
        "unenforced": [], "postures": [],
    }  # fmt: skip
    [policy] = PolicySet.from_json(json.loads(json.dumps(written))).policies
    assert policy.selector == selector
    assert not (selector.scope is Scope.HOST and policy.selector.matches("", WorkloadIdentity()))

# SPDX-License-Identifier: Apache-2.0
"""The whole agent on simulated kernels with rules about packets: what holds, from when on, and what a kill leaves."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from guest_agent import agent as agent_module
from guest_agent.agent import Agent, StartError
from guest_agent.engines.network_port import Cgroup, EngineError, Interface, NameAnswer, Namespace, Whole
from guest_agent.engines.nftables.evaluation import Packet
from guest_agent.engines.nftables.simulator import SimulatedNetwork, SimulatorNetworkEngine
from guest_agent.engines.simulator import SimulatorEngine
from guest_agent.network.controller import Network
from guest_agent.records import RecordStore
from guest_agent.successor import SubmitError
from guest_agent.workloads import verification
from hauberk.bundle import PolicyFile, create, keys, signatures
from hauberk.bundle.terms import Posture
from hauberk.policy.rules import PACKET_SECTIONS
from tests.unit.agent.conftest import POLICY, NoLinks
from tests.unit.agent.machine import AGENT_NETWORK
from tests.unit.agent.test_agent import LABELS, kernel_of, poststop, until
from tests.unit.agent.test_agent import create as announce
from tests.unit.agent.test_successor import ALLOWED

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from guest_agent.configuration import Configuration
    from guest_agent.engines.nftables.evaluation import Outcome
    from tests.unit.agent.machine import Container, FakeMachine

    Start = Callable[..., Agent]
    Configure = Callable[..., Configuration]

TCP, UDP = 6, 17
GOOD, BAD = 8001, 8002
EGRESS = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: NAME, namespace: default}
spec:
  podSelector: {matchLabels: {app: APP}}
  policyTypes: [Egress]
  egress:
    - to: [{ipBlock: {cidr: 192.0.2.0/24}}]
      ports: [{port: PORT, protocol: TCP}]
"""
HOST = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorNetworkPolicy
metadata: {name: edge}
spec:
  nodeSelector: {matchLabels: {role: edge}}
  ingress:
    - from: [{ipBlock: {cidr: 192.0.2.0/24}}]
      ports: [{port: "22", protocol: TCP}]
      action: Allow
"""
NAMES = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: names, namespace: default}
spec:
  endpointSelector: {matchLabels: {app: secrets}}
  egress:
    - toFQDNs: [{matchName: www.example.com}]
    - toEndpoints: [{matchLabels: {app: data}}]
"""
QUOTA = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorNetworkPolicy
metadata: {name: quota}
spec:
  selector: {matchLabels: {app: secrets}}
  level: LEVEL
  egress:
    - {limit: 1KB, duration: 10s, action: Block}
"""


def egress(port: int = GOOD, app: str = "secrets", name: str = "web") -> str:
    return EGRESS.replace("PORT", str(port)).replace("APP", app).replace("NAME", name)


@pytest.fixture(autouse=True)
def _no_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let time pass only when a test says so."""
    monkeypatch.setattr(agent_module, "REAP_SECONDS", 3600.0)
    monkeypatch.setattr(agent_module, "UPKEEP_SECONDS", 3600.0)


@pytest.fixture
def network() -> SimulatedNetwork:
    return SimulatedNetwork()


def simulator(agent: Agent) -> SimulatorNetworkEngine:
    assert isinstance(agent.packets, SimulatorNetworkEngine)
    return agent.packets


def controller(agent: Agent) -> Network:
    assert agent.network is not None
    return agent.network


def namespace(inode: int) -> Namespace:
    return Namespace(inode, "")


def packet(port: int, container: Container | None = None, protocol: int = TCP, to: str = "192.0.2.9") -> Packet:
    cgroups = (1, container.cgroup.stat().st_ino) if container is not None else ()
    return Packet("10.0.0.2", to, protocol, 40000, port, interface_out="eth0", cgroups=cgroups)


def sends(agent: Agent, inode: int, port: int, container: Container | None = None, **parts: object) -> Outcome:
    sent = packet(port, container, **parts)  # type: ignore[arg-type] # what a packet takes
    return simulator(agent).send(namespace(inode), "output", sent)


def passes(agent: Agent, inode: int, container: Container | None = None) -> tuple[bool, bool]:
    """Whether what the policy names passes, and something else."""
    return tuple(sends(agent, inode, port, container).passes for port in (GOOD, BAD))  # type: ignore[return-value] # two


def desired(agent: Agent, inode: int) -> list[object]:
    found = [one.endpoints for one in controller(agent).status() if one.inode == inode]
    return [endpoint.attachment for endpoint in found[0]] if found else []


@pytest.fixture
def start(agents: Start, network: SimulatedNetwork) -> Start:
    """Start agents on one simulated network; a second one follows a first one that was stopped."""

    def begin(configuration: Configuration, **faults: Callable[[], None]) -> Agent:
        named = {name.replace("_", ".") if "." not in name else name: fault for name, fault in faults.items()}
        return agents(configuration, packets=SimulatorNetworkEngine(network, named))

    return begin


class Killed(BaseException):
    """Stands for SIGKILL: nothing of the agent catches it."""


def kill() -> None:
    raise Killed


def broken() -> None:
    message = "the kernel would not"
    raise EngineError(message)


# ---- registration ------------------------------------------------------------------------------------------------


def test_a_registered_container_is_held_by_both_engines(fake: FakeMachine, start: Start, configure: Configure) -> None:
    agent = start(configure(more=[egress()]))
    container = fake.container(annotations=LABELS, network=77)
    assert announce(agent, container).accepted
    assert passes(agent, 77) == (True, False)
    assert desired(agent, 77) == [Whole()]
    [held] = kernel_of(agent).workloads.values()
    assert held.network_namespace == 77
    [(_, record)] = agent.workloads()
    assert record is not None
    assert record.policies == ("default/web", "secrets")
    assert all(rule.section not in PACKET_SECTIONS for rule in record.rule_set.rules)
    assert not record.exposed


def test_a_policy_about_packets_alone_covers(fake: FakeMachine, start: Start, configure: Configure) -> None:
    agent = start(configure(policy=egress()))
    assert announce(agent, fake.container(annotations=LABELS, network=77)).accepted
    assert passes(agent, 77) == (True, False)
    answer = announce(agent, fake.container("c2", 101, network=78))
    assert not answer.accepted
    assert "default is deny" in answer.message
    assert desired(agent, 78) == []


def test_without_the_engine_such_a_policy_covers_nobody(
    fake: FakeMachine, agents: Start, configure: Configure, network: SimulatedNetwork
) -> None:
    network.offers_engine = False
    configuration = configure(policy=egress())
    with pytest.raises(StartError, match="the engine nftables"):
        agents(configuration, packets=SimulatorNetworkEngine(network))
    agent = agents(configure(policy=egress(), mode="host"), packets=SimulatorNetworkEngine(network))
    assert agent.network is None
    assert "no engine enforces any rule" in announce(agent, fake.container(annotations=LABELS)).message
    with pytest.raises(EngineError, match="no engine for packets"):
        agent.flush_network()


def test_neighbours_are_known_by_cgroup_and_the_last_one_takes_the_table(
    fake: FakeMachine, start: Start, configure: Configure, network: SimulatedNetwork
) -> None:
    agent = start(configure(more=[egress(app="data", port=BAD, name="data")]))
    web = fake.container(annotations=LABELS, network=77)
    data = fake.container("c2", 101, {"io.hauberk.label.app": "data"}, network=77)
    assert announce(agent, data).accepted
    assert desired(agent, 77) == [Whole()]
    assert announce(agent, web).accepted  # has no rules about packets, and is not to have the other's
    assert desired(agent, 77) == [Cgroup(data.cgroup.stat().st_ino, 2)]
    assert passes(agent, 77, data) == (False, True)
    assert passes(agent, 77, web) == (True, True)
    fake.end(web)
    assert poststop(agent, web).accepted
    assert desired(agent, 77) == [Whole()]
    fake.end(data)
    assert poststop(agent, data).accepted
    assert network.namespaces == {}


def test_in_the_agents_own_namespace(fake: FakeMachine, start: Start, configure: Configure) -> None:
    configuration = replace(configure(more=[egress(), HOST]), node_labels=(("role", "edge"),))
    agent = start(configuration)
    container = fake.container(annotations=LABELS, network=AGENT_NETWORK)
    assert announce(agent, container).accepted
    assert desired(agent, AGENT_NETWORK) == [Whole(), Cgroup(container.cgroup.stat().st_ino, 2)]
    assert passes(agent, AGENT_NETWORK, container) == (True, False)
    assert passes(agent, AGENT_NETWORK) == (True, True)
    inside = Packet("192.0.2.9", "192.0.2.1", TCP, 40000, 22, interface_in="eth0")
    for source, port, answer in (("192.0.2.9", 22, True), ("192.0.2.9", 23, False), ("198.51.100.1", 22, False)):
        sent = replace(inside, source=source, destination_port=port)
        assert simulator(agent).send(namespace(AGENT_NETWORK), "input", sent).passes is answer
    assert dict(agent.selected()) == {"secrets": 1, "default/web": 1, "edge": 1}
    [warning] = agent.warnings()
    assert warning.startswith("several policies are chosen by names the host sets")


def test_seen_from_outside_too(fake: FakeMachine, agents: Start, configure: Configure) -> None:
    configuration = replace(configure(mode="host", policy=egress()), engines=("nftables",))
    agent = agents(configuration, packets=SimulatorNetworkEngine())
    links = agent.network._links  # type: ignore[union-attr] # noqa: SLF001 - the machine's links, as the test has them
    assert isinstance(links, NoLinks)
    links.found = {77: "veth1"}
    assert announce(agent, fake.container(annotations=LABELS, network=77)).accepted
    assert desired(agent, 77) == [Whole()]
    assert desired(agent, AGENT_NETWORK) == [Interface("veth1")]
    assert not any("CAP_NET_ADMIN" in warning for warning in agent.warnings())
    sent = replace(packet(BAD), interface_in="veth1", interface_out="eth0")
    assert not simulator(agent).send(namespace(AGENT_NETWORK), "forward", sent).passes
    links.found = {}
    controller(agent).upkeep()
    assert desired(agent, AGENT_NETWORK) == []
    assert any("CAP_NET_ADMIN" in warning for warning in agent.warnings())


def test_a_host_policy_for_another_machine_is_warned_of(start: Start, configure: Configure) -> None:
    agent = start(configure(more=[HOST]))
    assert "policy edge selects nothing on this machine now" in agent.warnings()


def test_a_namespace_that_cannot_be_held_refuses_its_container_and_no_other(
    fake: FakeMachine, start: Start, configure: Configure, network: SimulatedNetwork
) -> None:
    agent = start(configure(more=[egress()]))
    assert announce(agent, fake.container(annotations=LABELS, network=77)).accepted
    simulator(agent).faults["apply.before"] = broken
    answer = announce(agent, fake.container("c2", 101, LABELS, network=78))
    assert (answer.accepted, answer.message) == (False, "the kernel would not")
    answer = announce(agent, fake.container("c3", 102, LABELS, network=77))
    assert not answer.accepted
    assert list(kernel_of(agent).workloads) == [1]
    assert list(network.namespaces) == [77]
    assert passes(agent, 77) == (True, False)
    assert len(agent.registry) == 1
    simulator(agent).faults.clear()
    controller(agent).upkeep()
    assert desired(agent, 77) == [Whole()]
    assert announce(agent, fake.container("c4", 103, LABELS, network=78)).accepted


def test_what_the_other_engine_refuses_leaves_no_table(
    fake: FakeMachine, start: Start, configure: Configure, network: SimulatedNetwork
) -> None:
    agent = start(configure(more=[egress()]))
    assert isinstance(agent.engine, SimulatorEngine)
    agent.engine.faults["register.before"] = broken
    assert not announce(agent, fake.container(annotations=LABELS, network=77)).accepted
    assert network.namespaces == {}


def test_an_init_that_changes_its_network_is_refused(
    fake: FakeMachine, start: Start, configure: Configure, network: SimulatedNetwork
) -> None:
    agent = start(configure(more=[egress()]))
    container = fake.container(annotations=LABELS, network=77)

    def elsewhere() -> None:
        link = fake.proc / "100" / "ns" / "net"
        link.unlink()
        link.symlink_to("net:[78]")

    simulator(agent).faults["apply.after"] = elsewhere
    assert "changed its network namespace" in announce(agent, container).message
    assert network.namespaces == {}


def test_a_table_that_cannot_be_removed_keeps_nobody(fake: FakeMachine, start: Start, configure: Configure) -> None:
    agent = start(configure(more=[egress()]))
    container = fake.container(annotations=LABELS, network=77)
    assert announce(agent, container).accepted
    simulator(agent).faults["remove.before"] = broken
    fake.end(container)
    assert poststop(agent, container).accepted
    assert len(agent.registry) == 0


def test_rights_that_nothing_refuses_are_told_of(fake: FakeMachine, start: Start, configure: Configure) -> None:
    configuration = replace(configure(mode="host", policy=egress()), engines=("nftables",))
    agent = start(configuration)
    container = fake.container(annotations=LABELS, network=77)
    config = json.loads((container.bundle / "config.json").read_text())
    config["process"] = {"capabilities": {"bounding": ["CAP_NET_RAW"]}}
    (container.bundle / "config.json").write_text(json.dumps(config))
    assert announce(agent, container).accepted
    assert any("container c1 may have CAP_NET_ADMIN or CAP_NET_RAW" in warning for warning in agent.warnings())
    agent.stop()
    second = start(configuration)
    assert any("container c1 may have CAP_NET_ADMIN" in warning for warning in second.warnings())


ENTITIES = """
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata: {name: entities, namespace: default}
spec:
  endpointSelector: {matchExpressions: [{key: app, operator: In, values: [secrets]}]}
  egress:
    - toEntities: [cluster]
  egressDeny:
    - toEntities: [kube-apiserver]
      toPorts: [{ports: [{port: "8002", protocol: TCP}]}]
"""


def test_an_entity_that_nobody_resolves_is_refused_or_told_of(
    fake: FakeMachine, start: Start, configure: Configure, network: SimulatedNetwork
) -> None:
    sealed = configure(more=[ENTITIES])
    with pytest.raises(StartError, match=r"(?s)entity cluster is .*entity kube-apiserver is "):
        start(sealed)
    assert network.namespaces == {}
    known = (("cluster", ("192.0.2.0/24",)), ("kube-apiserver", ("192.0.2.9/32",)))
    agent = start(replace(sealed, entities=known))
    assert announce(agent, fake.container(annotations=LABELS, network=77)).accepted
    assert passes(agent, 77) == (True, False)
    assert sends(agent, 77, BAD, to="192.0.2.8").passes
    agent.stop()
    host = start(replace(sealed, entities=known[:1], mode="host"))
    assert passes(host, 77) == (True, False)
    assert not sends(host, 77, BAD, to="192.0.2.8").passes  # whom Block means is not known: everybody
    assert any("1 rule(s) of the bundle are not enforced" in warning for warning in host.warnings())


def test_names_need_a_resolver(start: Start, configure: Configure) -> None:
    with pytest.raises(StartError, match="no resolver"):
        start(replace(configure(more=[NAMES]), resolvers=()))


# ---- restart -----------------------------------------------------------------------------------------------------


def test_a_restarted_agent_takes_up_what_is_there(
    fake: FakeMachine, start: Start, configure: Configure, network: SimulatedNetwork
) -> None:
    configuration = configure(more=[egress()])
    first = start(configuration)
    container = fake.container(annotations=LABELS, network=77)
    assert announce(first, container).accepted
    fake.start(container)
    first.stop()
    held = network.namespaces[77]
    network.namespaces[AGENT_NETWORK] = held  # left by an agent that was killed
    second = start(configuration)
    assert network.namespaces.keys() == {77}
    assert passes(second, 77) == (True, False)
    assert network.namespaces[77].evaluation.ruleset.digest == held.evaluation.ruleset.digest
    fake.end(container)
    assert poststop(second, container).accepted
    assert network.namespaces == {}


def test_a_workload_whose_record_is_lost_may_exchange_no_packets(
    fake: FakeMachine, start: Start, configure: Configure
) -> None:
    configuration = configure(more=[egress(app="data", name="data")])
    first = start(configuration)
    container = fake.container(annotations=LABELS, network=77)
    data = fake.container("c2", 101, {"io.hauberk.label.app": "data"}, network=78)
    assert announce(first, container).accepted
    assert announce(first, data).accepted
    first.stop()
    for number in (1, 2):
        (configuration.state_directory / f"{number}.json").unlink()
    for one in (container, data):
        (one.cgroup / "cgroup.procs").write_text(f"{one.pid}\n")
    second = start(configuration)
    assert desired(second, 77) == []  # it had none
    assert passes(second, 78) == (False, False)


def test_without_its_own_namespace_no_agent_starts(start: Start, configure: Configure) -> None:
    configuration = replace(configure(more=[HOST]), node_labels=(("role", "edge"),))
    with pytest.raises(StartError, match="would not"):
        start(configuration, **{"apply.before": broken})


# ---- successors --------------------------------------------------------------------------------------------------


def submit(agent: Agent, signer: keys.PrivateKey, version: int, *policies: str) -> object:
    files = tuple(PolicyFile(f"{number}.yaml", text) for number, text in enumerate(policies))
    data = create("demo", version, files, "deny", conditions=ALLOWED)
    return agent.submit(data, signatures.sign(signer, data))


def test_a_successor_changes_what_passes(
    fake: FakeMachine, start: Start, configure: Configure, signer: keys.PrivateKey
) -> None:
    configuration = replace(configure(more=[egress()]), node_labels=(("role", "edge"),))
    agent = start(configuration)
    container = fake.container(annotations=LABELS, network=77)
    assert announce(agent, container).accepted
    fake.start(container)
    assert passes(agent, 77) == (True, False)
    submit(agent, signer, 2, POLICY, egress(BAD), HOST)
    assert passes(agent, 77) == (False, True)
    assert desired(agent, AGENT_NETWORK) == [Whole()]
    submit(agent, signer, 3, POLICY)
    assert desired(agent, 77) == desired(agent, AGENT_NETWORK) == []
    [held] = kernel_of(agent).workloads.values()
    assert held.network_namespace == 0
    submit(agent, signer, 4, POLICY.replace("app: secrets", "app: others"))
    assert passes(agent, 77) == (False, False)  # refused everything
    [held] = kernel_of(agent).workloads.values()
    assert held.network_namespace == 77
    agent.stop()
    second = start(configuration)
    assert passes(second, 77) == (False, False)


def test_a_successor_brings_rules_to_containers_that_had_none(
    fake: FakeMachine, start: Start, configure: Configure, signer: keys.PrivateKey
) -> None:
    agent = start(configure())
    assert announce(agent, fake.container(annotations=LABELS, network=77)).accepted
    controller(agent).upkeep()
    submit(agent, signer, 2, POLICY, egress())
    assert passes(agent, 77) == (True, False)
    [applied] = [one for one, *_ in simulator(agent).applied.values() if one.inode == 77]
    assert applied.path == str(fake.proc / "100" / "ns" / "net")


def test_a_successors_posture_counts_too(
    fake: FakeMachine, start: Start, configure: Configure, signer: keys.PrivateKey
) -> None:
    agent = start(replace(configure(more=[egress(), HOST]), node_labels=(("role", "edge"),)))
    assert announce(agent, fake.container(annotations=LABELS, network=77)).accepted
    terms = replace(ALLOWED, postures=(("network", Posture.AUDIT),))
    files = tuple(PolicyFile(f"{number}.yaml", text) for number, text in enumerate((POLICY, egress(), HOST)))
    data = create("demo", 2, files, "deny", conditions=terms)
    agent.submit(data, signatures.sign(signer, data))
    outcome = sends(agent, 77, BAD)
    assert (outcome.passes, [mark.verdict for mark in outcome.told]) == (True, ["audit"])
    inside = Packet("198.51.100.1", "192.0.2.1", TCP, 40000, 22, interface_in="eth0")
    outcome = simulator(agent).send(namespace(AGENT_NETWORK), "input", inside)
    assert (outcome.passes, [mark.verdict for mark in outcome.told]) == (True, ["audit"])


def test_equal_rules_are_kept_once(
    fake: FakeMachine, start: Start, configure: Configure, signer: keys.PrivateKey
) -> None:
    agent = start(configure(more=[egress()]))
    for number in (77, 78):
        assert announce(agent, fake.container(f"c{number}", number, LABELS, network=number)).accepted
    first, second = (controller(agent).rule_set_of(number) for number in (1, 2))
    assert first is not None
    assert first is second
    submit(agent, signer, 2, POLICY, egress(BAD))
    assert controller(agent).rule_set_of(1) is controller(agent).rule_set_of(2) is not first
    applied = simulator(agent).network.namespaces[77]
    submit(agent, signer, 3, POLICY, egress(BAD))
    assert simulator(agent).network.namespaces[77] is applied  # what stays the same is not touched


def test_while_a_successor_comes_into_force_both_hold(
    fake: FakeMachine, start: Start, configure: Configure, signer: keys.PrivateKey
) -> None:
    agent = start(configure(more=[egress()]))
    assert announce(agent, fake.container(annotations=LABELS, network=77)).accepted
    seen: list[tuple[bool, bool]] = []
    assert isinstance(agent.engine, SimulatorEngine)
    for step in ("advance.before", "advance.after"):
        agent.engine.faults[step] = lambda: seen.append(passes(agent, 77))
    submit(agent, signer, 2, POLICY, egress(BAD))
    assert seen == [(False, False), (False, False)]
    assert passes(agent, 77) == (False, True)


@pytest.mark.parametrize("failing", ["first", "second", "switch"])
def test_a_successor_that_fails_anywhere_leaves_everything(
    fake: FakeMachine, start: Start, configure: Configure, signer: keys.PrivateKey, failing: str
) -> None:
    agent = start(configure(more=[egress()]))
    for number in (77, 78):
        assert announce(agent, fake.container(f"c{number}", number, LABELS, network=number)).accepted
    calls: list[None] = []

    def second() -> None:
        calls.append(None)
        if len(calls) == 2:
            broken()

    assert isinstance(agent.engine, SimulatorEngine)
    if failing == "switch":
        agent.engine.faults["advance.before"] = broken
    else:
        simulator(agent).faults["apply.before"] = broken if failing == "first" else second
    with pytest.raises(SubmitError, match="would not"):
        submit(agent, signer, 2, POLICY, egress(BAD))
    agent.engine.faults.clear()
    simulator(agent).faults.clear()
    controller(agent).upkeep()
    assert [passes(agent, number) for number in (77, 78)] == [(True, False)] * 2
    assert agent.policy_set is not None
    assert agent.policy_set.version == 1
    submit(agent, signer, 2, POLICY, egress(BAD))
    assert [passes(agent, number) for number in (77, 78)] == [(False, True)] * 2


STEPS = ["apply.before", "apply.after", "advance.before", "advance.after", "settle.before", "settle.after", "adopt"]


@pytest.mark.parametrize("step", STEPS)
def test_killed_anywhere_what_is_left_is_strict_and_the_next_agent_finishes(  # noqa: PLR0913, PLR0917 - fixtures, cases
    fake: FakeMachine,
    start: Start,
    configure: Configure,
    signer: keys.PrivateKey,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    configuration = configure(more=[egress()])
    first = start(configuration)
    for number in (77, 78):
        assert announce(first, fake.container(f"c{number}", number, LABELS, network=number)).accepted
    assert isinstance(first.engine, SimulatorEngine)
    with monkeypatch.context() as patch:
        patch.setattr(RecordStore, "cut_chain", lambda *_: None)  # nothing is tidied up by the dead
        patch.setattr(RecordStore, "forget_next", lambda *_: None)
        patch.setattr(Network, "take_back", lambda *_: None)
        if step.startswith("advance"):
            first.engine.faults[step] = kill
        elif step == "adopt":
            patch.setattr(RecordStore, "promote", lambda *_: kill())
        elif step.startswith("settle"):
            engine = simulator(first)
            first.engine.faults["advance.after"] = lambda: engine.faults.update({f"apply.{step[7:]}": kill})
        else:
            simulator(first).faults[step] = kill
        with pytest.raises(Killed):
            submit(first, signer, 2, POLICY, egress(BAD))
    simulator(first).faults.clear()
    new = step in {"advance.after", "settle.before", "settle.after", "adopt"}
    for number in (77, 78):
        good, bad = passes(first, number)
        assert not (bad if not new else good)  # nothing that the bundle in force refuses
    first.stop()
    second = start(configuration)
    assert second.policy_set is not None
    assert second.policy_set.version == (2 if new else 1)
    assert [passes(second, number) for number in (77, 78)] == [(not new, new)] * 2


# ---- peers, names, quotas ----------------------------------------------------------------------------------------


class Clock:
    """Time that passes when a test says so."""

    now = 1000

    def __call__(self) -> int:
        """Give the time in seconds."""
        return self.now


def answer(name: str, address: str, seconds: int) -> bytes:
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0"
    octets = bytes(map(int, address.split(".")))
    record = b"\xc0\x0c\0\x01\0\x01" + seconds.to_bytes(4, "big") + b"\0\x04" + octets
    return b"\0\x01\x81\x80\0\x01\0\x01\0\0\0\0" + labels + b"\0\x01\0\x01" + record


def test_peers_are_workloads_and_learned_names(
    fake: FakeMachine, agents: Start, configure: Configure, network: SimulatedNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(agent_module, "Network", lambda *parts, **named: Network(*parts, **named, clock=clock))
    configuration = replace(configure(more=[NAMES, egress(app="data", name="data")]), resolvers=("192.0.2.53",))
    agent = agents(configuration, packets=SimulatorNetworkEngine(network))
    assert announce(agent, fake.container(annotations=LABELS, network=77)).accepted
    data = fake.container("c2", 101, {"io.hauberk.label.app": "data"}, network=78)

    def reaches(address: str) -> bool:
        return sends(agent, 77, 443, to=address).passes

    assert not reaches("10.0.78.2")
    assert announce(agent, data).accepted
    assert reaches("10.0.78.2")
    (fake.proc / "101" / "net" / "fib_trie").write_text("")
    controller(agent).upkeep()
    assert not reaches("10.0.78.2")
    told = NameAnswer(0, 77, "192.0.2.53", answer("www.example.com", "198.51.100.7", 60))
    for one in (replace(told, resolver="192.0.2.54"), replace(told, namespace=78), replace(told, payload=b"\0")):
        simulator(agent).emit(one)
    simulator(agent).emit(replace(told, payload=answer("www.example.org", "198.51.100.7", 60)))
    until(lambda: not network.buffer)
    assert not reaches("198.51.100.7")
    simulator(agent).emit(told)
    until(lambda: reaches("198.51.100.7"))
    assert controller(agent).facts_of(77, "198.51.100.7").names == ("www.example.com",)
    remembered = controller(agent).remember()
    assert remembered is not None
    RecordStore(configuration.state_directory).write_network(remembered)
    assert controller(agent).remember() is None
    agent.stop()
    second = agents(configuration, packets=SimulatorNetworkEngine(network))
    assert sends(second, 77, 443, to="198.51.100.7").passes
    clock.now += 61
    second.stop()
    third = agents(configuration, packets=SimulatorNetworkEngine(network))
    assert not sends(third, 77, 443, to="198.51.100.7").passes


def test_who_asks_again_and_again_is_not_worked_for(
    fake: FakeMachine, agents: Start, configure: Configure, network: SimulatedNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(agent_module, "Network", lambda *parts, **named: Network(*parts, **named, clock=clock))
    configuration = replace(configure(more=[NAMES]), resolvers=("192.0.2.53",))
    changes: list[None] = []
    engine = SimulatorNetworkEngine(network, faults={"set_members": lambda: changes.append(None)})
    agent = agents(configuration, packets=engine)
    assert announce(agent, fake.container(annotations=LABELS, network=77)).accepted
    told = NameAnswer(0, 77, "192.0.2.53", answer("www.example.com", "198.51.100.7", 60))
    for _ in range(100):
        engine.emit(told)
    until(lambda: not network.buffer and sends(agent, 77, 443, to="198.51.100.7").passes)
    controller(agent).remember()
    assert len(changes) == 1
    clock.now += 1
    engine.emit(told)
    until(lambda: len(changes) == 2)  # it counts a second longer


def test_what_is_remembered_may_be_damaged(fake: FakeMachine, start: Start, configure: Configure) -> None:
    configuration = configure(more=[egress()])
    configuration.state_directory.mkdir(parents=True)
    for data in (b"{", b"[]", b'{"names": 1, "periods": []}', b'{"names": [], "periods": [[1]]}'):
        (configuration.state_directory / "network").write_bytes(data)
        agent = start(configuration)
        agent.stop()
    assert announce(start(configuration), fake.container(annotations=LABELS, network=77)).accepted


def test_a_quota_begins_anew_after_its_period_whoever_counts(
    fake: FakeMachine, agents: Start, configure: Configure, network: SimulatedNetwork, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    monkeypatch.setattr(agent_module, "Network", lambda *parts, **named: Network(*parts, **named, clock=clock))
    configuration = configure(more=[QUOTA.replace("LEVEL", "pod")])
    agent = agents(configuration, packets=SimulatorNetworkEngine(network))
    assert announce(agent, fake.container(annotations=LABELS, network=77)).accepted

    def use_up(agent: Agent) -> None:
        while sends(agent, 77, GOOD).passes:
            pass

    controller(agent).upkeep()
    use_up(agent)
    clock.now += 9
    controller(agent).upkeep()
    assert not sends(agent, 77, GOOD).passes
    clock.now += 1
    controller(agent).upkeep()
    assert sends(agent, 77, GOOD).passes
    use_up(agent)
    remembered = controller(agent).remember()
    assert remembered is not None
    RecordStore(configuration.state_directory).write_network(remembered)
    agent.stop()
    clock.now += 8
    second = agents(configuration, packets=SimulatorNetworkEngine(network))
    controller(second).upkeep()
    assert not sends(second, 77, GOOD).passes  # neither reset by the restart
    clock.now += 2
    controller(second).upkeep()
    assert sends(second, 77, GOOD).passes  # nor begun anew by it
    [used] = [quota for one in controller(second).status() for quota in one.quotas]
    assert (used.limit_bytes, used.seconds) == (1024, 10)


def test_one_quota_for_workloads_of_two_namespaces(fake: FakeMachine, start: Start, configure: Configure) -> None:
    agent = start(configure(more=[QUOTA.replace("LEVEL", "policy")]))
    assert announce(agent, fake.container(annotations=LABELS, network=77)).accepted
    assert announce(agent, fake.container("c2", 101, LABELS, network=77)).accepted
    refused = announce(agent, fake.container("c3", 102, LABELS, network=78))
    assert not refused.accepted
    assert "several network namespaces" in refused.message
    agent.stop()
    host = start(replace(agent.configuration, mode="host"))
    assert announce(host, fake.container("c4", 103, LABELS, network=79)).accepted
    assert any("counts for each network namespace" in warning for warning in host.warnings())


# ---- events and upkeep -------------------------------------------------------------------------------------------


def test_alerts_name_rule_and_container_once(fake: FakeMachine, agents: Start, configure: Configure) -> None:
    agent = agents(configure(more=[egress()]), packets=SimulatorNetworkEngine())
    assert announce(agent, fake.container(annotations=LABELS, network=77)).accepted
    for _ in range(5):
        assert not sends(agent, 77, BAD).passes
    until(lambda: bool(agent.alerts.recent()))
    agent.stop()
    told = agent.alerts.recent()
    assert {(one["ContainerID"], one["PolicyName"], one["Action"]) for one in told} == {
        ("c1", "DefaultPosture", "Block")
    }
    assert all("DestinationPort=8002" in one["Data"] for one in told)
    counts = [int(one["Data"].partition("Count=")[2] or 1) for one in told]
    assert sum(counts) == agent.counters()["network_events"] == 5
    assert agent.counters()["packets_folded"] == 5 - counts.count(1)


def test_tables_that_somebody_deletes_hold_again_and_that_is_told(
    fake: FakeMachine, start: Start, configure: Configure
) -> None:
    agent = start(configure(more=[egress()]))
    assert announce(agent, fake.container(annotations=LABELS, network=77)).accepted
    simulator(agent).tamper(namespace(77))
    assert passes(agent, 77) == (True, True)
    controller(agent).upkeep()
    assert passes(agent, 77) == (True, False)
    until(lambda: any(alert["Rule"] == "tampered" for alert in agent.alerts.recent()))
    simulator(agent).faults["verify"] = broken
    controller(agent).verify()
    agent.stop()
    assert agent.event_errors == 0


def test_a_failing_engine_ends_no_thread(fake: FakeMachine, start: Start, configure: Configure) -> None:
    agent = start(configure(more=[QUOTA.replace("LEVEL", "pod")]))
    assert announce(agent, fake.container(annotations=LABELS, network=77)).accepted
    for step in ("drain", "usage", "held", "set_members"):
        simulator(agent).faults[step] = broken
    controller(agent).upkeep()
    assert controller(agent).problems() == ["network namespace 77: the kernel would not"]
    assert [one.held for one in controller(agent).status()] == ["", ""]
    until(lambda: agent.event_errors > 0)
    assert agent.healthy
    simulator(agent).faults.clear()


# ---- flush -------------------------------------------------------------------------------------------------------


def test_a_flush_is_for_host_mode_and_lasts_until_the_next_start(
    fake: FakeMachine, start: Start, configure: Configure, network: SimulatedNetwork
) -> None:
    agent = start(configure(more=[egress()]))
    assert announce(agent, fake.container(annotations=LABELS, network=77)).accepted
    with pytest.raises(EngineError, match="sealed"):
        agent.flush_network()
    assert passes(agent, 77) == (True, False)
    agent.stop()
    configuration = replace(agent.configuration, mode="host")
    host = start(configuration)
    assert host.flush_network() == 1
    assert network.namespaces == {}
    controller(host).upkeep()
    controller(host).verify()
    assert network.namespaces == {}
    assert "flushed" in announce(host, fake.container("c2", 101, LABELS, network=78)).message
    assert any("flushed" in warning for warning in host.warnings())
    host.stop()
    assert passes(start(configuration), 77) == (True, False)


def test_only_namespaces_that_can_be_read_are_entered(
    fake: FakeMachine, start: Start, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = start(configure(more=[egress()]))

    def unreadable(*_: object) -> int:
        message = "the network namespace cannot be read"
        raise verification.VerificationError(message)

    monkeypatch.setattr(verification, "network_namespace", unreadable)
    assert "cannot be read" in announce(agent, fake.container(annotations=LABELS, network=77)).message
    agent.stop()
    with pytest.raises(StartError, match="cannot be read"):
        start(agent.configuration)


def test_the_state_directory_is_as_it_should_be(
    fake: FakeMachine, start: Start, configure: Configure, tmp_path: Path
) -> None:
    configuration = configure(more=[egress()])
    agent = start(configuration)
    assert announce(agent, fake.container(annotations=LABELS, network=77)).accepted
    RecordStore(configuration.state_directory).write_network(b"{}")
    agent.stop()
    start(configuration)
    left = {path.name for path in (tmp_path / "run" / "workloads").iterdir()}
    assert left == {"1.json", "lock", "network", "next-workload-id"}


def test_a_namespace_is_found_by_whoever_is_left_in_it(
    fake: FakeMachine, start: Start, configure: Configure, signer: keys.PrivateKey
) -> None:
    configuration = configure(more=[NAMES, egress(app="data", name="data")])
    agent = start(replace(configuration, resolvers=("192.0.2.53",)))
    container = fake.container("data", 101, {"io.hauberk.label.app": "data"}, network=78)
    assert announce(agent, container).accepted
    assert announce(agent, fake.container(annotations=LABELS, network=77)).accepted
    fake.process("200", namespace=3, cgroup="/machine.slice/data", network=78)
    (container.cgroup / "cgroup.procs").write_text("101\n200\n")
    fake.end_init(container)
    (fake.proc / "101" / "ns" / "net").unlink()
    controller(agent).upkeep()
    submit(agent, signer, 2, POLICY, egress(BAD, app="data", name="data"))
    paths = {simulator(agent).applied[78][0].path}
    assert str(fake.proc / "200" / "ns" / "net") in paths
    agent.stop()
    (fake.proc / "200" / "ns" / "net").unlink()
    second = start(configuration)  # nobody is left to find it by: it is let go of when its cgroup is empty
    assert desired(second, 78) == []
    (container.cgroup / "cgroup.procs").write_text("")
    fake.populate(container.cgroup, populated=False)
    assert poststop(second, container).accepted


def test_what_is_learned_is_written_down_as_time_goes_by(
    fake: FakeMachine, start: Start, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "UPKEEP_SECONDS", 0.01)
    configuration = replace(configure(more=[NAMES]), resolvers=("192.0.2.53",))
    agent = start(configuration)
    assert announce(agent, fake.container(annotations=LABELS, network=77)).accepted
    file = configuration.state_directory / "network"
    simulator(agent).emit(NameAnswer(0, 77, "192.0.2.53", answer("www.example.com", "198.51.100.7", 60)))
    until(lambda: file.exists() and b"198.51.100.7" in file.read_bytes())
    file.unlink()
    file.mkdir()  # cannot be written any more: told, and nothing else
    simulator(agent).emit(NameAnswer(0, 77, "192.0.2.53", answer("www.example.com", "198.51.100.8", 60)))
    until(lambda: sends(agent, 77, 443, to="198.51.100.8").passes)
    assert agent.healthy


def test_defects_of_one_event_end_nothing(
    fake: FakeMachine, start: Start, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = start(configure(more=[egress()]))
    assert announce(agent, fake.container(annotations=LABELS, network=77)).accepted

    def broken_facts(*_: object) -> object:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(Network, "facts_of", broken_facts)
        sends(agent, 77, BAD)
        until(lambda: agent.event_errors == 1)
    sends(agent, 77, BAD + 1)
    until(lambda: bool(agent.alerts.recent()))
    assert agent.healthy

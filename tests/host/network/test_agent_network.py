# SPDX-License-Identifier: Apache-2.0
"""The whole agent with real packets and real containers, in host mode with the engine for packets alone.

That is how it runs on a kernel without BPF LSM. Rules hold before a container's first instruction, across a restart of
the agent, and while a successor comes into force.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
from typing import TYPE_CHECKING

import pytest

from tests.host.network.agent_lab import HELLO, PATIENCE_SECONDS, REFUSAL_SECONDS, Lab, attachments, until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MEMORY_LIMIT = 64 << 20
LABELS = {"app": "web"}


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    made = Lab(tmp_path)
    yield made
    made.close()


def egress(name: str, app: str, address: str, port: int) -> str:
    """Write the policy that lets the pods ``app`` reach one port, and nothing else."""
    return f"""
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {{name: {name}}}
spec:
  podSelector: {{matchLabels: {{app: {app}}}}}
  policyTypes: [Egress]
  egress:
    - to: [{{ipBlock: {{cidr: {address}/32}}}}]
      ports: [{{port: {port}, protocol: TCP}}]
"""


def host_policy(port: int) -> str:
    """Write the policy that lets nobody but the network 1 reach the machine, and these one port."""
    return f"""
apiVersion: security.kubearmor.com/v1
kind: KubeArmorNetworkPolicy
metadata: {{name: edge}}
spec:
  nodeSelector: {{matchLabels: {{role: edge}}}}
  ingress:
    - from: [{{ipBlock: {{cidr: 10.77.1.0/24}}}}]
      ports: [{{port: "{port}", protocol: TCP}}]
      action: Allow
"""


QUOTA = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorNetworkPolicy
metadata: {name: quota}
spec:
  selector: {matchLabels: {app: web}}
  level: pod
  egress:
    - {limit: 3KB, duration: 8s, action: Block}
"""


def tries(address: str, *ports: int) -> str:
    """Write the script that tries ports one after the other and tells of each, and then stays."""
    lines = [
        f'if [ "$(nc -w {REFUSAL_SECONDS} {address} {port} < /dev/null 2> /dev/null)" = {HELLO} ]; '
        f"then echo {port} passed; else echo {port} refused; fi"
        for port in ports
    ]
    return "\n".join((*lines, "echo tried", "sleep 1000"))


def test_rules_hold_before_the_first_instruction(lab: Lab) -> None:
    net = lab.attached(1)
    lab.serve(lab.outside, 8001, 8002)
    lab.start(lab.configure(lab.bundle(1, egress("web", "web", "10.77.1.1", 8001))))
    container = lab.container(net, tries("10.77.1.1", 8002, 8001), LABELS)
    lab.expect(container, "tried")
    assert lab.output(container).splitlines()[:2] == ["8002 refused", "8001 passed"]
    until(lambda: lab.alerts(ContainerID=container, Data="DestinationPort=8002"), "an alert")
    [alert] = lab.alerts(ContainerID=container, Data="DestinationPort=8002", Action="Block")[:1]
    assert (alert["PolicyName"], alert["Operation"]) == ("DefaultPosture", "NetworkFirewall")
    assert "SourceIP=10.77.1.2 " in str(alert["Data"])
    assert alert["Labels"] == "app=web"
    assert lab.memory() < MEMORY_LIMIT, lab.memory()
    assert attachments(lab, net) == {container: "whole"}
    assert attachments(lab, lab.outside) == {}


def test_a_container_that_nothing_covers_is_refused_and_leaves_nothing(lab: Lab) -> None:
    net = lab.attached(1)
    lab.start(lab.configure(lab.bundle(1, egress("web", "web", "10.77.1.1", 8001))))
    lab.container(net, "echo ran", {"app": "other"}, accepted=False)
    assert "hauberk" not in net("nft", "list", "tables")


def test_neighbours_in_one_namespace_are_told_apart(lab: Lab) -> None:
    net = lab.attached(1)
    lab.serve(lab.outside, 8001, 8002, 8003)
    policies = egress("web", "web", "10.77.1.1", 8001), egress("data", "data", "10.77.1.1", 8002)
    lab.start(lab.configure(lab.bundle(1, *policies)))
    web = lab.container(net, tries("10.77.1.1", 8001, 8002, 8003), {"app": "web"})
    lab.expect(web, "tried")
    data = lab.container(net, tries("10.77.1.1", 8001, 8002, 8003), {"app": "data"})
    lab.expect(data, "tried")
    assert lab.output(web).splitlines()[:3] == ["8001 passed", "8002 refused", "8003 refused"]
    assert lab.output(data).splitlines()[:3] == ["8001 refused", "8002 passed", "8003 refused"]
    by_cgroup = attachments(lab, net)
    assert by_cgroup.keys() == {web, data}
    assert all(attachment.startswith("cgroup ") for attachment in by_cgroup.values())
    assert attachments(lab, lab.outside) == {}
    until(lambda: lab.alerts(ContainerID=data, Data="DestinationPort=8001"), "the other's alert")


def test_containers_of_the_machines_own_network(lab: Lab) -> None:
    net = lab.attached(1)
    lab.serve(net, 8001, 8002)
    lab.start(lab.configure(lab.bundle(1, egress("web", "web", "10.77.1.2", 8001))))
    container = lab.container(lab.outside, tries("10.77.1.2", 8001, 8002), LABELS)
    lab.expect(container, "tried")
    assert lab.output(container).splitlines()[:2] == ["8001 passed", "8002 refused"]
    assert lab.outside.connects("10.77.1.2", 8002)  # nobody else's packets are touched
    lab.end(container)
    until(lambda: "hauberk" not in lab.outside("nft", "list", "tables"), "the table to go with its last workload")


def test_what_is_in_force_outlives_the_agent(lab: Lab) -> None:
    net = lab.attached(1)
    lab.serve(lab.outside, 8001, 8002)
    configuration = lab.configure(lab.bundle(1, egress("web", "web", "10.77.1.1", 8001)))
    lab.start(configuration)
    container = lab.container(net, "sleep 1000", LABELS)
    until(lambda: not net.connects("10.77.1.1", 8002), "the rules")
    lab.stop(signal.SIGKILL)
    before = net("nft", "-a", "list", "ruleset")
    assert not net.connects("10.77.1.1", 8002)
    lab.container(net, "echo ran", LABELS, accepted=False)
    lab.start(configuration)
    assert net("nft", "-a", "list", "ruleset") == before  # handles and all: nothing was replaced
    assert not net.connects("10.77.1.1", 8002)
    assert net.connects("10.77.1.1", 8001)
    until(lambda: lab.alerts(ContainerID=container, Data="DestinationPort=8002"), "alerts after the restart")
    lab.end(container)
    until(lambda: "hauberk" not in net("nft", "list", "tables"), "the table to go with its last workload")
    assert net.connects("10.77.1.1", 8002)


def test_a_successor_cuts_what_it_forbids_and_lets_through_what_it_allows(lab: Lab) -> None:
    net = lab.attached(1)
    lab.serve(lab.outside, 8001, 8002, 8004)
    lab.start(lab.configure(lab.bundle(1, egress("web", "web", "10.77.1.1", 8001))))
    container = lab.container(net, "sleep 1000", LABELS)
    until(lambda: net.connects("10.77.1.1", 8001), "the rules")
    file, signature = lab.bundle(2, egress("web", "web", "10.77.1.1", 8004))
    lab.hauberk("bundle", "submit", str(file), "--signature", str(signature), "--socket", str(lab.socket))
    client = subprocess.Popen(
        net.inside("busybox", "nc", "10.77.1.1", "8004"), stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
    )
    assert client.stdin is not None
    assert client.stdout is not None
    assert client.stdout.readline() == f"{HELLO}\n".encode()
    client.stdin.write(b"one\n")
    assert client.stdout.readline() == b"one\n"
    assert not net.connects("10.77.1.1", 8001)
    file, signature = lab.bundle(3, egress("web", "web", "10.77.1.1", 8002))
    lab.hauberk("bundle", "submit", str(file), "--signature", str(signature), "--socket", str(lab.socket))
    with contextlib.suppress(BrokenPipeError):  # where the kernel ends the socket too
        client.stdin.write(b"two\n")
    assert net.connects("10.77.1.1", 8002)
    with contextlib.suppress(BrokenPipeError), client:
        client.kill()
        assert client.stdout.read() == b""  # "two" never came back
    status = lab.hauberk("status", "--socket", str(lab.socket))
    assert "web (selects 1)" in status
    lab.end(container)


@pytest.mark.parametrize("step", ["tighten", "advance", "settle"])
def test_killed_within_a_submission(lab: Lab, step: str) -> None:
    net = lab.attached(1)
    lab.serve(lab.outside, 8001, 8002)
    configuration = lab.configure(lab.bundle(1, egress("web", "web", "10.77.1.1", 8001)))
    lab.start(configuration, killed_after=step)
    lab.expect(lab.container(net, "echo up; sleep 1000", LABELS), "up")
    file, signature = lab.bundle(2, egress("web", "web", "10.77.1.1", 8002))
    lab.hauberk("bundle", "submit", str(file), "--signature", str(signature), "--socket", str(lab.socket), code=3)
    assert lab.agent is not None
    lab.agent.wait(PATIENCE_SECONDS)
    between = step != "settle"
    assert [net.connects("10.77.1.1", port) for port in (8001, 8002)] == [False, not between]
    with lab.agent:
        lab.start(configuration)
    new = step != "tighten"
    assert [net.connects("10.77.1.1", port) for port in (8001, 8002)] == [not new, new]


def test_the_machines_own_packets(lab: Lab) -> None:
    one, two = lab.attached(1), lab.attached(2)
    lab.serve(lab.outside, 8001, 8002, 8003)
    listed = [{"cidr": "10.77.2.0/24", "ports": [8003]}]
    bundle = lab.bundle(1, host_policy(8001))
    lab.start(lab.configure(bundle, nodeLabels={"role": "edge"}, networkManagement=listed))
    assert one.connects("10.77.1.1", 8001)
    assert not one.connects("10.77.1.1", 8002)
    assert not two.connects("10.77.2.1", 8001)
    assert two.connects("10.77.2.1", 8003)  # management survives
    assert not two.connects("fd77:2::1", 8001)
    until(lambda: lab.alerts(Data="DestinationPort=8002", Action="Block", ContainerID=""), "an alert of the host")
    assert "edge (selects 1)" in lab.hauberk("status", "--socket", str(lab.socket))
    # Somebody deletes the table: it holds again, and that is told.
    lab.outside("nft", "delete", "table", "inet", "hauberk")
    until(lambda: lab.alerts(Rule="tampered"), "the alert that somebody changed the rules")
    assert not one.connects("10.77.1.1", 8002)


def test_a_quota_is_used_up_and_begins_anew(lab: Lab) -> None:
    net = lab.attached(1)
    lab.serve(lab.outside, 8001)
    lab.start(lab.configure(lab.bundle(1, QUOTA)))
    container = lab.container(net, "sleep 1000", LABELS)
    until(lambda: "quota egress" in lab.hauberk("network", "status", "--socket", str(lab.socket)), "the quota")
    until(lambda: not net.connects("10.77.1.1", 8001), "the quota to be used up")
    until(lambda: lab.alerts(ContainerID=container, Data="QuotaLevel=pod"), "an alert of the quota")
    until(lambda: net.connects("10.77.1.1", 8001), "the next period")


def test_a_host_policy_for_others_is_warned_of(lab: Lab) -> None:
    one = lab.attached(1)
    lab.serve(lab.outside, 8002)
    lab.start(lab.configure(lab.bundle(1, host_policy(8001)), nodeLabels={"role": "other"}))
    assert one.connects("10.77.1.1", 8002)
    status = lab.hauberk("status", "--socket", str(lab.socket))
    assert "policy edge selects nothing on this machine" in status


def test_flushing_with_and_without_an_agent(lab: Lab) -> None:
    net = lab.attached(1)
    lab.serve(lab.outside, 8001, 8002)
    policies = egress("web", "web", "10.77.1.1", 8001), host_policy(8001)
    configuration = lab.configure(lab.bundle(1, *policies), nodeLabels={"role": "edge"})
    lab.start(configuration)
    container = lab.container(net, "sleep 1000", LABELS)
    until(lambda: not net.connects("10.77.1.1", 8002), "the rules")
    net("nft", "add", "table", "inet", "somebody")
    options = ("--socket", str(lab.socket), "--configuration", str(configuration))
    assert "--yes" in lab.hauberk("network", "flush", *options, code=2)
    assert "flushed 2 " in lab.hauberk("network", "flush", "--yes", *options)
    assert net.connects("10.77.1.1", 8002)
    assert net("nft", "list", "tables").split() == ["table", "inet", "somebody"]
    assert "flushed" in lab.hauberk("network", "status", "--socket", str(lab.socket))
    refused = lab.container(lab.net(), "echo ran", LABELS, accepted=False)
    assert "flushed" in lab.output(refused)
    lab.stop()
    lab.start(configuration)
    assert not net.connects("10.77.1.1", 8002)
    lab.stop(signal.SIGKILL)
    assert not net.connects("10.77.1.1", 8002)
    assert "flushed 2 " in lab.hauberk("network", "flush", "--yes", *options)
    assert net.connects("10.77.1.1", 8002)
    lab.end(container)


def test_who_could_undo_its_rules_is_held_from_outside_or_told_of(lab: Lab) -> None:
    attached, apart = lab.attached(1), lab.net()
    lab.serve(lab.outside, 8001, 8002)
    lab.start(lab.configure(lab.bundle(1, egress("web", "web", "10.77.1.1", 8001))))
    held, told = (
        lab.container(net, "echo up; sleep 1000", LABELS, capabilities=("CAP_NET_ADMIN",)) for net in (attached, apart)
    )
    for container in (held, told):
        lab.expect(container, "up")
    assert attachments(lab, lab.outside) == {held: "interface v1"}
    status = lab.hauberk("status", "--socket", str(lab.socket))
    assert f"container {told} may have CAP_NET_ADMIN" in status
    assert f"container {held} may have" not in status
    lab.stop(signal.SIGKILL)  # nobody puts the table in force again
    attached("nft", "delete", "table", "inet", "hauberk")
    assert attached.connects("10.77.1.1", 8001)
    assert not attached.connects("10.77.1.1", 8002)

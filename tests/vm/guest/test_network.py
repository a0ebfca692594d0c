# SPDX-License-Identifier: Apache-2.0
"""A sealed guest whose containers share its network namespace, as in a Kata guest, with network policies in its bundle.

Everything is real: agent, runtime, packets over a virtual Ethernet pair to another namespace. What the policies say of
each connection is asked of ``hauberk policy explain`` and compared with what becomes of it, and with the alert. The
refusals of the kernel that keep a container from passing its rules by are tried with every capability granted; the
whole list of ways round is in ``test_engine_successor.py``.
"""

from __future__ import annotations

import errno
import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from tests.vm.containers import bundle as oci
from tests.vm.containers import sealed
from tests.vm.containers.runtime import Runtime
from tests.vm.containers.sealed import NOTHING, Agent, Containers

if TYPE_CHECKING:
    from collections.abc import Iterator

BASE = Path("/run/hauberk-test")
NETWORK = "/opt/attacks/network"
PEER, OTHER, PEER_SIX = "10.77.0.2", "10.77.0.3", "fd77::2"
HERE = "10.77.0.1"
PATIENCE = "60"
"""Seconds for what has to get through; an emulated guest is slow."""
SHORT = "1"
"""Seconds for what must not get through: that it was refused is told by its alert, this only ends the waiting."""
POLICIES = {
    **sealed.POLICIES,
    "network.yaml": """\
apiVersion: cilium.io/v2
kind: CiliumNetworkPolicy
metadata:
  name: web
spec:
  endpointSelector:
    matchLabels:
      app: web
  egress:
    - toCIDR: [10.77.0.2/32, "fd77::2/128"]
      toPorts:
        - ports:
            - {port: "8080", protocol: TCP}
            - {port: "8080", protocol: UDP}
            - {port: "8080", protocol: SCTP}
  egressDeny:
    - toCIDR: [10.77.0.3/32]
  ingress:
    - fromCIDR: [10.77.0.2/32]
      toPorts:
        - ports:
            - {port: "7000", protocol: TCP}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: other
spec:
  podSelector:
    matchLabels:
      app: other
  policyTypes: [Egress]
  egress:
    - to:
        - ipBlock: {cidr: 10.77.0.0/24, except: [10.77.0.2/32]}
---
apiVersion: security.kubearmor.com/v1
kind: KubeArmorNetworkPolicy
metadata:
  name: machine
spec:
  nodeSelector:
    matchLabels:
      role: guest
  egress:
    - to:
        - ipBlock: {cidr: 10.77.0.3/32}
      ports:
        - {protocol: TCP, port: "9090"}
  action: Block
""",
}
ANSWERING = """\
import selectors, socket, sys
chosen = selectors.DefaultSelector()
for port in (8080, 9090):
    for family, address in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        for kind, protocol in ((socket.SOCK_STREAM, 0), (socket.SOCK_DGRAM, 0), (socket.SOCK_STREAM, 132)):
            made = socket.socket(family, kind, protocol)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind((address, port))
            if kind == socket.SOCK_STREAM:
                made.listen()
            chosen.register(made, selectors.EVENT_READ, kind == socket.SOCK_STREAM)
print("ready", flush=True)
while True:
    for key, _ in chosen.select():
        if key.data:
            chosen.register(key.fileobj.accept()[0], selectors.EVENT_READ, False)
            continue
        try:
            data, sender = key.fileobj.recvfrom(100)
            if data and key.fileobj.type == socket.SOCK_DGRAM:
                key.fileobj.sendto(data, sender)
            elif data:
                key.fileobj.sendall(data)
        except OSError:
            data = b""
        if not data and key.fileobj.type == socket.SOCK_STREAM:
            chosen.unregister(key.fileobj)
            key.fileobj.close()
"""
CONNECT = """\
import socket, sys
address, port, seconds, *source = sys.argv[1:]
try:
    with socket.create_connection((address, int(port)), float(seconds), *[(one, 0) for one in source]) as made:
        made.sendall(b".")
        print(0 if made.recv(1) else 104)
except TimeoutError:
    print(110)
except OSError as error:
    print(error.errno)
"""
SHARED = {
    "namespaces": tuple(kind for kind in oci.NAMESPACES if kind != "network"),
    "capabilities": oci.CAPABILITIES_ALL,
}


class Try(NamedTuple):
    """One flow: whose (a container's label, or "host"), and to or from whom."""

    who: str
    operation: str
    peer: str
    port: str

    def __str__(self) -> str:
        """Name it in test ids."""
        return f"{self.who}-{self.operation}-{self.peer}-{self.port.replace('/', '')}"


TRIES = [
    *(
        Try(who, "send", peer, port)
        for who in ("web", "other")
        for peer, port in ((PEER, "tcp/8080"), (OTHER, "tcp/8080"), (PEER, "udp/9090"))
    ),
    Try("secrets", "send", OTHER, "tcp/8080"),
    *(Try("web", "send", *rest) for rest in ((PEER_SIX, "tcp/8080"), (PEER_SIX, "tcp/9090"), (PEER, "udp/8080"))),
    *(Try(who, "send", PEER, "sctp/8080") for who in ("web", "other")),
    Try("web", "send", PEER, "sctp/9090"),
    *(Try("host", "send", *rest) for rest in ((OTHER, "tcp/9090"), (OTHER, "tcp/8080"), (PEER, "tcp/9090"))),
    *(Try(who, "receive", PEER, port) for who, port in (("web", "tcp/7000"), ("other", "tcp/7001"))),
    Try("web", "receive", OTHER, "tcp/7000"),
]


class Guest(NamedTuple):
    """The sealed guest: its agent and its containers."""

    agent: Agent
    containers: Containers

    def pid(self, name: str) -> int:
        """Give the first process of a container."""
        return int((self.containers.bundles[name].directory / "pid").read_text("utf-8"))


def run(*command: str | Path) -> str:
    """Run a program that must work; give what it says."""
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done
    return done.stdout


def outside(*command: str) -> list[str]:
    """Give a command that runs in the other namespace."""
    return ["nsenter", "--net=/run/netns/outside", *command]


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    """Make the network, seal the guest, start a container for each label in the guest's own network namespace."""
    run("modprobe", "-a", "veth", "sctp")
    run("ip", "netns", "add", "outside")
    run("ip", "link", "add", "hb0", "type", "veth", "peer", "name", "eth0", "netns", "outside")
    for prefix, device, addresses in (
        (["ip"], "hb0", (HERE, "fd77::1")),
        (["ip", "-n", "outside"], "eth0", (PEER, OTHER, PEER_SIX)),
    ):
        for address in addresses:
            six = ":" in address
            run(*prefix, "address", "add", f"{address}/{64 if six else 24}", "dev", device, *["nodad"] * six)
        run(*prefix, "link", "set", device, "up")
        run(*prefix, "link", "set", "lo", "up")
    sealed.prepare(BASE, policies=POLICIES)
    agent = Agent(sealed.configure(BASE, BASE / "agent.yaml", nodeLabels={"role": "guest"}), BASE / "agent.log")
    agent.start()
    containers = Containers(BASE, Runtime(BASE / "states"))
    serving = {"web": "7000", "other": "7001", "secrets": "7002"}
    with subprocess.Popen(outside(sys.executable, "-c", ANSWERING), stdout=subprocess.PIPE) as answering:
        assert answering.stdout is not None
        assert answering.stdout.readline() == b"ready\n"
        for label, port in serving.items():
            containers.create(label, label, arguments=(NETWORK, "-s", port), **SHARED).check()
            containers.runtime.start(label).check()
        yield Guest(agent, containers)
        for label in serving:
            containers.remove(label)
        answering.kill()
    sealed.until(lambda: sealed.left() == NOTHING, "nothing to be left")
    assert agent.end(signal.SIGTERM) == 0


def errnos_of(guest: Guest, tries: dict[Try, str]) -> dict[Try, int]:
    """Let the packets flow, each try with so many seconds; give 0 or the errno that whoever began got."""
    found: dict[Try, int] = {}
    together: dict[str, list[Try]] = {}
    for tried, seconds in tries.items():
        _, _, port = tried.port.partition("/")
        if tried.operation == "receive":
            found[tried] = int(run(*outside(sys.executable, "-c", CONNECT, HERE, port, seconds, tried.peer)))
        elif tried.who == "host":
            found[tried] = int(run(sys.executable, "-c", CONNECT, tried.peer, port, seconds))
        else:
            together.setdefault(tried.who, []).append(tried)
    for who, some in together.items():
        words = [
            (tried.port.partition("/")[0], tried.peer, tried.port.partition("/")[2], tries[tried]) for tried in some
        ]
        done = guest.containers.inside(who, NETWORK, "-r", *(word for four in words for word in four))
        found.update(zip(some, map(int, done.check().output.split()), strict=True))
    return found


@pytest.fixture(scope="module")
def answers(guest: Guest) -> dict[Try, dict[str, Any]]:
    """Ask what the policies say of every try: once for each who, since every command takes seconds to begin."""
    assert guest
    found: dict[Try, dict[str, Any]] = {}
    for who in sorted({tried.who for tried in TRIES}):
        identity = ["--host", "--node-label", "role=guest"] if who == "host" else ["--label", f"app={who}"]
        tries = [tried for tried in TRIES if tried.who == who]
        questions = BASE / f"questions-{who}"
        lines = ({"operation": tried.operation, "object": f"{tried.peer} {tried.port}"} for tried in tries)
        questions.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        done = sealed.hauberk("policy", "explain", *identity, "--questions", questions, BASE / "policies")
        assert done.returncode == 0, done
        found.update(zip(tries, map(json.loads, done.stdout.splitlines()), strict=True))
    return found


class Outcome(NamedTuple):
    """What became of every try, and the alerts."""

    errnos: dict[Try, int]
    alerts: list[dict[str, Any]]

    def about(self, tried: Try) -> list[dict[str, Any]]:
        """Give the alerts about these packets."""
        return about(tried, self.alerts)


def about(tried: Try, alerts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choose the alerts about these packets: of this container, or of the machine."""
    protocol, _, port = tried.port.partition("/")
    source, destination = (tried.peer, HERE) if tried.operation == "receive" else ("", tried.peer)
    words = {f"DestinationIP={destination}", f"DestinationPort={port}", f"Protocol={protocol.upper()}"}
    if source:
        words.add(f"SourceIP={source}")
    name = "" if tried.who == "host" else tried.who
    return [alert for alert in alerts if words <= set(alert["Data"].split()) and alert["ContainerID"] == name]


@pytest.fixture(scope="module")
def outcome(guest: Guest, answers: dict[Try, dict[str, Any]]) -> Outcome:
    """Let all packets flow, then wait until every refusal is told."""
    refused = [tried for tried in TRIES if answers[tried]["verdict"] == "deny"]
    errnos = errnos_of(guest, {tried: SHORT if tried in refused else PATIENCE for tried in TRIES})
    alerts: list[dict[str, Any]] = []

    def all_told() -> bool:
        alerts[:] = sealed.alerts()
        return all(about(tried, alerts) for tried in refused)

    sealed.until(all_told, "every refusal to be told")
    return Outcome(errnos, alerts)


@pytest.mark.parametrize("tried", TRIES, ids=str)
def test_packets_get_what_explain_says_and_the_alert_says_why(
    outcome: Outcome, answers: dict[Try, dict[str, Any]], tried: Try
) -> None:
    answer, alerts = answers[tried], outcome.about(tried)
    if answer["verdict"] == "allow":
        assert (outcome.errnos[tried], alerts) == (0, [])
        return
    assert outcome.errnos[tried] in {errno.ETIMEDOUT, errno.EPERM}
    for alert in alerts:
        assert (alert["Action"], alert["Operation"]) == ("Block", "NetworkFirewall")
        named = f"{alert['PolicyName']} {alert['Rule']}"
        if answer["rule"] is None:
            assert named == f"DefaultPosture {answer['reason']}"
        else:
            assert re.fullmatch(re.escape(answer["rule"]) + r" \(network\.yaml:\d+\)", named), named


def test_what_passes_by_the_filter_is_refused_to_those_with_network_rules_alone(guest: Guest) -> None:
    attempts = ("raw", "packet", "express", "vsock", "ring", "link-up", "flush-ruleset", "new-namespace")
    before = held()
    assert before
    for label in ("web", "other"):
        done = guest.containers.inside(label, NETWORK, *attempts)
        assert done.check().output.split() == [word for name in attempts for word in (name, str(errno.EPERM))]
    assert held() == before
    done = guest.containers.inside("secrets", NETWORK, "raw", "packet")
    assert done.check().output.split() == ["raw", "0", "packet", "0"]

    def details() -> set[str]:
        alerts = [alert for alert in sealed.alerts() if "operation=network " in alert["Data"]]
        assert {alert["PolicyName"] for alert in alerts} <= {"Hauberk"}
        assert {alert["ContainerID"] for alert in alerts} <= {"web", "other"}
        return {match[1] for alert in alerts if (match := re.search(r"detail=(\w+)", alert["Data"]))}

    sealed.until(lambda: details() >= {"net_admin", "net_raw", "socket"}, "alerts of each kind")


def held() -> list[str]:
    """Give what the kernel holds of ours, whatever its order."""
    done = subprocess.run(["nft", "list", "table", "inet", "hauberk"], check=False, capture_output=True, text=True)
    return sorted(done.stdout.splitlines())


def test_a_table_that_is_deleted_or_emptied_is_put_back_and_told(guest: Guest) -> None:
    """Root of the guest, who is trusted, may do it by mistake; a service that flushes everything does."""
    whole = held()
    for command in (("flush", "ruleset"), ("flush", "table", "inet", "hauberk")):
        run("nft", *command)
        sealed.until(lambda: held() == whole, f"the rules to be back after nft {' '.join(command)}")
    assert set(errnos_of(guest, {TRIES[1]: SHORT}).values()) == {errno.ETIMEDOUT}
    sealed.until(lambda: any(alert["Resource"] == "RULES" for alert in sealed.alerts()), "an alert")


def test_rules_outlive_the_agent(guest: Guest, outcome: Outcome) -> None:
    before = held()
    guest.agent.end()
    tries = {tried: PATIENCE if outcome.errnos[tried] == 0 else SHORT for tried in TRIES[:3]}
    assert errnos_of(guest, tries) == {tried: outcome.errnos[tried] for tried in tries}
    guest.agent.start()
    assert held() == before


def test_a_container_that_ends_leaves_no_rules(guest: Guest) -> None:
    before = held()
    guest.containers.create("short", "web", **SHARED).check()
    assert held() != before
    guest.containers.remove("short")
    sealed.until(lambda: held() == before, "its rules to be gone")

# SPDX-License-Identifier: Apache-2.0
"""``hauberk network`` with an agent and without: what it shows, and what it takes away."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from guest_agent import main as agent_main
from guest_agent.api import service
from guest_agent.engines.network_port import EngineError, Namespace
from guest_agent.engines.nftables.simulator import SimulatedNetwork, SimulatorNetworkEngine
from guest_agent.network import flushing
from hauberk import cli
from tests.unit.agent.machine import AGENT_NETWORK
from tests.unit.agent.test_agent import LABELS
from tests.unit.agent.test_agent import create as announce
from tests.unit.agent.test_network import HOST, QUOTA, egress, passes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from guest_agent.agent import Agent
    from guest_agent.configuration import Configuration
    from tests.unit.agent.machine import FakeMachine

    Ask = Callable[..., tuple[int, str, str]]


@pytest.fixture
def network() -> SimulatedNetwork:
    return SimulatedNetwork()


@pytest.fixture
def agent(
    fake: FakeMachine, agents: Callable[..., Agent], configure: Callable[..., Configuration], network: SimulatedNetwork
) -> Iterator[Agent]:
    more = [egress(), HOST, QUOTA.replace("LEVEL", "pod")]
    configuration = replace(configure(mode="host", more=more), node_labels=(("role", "edge"),))
    running = agents(configuration, packets=SimulatorNetworkEngine(network))
    assert announce(running, fake.container(annotations=LABELS, network=77)).accepted
    server = service.serve(running, running.configuration.agent_socket)
    yield running
    server.stop(grace=None).wait()


@pytest.fixture
def ask(agent: Agent, capsys: pytest.CaptureFixture[str]) -> Ask:
    def run(*words: str) -> tuple[int, str, str]:
        code = cli.main([*words, "--socket", str(agent.configuration.agent_socket)])
        told = capsys.readouterr()
        return code, told.out, told.err

    return run


def test_what_holds_where_is_shown(ask: Ask) -> None:
    code, text, _ = ask("network", "status")
    assert code == 0
    for shown in (
        "engine     simulator: simulated",
        f"namespace  {AGENT_NETWORK} (the machine's own)",
        "the machine: 1 rule(s), by whole",
        "namespace  77 (of workloads)",
        "c1: 2 rule(s), by whole",
        "quota    quota egress, c1: 0 of 1024 bytes in 10 s",
    ):
        assert shown in text
    code, text, _ = ask("network", "status", "--json")
    found = json.loads(text)
    assert [one["inode"] for one in found["namespaces"]] == [str(AGENT_NETWORK), "77"]
    assert found["namespaces"][1]["endpoints"][0]["container_name"] == "c1"
    assert "network allow" not in ask("status")[1]


def test_status_names_both_engines_and_counts_whom_policies_select(ask: Ask) -> None:
    status = json.loads(ask("status", "--json")[1])
    assert [engine["name"] for engine in status["engines"]] == ["simulator", "simulator"]
    assert {one["policy"]: one["selected"] for one in status["selections"]} == {
        "secrets": 1, "default/web": 1, "edge": 1, "quota": 1,
    }  # fmt: skip


def test_problems_are_shown(agent: Agent, ask: Ask) -> None:
    assert agent.network is not None
    assert isinstance(agent.packets, SimulatorNetworkEngine)

    def broken() -> None:
        message = "the kernel \x1b would not"
        raise EngineError(message)

    agent.packets.faults["usage"] = broken
    agent.network.upkeep()
    text = ask("network", "status")[1]
    assert "problem    network namespace 77: the kernel \\x1b would not" in text
    assert "\x1b" not in text


def test_a_running_agent_is_asked_to_flush(agent: Agent, ask: Ask, network: SimulatedNetwork) -> None:
    code, _, errors = ask("network", "flush")
    assert (code, "--yes" in errors) == (2, True)
    assert passes(agent, 77)[1] is False
    code, text, _ = ask("network", "flush", "--yes")
    assert (code, "flushed 2 network namespace(s)" in text) == (0, True)
    assert network.namespaces == {}
    assert "nothing is filtered until" in ask("network", "status")[1]
    code, text, _ = ask("network", "flush", "--yes", "--json")
    assert (code, json.loads(text)) == (0, {"namespaces": 0})


def test_a_sealed_agent_does_not_flush(agent: Agent, ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent.network, "_strict", True)
    code, _, errors = ask("network", "flush", "--yes")
    assert (code, "sealed machine" in errors) == (1, True)
    assert passes(agent, 77)[1] is False


def test_without_an_engine_there_is_nothing(
    agents: Callable[..., Agent], configure: Callable[..., Configuration], capsys: pytest.CaptureFixture[str]
) -> None:
    agent = agents(configure())
    server = service.serve(agent, agent.configuration.agent_socket)
    try:
        socket = ("--socket", str(agent.configuration.agent_socket))
        assert cli.main(["network", "status", *socket]) == 0
        assert "none configured" in capsys.readouterr().out
        assert cli.main(["network", "flush", "--yes", *socket]) == 1
        assert "no engine for packets" in capsys.readouterr().err
    finally:
        server.stop(grace=None).wait()


# ---- without an agent --------------------------------------------------------------------------------------------


def test_without_an_agent_every_workloads_namespace_is_looked_into(
    fake: FakeMachine, agent: Agent, network: SimulatedNetwork
) -> None:
    container = fake.container("c2", 101, LABELS, network=78)
    assert announce(agent, container).accepted
    agent.stop()
    assert set(network.namespaces) == {AGENT_NETWORK, 77, 78}
    engine = SimulatorNetworkEngine(network)
    fake.end(container)
    (container.cgroup / "cgroup.procs").write_text("")
    assert flushing.flush(agent.configuration, engine, fake.machine) == flushing.Flushed(2)
    assert set(network.namespaces) == {78}  # nobody is left to find it by

    def broken() -> None:
        message = "the kernel would not"
        raise EngineError(message)

    engine.faults["remove.before"] = broken
    done = flushing.flush(agent.configuration, engine, fake.machine)
    assert (done.namespaces, len(done.problems)) == (0, 2)
    engine.close()


def test_a_running_agent_and_a_sealed_machine_are_left_alone(
    fake: FakeMachine, agent: Agent, network: SimulatedNetwork
) -> None:
    engine = SimulatorNetworkEngine(network)
    with pytest.raises(OSError, match="another agent holds"):
        flushing.flush(agent.configuration, engine, fake.machine)
    with pytest.raises(EngineError, match="sealed machine"):
        flushing.flush(replace(agent.configuration, mode="sealed"), engine, fake.machine)
    engine.close()
    assert set(network.namespaces) == {AGENT_NETWORK, 77}


def test_the_command_without_an_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    removed: list[Namespace] = []

    class Engine(SimulatorNetworkEngine):
        """Takes note of what is removed."""

        def remove(self, namespace: Namespace) -> None:
            """Take note."""
            if removed:
                message = "the kernel would not"
                raise EngineError(message)
            removed.append(namespace)

    engine = Engine()
    monkeypatch.setattr(agent_main, "make_packets", lambda: engine)
    configuration = tmp_path / "agent.yaml"
    words = ["network", "flush", "--yes", "--socket", str(tmp_path / "none"), "--configuration", str(configuration)]
    assert cli.main(words) == 2
    configuration.write_text(f"mode: sealed\nstateDirectory: {tmp_path}/state\n")
    assert cli.main(words) == 1
    assert "sealed" in capsys.readouterr().err
    configuration.write_text(f"mode: host\nstateDirectory: {tmp_path}/state\n")
    assert cli.main(words) == 0
    assert "flushed 1 network namespace(s)" in capsys.readouterr().out
    assert len(removed) == 1
    assert cli.main(words) == 1
    assert "the kernel would not" in capsys.readouterr().err
    engine.close()

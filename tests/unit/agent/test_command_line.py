# SPDX-License-Identifier: Apache-2.0
"""What the agent tells: a real gRPC server on a Unix socket, asked by the command line as a user asks it."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from guest_agent import main as agent_main
from guest_agent.agent import Agent
from guest_agent.api import service
from guest_agent.api.hook_socket import Peer, Stage
from guest_agent.engines.network_port import NetworkEvent
from guest_agent.engines.port import EngineError, KernelEvent
from guest_agent.engines.simulator import SimulatedKernel, SimulatorEngine
from guest_agent.events.alerts import Subject
from guest_agent.events.network import NetworkAlertMaker
from guest_agent.events.stream import MAXIMUM_SUBSCRIBERS
from hauberk._wire import hauberk_v1_agent_pb2 as messages
from hauberk._wire import hauberk_v1_agent_pb2_grpc as stubs
from hauberk.cli import main
from hauberk.policy.rules import Section

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from guest_agent.configuration import Configuration
    from tests.unit.agent.machine import FakeMachine

PATIENT = 60.0
PEER = Peer(pid=1, uid=0, gid=0, pidfd=-1, start_time=0)
EVENT = KernelEvent(
    timestamp_ns=1, workload_id=1, pid=9, parent_pid=0, uid=7, verdict="deny", operation="read", detail="open",
    path="/secret/key", other_path="", source="/usr/bin/cat", command="cat", owner=True, path_known=True,
)  # fmt: skip


class Served:
    """A started agent behind its socket."""

    def __init__(self, fake: FakeMachine, configuration: Configuration) -> None:
        """Start agent and server."""
        self.fake = fake
        self.engine = SimulatorEngine()
        self.agent = Agent(configuration, self.engine, fake.machine)
        self.agent.start()
        self.path = configuration.agent_socket
        self.server = service.serve(self.agent, self.path)

    def register(self) -> None:
        """Register one container."""
        container = self.fake.container(annotations={"io.hauberk.label.app": "secrets"})
        assert self.agent.handle(Stage.CREATE_RUNTIME, container.state(), PEER).accepted

    def tell(self, **changes: object) -> None:
        """Let the kernel tell an event, and wait until the agent has published it."""
        before = self.agent.alerts.published
        _, reader = self.agent.alerts.subscribe()
        self.engine.emit(replace(EVENT, **changes))  # type: ignore[arg-type] # the caller's own names
        assert reader.take(PATIENT) is not None
        reader.close()
        assert self.agent.alerts.published == before + 1

    def ask(self, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
        """Run the command line."""
        code = main([*words, "--socket", str(self.path)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err


@pytest.fixture
def served(fake: FakeMachine, configure: Callable[..., Configuration], parse_here: None) -> Iterator[Served]:
    assert parse_here is None
    made = Served(fake, configure())
    yield made
    made.agent.stop()
    made.server.stop(grace=None).wait()


def test_status_for_people(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    served.register()
    code, out, _ = served.ask(capsys, "status")
    assert code == 0
    policy_set = served.agent.policy_set
    assert policy_set is not None
    for expected in (
        "mode       sealed", "bundle     demo version 1, default deny", f"{policy_set.digest}, signed by owner",
        "policies   secrets", "engine     simulator: simulated, nothing is enforced", "workloads  1", "events_lost 0",
    ):  # fmt: skip
        assert expected in out
    assert "warning" not in out


def test_status_for_scripts(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = served.ask(capsys, "status", "--json")
    assert code == 0
    found = json.loads(out)
    assert found["mode"] == "sealed"
    assert found["bundle_name"] == "demo"
    assert found["engines"] == [
        {
            "name": "simulator",
            "available": True,
            "reason": "simulated, nothing is enforced",
            "details": {"kernel": "none"},
        }
    ]
    assert found["workloads"] == 0
    assert found["warnings"] == ["policy secrets selects nothing on this machine now"]
    assert found["selections"] == [{"policy": "secrets", "selected": 0}]


def test_warnings_are_shown(
    fake: FakeMachine, configure: Callable[..., Configuration], parse_here: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert parse_here is None
    made = Served(fake, configure(mode="host", default="allow"))
    try:
        _, out, _ = made.ask(capsys, "status")
    finally:
        made.agent.stop()
        made.server.stop(grace=None).wait()
    assert "warning    host mode" in out
    assert "warning    containers that no policy covers" in out


def test_workloads_are_listed(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    assert served.ask(capsys, "workloads") == (0, "", "")
    assert served.ask(capsys, "workloads", "--json")[1] == "[]\n"
    served.register()
    code, out, _ = served.ask(capsys, "workloads")
    assert code == 0
    assert out.split() == ["1", "enforced", "c1", "/machine.slice/c1", "secrets"]
    [found] = json.loads(served.ask(capsys, "workloads", "--json")[1])
    assert (found["id"], found["container_id"], found["pid"], found["policies"]) == (1, "c1", "100", ["secrets"])


def test_a_name_of_any_bytes_ends_no_answer(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    served.register()
    [(workload, record)] = served.agent.workloads()
    assert record is not None
    strange = replace(record, aliases=("/x\udcff",), container_name="a\udcfeb")
    served.agent._known[workload.workload_id] = strange  # noqa: SLF001 - as facts of a hostile image would give it
    [found] = json.loads(served.ask(capsys, "workloads", "--json")[1])
    assert found["aliases"] == ["/x\\xff"]
    assert found["container_name"] == "a\\xfeb"


def test_alerts_are_one_line_each_whatever_a_file_is_called(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    served.register()
    served.tell()
    served.tell(path="/secret/a\nb\x1b[2J\udcff")
    code, out, _ = served.ask(capsys, "alerts")
    assert code == 0
    first, second = out.splitlines()
    assert "Block File    /secret/key by /usr/bin/cat in c1: secrets spec.file.matchDirectories[0]" in first
    assert "/secret/a\\nb\\x1b[2J\\xff by" in second
    _, out, _ = served.ask(capsys, "alerts", "--json")
    found = [json.loads(line) for line in out.splitlines()]
    assert [alert["Resource"] for alert in found] == ["/secret/key", "/secret/a\nb\x1b[2J\\xff"]
    assert (found[0]["UID"], found[0]["PolicyName"], found[0]["Action"]) == (7, "secrets", "Block")
    assert isinstance(found[0]["Timestamp"], int)


def test_alerts_of_packets_show_both_ends(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    event = NetworkEvent(
        0, 1, "deny", 3, Section.EGRESS, protocol="tcp", source_address="10.0.0.1", source_port=40000,
        destination_address="192.0.2.1", destination_port=443, count=7,
    )  # fmt: skip
    served.agent.alerts.publish(NetworkAlertMaker("h", "nftables").make(event, Subject("c1")))
    _, out, _ = served.ask(capsys, "alerts")
    ends = "SourceIP=10.0.0.1 SourcePort=40000 DestinationIP=192.0.2.1 DestinationPort=443 Protocol=TCP Count=7"
    assert f"Block NetworkFirewall EGRESS {ends} in c1: " in out


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_followed_alerts_come_as_they_happen_until_the_agent_ends(
    served: Served, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    served.tell(path="/before")
    codes: list[int] = []
    follower = threading.Thread(
        target=lambda: codes.append(main(["alerts", "--follow", *options, "--socket", str(served.path)]))
    )
    follower.start()
    while served.agent.alerts.statistics()["alert_readers"] == 0:
        assert follower.is_alive()
    served.tell(path="/after")
    served.agent.alerts.end()
    follower.join(PATIENT)
    assert codes == [0]
    out = capsys.readouterr().out
    assert out.index("/before") < out.index("/after")
    assert len(out.splitlines()) == 2


def test_a_reader_too_many_is_told(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    readers = [served.agent.alerts.subscribe()[1] for _ in range(MAXIMUM_SUBSCRIBERS)]
    code, _, errors = served.ask(capsys, "alerts", "--follow")
    assert code == 3
    assert "RESOURCE_EXHAUSTED: 16 readers follow" in errors
    for reader in readers:
        reader.close()


def test_a_reader_that_leaves_frees_its_place(served: Served) -> None:
    with grpc.insecure_channel(f"unix:{served.path}") as channel:
        call = stubs.AgentStub(channel).WatchAlerts(messages.WatchAlertsRequest(follow=True))
        while served.agent.alerts.statistics()["alert_readers"] == 0:
            assert call.is_active()
        call.cancel()
    while served.agent.alerts.statistics()["alert_readers"] != 0:
        threading.Event().wait(0.01)


def test_an_engine_that_cannot_answer_is_told(served: Served, capsys: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        message = "unreadable"
        raise EngineError(message)

    served.engine.faults["sealed_digest"] = fail
    code, out, errors = served.ask(capsys, "status")
    assert (code, out) == (3, "")
    assert "unreadable" in errors


@pytest.mark.parametrize("words", [("status",), ("workloads", "--json"), ("alerts", "--follow")])
def test_no_agent_is_one_clear_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    assert main([*words, "--socket", str(tmp_path / "none.sock")]) == 3
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert "no agent at" in captured.err
    assert "hauberk-agent.service" in captured.err
    (tmp_path / "dead.sock").touch()
    assert main([*words, "--socket", str(tmp_path / "dead.sock")]) == 3
    assert "no answer from the agent" in capsys.readouterr().err


def test_a_directory_one_may_not_enter_says_who_may(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def denied(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(tmp_path), "lstat", denied)
    assert main(["status", "--socket", "/run/hauberk/agent.sock"]) == 3
    assert "Permission denied); run as root" in capsys.readouterr().err


def test_what_is_no_socket_is_left_alone(served: Served, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("x")
    with pytest.raises(OSError, match="is not a socket"):
        service.serve(served.agent, path)
    assert path.read_text() == "x"
    with pytest.raises(OSError, match="cannot listen"):
        service.serve(served.agent, tmp_path / ("x" * 150))


# ---- the process around it ------------------------------------------------------------------------------------------


def configuration_file(path: Path, configuration: Configuration) -> Path:
    path.write_text(
        f"mode: sealed\ntrustRoot: {configuration.trust_root}\nbundle: {configuration.bundle}\n"
        f"bundleSignature: {configuration.bundle_signature}\nhookSocket: {configuration.hook_socket}\n"
        f"agentSocket: {configuration.agent_socket}\nstateDirectory: {configuration.state_directory}\n"
        f"managers: [{configuration.managers[0]}]\nserviceCgroups: ['/']\n"
    )
    return path


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Keep what only a process of its own should change, and note what the service manager is told."""
    told: list[str] = []
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)
    monkeypatch.setattr(agent_main, "_protect", lambda: None)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(agent_main, "notify", told.append)
    return told


def test_ready_is_told_when_the_gate_is_in_force_and_both_sockets_listen(
    configure: Callable[..., Configuration],
    parse_here: None,
    process: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    assert parse_here is None
    configuration = configure()
    kernel = SimulatedKernel()
    seen: list[tuple[str, bool, bool, bool]] = []

    def notify(state: str) -> None:
        there = (configuration.hook_socket.is_socket(), configuration.agent_socket.is_socket())
        seen.append((state, kernel.gate is not None, *there))
        process.append(state)

    def end_at_once(agent: Agent) -> None:
        agent_main.notify("READY=1")
        assert agent.healthy

    monkeypatch.setattr(agent_main, "notify", notify)
    monkeypatch.setattr(agent_main, "_wait", end_at_once)
    path = configuration_file(tmp_path / "agent.yaml", configuration)
    assert agent_main.run(path, SimulatorEngine(kernel)) == 0
    assert seen[0] == ("READY=1", True, True, True)
    assert process == ["READY=1", "STOPPING=1"]
    assert not configuration.hook_socket.exists()


def test_each_failure_to_start_has_its_code(
    configure: Callable[..., Configuration], parse_here: None, process: list[str], tmp_path: Path
) -> None:
    assert parse_here is None
    configuration = configure()
    path = configuration_file(tmp_path / "agent.yaml", configuration)
    assert agent_main.run(tmp_path / "none.yaml", SimulatorEngine()) == 2
    assert agent_main.run(path, SimulatorEngine(SimulatedKernel(offers_engine=False))) == 3
    assert agent_main.run(path, SimulatorEngine(SimulatedKernel(digest="0" * 64))) == 1
    for name in (configuration.hook_socket, configuration.agent_socket):
        name.parent.mkdir(exist_ok=True, mode=0o700)
        name.write_text("precious")
        assert agent_main.run(path, SimulatorEngine()) == 3
        assert name.read_text() == "precious"
        name.unlink()
    assert process == []


def test_an_unhealthy_agent_is_not_kept_alive_by_the_watchdog(
    served: Served, process: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "2000")
    told: list[str] = []

    def notify(state: str) -> None:
        told.append(state)
        if state == "WATCHDOG=1":
            served.agent._stopping.set()  # noqa: SLF001 - as if its threads had ended

    monkeypatch.setattr(agent_main, "notify", notify)
    agent_main._wait(served.agent)  # noqa: SLF001 - the loop under test
    assert told == ["READY=1", "WATCHDOG=1"]
    assert process == []


def test_the_service_manager_is_told_over_its_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    agent_main.notify("READY=1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        agent_main.notify("READY=1")
        assert receiver.recv(100) == b"READY=1"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        name = f"hauberk-test-{os.getpid()}"
        receiver.bind(f"\0{name}")
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        agent_main.notify("STOPPING=1")
        assert receiver.recv(100) == b"STOPPING=1"
    agent_main.notify("READY=1")  # nobody there any more: told in the log only


def test_log_lines_are_json(capsys: pytest.CaptureFixture[str]) -> None:
    formatter: Any = agent_main._JsonFormatter()  # noqa: SLF001 - the format is what readers rely on
    record = logging.LogRecord("hauberk", 30, "f", 1, "a %s\nb \udcff", ("x",), None)
    entry = json.loads(formatter.format(record))
    assert (entry["level"], entry["logger"], entry["message"]) == ("warning", "hauberk", "a x\nb \udcff")
    assert "\n" not in formatter.format(record)
    assert capsys.readouterr().err == ""

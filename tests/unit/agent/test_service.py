# SPDX-License-Identifier: Apache-2.0
"""What the agent tells over its socket, and what the command line makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from guest_agent.api import service
from guest_agent.api.hook_socket import Stage
from guest_agent.engines.simulator import SimulatorEngine
from guest_agent.successor import SubmitError
from hauberk import cli
from hauberk.bundle import PolicyFile, SuccessorRule, Terms, create, keys, signatures
from tests.unit.agent.conftest import POLICY
from tests.unit.agent.test_agent import LABELS, PEER, event, kernel_of, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from guest_agent.agent import Agent
    from guest_agent.configuration import Configuration
    from tests.unit.agent.machine import FakeMachine

    Ask = Callable[..., tuple[int, str]]


@pytest.fixture
def agent(fake: FakeMachine, agents: Callable[..., Agent], configure: Callable[..., Configuration]) -> Iterator[Agent]:
    running = agents(configure())
    container = fake.container(annotations=LABELS)
    assert running.handle(Stage.CREATE_RUNTIME, container.state(), PEER).accepted
    server = service.serve(running, running.configuration.agent_socket)
    yield running
    server.stop(grace=None).wait()


@pytest.fixture
def ask(agent: Agent, capsys: pytest.CaptureFixture[str]) -> Ask:
    def run(*arguments: str) -> tuple[int, str]:
        code = cli.main([*arguments, "--socket", str(agent.configuration.agent_socket)])
        return code, capsys.readouterr().out

    return run


def emit(agent: Agent, path: str = "/secret/key") -> None:
    assert isinstance(agent.engine, SimulatorEngine)
    before = len(agent.alerts.recent())
    agent.engine.emit(event(1, path))
    until(lambda: len(agent.alerts.recent()) > before)


def test_the_socket_is_roots_alone(agent: Agent) -> None:
    path = agent.configuration.agent_socket
    assert path.stat().st_mode & 0o777 == 0o600


def test_status_tells_seal_engine_and_warnings(agent: Agent, ask: Ask) -> None:
    code, text = ask("status", "--json")
    status = json.loads(text)
    assert code == 0
    assert status["sealed_digest"] == kernel_of(agent).digest
    assert (status["mode"], status["bundle_name"], status["signed_by"]) == ("sealed", "demo", "owner")
    assert [engine["name"] for engine in status["engines"]] == ["simulator"]
    assert status["workloads"] == 1
    assert "events_lost" in status["counters"]
    code, text = ask("status")
    assert code == 0
    assert "demo version 1" in text


def test_workloads_are_listed_with_their_policies(ask: Ask) -> None:
    code, text = ask("workloads", "--json")
    [workload] = json.loads(text)
    assert code == 0
    assert (workload["container_id"], workload["state"], workload["policies"]) == ("c1", "enforced", ["secrets"])
    assert workload["cgroup"] == "/machine.slice/c1"
    assert "c1" in ask("workloads")[1]


def test_alerts_are_json_lines_with_kubearmors_names(agent: Agent, ask: Ask) -> None:
    emit(agent)
    emit(agent, "/secret/\udcff")
    code, text = ask("alerts", "--json")
    lines = [json.loads(line) for line in text.splitlines()]
    assert code == 0
    assert [line["Resource"] for line in lines] == ["/secret/key", "/secret/\\xff"]
    assert lines[0]["PolicyName"] == "secrets"
    assert isinstance(lines[0]["Timestamp"], int)
    assert abs(lines[0]["Timestamp"] - time.time()) < 3600
    assert "secrets" in ask("alerts")[1]


def test_a_follower_gets_what_was_and_what_comes_and_ends_with_the_agent(
    agent: Agent, capsys: pytest.CaptureFixture[str]
) -> None:
    emit(agent)
    codes: list[int] = []
    arguments = ["alerts", "--follow", "--json", "--socket", str(agent.configuration.agent_socket)]
    follower = threading.Thread(target=lambda: codes.append(cli.main(arguments)))
    follower.start()
    until(lambda: agent.counters()["alert_readers"] == 1)
    emit(agent, "/secret/other")
    agent.alerts.end()
    follower.join(60)
    assert codes == [0]
    assert [json.loads(line)["Resource"] for line in capsys.readouterr().out.splitlines()] == [
        "/secret/key",
        "/secret/other",
    ]
    until(lambda: agent.counters()["alert_readers"] == 0)


def write_successor(agent: Agent, signer: keys.PrivateKey, version: int, policy: str = POLICY) -> tuple[str, str]:
    path = agent.configuration.bundle.with_name(f"successor-{version}")
    terms = Terms(successor=SuccessorRule(), expires="2001-01-01T00:00:00Z")
    data = create("demo", version, (PolicyFile("secrets.yaml", policy),), conditions=terms)
    path.write_bytes(data)
    path.with_suffix(".sig").write_bytes(signatures.sign(signer, data))
    return str(path), str(path.with_suffix(".sig"))


def test_a_successor_is_submitted_and_told(agent: Agent, ask: Ask, signer: keys.PrivateKey) -> None:
    assert "none before the next boot" not in ask("status")[1]
    file, signature = write_successor(agent, signer, 2)
    code, text = ask("bundle", "submit", file, "--signature", signature)
    assert code == 0
    assert "bundle demo version 2, successor 1" in text
    assert "1 running containers follow" in text
    status = json.loads(ask("status", "--json")[1])
    assert agent.policy_set is not None
    assert (status["bundle_version"], status["successors"]) == ("2", 1)
    assert status["bundle_digest"] == agent.policy_set.digest
    assert status["sealed_digest"] == kernel_of(agent).digest != status["bundle_digest"]
    text = ask("status")[1]
    for shown in ("successor 1", "trust root", "2001-01-01T00:00:00Z (advice)", "warning    the bundle has expired"):
        assert shown in text
    file, signature = write_successor(agent, signer, 3)
    code, text = ask("bundle", "submit", file, "--signature", signature, "--json")
    assert (code, json.loads(text)["bundle_version"], json.loads(text)["successors"]) == (0, "3", 2)
    file, signature = write_successor(agent, signer, 4, POLICY.replace("app: secrets", "app: others"))
    code, text = ask("bundle", "submit", file, "--signature", signature)
    assert code == 0
    assert "refused everything from now on: container c1: no policy" in text


def test_a_refused_successor_says_why_and_exits_with_1(
    agent: Agent, signer: keys.PrivateKey, capsys: pytest.CaptureFixture[str]
) -> None:
    socket = ("--socket", str(agent.configuration.agent_socket))
    file, signature = write_successor(agent, signer, 1)
    assert cli.main(["bundle", "submit", file, "--signature", signature, *socket]) == 1
    errors = capsys.readouterr().err
    assert "found version 1" in errors
    assert "everything is as before" in errors
    assert cli.main(["bundle", "submit", signature, "--signature", signature, *socket]) == 1
    assert "bundle: " in capsys.readouterr().err
    assert cli.main(["bundle", "submit", file, "--signature", "/none", *socket]) == 2
    gone = ("--socket", f"{agent.configuration.agent_socket}.gone")
    assert cli.main(["bundle", "submit", file, "--signature", signature, *gone]) == 3


def test_a_hostile_name_reaches_the_reader_as_text(agent: Agent, ask: Ask) -> None:
    assert isinstance(agent.engine, SimulatorEngine)
    agent.engine.emit(replace(event(1, "/secret/\x1b[2J\n"), command="\x07"))
    until(lambda: len(agent.alerts.recent()) == 1)
    text = ask("alerts")[1]
    assert "\x1b" not in text
    assert len(text.splitlines()) == 1


def test_without_an_agent_the_answer_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["status", "--socket", str(tmp_path / "none.sock")]) == 3
    assert "no agent" in capsys.readouterr().err
    (tmp_path / "dead.sock").touch()
    assert cli.main(["status", "--socket", str(tmp_path / "dead.sock")]) == 3


def test_the_command_line_starts_without_grpc_and_the_agents_libraries() -> None:
    code = (
        "import sys; import hauberk.cli, hauberk.cli.agent; "
        "print([name for name in ('grpc', 'google.protobuf', 'guest_agent', 'pydantic', 'yaml', 'cryptography') "
        "if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_agent_itself_loads_no_parser_and_no_cryptography() -> None:
    code = (
        "import sys; import guest_agent.main, guest_agent.api.service; "
        "print([name for name in ('pydantic', 'yaml', 'cryptography', 'hypothesis') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_a_long_refusal_arrives_whole_and_harmless(
    agent: Agent, signer: keys.PrivateKey, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = "\x1b[31m" + "rule after rule, " * 2000 + "the last one"

    def refuse(_: bytes, __: bytes) -> None:
        raise SubmitError(message)

    monkeypatch.setattr(agent, "submit", refuse)
    file, signature = write_successor(agent, signer, 2)
    socket = ("--socket", str(agent.configuration.agent_socket))
    assert cli.main(["bundle", "submit", file, "--signature", signature, *socket]) == 1
    told = capsys.readouterr().err
    assert "the last one" in told
    assert "\x1b" not in told

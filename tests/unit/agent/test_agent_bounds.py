# SPDX-License-Identifier: Apache-2.0
"""What the agent keeps, how much of it, and that neither slow work nor a broken part stops the rest."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from guest_agent import agent as agent_module
from guest_agent.agent import Agent
from guest_agent.api.hook_socket import HookAnswer, Peer, Stage
from guest_agent.engines.port import EngineError, KernelEvent
from guest_agent.engines.simulator import SimulatorEngine
from guest_agent.workloads import facts
from hauberk.policy.rules import RuleSet

if TYPE_CHECKING:
    from collections.abc import Callable

    from guest_agent.configuration import Configuration
    from tests.unit.agent.machine import Container, FakeMachine

    Start = Callable[..., Agent]
    Configure = Callable[..., Configuration]

LABELS = {"io.hauberk.label.app": "secrets"}
PEER = Peer(pid=1, uid=0, gid=0, pidfd=-1, start_time=0)
PATIENT = 60.0
EVENT = KernelEvent(
    timestamp_ns=1, workload_id=0, pid=9, parent_pid=0, uid=0, verdict="deny", operation="gate", detail="exec",
    path="/x", other_path="", source="/y", command="y", owner=False, path_known=True,
)  # fmt: skip


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "POSTSTOP_PATIENCE_SECONDS", 0.0)


def create(agent: Agent, container: Container) -> HookAnswer:
    return agent.handle(Stage.CREATE_RUNTIME, container.state(), PEER)


def poststop(agent: Agent, container: Container) -> HookAnswer:
    return agent.handle(Stage.POSTSTOP, container.state(status="stopped", pid=0), PEER)


def engine_of(agent: Agent) -> SimulatorEngine:
    assert isinstance(agent.engine, SimulatorEngine)
    return agent.engine


def test_the_real_child_verifies_and_compiles(
    fake: FakeMachine, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = Agent(configure(), SimulatorEngine(), fake.machine)
    agent.start()
    try:
        assert agent.policy_set is not None
        assert (agent.policy_set.name, agent.policy_set.signed_by) == ("demo", "owner")
        assert create(agent, fake.container("small", 100, LABELS)).accepted
        monkeypatch.setattr(agent_module, "LARGE_RULE_SET", 0)
        monkeypatch.setattr(agent, "_tables", agent_module._Tables())  # noqa: SLF001 - an empty cache
        assert create(agent, fake.container("large", 101, LABELS)).accepted
        assert len({held.table for held in engine_of(agent).kernel.workloads.values()}) == 1
    finally:
        agent.stop()


def test_containers_of_one_image_share_table_and_rules_also_after_a_restart(
    fake: FakeMachine, agents: Start, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = configure()
    agent = agents(configuration)
    assert create(agent, fake.container("one", 100, LABELS)).accepted
    with monkeypatch.context() as patch:
        patch.setattr(agent_module, "compile_table", None)  # a second compilation would fail
        assert create(agent, fake.container("two", 101, LABELS)).accepted
    agent.stop()
    for each in (agent, agents(configuration)):
        (_, first), (_, second) = each.workloads()
        assert first is not None
        assert second is not None
        assert first.rule_set is second.rule_set


def test_the_cache_of_tables_is_bounded_in_number_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    tables = agent_module._Tables()  # noqa: SLF001 - its bounds are what is tested
    for number in range(100):
        tables.of(str(number), RuleSet(()))
    assert list(tables.kept) == [str(number) for number in range(68, 100)]
    tables.of("68", RuleSet(()))
    tables.of("new", RuleSet(()))
    assert "68" in tables.kept  # the least recently used one went
    assert "69" not in tables.kept
    monkeypatch.setattr(agent_module, "_CACHED_TABLE_BYTES", 1)
    tables.of("last", RuleSet(()))
    assert list(tables.kept) == ["last"]


@pytest.mark.parametrize(("limit", "value"), [("_REMEMBERED_SUBJECTS", 2), ("_REMEMBERED_RULES", 1)])
def test_what_is_remembered_of_the_gone_is_bounded(  # noqa: PLR0913, PLR0917 - fixtures and cases
    fake: FakeMachine,
    agents: Start,
    configure: Configure,
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    value: int,
) -> None:
    monkeypatch.setattr(agent_module, limit, value)
    agent = agents(configure())
    for number in range(4):
        container = fake.container(f"c{number}", 100 + number, LABELS)
        assert create(agent, container).accepted
        fake.end(container)
        assert poststop(agent, container).accepted
    assert list(agent._gone) == [3, 4][-value:]  # noqa: SLF001 - memory is not to be seen from outside


@pytest.mark.parametrize("slow", ["gather", "compile_table"])
def test_slow_work_on_one_container_holds_up_no_other(
    fake: FakeMachine, agents: Start, configure: Configure, monkeypatch: pytest.MonkeyPatch, slow: str
) -> None:
    agent = agents(configure())
    first, second = (fake.container(f"c{number}", 100 + number, LABELS) for number in range(2))
    begun, go_on = threading.Event(), threading.Event()
    owner = facts if slow == "gather" else agent_module
    real = getattr(owner, slow)

    def slowly(*arguments: object) -> object:
        if not begun.is_set():
            begun.set()
            assert go_on.wait(PATIENT)
        return real(*arguments)

    monkeypatch.setattr(owner, slow, slowly)
    answers: list[HookAnswer] = []
    thread = threading.Thread(target=lambda: answers.append(create(agent, first)))
    thread.start()
    assert begun.wait(PATIENT)
    assert create(agent, second).accepted
    assert [workload.state.value for workload, _ in agent.workloads()] == ["verified", "enforced"]
    assert not answers
    go_on.set()
    thread.join()
    assert answers[0].accepted


def test_a_record_with_a_wrong_cgroup_path_does_not_make_the_living_look_gone(
    fake: FakeMachine, agents: Start, configure: Configure
) -> None:
    configuration = configure()
    agent = agents(configuration)
    container = fake.container(annotations=LABELS)
    assert create(agent, container).accepted
    agent.stop()
    fake.end_init(container)  # but somebody else is still in its cgroup
    path = configuration.state_directory / "1.json"
    path.write_text(path.read_text().replace("/machine.slice/c1", "/machine.slice/no"))
    again = agents(configuration)
    [(workload, record)] = again.workloads()
    assert record is not None
    assert workload.identity is not None
    assert workload.identity.cgroup_path == "/machine.slice/c1"
    assert not poststop(again, container).accepted
    assert len(engine_of(again).kernel.workloads) == 1


def test_a_cgroup_that_was_removed_while_nobody_looked_is_let_go(
    fake: FakeMachine, agents: Start, configure: Configure
) -> None:
    configuration = configure()
    agent = agents(configuration)
    container = fake.container(annotations=LABELS)
    assert create(agent, container).accepted
    agent.stop()
    fake.end(container)
    for entry in container.cgroup.iterdir():
        entry.unlink()
    container.cgroup.rmdir()
    again = agents(configuration)
    assert poststop(again, container).accepted
    assert engine_of(again).kernel.workloads == {}


def test_a_poststop_for_what_is_being_registered_frees_nothing(
    fake: FakeMachine, agents: Start, configure: Configure
) -> None:
    agent = agents(configure())
    container = fake.container(annotations=LABELS)
    agent.registry.announce(container.id)
    assert poststop(agent, container) == HookAnswer(accepted=True, message="pending")
    assert agent.registry.find(container.id) is not None


def test_a_cgroup_that_cannot_be_read_counts_as_alive(fake: FakeMachine, agents: Start, configure: Configure) -> None:
    agent = agents(configure())
    container = fake.container(annotations=LABELS)
    assert create(agent, container).accepted
    fake.end(container)
    events = container.cgroup / "cgroup.events"
    events.unlink()
    events.mkdir()  # reading it fails with EISDIR, as root too
    assert not poststop(agent, container).accepted
    assert len(engine_of(agent).kernel.workloads) == 1


def test_events_that_cannot_be_read_are_asked_for_again(
    agents: Start, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "_PAUSE_AFTER_ERROR_SECONDS", 0.0)
    failed: list[int] = []

    def twice() -> None:
        if len(failed) < 2:
            failed.append(1)
            message = "unreadable"
            raise EngineError(message)

    agent = agents(configure(), {"drain": twice})
    _, reader = agent.alerts.subscribe()
    engine_of(agent).emit(EVENT)
    assert reader.take(PATIENT) is not None
    assert agent.counters()["event_errors"] == 2
    assert agent.healthy


def test_a_thread_that_ends_makes_the_agent_unhealthy(agents: Start, configure: Configure) -> None:
    def defect() -> None:
        message = "a defect"
        raise RuntimeError(message)

    agent = agents(configure(), {"drain": defect})
    assert agent.healthy
    engine_of(agent).emit(EVENT)
    [events] = [thread for thread in agent._threads if thread.name == "events"]  # noqa: SLF001 - its end is awaited
    events.join(PATIENT)
    assert not agent.healthy


def test_status_warns_of_what_weakens_protection(fake: FakeMachine, agents: Start, configure: Configure) -> None:
    agent = agents(configure())
    assert agent.warnings() == ["policy secrets selects nothing on this machine now"]
    state = fake.container(annotations=LABELS).state()
    assert agent.handle(Stage.CREATE_RUNTIME, state, PEER).accepted
    assert agent.selected() == [("secrets", 1)]
    assert agent.warnings() == []
    agent.stop()
    bare = agents(replace(configure(), helpers=()))
    assert [warning.partition(":")[0] for warning in bare.warnings()] == ["no helper is listed"]

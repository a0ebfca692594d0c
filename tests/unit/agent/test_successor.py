# SPDX-License-Identifier: Apache-2.0
"""Successors in the agent on a simulated kernel: all containers or none, whatever fails and wherever it is killed."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

import pytest

from guest_agent import agent as agent_module
from guest_agent import child, records
from guest_agent import successor as successor_module
from guest_agent.agent import Agent, StartError
from guest_agent.engines.bpf_lsm.plan import PlanError, compile_table, fingerprint, lookup, source_of
from guest_agent.engines.port import EngineError
from guest_agent.engines.simulator import SimulatedKernel, SimulatorEngine
from guest_agent.records import RecordStore
from guest_agent.successor import SubmitError, Turnstile
from guest_agent.workloads import facts, selection
from guest_agent.workloads.registry import Registry
from hauberk.bundle import PolicyFile, SuccessorRule, Target, Terms, create, dsse, keys, signatures
from hauberk.bundle.keys import Algorithm
from hauberk.bundle.terms import NamedKey
from hauberk.policy.rules import Operation, Verdict
from tests.unit.agent.conftest import POLICY
from tests.unit.agent.machine import Killed
from tests.unit.agent.test_agent import LABELS, kernel_of, poststop
from tests.unit.agent.test_agent import create as announce

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from guest_agent.configuration import Configuration
    from tests.unit.agent.machine import Container, FakeMachine

    Start = Callable[..., Agent]
    Configure = Callable[..., Configuration]

ALLOWED = Terms(successor=SuccessorRule())
OPEN = POLICY.replace("dir: /secret/", "dir: /other/")
ALLOW_LIST = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: secrets}
spec:
  selector: {matchLabels: {app: secrets}}
  file:
    matchDirectories:
      - {dir: /allowed/, recursive: true, action: Allow}
      - {dir: /audited/, recursive: true, action: Audit}
      - {dir: /late/, recursive: true, action: Allow, fromSource: [{path: /usr/bin/late}]}
"""


@pytest.fixture(autouse=True)
def _no_reaper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "REAP_SECONDS", 3600.0)


class Owner:
    """Signs successors."""

    def __init__(self, signer: keys.PrivateKey) -> None:
        """Sign with this key."""
        self.signer = signer

    def bundle(self, version: int, policy: str = OPEN, terms: Terms = ALLOWED, default: str = "deny") -> bytes:
        """Give the bytes of a successor."""
        return create("demo", version, (PolicyFile("secrets.yaml", policy),), default, conditions=terms)

    def submit(self, agent: Agent, *arguments: object, **named: object) -> successor_module.Submitted:
        """Make, sign and submit one."""
        data = self.bundle(*arguments, **named)  # type: ignore[arg-type] # what bundle() takes
        return agent.submit(data, signatures.sign(self.signer, data))


@pytest.fixture
def owner(signer: keys.PrivateKey) -> Owner:
    return Owner(signer)


def may(agent: Agent, container: str, path: str, operation: Operation = Operation.READ, source: str = "") -> bool:
    """Ask the table that the kernel holds; links are for the kernel to follow, so the path is a resolved one."""
    assert isinstance(agent.engine, SimulatorEngine)
    [held] = [one for one in agent.engine.kernel.workloads.values() if one.container_id == container]
    number = source_of(held.table, source.encode()) if source else 0
    assert not source or number
    return lookup(held.table, path.encode(), number, operation, owner=False) is not Verdict.DENY


def running(fake: FakeMachine, agent: Agent, name: str = "c1", pid: int = 100) -> Container:
    container = fake.container(name, pid, LABELS)
    assert announce(agent, container).accepted
    fake.start(container)
    return container


def test_running_containers_follow_and_new_ones_too(
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner
) -> None:
    agent = agents(configure())
    running(fake, agent)
    assert not may(agent, "c1", "/secret/key")
    done = owner.submit(agent, 2)
    assert (done.version, done.number, done.workloads, done.refused) == (2, 1, 1, ())
    assert may(agent, "c1", "/secret/key")
    assert not may(agent, "c1", "/other/key")
    assert not may(agent, "c1", "/usr/bin/dash", Operation.EXECUTE)
    kernel = kernel_of(agent)
    assert kernel.successor is not None
    assert (kernel.successor.digest, kernel.successor.version) == (done.digest, 2)
    assert agent.policy_set is not None
    assert agent.policy_set.version == 2
    [(workload, record)] = agent.workloads()
    assert record is not None
    assert record.table_digest == workload.table_digest == fingerprint(record.rule_set)
    running(fake, agent, "c2", 101)
    assert may(agent, "c2", "/secret/key")
    owner.submit(agent, 7, POLICY)
    assert not may(agent, "c1", "/secret/key")
    assert not may(agent, "c2", "/secret/key")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda owner: owner.bundle(1), "version 1"),
        (lambda _: create("other", 2, (PolicyFile("a.yaml", OPEN),)), "the name 'other'"),
        (lambda _: b"no bundle", "no bundle"),
        (lambda owner: owner.bundle(2, OPEN.replace("Block", "Blok")), "Blok"),
    ],
)
def test_what_is_refused_changes_nothing(  # noqa: PLR0913, PLR0917 - fixtures and cases
    fake: FakeMachine,
    agents: Start,
    configure: Configure,
    owner: Owner,
    make: Callable[[Owner], bytes],
    reason: str,
) -> None:
    configuration = configure()
    agent = agents(configuration)
    running(fake, agent)
    before = dict(kernel_of(agent).workloads)
    data = make(owner)
    with pytest.raises(SubmitError, match=reason):
        agent.submit(data, signatures.sign(owner.signer, data))
    with pytest.raises(SubmitError):
        agent.submit(owner.bundle(2), signatures.sign(keys.generate(Algorithm.ED25519), owner.bundle(2)))
    assert kernel_of(agent).workloads == before
    assert kernel_of(agent).successor is None
    assert owner.submit(agent, 2).number == 1


def test_a_bundle_without_a_rule_stays_until_reboot(agents: Start, configure: Configure, owner: Owner) -> None:
    agent = agents(configure(terms=Terms()))
    with pytest.raises(SubmitError, match="no successor rule"):
        owner.submit(agent, 2)


def test_a_replay_of_an_older_link_is_refused(agents: Start, configure: Configure, owner: Owner) -> None:
    agent = agents(configure())
    owner.submit(agent, 2)
    owner.submit(agent, 3)
    for version in (1, 2, 3):
        with pytest.raises(SubmitError, match="version"):
            owner.submit(agent, version)


def test_a_host_takes_a_successor_too(fake: FakeMachine, agents: Start, configure: Configure, owner: Owner) -> None:
    agent = agents(configure(mode="host"))
    running(fake, agent)
    assert owner.submit(agent, 2).workloads == 1
    assert may(agent, "c1", "/secret/key")


def test_the_default_deny_refuses_a_running_container_everything(
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner
) -> None:
    agent = agents(configure())
    running(fake, agent)
    uncovering = POLICY.replace("app: secrets", "app: others")
    done = owner.submit(agent, 2, uncovering)
    [(container, reason)] = done.refused
    assert (container, "default is deny" in reason) == ("c1", True)
    for operation in Operation.EXECUTE, Operation.MAP, Operation.READ, Operation.WRITE:
        for path in ("/", "/secret/key", "/usr/bin/dash", "/anything"):
            assert not may(agent, "c1", path, operation)
    assert owner.submit(agent, 3, POLICY).refused == ()
    assert may(agent, "c1", "/anything")
    assert not may(agent, "c1", "/secret/key")


def test_a_target_narrows(fake: FakeMachine, agents: Start, configure: Configure, owner: Owner) -> None:
    agent = agents(configure())
    digest = f"sha256:{'a' * 64}"
    named = fake.container("named", 101, {**LABELS, "io.hauberk.image-digest": digest})
    assert announce(agent, named).accepted
    running(fake, agent)
    fake.start(named)
    done = owner.submit(agent, 2, terms=Terms(target=Target(image_digests=(digest,)), successor=SuccessorRule()))
    [(container, reason)] = done.refused
    assert (container, "outside the target" in reason) == ("c1", True)
    assert may(agent, "named", "/secret/key")
    assert not announce(agent, fake.container("late", 102, LABELS)).accepted


def test_a_container_that_ran_without_rules_is_not_trusted_with_some(
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner
) -> None:
    agent = agents(configure(default="allow"))
    container = fake.container("free", 101)
    assert announce(agent, container).accepted
    fake.start(container)
    every = POLICY.replace("app: secrets", 'kubearmor.io/container.name: ".*"')
    [(refused, reason)] = owner.submit(agent, 2, every, default="allow").refused
    assert (refused, "ran without rules" in reason) == ("free", True)
    assert not may(agent, "free", "/anything")
    [(refused, _)] = owner.submit(agent, 3, every, default="allow").refused  # nor later
    assert refused == "free"
    assert owner.submit(agent, 4, POLICY, default="allow").refused == ()
    assert may(agent, "free", "/anything")


def test_a_container_that_a_successor_left_without_rules_is_not_trusted_with_some(
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner
) -> None:
    agent = agents(configure())
    running(fake, agent)
    uncovering = POLICY.replace("app: secrets", "app: others")
    assert owner.submit(agent, 2, uncovering, default="allow").refused == ()
    assert may(agent, "c1", "/secret/key")  # and it may mount over its whole root now
    [(refused, reason)] = owner.submit(agent, 3, POLICY, default="allow").refused
    assert (refused, "ran without rules" in reason) == ("c1", True)
    assert not may(agent, "c1", "/anything")
    agent.stop()
    restarted = agents(agent.configuration)
    [(refused, _)] = owner.submit(restarted, 4, POLICY, default="allow").refused  # nor does a restart forget it
    assert refused == "c1"


def test_links_made_since_open_nothing_and_close_what_they_lead_to(
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner
) -> None:
    agent = agents(configure())
    container = running(fake, agent)
    root = container.bundle / "rootfs"
    (root / "treasure").mkdir()
    for name in ("allowed", "audited"):
        (root / name).symlink_to("/treasure")
    owner.submit(agent, 2, ALLOW_LIST)
    assert not may(agent, "c1", "/treasure/key")
    assert may(agent, "c1", "/allowed/key")
    (root / "blocked").symlink_to("/tmp")
    blocking = POLICY.replace("dir: /secret/", "dir: /blocked/")
    owner.submit(agent, 3, blocking)
    assert not may(agent, "c1", "/tmp/x")
    assert not may(agent, "c1", "/blocked/x")
    assert may(agent, "c1", "/treasure/key")


def test_what_was_recorded_at_registration_leads_allow_rules(
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner
) -> None:
    agent = agents(configure())
    container = running(fake, agent)
    (container.bundle / "rootfs" / "bin").unlink()
    programs = """
  process:
    matchPaths: [{path: /bin/tool, action: Allow}]
"""
    owner.submit(agent, 2, ALLOW_LIST + programs)
    assert may(agent, "c1", "/usr/bin/tool", Operation.EXECUTE)
    assert not may(agent, "c1", "/usr/bin/other", Operation.EXECUTE)


def test_a_source_gets_its_first_rights_in_containers_that_start_later(
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner
) -> None:
    agent = agents(configure())
    running(fake, agent)
    owner.submit(agent, 2, ALLOW_LIST)
    running(fake, agent, "c2", 101)
    assert not may(agent, "c1", "/late/x", source="/usr/bin/late")
    assert not may(agent, "c1", "/late/x")
    assert may(agent, "c2", "/late/x", source="/usr/bin/late")
    owner.submit(agent, 3, ALLOW_LIST)  # nor because a bundle has named it before
    assert not may(agent, "c1", "/late/x", source="/usr/bin/late")
    assert may(agent, "c2", "/late/x", source="/usr/bin/late")


def test_one_container_cannot_veto_a_bundle(
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner
) -> None:
    agent = agents(configure())
    hostile, good = running(fake, agent), running(fake, agent, "c2", 101)
    root = hostile.bundle / "rootfs"
    (root / "other").symlink_to("loop")
    (root / "loop").symlink_to("other")
    done = owner.submit(agent, 2)
    assert [container for container, _ in done.refused] == ["c1"]
    assert not may(agent, "c1", "/anything")
    assert may(agent, "c2", "/anything")
    fake.end_init(good)
    (fake.proc / "101" / "root").unlink()
    done = owner.submit(agent, 3)
    assert [container for container, _ in done.refused] == ["c1", "c2"]


def test_names_without_number_refuse_their_maker_alone(
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "MAXIMUM_ADDED_RULES", 5)
    agent = agents(configure())
    container = running(fake, agent)
    other = container.bundle / "rootfs" / "other"
    other.mkdir()
    (other / "file").write_bytes(b"x")
    for number in range(10):
        (container.bundle / "rootfs" / "tmp" / str(number)).hardlink_to(other / "file")
    [(_, reason)] = owner.submit(agent, 2).refused
    assert "second names" in reason


def test_a_table_that_does_not_fit_is_the_containers_fault_or_the_bundles(
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = agents(configure())
    container = running(fake, agent)
    (container.bundle / "rootfs" / "other").symlink_to("/tmp")
    real = compile_table

    def too_large(rule_set: object) -> object:
        rules = rule_set.rules  # type: ignore[attr-defined] # a rule set
        if any(rule.value in limits for rule in rules):
            message = "the table would be too large"
            raise PlanError(message)
        return real(rule_set)  # type: ignore[arg-type] # as above

    monkeypatch.setattr(agent_module, "compile_table", too_large)
    limits = {"/other/"}
    with pytest.raises(SubmitError, match="too large"):
        owner.submit(agent, 2)
    assert kernel_of(agent).successor is None
    limits = {"/tmp/"}
    [(_, reason)] = owner.submit(agent, 2).refused
    assert "do not fit" in reason


def test_a_parked_container_is_looked_at_where_its_root_still_is(
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner
) -> None:
    agent = agents(configure())
    container = fake.container("c1", 100, LABELS)
    assert announce(agent, container).accepted
    assert owner.submit(agent, 2, POLICY.replace("/bin/sh", "/bin/new")).refused == ()
    assert may(agent, "c1", "/usr/bin/dash", Operation.EXECUTE)
    assert not may(agent, "c1", "/usr/bin/new", Operation.EXECUTE)
    assert owner.submit(agent, 3).refused == ()
    assert not may(agent, "c1", "/usr/bin/dash", Operation.EXECUTE)


# ---- restart and kill ------------------------------------------------------------------------------------------


def test_a_restarted_agent_has_the_newest_bundle(
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner
) -> None:
    configuration = configure()
    first = agents(configuration)
    running(fake, first)
    owner.submit(first, 2)
    owner.submit(first, 5, POLICY)
    first.stop()
    second = agents(configuration)
    assert second.policy_set is not None
    assert (second.policy_set.version, second.policy_set.succession.number) == (5, 2)
    [(_, record)] = second.workloads()
    assert record is not None
    assert not may(second, "c1", "/secret/key")
    assert owner.submit(second, 6).refused == ()
    assert may(second, "c1", "/secret/key")


@pytest.mark.parametrize("lost", ["0.bundle", "0.sig", "1.bundle", "1.sig", "2.bundle", "2.sig"])
def test_without_its_chain_no_agent_starts(
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner, lost: str
) -> None:
    configuration = configure()
    first = agents(configuration)
    running(fake, first)
    owner.submit(first, 2)
    owner.submit(first, 3)
    first.stop()
    held = dict(kernel_of(first).workloads)
    path = configuration.state_directory / "successors" / lost
    kept = path.read_bytes()
    path.unlink()
    with pytest.raises(StartError, match="no older bundle" if lost[0] != "0" else "No such file"):
        agents(configuration)
    path.write_bytes(kept[:-1])
    with pytest.raises(StartError):
        agents(configuration)
    assert kernel_of(first).workloads == held
    path.write_bytes(kept)
    assert agents(configuration).policy_set.version == 3  # type: ignore[union-attr] # it has started


def test_the_next_boots_bundle_may_lie_ready(agents: Start, configure: Configure, owner: Owner) -> None:
    configuration = configure()
    first = agents(configuration)
    owner.submit(first, 2)
    first.stop()
    configure(version=3)
    second = agents(configuration)
    assert second.policy_set is not None
    assert second.policy_set.version == 2
    assert kernel_of(second).digest == kernel_of(first).digest


def test_an_older_chain_in_place_of_the_newest_is_refused(agents: Start, configure: Configure, owner: Owner) -> None:
    configuration = configure()
    first = agents(configuration)
    owner.submit(first, 2)
    owner.submit(first, 3)
    first.stop()
    directory = configuration.state_directory / "successors"
    for suffix in ("bundle", "sig"):
        (directory / f"2.{suffix}").write_bytes((directory / f"1.{suffix}").read_bytes())
    with pytest.raises(StartError, match="found digest"):
        agents(configuration)


def test_the_successors_of_an_earlier_boot_count_for_nothing(agents: Start, configure: Configure, owner: Owner) -> None:
    configuration = configure()
    first = agents(configuration)
    owner.submit(first, 2)
    first.stop()
    second = agents(configuration, None, SimulatedKernel())
    assert second.policy_set is not None
    assert second.policy_set.version == 1
    assert not list((configuration.state_directory / "successors").iterdir())


STEPS: dict[str, tuple[object, str]] = {
    "ask the kernel": (SimulatorEngine, "successor"),
    "read the chain": (RecordStore, "read_chain"),
    "verify": (child, "ask"),
    "choose": (selection, "select"),
    "look at the container": (facts, "gather_running"),
    "compile": (agent_module, "compile_table"),
    "keep the bundle": (RecordStore, "write_link"),
    "write a record": (RecordStore, "write_next"),
    "switch": (SimulatorEngine, "advance"),
    "registry": (Registry, "renew"),
    "promote a record": (RecordStore, "promote"),
    "tidy": (RecordStore, "forget_next"),
}
COMMITTED = {"registry", "promote a record", "tidy"}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_all_is_old_or_all_is_new(  # noqa: PLR0913, PLR0917 - fixtures and cases
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner, step: str, when: str
) -> None:
    configuration = configure()
    first = agents(configuration)
    running(fake, first)
    running(fake, first, "c2", 101)
    target, name = STEPS[step]
    with pytest.MonkeyPatch.context() as patch:
        real = getattr(target, name)

        def failing(*arguments: object, **named: object) -> object:
            if when == "after":
                real(*arguments, **named)
            patch.setattr(RecordStore, "cut_chain", lambda *_: None)  # nothing is tidied up by the dead
            patch.setattr(RecordStore, "forget_next", lambda *_: None)
            raise Killed

        patch.setattr(target, name, failing)
        with pytest.raises(Killed):
            owner.submit(first, 2)
    first.stop()
    second = agents(configuration)
    new = step in COMMITTED or (step, when) == ("switch", "after")
    assert second.policy_set is not None
    assert second.policy_set.version == (2 if new else 1)
    assert [may(second, name, "/secret/key") for name in ("c1", "c2")] == [new, new]
    for workload, record in second.workloads():
        assert record is not None
        assert record.table_digest == workload.table_digest
    left = sorted(path.name for path in configuration.state_directory.iterdir())
    assert [name for name in left if name[0].isdigit()] == ["1.json", "2.json"]
    chain = configuration.state_directory / "successors"
    assert len(list(chain.iterdir()) if chain.exists() else []) == (4 if new else 0)
    assert owner.submit(second, 3, POLICY).refused == ()
    assert not may(second, "c1", "/secret/key")


@pytest.mark.parametrize("step", ["keep the bundle", "write a record", "switch", "choose", "verify"])
@pytest.mark.parametrize("error", [OSError("the disk is full"), EngineError("no room")])
def test_an_error_before_the_switch_leaves_all_as_it_was(  # noqa: PLR0913, PLR0917 - as above
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner, step: str, error: Exception
) -> None:
    configuration = configure()
    agent = agents(configuration)
    running(fake, agent)
    target, name = STEPS[step]

    def failing(*_: object, **__: object) -> object:
        raise error

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, name, failing)
        with pytest.raises(SubmitError, match=str(error)):
            owner.submit(agent, 2)
    assert not may(agent, "c1", "/secret/key")
    assert not list(configuration.state_directory.glob("*.next"))
    assert owner.submit(agent, 2).number == 1


def test_a_disk_error_after_the_switch_costs_a_name_and_nothing_else(
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner
) -> None:
    configuration = configure()
    agent = agents(configuration)
    running(fake, agent)

    def failing(*_: object) -> None:
        message = "the disk is full"
        raise OSError(message)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RecordStore, "promote", failing)
        patch.setattr(RecordStore, "forget_next", failing)
        assert owner.submit(agent, 2).number == 1
    assert may(agent, "c1", "/secret/key")
    agent.stop()
    [(_, record)] = agents(configuration).workloads()
    assert record is not None
    assert record.policies == ("secrets",)


def test_a_workload_without_a_record_is_refused_everything(
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner
) -> None:
    configuration = configure()
    first = agents(configuration)
    running(fake, first)
    first.stop()
    (configuration.state_directory / "1.json").unlink()
    second = agents(configuration)
    [(_, reason)] = owner.submit(second, 2).refused
    assert "nothing is recorded" in reason
    assert not may(second, "c1", "/anything")


def test_what_ended_meanwhile_is_not_asked_for(
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = agents(configure())
    running(fake, agent)
    ending = running(fake, agent, "c2", 101)
    real = RecordStore.write_link

    def meanwhile(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type] # as the method takes them
        fake.end(ending)
        assert poststop(agent, ending).accepted

    monkeypatch.setattr(RecordStore, "write_link", meanwhile)
    assert owner.submit(agent, 2).workloads == 1
    assert [held.container_id for held in kernel_of(agent).workloads.values()] == ["c1"]


def test_a_chain_has_an_end(agents: Start, configure: Configure, owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent_module, "MAXIMUM_CHAIN", 2)
    monkeypatch.setattr(records, "MAXIMUM_CHAIN", 2)
    agent = agents(configure())
    for version in (2, 3):
        owner.submit(agent, version)
    with pytest.raises(SubmitError, match="reboot"):
        owner.submit(agent, 4)


def test_registrations_and_submissions_wait_for_each_other() -> None:
    turnstile = Turnstile()
    order: list[str] = []
    inside, go_on = threading.Event(), threading.Event()

    def register() -> None:
        with turnstile.passage():
            inside.set()
            go_on.wait(60)
            order.append("registered")

    def submit() -> None:
        with turnstile.alone():
            order.append("submitted")

    threads = [threading.Thread(target=register), threading.Thread(target=submit)]
    threads[0].start()
    assert inside.wait(60)
    threads[1].start()
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert order == ["registered", "submitted"]
    with turnstile.passage(), turnstile.passage():
        order.append("side by side")
    with (
        turnstile.passage(),
        pytest.raises(SubmitError, match="1 registrations under way"),
        turnstile.alone(0.01),
    ):
        order.append("never")
    with turnstile.alone(), pytest.raises(SubmitError, match="another submission"), turnstile.alone(0.01):
        order.append("never")
    assert "never" not in order
    with turnstile.passage():
        order.append("open again")
    with turnstile.alone():
        order.append("again")


def test_containers_are_registered_while_a_successor_is_verified_and_then_follow_it(
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = agents(configure())
    real = Agent._ask_for_bundle  # noqa: SLF001 - the part that takes its time

    def meanwhile(*arguments: object) -> object:
        running(fake, agent, "c2", 101)
        with pytest.raises(SubmitError, match="another submission"):
            owner.submit(agent, 3)
        return real(*arguments)  # type: ignore[arg-type] # as the method takes them

    monkeypatch.setattr("guest_agent.successor.PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(Agent, "_ask_for_bundle", meanwhile)
    told = owner.submit(agent, 2)
    assert (told.version, told.workloads) == (2, 1)


def test_an_agent_that_ends_changes_nothing_any_more_and_lets_no_other_begin_before(
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent_module, "_PATIENCE_AT_THE_END_SECONDS", 0.01)
    agent = agents(configure())
    inside, go_on, done = threading.Event(), threading.Event(), threading.Event()

    def hold() -> None:
        inside.set()
        assert go_on.wait(60)

    def submit() -> None:
        owner.submit(agent, 2)
        done.set()

    assert isinstance(agent.engine, SimulatorEngine)
    agent.engine.faults["advance.before"] = hold
    thread = threading.Thread(target=submit)
    thread.start()
    assert inside.wait(60)
    agent.stop()
    with pytest.raises(StartError, match="another agent"):
        agents(configure())
    go_on.set()
    thread.join(60)
    assert done.is_set()
    with pytest.raises(SubmitError, match="ending"):
        owner.submit(agent, 3)
    assert not announce(agent, fake.container("late", 102, LABELS)).accepted
    agent.stop()
    assert agents(agent.configuration).policy_set is not None


def test_before_the_start_nothing_is_taken(configure: Configure, owner: Owner, tmp_path: Path) -> None:
    assert tmp_path
    agent = Agent(configure(), SimulatorEngine())
    with pytest.raises(SubmitError, match="has not started"):
        owner.submit(agent, 2)
    agent.engine.close()


def test_expiry_is_warned_of(agents: Start, configure: Configure, owner: Owner) -> None:
    agent = agents(configure(terms=Terms(successor=SuccessorRule(), expires="2001-01-01T00:00:00Z")))
    assert any("expired" in warning for warning in agent.warnings())
    owner.submit(agent, 2, terms=Terms(expires="2999-01-01T00:00:00Z"))
    assert not any("expired" in warning for warning in agent.warnings())


@pytest.mark.parametrize(("threshold", "weaker"), [(1, True), (2, False)])
def test_a_rule_that_asks_for_less_than_the_trust_root_is_warned_of(
    agents: Start, configure: Configure, signer: keys.PrivateKey, threshold: int, *, weaker: bool
) -> None:
    configuration = configure()
    others = [keys.generate(Algorithm.ED25519) for _ in range(2)]
    pems = [keys.public_pem(key.public()).decode() for key in (signer, *others)]
    root = json.loads(configuration.trust_root.read_text())
    root["keys"].append({"name": "second", "publicKey": pems[1]})
    configuration.trust_root.write_text(json.dumps({**root, "threshold": 2}))
    rule = SuccessorRule((NamedKey("a", pems[1]), NamedKey("b", pems[2])), threshold)
    data = create("demo", 1, (PolicyFile("a.yaml", POLICY),), conditions=Terms(successor=rule))
    configuration.bundle.write_bytes(data)
    configuration.bundle_signature.write_bytes(dsse.add_signature(others[0], data, dsse.add_signature(signer, data)))
    agent = agents(configuration)
    assert any("fewer signatures" in warning for warning in agent.warnings()) is weaker
    successor = create("demo", 2, (PolicyFile("a.yaml", POLICY),))
    envelope = dsse.add_signature(others[1], successor)
    if weaker:
        assert agent.submit(successor, envelope).version == 2
        return
    with pytest.raises(SubmitError, match="1 of"):
        agent.submit(successor, envelope)
    assert agent.submit(successor, dsse.add_signature(others[0], successor, envelope)).version == 2


def test_a_root_is_not_looked_for_along_links_of_the_container(
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner
) -> None:
    """An init that goes to its root between two looks leaves the configured path to the container's own links."""
    agent = agents(configure())
    container = fake.container("c1", 100, LABELS)
    assert announce(agent, container).accepted
    root = container.bundle / "rootfs"
    (root / "other").symlink_to("/tmp")
    (root / "decoy").mkdir()
    inside = root / str(root).lstrip("/")
    inside.parent.mkdir(parents=True)
    inside.symlink_to("/decoy")
    process = fake.proc / "100"
    (process / "root").unlink()
    (process / "root").symlink_to(root)  # gone there, and still the runtime's program by the look at it
    mounts = "40 22 0:50 / / rw - overlay overlay rw\n41 40 0:51 / /decoy rw - tmpfs tmpfs rw\n"
    (process / "mountinfo").write_text(mounts)
    assert owner.submit(agent, 2).refused == ()
    assert not may(agent, "c1", "/tmp/x")
    assert not may(agent, "c1", "/other/x")


def test_a_child_that_gives_no_answer_refuses_the_bundle_and_no_container(
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = agents(configure())
    running(fake, agent)
    for kind in ("OSError", "ChildProcessError"):

        def without_answer(_: object, kind: str = kind) -> object:
            raise child.ChildError(kind, "no child could be started")

        monkeypatch.setattr(agent_module, "compile_table", without_answer)
        with pytest.raises(SubmitError, match="no child"):
            owner.submit(agent, 2)
    assert kernel_of(agent).successor is None


def test_nothing_is_registered_while_the_bundle_in_force_is_not_known(
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner
) -> None:
    configuration = configure()
    agent = agents(configuration)
    running(fake, agent)
    assert isinstance(agent.engine, SimulatorEngine)
    engine = agent.engine

    def committed() -> None:
        message = "the kernel took it and could not say so"
        raise EngineError(message)

    engine.faults["advance.after"] = committed
    with pytest.raises(SubmitError, match="could not say so"):
        owner.submit(agent, 2)
    engine.faults.clear()
    assert not announce(agent, fake.container("late", 102, LABELS)).accepted
    assert any("restart the agent" in warning for warning in agent.warnings())
    agent.stop()
    second = agents(configuration)
    assert second.policy_set is not None
    assert second.policy_set.version == 2
    [(_, record)] = second.workloads()
    assert record is not None
    assert may(second, "c1", "/secret/key")


def test_records_that_could_not_be_renewed_are_found_by_the_next_start(
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = configure()
    agent = agents(configuration)
    running(fake, agent)
    with monkeypatch.context() as patch:

        def failing(*_: object) -> None:
            raise OSError

        patch.setattr(RecordStore, "promote", failing)
        assert owner.submit(agent, 2).refused == ()
    assert (configuration.state_directory / "1.next").exists()
    agent.stop()
    second = agents(configuration)
    [(_, record)] = second.workloads()
    assert record is not None
    assert owner.submit(second, 3, POLICY).refused == ()
    assert not may(second, "c1", "/secret/key")


def test_a_workload_the_kernel_would_not_let_go_of_stays_without_a_digest(
    fake: FakeMachine, agents: Start, configure: Configure, owner: Owner
) -> None:
    agent = agents(configure())
    container = running(fake, agent)
    agent.registry.renew(container.id, "")
    assert owner.submit(agent, 2).refused == ()
    [(workload, _)] = agent.workloads()
    assert workload.table_digest == ""

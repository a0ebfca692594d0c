# SPDX-License-Identifier: Apache-2.0
"""A sealed guest takes successors of its bundle while containers run, and no kill, replay or link gets in between.

Bundles are built by the library, and submitted and asked about by the command line's own functions, in this process:
starting a command costs ten seconds in an emulated guest. One test does it all as an owner does. Tasks that were
started under one bundle are asked again under the next: what a container may do is asked of the kernel from inside.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from hauberk import cli
from hauberk.bundle import PolicyFile, SuccessorRule, Terms, create, keys, signatures
from tests.vm.containers import faulty, sealed
from tests.vm.containers.asker import Asker
from tests.vm.containers.runtime import Runtime
from tests.vm.containers.sealed import FORBIDDEN, NOTHING, Agent, Containers

if TYPE_CHECKING:
    from collections.abc import Iterator

BASE = Path("/run/hauberk-test")
CHAIN = Path("/run/hauberk/workloads/successors")
TRUSTED, LATER, PLAIN = "/opt/sources/prober-a", "/opt/sources/prober-b", "/usr/bin/prober"
PASSWD, HOSTS = "/etc/passwd", "/etc/hosts"
POLICY = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {{name: {name}}}
spec:
  selector: {{matchLabels: {{app: {label}}}}}
  file:
    matchDirectories:
      - {{dir: /, recursive: true, action: Allow}}
      - {{dir: /srv/secrets/app/, recursive: true, action: Block}}
{rules}
"""
# The trusted prober is a source of its own from the first bundle on: its rights are the first bundle's word.
TRUST = f"      - {{dir: /srv/secrets/app/, recursive: true, action: Allow, fromSource: [{{path: {TRUSTED}}}]}}"
LEAVES = f"      - {{dir: /srv/secrets/app/, recursive: true, action: Allow, fromSource: [{{path: {LATER}}}]}}"
QUICK_STEPS = ("after-advance",)
_versions = itertools.count(2)


def closed(path: str, source: str = "") -> str:
    """Write the rule that refuses a path, to one source or to all."""
    limited = f", fromSource: [{{path: {source}}}]" if source else ""
    return f"    matchPaths:\n      - {{path: {path}, action: Block{limited}}}"


class Guest(NamedTuple):
    """The sealed guest."""

    agent: Agent
    containers: Containers

    def asker(self, name: str, program: str) -> Asker:
        """Start a prober in a container."""
        return Asker(self.containers.runtime, name, self.containers.bundles[name], program)


def make(*rules: str, label: str = "secrets", expires: str | None = None) -> Path:
    """Build and sign a bundle that may have a successor."""
    number = next(_versions)
    text = POLICY.format(name="secrets", label=label, rules="\n".join(rules))
    terms = Terms(successor=SuccessorRule(), expires=expires)
    data = create("test", number, (PolicyFile("secrets.yaml", text),), conditions=terms)
    path = BASE / f"successor-{number}"
    path.write_bytes(data)
    sign(path, BASE / "owner.key")
    return path


def sign(path: Path, key: Path) -> None:
    """Sign a bundle; the signature lies beside it."""
    signature = signatures.sign(keys.load_private(key.read_bytes()), path.read_bytes())
    path.with_suffix(".sig").write_bytes(signature)


class Answer(NamedTuple):
    """What a command came to."""

    status: int
    output: str
    errors: str


def command(*arguments: str | Path) -> Answer:
    """Run a command of the command line in this process."""
    with (
        contextlib.redirect_stdout(io.StringIO()) as output,
        contextlib.redirect_stderr(io.StringIO()) as errors,
    ):
        status = cli.main([str(argument) for argument in arguments])
    return Answer(status, output.getvalue(), errors.getvalue())


def submit(path: Path) -> Answer:
    """Submit a bundle."""
    return command("bundle", "submit", path, "--signature", path.with_suffix(".sig"), "--json")


def asked(question: str) -> Any:  # noqa: ANN401 - JSON
    """Ask the agent, expecting an answer in JSON."""
    done = command(question, "--json")
    assert done.status == 0, done.errors
    return json.loads(done.output)


def follow(*rules: str, label: str = "secrets") -> dict[str, object]:
    """Put a successor with these rules in force."""
    done = submit(make(*rules, label=label))
    assert done.status == 0, done.errors
    told: dict[str, object] = json.loads(done.output)
    return told


def version_of(path: Path) -> int:
    """Give the version of a bundle that was made here."""
    return int(path.name.rpartition("-")[2])


def in_force() -> int:
    """Give the version of the bundle in force."""
    return int(asked("status")["bundle_version"])


@pytest.fixture(scope="module")
def guest() -> Iterator[Guest]:
    sealed.prepare(BASE, "--successor-trust-root")
    text = POLICY.format(name="secrets", label="secrets", rules=TRUST)
    (BASE / "policies" / "secrets.yaml").write_text(text)
    (BASE / "policies" / "listing.yaml").unlink()
    given = ("--name", "test", "--version", "1", "--successor-trust-root")
    sealed.build(BASE / "policies", BASE / "bundle.json", BASE / "owner.key", *given)
    agent = Agent(sealed.configure(BASE, BASE / "agent.yaml"), BASE / "agent.log")
    agent.start()
    yield Guest(agent, Containers(BASE, Runtime(BASE / "states", "runc")))
    assert agent.end(signal.SIGTERM) == 0


@pytest.fixture
def running(guest: Guest) -> Iterator[str]:
    """Give a container that runs under the rules of the first bundle, with askers left to its test."""
    follow(TRUST)
    name = "running"
    guest.containers.create(name).check()
    guest.containers.runtime.start(name).check()
    yield name
    guest.containers.remove(name)
    sealed.until(lambda: sealed.left().cgroups == 0, "the container to be let go")


def test_what_was_open_closes_and_what_was_closed_opens(guest: Guest, running: str) -> None:
    trusted, later, plain = (guest.asker(running, program) for program in (TRUSTED, LATER, PLAIN))
    paths = (FORBIDDEN, PASSWD, HOSTS)
    assert [asker.answers(*paths) for asker in (trusted, later, plain)] == [
        [True, True, True],
        [False, True, True],
        [False, True, True],
    ]
    told = follow(TRUST, closed(PASSWD), f"      - {{path: {HOSTS}, action: Block, fromSource: [{{path: {LATER}}}]}}")
    assert (told["workloads"], told["refused"]) == (1, [])
    assert [asker.answers(*paths) for asker in (trusted, later, plain)] == [
        [True, False, True],  # a task with a source of its own keeps what it may
        [False, False, False],  # and one that only now has a source is that source
        [False, False, True],
    ]
    follow("      - {dir: /srv/secrets/app/prod/, recursive: true, readOnly: true, action: Allow}")
    assert plain.answers(*paths) == [True, True, True]
    assert plain.ask(FORBIDDEN, "open-write") == "13"
    for asker in (trusted, later, plain):
        asker.close()


def test_an_owner_builds_signs_and_submits(guest: Guest, running: str) -> None:
    plain = guest.asker(running, PLAIN)
    directory = BASE / "owners"
    directory.mkdir()
    (directory / "p.yaml").write_text(POLICY.format(name="secrets", label="secrets", rules=closed(PASSWD)))
    bundle = BASE / "owners.bundle"
    given = ("--name", "test", "--version", str(next(_versions)), "--successor-trust-root")
    sealed.build(directory, bundle, BASE / "owner.key", *given)
    done = sealed.hauberk("bundle", "submit", bundle, "--signature", f"{bundle}.sig")
    assert done.returncode == 0, done.stderr
    assert "1 running containers follow" in done.stdout
    assert plain.answers(PASSWD, HOSTS) == [False, True]
    plain.close()


def test_new_containers_follow_too(guest: Guest, running: str) -> None:
    assert running
    follow(TRUST, closed(PASSWD))
    guest.containers.create("another").check()
    guest.containers.runtime.start("another").check()
    assert guest.containers.inside("another", "/bin/cat", PASSWD).status != 0
    assert guest.containers.inside("another", "/bin/cat", HOSTS).status == 0
    guest.containers.remove("another")


def test_a_source_has_no_new_rights_in_a_container_that_runs(guest: Guest, running: str) -> None:
    later = guest.asker(running, LATER)
    follow(LEAVES)
    assert later.answers(FORBIDDEN, PASSWD) == [False, True]
    again = guest.asker(running, LATER)  # who knows what the file is by now
    assert again.answers(FORBIDDEN) == [False]
    guest.containers.create("another").check()
    guest.containers.runtime.start("another").check()
    fresh = guest.asker("another", LATER)
    assert fresh.answers(FORBIDDEN) == [True]
    for asker in (later, again, fresh):
        asker.close()
    guest.containers.remove("another")


def test_a_link_made_since_opens_nothing(guest: Guest, running: str) -> None:
    plain = guest.asker(running, PLAIN)
    made = guest.containers.inside(running, "/bin/busybox", "ln", "-s", "/srv/secrets/app", "/srv/secrets/public/link")
    assert made.status == 0, made
    made = guest.containers.inside(running, "/bin/busybox", "ln", "-s", PASSWD, "/srv/secrets/public/blocked")
    assert made.status == 0, made
    assert plain.answers(FORBIDDEN, "/srv/secrets/public/link/prod/key", PASSWD) == [False, False, True]
    follow(
        "      - {dir: /srv/secrets/public/link/prod/, recursive: true, action: Allow}",
        closed("/srv/secrets/public/blocked"),
    )
    assert plain.answers(FORBIDDEN, "/srv/secrets/public/link/prod/key", PASSWD) == [False, False, False]
    plain.close()


def test_a_container_that_is_not_covered_may_do_nothing_any_more(guest: Guest, running: str) -> None:
    plain = guest.asker(running, PLAIN)
    told = follow(TRUST, label="others")
    assert isinstance(told["refused"], list)
    [refused] = told["refused"]
    assert refused["container_id"] == running
    assert plain.answers("/", PASSWD, FORBIDDEN) == [False, False, False]
    assert guest.containers.inside(running, "/bin/true").status != 0
    follow(TRUST)
    assert plain.answers(PASSWD, FORBIDDEN) == [True, False]
    plain.close()


def test_replays_strangers_and_junk_change_nothing(guest: Guest, running: str) -> None:
    sign(BASE / "bundle.json", BASE / "owner.key")
    older = make(closed(HOSTS))
    assert submit(older).status == 0
    follow(TRUST)
    before = in_force()
    plain = guest.asker(running, PLAIN)
    for path, reason in (
        (older, f"found version {version_of(older)}"),
        (BASE / "bundle.json", "found version 1"),
    ):
        refused = submit(path)
        assert refused.status == 1, refused
        assert reason in refused.errors
    newer = make(closed(HOSTS))
    (BASE / "stranger.key").write_bytes(keys.private_pem(keys.generate(keys.Algorithm.ECDSA_P256)))
    sign(newer, BASE / "stranger.key")
    refused = submit(newer)
    assert refused.status == 1
    assert "successor rule" in refused.errors
    assert in_force() == before
    assert plain.answers(HOSTS, PASSWD, FORBIDDEN) == [True, True, False]
    plain.close()


@pytest.mark.usefixtures("guest")
def test_status_tells_the_chain(running: str) -> None:
    assert running
    done = submit(make(TRUST, expires="2001-01-01T00:00:00Z"))
    assert done.status == 0, done.errors
    status = asked("status")
    assert status["bundle_digest"] == json.loads(done.output)["bundle_digest"] != status["sealed_digest"]
    assert int(status["successors"]) == len(list(CHAIN.glob("*.bundle"))) - 1  # and the one it began with
    assert "trust root" in status["successor_rule"]
    assert any("expired" in warning for warning in status["warnings"])


def test_a_restarted_agent_goes_on_with_the_newest(guest: Guest, running: str) -> None:
    plain = guest.asker(running, PLAIN)
    follow(TRUST, closed(PASSWD))
    version = in_force()
    guest.agent.end()
    assert plain.answers(PASSWD, HOSTS) == [False, True]
    guest.agent.start()
    assert in_force() == version
    assert plain.answers(PASSWD, HOSTS) == [False, True]
    [workload] = asked("workloads")
    assert workload["policies"] == ["secrets"]
    follow(TRUST, closed(HOSTS))
    assert plain.answers(PASSWD, HOSTS) == [True, False]
    plain.close()


def test_without_the_chain_the_agent_does_not_start_and_enforcement_stays(guest: Guest, running: str) -> None:
    plain = guest.asker(running, PLAIN)
    follow(TRUST, closed(PASSWD))
    guest.agent.end()
    newest = max(CHAIN.glob("*.bundle"), key=lambda path: int(path.stem))
    kept = newest.read_bytes()
    newest.unlink()
    with pytest.raises(AssertionError, match="no older bundle"):
        guest.agent.start()
    assert plain.answers(PASSWD, HOSTS) == [False, True]
    assert guest.containers.create("refused").status != 0
    guest.containers.remove("refused")
    newest.write_bytes(kept)
    guest.agent.start()
    assert plain.answers(PASSWD, HOSTS) == [False, True]
    plain.close()


@pytest.mark.parametrize("step", QUICK_STEPS)
def test_killed_at_a_step_all_is_old_or_all_is_new(guest: Guest, running: str, step: str) -> None:
    kill_at(guest, running, step)


@pytest.mark.long
@pytest.mark.parametrize("step", [step for step in faulty.SUBMISSION if step not in QUICK_STEPS])
def test_killed_at_any_other_step(guest: Guest, running: str, step: str) -> None:
    kill_at(guest, running, step)


def kill_at(guest: Guest, running: str, step: str) -> None:
    """Kill the agent at a step of a submission and start it again, with two containers running."""
    plain = guest.asker(running, PLAIN)
    guest.containers.create("second").check()
    guest.containers.runtime.start("second").check()
    second = guest.asker("second", PLAIN)
    follow(TRUST, closed(PASSWD))
    old = in_force()
    guest.agent.end()
    guest.agent.start(step)
    path = make(TRUST, closed(HOSTS))
    assert submit(path).status == 3  # nobody answers any more
    assert guest.agent.process is not None
    assert guest.agent.process.wait(sealed.WAIT) == -signal.SIGKILL
    held = plain.answers(PASSWD, HOSTS)
    assert held in ([False, True], [True, False])
    assert second.answers(PASSWD, HOSTS) == held
    guest.agent.start()
    assert plain.answers(PASSWD, HOSTS) == held
    assert second.answers(PASSWD, HOSTS) == held
    new = held == [True, False]
    assert new == (step in {"after-advance", "before-promote", "after-promote"})
    assert in_force() == (version_of(path) if new else old)
    assert sealed.left().records == sealed.left().cgroups
    assert {entry["policies"][0] for entry in asked("workloads")} == {"secrets"}
    follow(TRUST)
    assert plain.answers(PASSWD, HOSTS) == [True, True]
    for asker in (plain, second):
        asker.close()
    guest.containers.remove("second")


def test_nothing_is_left(guest: Guest) -> None:
    assert guest.agent.process is not None
    sealed.until(lambda: sealed.left() == NOTHING, "nothing to be left")
    assert guest.agent.process.poll() is None

# SPDX-License-Identifier: Apache-2.0
"""A machine made of files, and signed bundles for agents that run on the simulator."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from guest_agent import child, parsing
from guest_agent.agent import Agent
from guest_agent.configuration import Configuration
from guest_agent.engines.simulator import SimulatedKernel, SimulatorEngine
from hauberk.bundle import PolicyFile, SuccessorRule, Terms, create, keys, signatures
from hauberk.bundle.keys import Algorithm
from tests.unit.agent.machine import FakeMachine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from guest_agent.engines.nftables.simulator import SimulatorNetworkEngine

POLICY = """
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata:
  name: secrets
spec:
  selector:
    matchLabels:
      app: secrets
  severity: 8
  tags: [secrets]
  process:
    message: no shell
    matchPaths:
      - path: /bin/sh
        action: Block
  file:
    matchDirectories:
      - dir: /secret/
        recursive: true
        action: Block
        message: secrets stay
"""


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeMachine]:
    machine = FakeMachine(tmp_path)
    yield machine
    machine.close()


@pytest.fixture(scope="session")
def signer() -> keys.PrivateKey:
    return keys.generate(Algorithm.ECDSA_P256)


@pytest.fixture
def parse_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the child's work be done in the test's process: what a child adds is tested with a real one."""

    def ask(task: str, request: Mapping[str, object], *, deadline: float = 0.0) -> dict[str, object]:
        assert deadline >= 0
        found = parsing.answer(json.dumps({**request, "task": task}).encode())
        refusal = found.get("error")
        if isinstance(refusal, dict):
            raise child.ChildError(str(refusal["kind"]), str(refusal["message"]))
        return json.loads(json.dumps(found))  # type: ignore[no-any-return] # an object by construction

    monkeypatch.setattr(child, "ask", ask)


@pytest.fixture
def agents(fake: FakeMachine, parse_here: None) -> Iterator[Callable[..., Agent]]:
    """Start agents on one simulated kernel; a second one follows a first one that was stopped."""
    del parse_here
    started: list[Agent] = []
    kernels: list[SimulatedKernel] = []

    def start(
        configuration: Configuration,
        faults: Mapping[str, Callable[[], None]] | None = None,
        kernel: SimulatedKernel | None = None,
        packets: SimulatorNetworkEngine | None = None,
    ) -> Agent:
        if not kernels:
            kernels.append(SimulatedKernel())
        engine = SimulatorEngine(kernel or kernels[0], faults)
        agent = Agent(configuration, engine, fake.machine, packets, NoLinks())
        started.append(agent)
        agent.start()
        return agent

    yield start
    for agent in started:
        agent.stop()
        agent.engine.close()
        if agent.packets is not None:
            agent.packets.close()


class NoLinks:
    """A machine without virtual Ethernet pairs, unless a test makes some."""

    def __init__(self, found: Mapping[int, str] | None = None) -> None:
        """Lead to these namespaces by these links."""
        self.found = found or {}

    def routed(self, namespaces: Mapping[int, int]) -> Mapping[int, str]:
        """Give those that lead to a namespace that is asked about."""
        return {namespace: name for namespace, name in self.found.items() if namespace in namespaces}


@pytest.fixture
def configure(tmp_path: Path, fake: FakeMachine, signer: keys.PrivateKey) -> Callable[..., Configuration]:
    """Write trust root, bundle and signature; return the configuration that names them."""

    def write(  # noqa: PLR0913, PLR0917 - what a bundle is
        version: int = 1,
        default: str = "deny",
        policy: str = POLICY,
        mode: str = "sealed",
        terms: Terms = Terms(successor=SuccessorRule()),  # noqa: B008 - it cannot be changed
        more: Sequence[str] = (),
    ) -> Configuration:
        files = tuple(
            PolicyFile(f"{'secrets' if number == 0 else number}.yaml", text)
            for number, text in enumerate([policy, *more])
        )
        data = create("demo", version, files, default, conditions=terms)
        root = {
            "apiVersion": "hauberk/v1",
            "kind": "TrustRoot",
            "keys": [{"name": "owner", "publicKey": keys.public_pem(signer.public()).decode()}],
            "bundle": {"name": "demo", "minimumVersion": 1},
        }
        (tmp_path / "trust-root.json").write_text(json.dumps(root))
        (tmp_path / "bundle.json").write_bytes(data)
        (tmp_path / "bundle.sig").write_bytes(signatures.sign(signer, data))
        assert mode in ("sealed", "host")
        return Configuration(
            mode="host" if mode == "host" else "sealed",
            trust_root=tmp_path / "trust-root.json",
            bundle=tmp_path / "bundle.json",
            bundle_signature=tmp_path / "bundle.sig",
            hook_socket=tmp_path / "run" / "hook.sock",
            agent_socket=tmp_path / "run" / "agent.sock",
            state_directory=tmp_path / "run" / "workloads",
            managers=(str(fake.runtime),),
            helpers=("/usr/libexec/hauberk/hauberk-hook",),
            alert_log=tmp_path / "alerts.jsonl",
        )

    return write

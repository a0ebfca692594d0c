# SPDX-License-Identifier: Apache-2.0
"""The agent on the simulator engine, images without a registry, and a machine for the engines."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from guest_agent.agent import Agent
from guest_agent.api.hook_socket import HookAnswer, Peer, Stage, serve
from guest_agent.configuration import Configuration
from guest_agent.engines.simulator import SimulatorEngine
from guest_agent.workloads import verification
from guest_agent.workloads.oci_state import OciState, parse
from hauberk.bundle import PolicyFile, create, keys, signatures
from hauberk.bundle.keys import Algorithm
from tests.host.hook.conftest import raw_agent
from tests.host.runtimes.machine import Machine, machine
from tests.vm.containers import image
from tests.vm.containers.containerd import PAUSE

if TYPE_CHECKING:
    import socket
    from collections.abc import Iterator

APPLICATION = "hauberk.test/application:1"
POLICIES = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: web}
spec:
  selector: {matchLabels: {app: web}}
  file: {action: Block, matchPaths: [{path: /etc/shadow}]}
---
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: cart, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  file: {action: Block, matchPaths: [{path: /etc/shadow}]}
---
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata: {name: sidecar, namespace: shop}
spec:
  selector: {matchLabels: {kubearmor.io/container.name: sidecar}}
  file: {action: Block, matchPaths: [{path: /etc/passwd}]}
"""


@dataclass
class Watched:
    """The real agent on the simulator, and what came of each announcement."""

    agent: Agent
    directory: Path
    asked: list[tuple[Stage, OciState, HookAnswer]] = field(default_factory=list)
    before: Callable[[Stage, OciState], None] = lambda _stage, _state: None
    """Called with each announcement before the agent gets it."""

    def handle(self, stage: Stage, state: bytes, peer: Peer) -> HookAnswer:
        """Pass the announcement on, and keep the answer."""
        announced = parse(state)
        self.before(stage, announced)
        answer = self.agent.handle(stage, state, peer)
        self.asked.append((stage, announced, answer))
        return answer

    def stages(self, identifier: str) -> list[Stage]:
        """Give what was asked about one container, in order."""
        return [stage for stage, state, _ in self.asked if state.id == identifier]

    def announced(self) -> list[str]:
        """Give the ids of the containers that were announced, in order."""
        return [state.id for stage, state, _ in self.asked if stage is Stage.CREATE_RUNTIME]

    def policies(self, identifier: str) -> tuple[str, ...]:
        """Give the policies that a container in force has. Raises AssertionError if it is not in force."""
        for workload, record in self.agent.workloads():
            if workload.container_id == identifier and record is not None:
                return tuple(record.policies)
        raise AssertionError((identifier, self.asked))

    def settle(self) -> None:
        """Wait until nothing is in force any more."""
        end = time.monotonic() + 60
        while self.agent.workloads():
            assert time.monotonic() < end, self.agent.workloads()
            time.sleep(0.02)


Listening = Callable[[], AbstractContextManager[Watched]]


@pytest.fixture(scope="session")
def signer() -> keys.PrivateKey:
    return keys.generate(Algorithm.ECDSA_P256)


@pytest.fixture(scope="module")
def base() -> Iterator[Path]:
    """A directory with a short name, for sockets, on the machine's own file system, for overlays."""
    assert os.geteuid() == 0, "the host lane needs root: run it as root, or run tests/unit"
    for program in ("podman", "containerd", "runc", "crun"):
        assert shutil.which(program), f"{program} is missing: make setup"
    path = Path(tempfile.mkdtemp(prefix="hauberk-"))
    for name in ("agent", "mark"):
        (path / name).mkdir(mode=0o700)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def listening(base: Path, signer: keys.PrivateKey, monkeypatch: pytest.MonkeyPatch) -> Listening:
    """Give a context in which the agent listens; outside of it nobody does."""
    # The first process of a machine under test may hold capabilities that we do not, and then shows us nothing. It
    # shares the agent's mount namespace here as anywhere.
    look = verification.mount_namespace
    monkeypatch.setattr(
        verification, "mount_namespace", lambda pid, machine: look("self" if pid == 1 else pid, machine)
    )
    data = create("demo", 1, (PolicyFile("policies.yaml", POLICIES),), "deny")
    root = {
        "apiVersion": "hauberk/v1",
        "kind": "TrustRoot",
        "keys": [{"name": "owner", "publicKey": keys.public_pem(signer.public()).decode()}],
        "bundle": {"name": "demo", "minimumVersion": 1},
    }
    (base / "trust-root.json").write_text(json.dumps(root))
    (base / "bundle.json").write_bytes(data)
    (base / "bundle.sig").write_bytes(signatures.sign(signer, data))
    configuration = Configuration(
        mode="sealed",
        trust_root=base / "trust-root.json",
        bundle=base / "bundle.json",
        bundle_signature=base / "bundle.sig",
        hook_socket=base / "agent" / "hook.sock",
        agent_socket=base / "agent" / "agent.sock",
        state_directory=base / "agent" / "workloads",
        managers=("/usr/sbin/runc", "/usr/bin/crun"),
    )

    @contextmanager
    def listen() -> Iterator[Watched]:
        agent = Agent(configuration, SimulatorEngine())
        agent.start()
        watched = Watched(agent, base / "agent")
        try:
            with serve(configuration.hook_socket, watched.handle):
                yield watched
        finally:
            agent.stop()
            agent.engine.close()

    return listen


@pytest.fixture
def agent(listening: Listening) -> Iterator[Watched]:
    with listening() as watched:
        yield watched


@contextmanager
def silent_agent(path: Path) -> Iterator[None]:
    """Listen and answer nothing; only the first that asks is kept waiting."""
    patience = iter((True,))

    def hang(connection: socket.socket) -> None:
        if next(patience, False):
            while connection.recv(1 << 16):
                pass  # until the hook gives up

    with raw_agent(path, hang):
        yield


@pytest.fixture(scope="module", params=["runc", "crun"])
def host(request: pytest.FixtureRequest, base: Path) -> Iterator[Machine]:
    with machine(base / f"machine-{request.param}", request.param, base / "agent") as made:
        yield made


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give a directory with the archives of the application's and of the pause image: one busybox each."""
    base = tmp_path_factory.mktemp("images")
    busybox = shutil.which("busybox")
    assert busybox, "busybox is missing: make setup"
    rootfs = base / "rootfs"
    for name in ("bin", "etc", "proc", "sys", "dev", "run", "mark"):
        (rootfs / name).mkdir(parents=True)
    shutil.copy(busybox, rootfs / "bin" / "busybox")
    for name in ("echo", "sleep", "sh", "touch", "true"):
        (rootfs / "bin" / name).symlink_to("busybox")
    (rootfs / "etc" / "passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    image.write_layer(rootfs, base / "layer.tar")
    for file, name in (("application.tar", APPLICATION), ("pause.tar", PAUSE)):
        image.write_archive(base / file, base / "layer.tar", name, ["/bin/sleep", "1000000"])
    return base

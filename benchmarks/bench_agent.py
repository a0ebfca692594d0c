# SPDX-License-Identifier: Apache-2.0
"""What the agent adds to a container's start: from the announcement to "enforced", by number of rules, in one run.

    python -m benchmarks.bench_agent [--rounds N] [--rules 1 100 1000] [--runtime runc]

The agent is the real one, with a real signed bundle and a real parked container for each sample; only the kernel's side
is the simulator, so that it runs where BPF LSM does not (the kernel's share is two map updates, about 0.1 ms). "first"
compiles the policy's table, "again" finds it compiled, as for every further container of an image. Memory is that of
the agent's own process.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.bench_hook import HOOK, make_bundle
from guest_agent.agent import Agent
from guest_agent.api import hook_socket
from guest_agent.api.hook_socket import HookAnswer, Peer, Stage
from guest_agent.configuration import Configuration
from guest_agent.engines.simulator import SimulatorEngine
from hauberk.bundle import keys, signatures
from hauberk.bundle.builder import assemble

ENVIRONMENT_LACKS = 3
AIM_MILLISECONDS = 10.0


def policy(rules: int) -> str:
    """Write a policy of so many rules: mostly paths, some directories."""
    lines = [
        "apiVersion: security.kubearmor.com/v1", "kind: KubeArmorPolicy", "metadata: {name: benchmark}", "spec:",
        "  selector: {matchLabels: {kubearmor.io/container.name: '.*'}}", "  action: Block", "  file:",
        "    matchPaths:",
    ]  # fmt: skip
    paths = max(1, rules - rules // 10)
    lines += [f"      - path: /srv/tenant-{n % 97}/application-{n}/configuration.key" for n in range(paths)]
    if rules > paths:
        lines.append("    matchDirectories:")
        lines += [f"      - {{dir: /var/lib/data-{n}/, recursive: true}}" for n in range(rules - paths)]
    return "\n".join(lines) + "\n"


def start_agent(directory: Path, rules: int) -> Agent:
    """Make key, bundle and trust root, and start an agent on them."""
    directory.mkdir()
    (directory / "policies").mkdir()
    (directory / "policies" / "benchmark.yaml").write_text(policy(rules))
    key = keys.generate(keys.Algorithm.ECDSA_P256)
    data = assemble(directory / "policies", "benchmark", 1).data
    (directory / "bundle").write_bytes(data)
    (directory / "bundle.sig").write_bytes(signatures.sign(key, data))
    root = {
        "apiVersion": "hauberk/v1",
        "kind": "TrustRoot",
        "keys": [{"name": "benchmark", "publicKey": keys.public_pem(key.public()).decode()}],
        "bundle": {"name": "benchmark", "minimumVersion": 1},
    }
    (directory / "trust-root.json").write_text(json.dumps(root))
    agent = Agent(
        Configuration(
            mode="sealed",
            trust_root=directory / "trust-root.json",
            bundle=directory / "bundle",
            bundle_signature=directory / "bundle.sig",
            state_directory=directory / "workloads",
            managers=("/usr/sbin/runc", "/usr/bin/runc", "/usr/bin/crun"),
        ),
        SimulatorEngine(),
    )
    agent.start()
    return agent


def resident() -> float:
    """MiB of this process that are in memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


def measure(agent: Agent, directory: Path, runtime: str, rounds: int) -> tuple[float, list[float]]:
    """Milliseconds of the first registration, and of the others."""
    command = [runtime, "--root", str(directory / "state")]
    samples: list[float] = []

    def handle(stage: Stage, state: bytes, peer: Peer) -> HookAnswer:
        began = time.perf_counter()
        answer = agent.handle(stage, state, peer)
        if stage is Stage.CREATE_RUNTIME:
            samples.append((time.perf_counter() - began) * 1000)
        return answer

    socket = directory / "agent" / "hook.sock"
    with hook_socket.serve(socket, handle, agent.check_peer):
        for number in range(rounds + 1):
            identifier = f"hauberk-bench-{os.getpid()}-{number}"
            create = [*command, "create", "--bundle", str(directory / "bundle"), identifier]
            try:
                subprocess.run(create, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)
            finally:
                subprocess.run([*command, "delete", "--force", identifier], check=False)
    return samples[0], samples[1:]


def main() -> int:
    """Print one line for each number of rules; 3 when root, the runtime or busybox is missing."""
    parser = argparse.ArgumentParser(description="What the agent adds to a container's start.")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--rules", type=int, nargs="*", default=[1, 100, 1000])
    parser.add_argument("--runtime", default="runc")
    options = parser.parse_args()
    busybox = shutil.which("busybox")
    if os.geteuid() != 0 or busybox is None or shutil.which(options.runtime) is None:
        sys.stderr.write(f"bench_agent: needs root, {options.runtime} and busybox\n")
        return ENVIRONMENT_LACKS
    if os.getpid() != 1:
        # In a pid namespace of its own: what the agent asks about PID 1 has an answer wherever this runs.
        unshare = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable]
        return subprocess.run([*unshare, "-m", "benchmarks.bench_agent", *sys.argv[1:]], check=False).returncode
    with tempfile.TemporaryDirectory(prefix="hauberk-bench-") as name:
        directory = Path(name)
        configuration = make_bundle(directory / "bundle", busybox, options.runtime)
        ours = [str(HOOK), "--socket", str(directory / "agent" / "hook.sock")]
        configuration["hooks"] = {
            stage: [{"path": str(HOOK), "args": [*ours, stage], "env": []}] for stage in ("createRuntime", "poststop")
        }
        (directory / "bundle/config.json").write_text(json.dumps(configuration))
        baseline = 0.0
        for rules in options.rules:
            agent = start_agent(directory / f"agent-{rules}", rules)
            first, again = measure(agent, directory, options.runtime, options.rounds)
            agent.stop()
            median = statistics.median(again)
            baseline = baseline or median
            sys.stdout.write(
                f"  {rules:>6} rules: first {first:8.2f} ms   again {median:7.2f} ms   x {median / baseline:5.2f}"
                f"   resident {resident():5.1f} MiB\n"
            )
    sys.stdout.write(f"aim: under {AIM_MILLISECONDS:.0f} ms\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())

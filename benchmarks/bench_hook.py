# SPDX-License-Identifier: Apache-2.0
"""What the hook costs a container's start, as ratios of one run.

    python3 benchmarks/bench_hook.py [--rounds N] [--agent-socket PATH] [--runtime runc]

Three questions, each asked of all variants in turn, round by round, so that a change of the machine's mood meets all:

* the hook file alone against ``python3 -ISE -c pass``, the least any Python program can take;
* runc create + start without a hook, with ``/bin/true`` as createRuntime hook, with ours, and with ours added by the
  wrapper runtime. Unless ``--agent-socket`` names a real agent's socket, a server in a process of its own accepts at
  once: then the figure is the hook's price and nothing of the agent's.
* a command of runc that makes no container, by itself and through the wrapper.

Medians of wall-clock milliseconds. Needs root, runc and busybox (Debian: busybox-static), no package of Python.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HOOK = Path(__file__).resolve().parents[1] / "hooks" / "hauberk-hook"
WRAPPER = "hauberk-runtime-bench"
PYTHON = "/usr/bin/python3"
ACCEPTED = b"HBK1" + bytes(8)
AIM_OVER_FLOOR_MILLISECONDS = 3.0
ENVIRONMENT_LACKS = 3


def accept_everything(listener: socket.socket) -> None:
    """Answer "accepted" to every whole request, for ever."""
    while True:
        connection, _ = listener.accept()
        with connection:
            header = connection.recv(12, socket.MSG_WAITALL)
            if len(header) == 12:
                connection.recv(int.from_bytes(header[8:12], "little"), socket.MSG_WAITALL)
                connection.sendall(ACCEPTED)


def start_server(path: Path) -> int:
    """Fork a server on the path and return its pid; it listens before this returns."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(64)
    pid = os.fork()
    if pid == 0:
        try:
            accept_everything(listener)
        finally:
            os._exit(1)
    listener.close()
    return pid


def make_bundle(directory: Path, busybox: str, runtime: str) -> dict[str, object]:
    """Write a busybox bundle and return its configuration."""
    (directory / "rootfs" / "bin").mkdir(parents=True)
    shutil.copy(busybox, directory / "rootfs" / "bin" / "busybox")
    (directory / "rootfs" / "bin" / "sleep").symlink_to("busybox")
    subprocess.run([runtime, "spec"], cwd=directory, check=True)
    configuration: dict[str, object] = json.loads((directory / "config.json").read_text())
    process = configuration["process"]
    assert isinstance(process, dict)  # noqa: S101 - what `spec` writes
    process.update(terminal=False, args=["/bin/sleep", "600"])
    return configuration


def timed(*commands: list[str], stdin: bytes | None = None) -> float:
    """Run the commands one after the other, all of which must succeed; return milliseconds."""
    began = time.perf_counter()
    for command in commands:
        subprocess.run(
            command,
            input=stdin,
            stdin=None if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            check=True,
        )
    return (time.perf_counter() - began) * 1000


def report(title: str, samples: dict[str, list[float]]) -> dict[str, float]:
    """Print medians and their ratios to the first variant; return the medians."""
    medians = {name: statistics.median(values) for name, values in samples.items()}
    base = next(iter(medians.values()))
    sys.stdout.write(f"\n{title}\n")
    for name, median in medians.items():
        sys.stdout.write(f"  {name:<38} {median:8.2f} ms   x {median / base:5.2f}   {median - base:+7.2f} ms\n")
    return medians


def measure_hook(agent: Path, rounds: int) -> dict[str, list[float]]:
    """Time the bare interpreter and the hook."""
    state = b'{"ociVersion":"1.0","id":"hauberk-bench","status":"stopped","bundle":"/run/bench"}'
    variants = {
        "python3 -ISE -c pass (floor)": [PYTHON, "-ISE", "-c", "pass"],
        # poststop: a real agent takes it for a container it does not know.
        "hauberk-hook": [str(HOOK), "--socket", str(agent), "poststop"],
    }
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, command in variants.items():
            samples[name].append(timed(command, stdin=state))
    return samples


def install_wrapper(directory: Path, runtime: str, hooks: dict[str, object]) -> str:
    """Put the wrapper and what it reads below a directory, with the paths changed accordingly; return its path."""
    (directory / "runtimes").mkdir(parents=True)
    (directory / "runtimes" / "bench").write_text(f"{shutil.which(runtime)}\n")
    (directory / "runtime-hooks.json").write_text(json.dumps(hooks))
    for name in ("hauberk-runtime", "hauberk-add-hooks"):
        text = HOOK.with_name(name).read_text("utf-8")
        text = text.replace("/usr/libexec/hauberk", str(directory)).replace("/etc/hauberk", str(directory))
        place = directory / (WRAPPER if name == "hauberk-runtime" else name)
        place.write_text(text, "utf-8")
        place.chmod(0o755)
    return str(directory / WRAPPER)


def measure_wrapper(directory: Path, runtime: str, rounds: int) -> dict[str, list[float]]:
    """Time a command that makes no container, with the wrapper that was installed there."""
    wrapper = str(directory / WRAPPER)
    variants = {f"{runtime} --version": [runtime, "--version"], "through the wrapper": [wrapper, "--version"]}
    samples: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, command in variants.items():
            samples[name].append(timed(command))
    return samples


def our_hooks(agent: Path) -> dict[str, object]:
    """Return the hooks of a configuration, with the agent's socket."""
    return {
        stage: [{"path": str(HOOK), "args": ["hauberk-hook", "--socket", str(agent), stage], "env": []}]
        for stage in ("createRuntime", "poststop")
    }


def measure_runtime(directory: Path, busybox: str, runtime: str, agent: Path, rounds: int) -> dict[str, list[float]]:
    """Time create + start of a container; its deletion happens in between, untimed, with the agent's poststop."""
    hooks = our_hooks(agent)
    wrapper = install_wrapper(directory / "wrapper", runtime, hooks)
    true = {"createRuntime": [{"path": "/bin/true", "args": ["true"], "env": []}]}
    variants: dict[str, tuple[str, dict[str, object]]] = {
        "no hook": (runtime, {}),
        "/bin/true as createRuntime hook": (runtime, {**true}),
        "hauberk-hook": (runtime, hooks),
        "hauberk-hook, added by the wrapper": (wrapper, {}),
    }
    bundle = directory / "bundle"
    configuration = make_bundle(bundle, busybox, runtime)
    state = ["--root", str(directory / "state")]
    starts: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(rounds):
        for name, (program, section) in variants.items():
            (bundle / "config.json").write_text(json.dumps({**configuration, "hooks": section}))
            command = [program, *state]
            identifier = f"hauberk-bench-{os.getpid()}-{number}"
            try:
                starts[name].append(
                    timed([*command, "create", "--bundle", str(bundle), identifier], [*command, "start", identifier])
                )
            finally:
                subprocess.run([*command, "delete", "--force", identifier], check=False)
    return starts


def main() -> int:
    """Run the measurements; return 0, or 3 when root, the runtime or busybox is missing."""
    parser = argparse.ArgumentParser(description="What the hook costs a container's start, as ratios of one run.")
    parser.add_argument("--rounds", type=int, default=40, help="samples per variant (default 40)")
    parser.add_argument("--agent-socket", type=Path, help="a running agent's hook socket")
    parser.add_argument("--runtime", default="runc", help="OCI runtime (default runc)")
    options = parser.parse_args()
    busybox = shutil.which("busybox")
    if os.geteuid() != 0 or busybox is None or shutil.which(options.runtime) is None:
        sys.stderr.write(
            f"bench_hook: needs root, {options.runtime} and busybox (apt-get install runc busybox-static)\n"
        )
        return ENVIRONMENT_LACKS
    with tempfile.TemporaryDirectory(prefix="hauberk-bench-") as name:
        directory = Path(name)
        agent = options.agent_socket or directory / "hook.sock"
        server = None if options.agent_socket else start_server(agent)
        try:
            alone = report("the hook alone", measure_hook(agent, options.rounds))
            title = f"{options.runtime} create + start"
            report(title, measure_runtime(directory, busybox, options.runtime, agent, options.rounds))
            title = "a command that makes no container"
            report(title, measure_wrapper(directory / "wrapper", options.runtime, options.rounds))
        finally:
            if server is not None:
                os.kill(server, signal.SIGKILL)
                os.waitpid(server, 0)
    floor, hook = alone.values()
    sys.stdout.write(
        f"\nhook over the interpreter's floor: {hook - floor:.2f} ms "
        f"(aim: within {AIM_OVER_FLOOR_MILLISECONDS:.0f} ms)\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""``make bench-network``: what network policies cost packets, connections and whoever changes them, in one run.

    python -m benchmarks.bench_network [--rounds N] [--rules 0 1 100 …] [--only packets changes …]

Compared are: no table at all; our engine with the rules of a policy (0: only what the measurements themselves send is
allowed, the rest is refused); the same rules as a list of nftables, which is what most generators of rules write; and
as sets that somebody who knows nftables wrote by hand. All of them let established flows pass first, and tell what they
refuse at the same rate.

Rounds go round all rulesets, and medians are told. Of packets that is time of the processor, which what else the
machine does hardly adds to, and of the clock; one thread has both ends of every flow, so it is the time of all that
happens to a packet from end to end. Ratios are to our own empty ruleset, or to what is named beside; times are of the
machine it runs on, ratios travel.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from benchmarks import network_rules as rules
from benchmarks.network_world import FLOOD_SOURCES, TRAFFIC, KernelMemory, Receiver, World, WorldError, world
from guest_agent.engines.network_port import HOST_ENDPOINT, Desired, Endpoint, Whole
from guest_agent.engines.nftables.engine import NftablesEngine
from hauberk.policy import models, normalise

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from hauberk.policy.rules import RuleSet

    Words = Callable[["Ruleset"], tuple[object, ...]]

SIZES: Final = (0, 1, 100, 1_000, 10_000, 100_000)
LONGEST_LIST: Final = 10_000
"""Rules beyond which a list is not measured: at 100,000 a packet takes milliseconds."""
FLOOD_PACKETS: Final = 100_000
LONGEST_FLOOD_SECONDS: Final = 2.0
TRIPS: Final = 5_000
FLOW_TRIPS: Final = 50_000
CONNECTIONS: Final = 5_000
CHUNKS: Final = 5_000
CHANGED_RULES: Final = 10_000
SETTLING_SECONDS: Final = 0.3
"""Before each change: the kernel takes sets apart after the transaction that removed them."""
PARTS: Final = ("packets", "trips", "flow", "connections", "stream", "changes", "memory")
ENVIRONMENT_LACKS: Final = 3


class Ruleset(NamedTuple):
    """Something that is compared: what it is called, how many rules, and where it is in force."""

    kind: str
    size: int
    receiver: Receiver

    @property
    def title(self) -> str:
        """What the tables call it."""
        return self.kind if self.kind == "no table" else f"{self.kind}, {self.size:,}"


def desired(rule_set: RuleSet) -> Desired:
    """Give what holds for a machine with these rules."""
    return Desired((Endpoint(HOST_ENDPOINT, (rule_set,), Whole()),))


def compared(made: World, engine: NftablesEngine, sizes: Sequence[int], directory: Path) -> list[Ruleset]:
    """Put everything in force that is compared."""
    found = [Ruleset("no table", 0, made.receiver())]
    for size in sizes:
        allowed = rules.make(size)
        ours = made.receiver()
        engine.apply(ours.namespace, desired(rules.rule_set(allowed)))
        found.append(Ruleset("hauberk", size, ours))
        for kind, write in (("sets by hand", rules.hand_written), ("list", rules.linear)):
            if size and (kind != "list" or size <= LONGEST_LIST):
                receiver = made.receiver()
                file = directory / "rules.nft"
                file.write_text(write(allowed))
                receiver.nft(file)
                found.append(Ruleset(kind, size, receiver))
    return found


def table(title: str, made: World, rulesets: Sequence[Ruleset], rounds: int, words: Words) -> None:
    """Measure each ruleset in each round, and print the medians with ratios to our own empty ruleset."""
    found: dict[Ruleset, list[tuple[int, int]]] = {ruleset: [] for ruleset in rulesets}
    for _ in range(rounds):
        for ruleset in rulesets:
            found[ruleset].append(made.send(*words(ruleset)))
    medians = {
        ruleset: [statistics.median(column) for column in zip(*found[ruleset], strict=True)] for ruleset in found
    }
    empty = next((values[1] for ruleset, values in medians.items() if ruleset[:2] == ("hauberk", 0)), None)
    print(f"\n{title}, ns\n{'':24}{'processor':>12}{'ratio':>10}{'a second':>12}{'clock':>12}")
    for ruleset, (clock, processor) in medians.items():
        ratio = f"{processor / empty:10.3f}" if empty else " " * 10
        print(f"{ruleset.title:24}{processor:12,.0f}{ratio}{1e9 / processor:12,.0f}{clock:12,.0f}", flush=True)


def packets(made: World, rulesets: Sequence[Ruleset], rounds: int) -> None:
    """Flood every receiver with packets of flows that nobody knows and no rule is about."""

    def flood(ruleset: Ruleset, count: int) -> tuple[object, ...]:
        return "flood", FLOOD_SOURCES, ruleset.receiver.address, rules.FLOOD_PORT, count

    counts = {
        ruleset: min(FLOOD_PACKETS, int(LONGEST_FLOOD_SECONDS * 1e9 / max(made.send(*flood(ruleset, 256))[1], 1)))
        for ruleset in rulesets
    }
    title = "A packet that no rule matches (64 bytes of UDP, each a flow of its own)"
    table(title, made, rulesets, rounds, lambda ruleset: flood(ruleset, counts[ruleset]))


def trips(made: World, rulesets: Sequence[Ruleset], rounds: int) -> None:
    """Send there and back, each a flow of its own that a rule allows after all others were asked."""

    def words(ruleset: Ruleset) -> tuple[object, ...]:
        return "trips", ruleset.receiver.path, ruleset.receiver.nets, rules.ECHO_PORT, TRIPS

    table("A round trip (UDP, each a flow of its own)", made, rulesets, rounds, words)


def flow(made: World, rulesets: Sequence[Ruleset], rounds: int) -> None:
    """Send there and back in one flow, which conntrack knows after the first packet."""

    def words(ruleset: Ruleset) -> tuple[object, ...]:
        return "flow", ruleset.receiver.path, ruleset.receiver.address, rules.ECHO_PORT, FLOW_TRIPS

    table("A round trip within one flow (UDP)", made, rulesets, rounds, words)


def connections(made: World, rulesets: Sequence[Ruleset], rounds: int) -> None:
    """Make and end TCP connections."""

    def words(ruleset: Ruleset) -> tuple[object, ...]:
        return "connect", ruleset.receiver.path, ruleset.receiver.address, rules.ACCEPT_PORT, CONNECTIONS

    table("A TCP connection, made and ended", made, rulesets, rounds, words)


def stream(made: World, rulesets: Sequence[Ruleset], rounds: int) -> None:
    """Write to one connection."""

    def words(ruleset: Ruleset) -> tuple[object, ...]:
        return "stream", ruleset.receiver.path, ruleset.receiver.address, rules.SINK_PORT, CHUNKS

    table("64 KiB of a long flow (TCP)", made, rulesets, rounds, words)


def milliseconds(action: Callable[[], object]) -> tuple[float, float]:
    """Tell how long an action takes, by the clock and of the processor, programs it starts included."""
    time.sleep(SETTLING_SECONDS)
    begin, before = time.perf_counter(), _processor_seconds()
    action()
    return (time.perf_counter() - begin) * 1e3, (_processor_seconds() - before) * 1e3


def _processor_seconds() -> float:
    """Tell the time of the processor that this process and the programs it started have taken."""
    children = os.times()
    return time.process_time() + children.children_user + children.children_system


class Style(NamedTuple):
    """A way to write many networks: what it is called, as rules of ours, as a file of nft's."""

    title: str
    rule_set: Callable[[Sequence[rules.Allowed]], RuleSet]
    file: Callable[[Sequence[rules.Allowed]], str]


STYLES: Final = (
    Style("a rule for each network, with ports of its own", rules.rule_set, rules.hand_written),
    Style("one rule with a list of networks", rules.list_rule_set, rules.hand_written_list),
)


def changes(made: World, engine: NftablesEngine, rounds: int, directory: Path) -> None:
    """Change what is in force: one network more, everything else; ours and files for ``nft -f``, in turn."""
    print(f"\nFrom changed rules to enforced, {CHANGED_RULES:,} networks, milliseconds")
    print(f"{'':50}{'clock':>24}{'processor':>24}")
    print(f"{'':50}{'hauberk':>8}{'nft -f':>8}{'ratio':>8}{'hauberk':>8}{'nft -f':>8}{'ratio':>8}")
    for style in STYLES:
        print(f"{style.title}:")
        ours, theirs = made.receiver(), made.receiver()
        allowed = rules.make(CHANGED_RULES + rounds)
        steps = [
            ("  the first time", [allowed[:CHANGED_RULES]]),
            ("  one network more", [allowed[: CHANGED_RULES + 1 + index] for index in range(rounds)]),
            ("  all networks others", [rules.make(CHANGED_RULES, seed=2 + index) for index in range(rounds)]),
        ]
        for title, wanted in steps:
            by_us, by_file = [], []
            for some in wanted:
                whole = desired(style.rule_set(some))
                by_us.append(milliseconds(partial(engine.apply, ours.namespace, whole)))
                file = directory / "change.nft"
                file.write_text(style.file(some))
                by_file.append(milliseconds(partial(theirs.nft, file)))
            columns = ""
            for kind in (0, 1):
                found, compared_with = (statistics.median(one[kind] for one in listed) for listed in (by_us, by_file))
                columns += f"{found:8,.0f}{compared_with:8,.0f}{found / compared_with:8.2f}"
            print(f"{title:50}{columns}", flush=True)
    text = rules.policy(rules.make(CHANGED_RULES)).encode()
    gc.disable()  # as the process does that reads policies for the agent
    clock, processor = milliseconds(lambda: [*map(normalise.rules, models.examine([("policy.yaml", text)])[0])])
    gc.enable()
    print(f"{'reading such a policy, a rule for each':50}{clock:8,.0f}{processor:24,.0f}", flush=True)


def memory(sizes: Sequence[int]) -> None:
    """Tell what rulesets take in the kernel and in the process that puts them in force, each in a new process."""
    print(f"\nMemory, KiB\n{'':24}{'kernel':>14}{'process':>14}{'its peak':>14}")
    for kind in ("hauberk", "sets by hand", "list"):
        for size in sizes:
            if kind == "list" and size > LONGEST_LIST:
                continue
            command = [sys.executable, "-m", "benchmarks.bench_network", "--memory-of", kind, str(size)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                raise WorldError(done.stderr.strip()[-500:])
            found = json.loads(done.stdout)
            columns = "".join(f"{found[name]:14,}" if found[name] is not None else f"{'unknown':>14}" for name in found)
            print(f"{kind + f', {size:,}':24}{columns}", flush=True)


def memory_of(kind: str, size: int) -> None:
    """Put one ruleset in force in this process and print what that took."""
    kernel = KernelMemory()
    try:
        with world() as made, tempfile.TemporaryDirectory() as directory:
            receiver = made.receiver()
            allowed = rules.make(size)
            write = rules.linear if kind == "list" else rules.hand_written
            file = Path(directory) / "rules.nft"
            file.write_text(write([]))
            engine = NftablesEngine()
            # once without rules: what comes up at the first time is not of the rules
            engine.apply(receiver.namespace, desired(rules.rule_set([])))
            engine.remove(receiver.namespace)
            made.receiver().nft(file)
            file.write_text(write(allowed))
            wanted = desired(rules.rule_set(allowed))
            time.sleep(SETTLING_SECONDS)
            before = kernel.bytes(), status("VmRSS")
            if kind == "hauberk":
                engine.apply(receiver.namespace, wanted)
            else:
                receiver.nft(file)
            time.sleep(SETTLING_SECONDS)
            after = kernel.bytes()
            ours = kind == "hauberk"
            found = {
                "kernel": None if after is None or before[0] is None else (after - before[0]) // 1024,
                "process": status("VmRSS") - before[1] if ours else None,
                "peak": status("VmHWM") - before[1] if ours else None,
            }
    finally:
        kernel.end()
    print(json.dumps(found))


def status(field: str) -> int:
    """Give a number of this process's status, in KiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    message = f"found no {field} in /proc/self/status"
    raise WorldError(message)


def measure(arguments: argparse.Namespace) -> None:
    """Measure what was asked for."""
    with world() as made, tempfile.TemporaryDirectory() as text:
        directory = Path(text)
        engine = NftablesEngine()
        if "changes" in arguments.only:
            # first: an agent's process does not hold the many rules of the other measurements
            changes(made, engine, arguments.rounds, directory)
        of_packets = {"packets": packets, "trips": trips, "flow": flow, "connections": connections, "stream": stream}
        wanted = [of_packets[part] for part in arguments.only if part in of_packets]
        if wanted:
            rulesets = compared(made, engine, arguments.rules, directory)
            for part in wanted:
                part(made, rulesets, arguments.rounds)
        engine.close()
    if "memory" in arguments.only:
        memory(arguments.rules)


def main() -> int:
    """Read the command line, see whether the machine can do it, and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rules", type=int, nargs="*", default=list(SIZES))
    parser.add_argument("--only", nargs="*", choices=PARTS, default=list(PARTS))
    parser.add_argument("--memory-of", nargs=2, metavar=("KIND", "RULES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if not TRAFFIC.exists():
        print(f"found no {TRAFFIC}, expected the benchmark's sender; run `make bench-network`", file=sys.stderr)
        return ENVIRONMENT_LACKS
    probe = NftablesEngine().probe()
    if not probe.available:
        print(f"the engine cannot run here: {probe.reason}", file=sys.stderr)
        return ENVIRONMENT_LACKS
    if arguments.memory_of:
        memory_of(arguments.memory_of[0], int(arguments.memory_of[1]))
        return 0
    measure(arguments)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

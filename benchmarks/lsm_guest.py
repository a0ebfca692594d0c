# SPDX-License-Identifier: Apache-2.0
"""The guest's half of ``make bench-lsm``: times system calls inside containers that differ only in their policy.

All containers exist at once and each round asks each of them in turn, so that a drift of the machine touches all
alike; ratios are taken against the unprotected container of the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from guest_agent.engines.bpf_lsm.engine import BpfLsmEngine, cgroup_root
from guest_agent.engines.bpf_lsm.plan import compile_table, fingerprint
from guest_agent.engines.port import EnforcedWorkload, GateSettings
from hauberk.policy.rules import Action, ObjectKind, Origin, Rule, RuleSet, Section, implied_rules
from tests.vm.containers import bundle, rootfs, runtime

BASE = Path("/run/hauberk-bench")
DATA = "/usr/share/hauberk/benchmark/data/files/file-001"  # 48 bytes
PROGRAM = "/usr/bin/lsm_bench"
BUILD = (
    "rm -rf /tmp/build; mkdir -p /tmp/build/src /tmp/build/out; i=0; while [ $i -lt 12 ]; do"
    ' echo "int f$i;" > /tmp/build/src/$i.c; sed s/int/long/ /tmp/build/src/$i.c > /tmp/build/out/$i.i;'
    " md5sum /tmp/build/out/$i.i > /tmp/build/out/$i.o; i=$((i+1)); done;"
    " cat /tmp/build/out/*.o > /tmp/build/a.out; cp /tmp/build/a.out /tmp/build/b.out;"
    " mv /tmp/build/b.out /tmp/build/c.out"
)
OPERATIONS = {"open+close": ("open", 3000, DATA), "stat": ("stat", 3000, DATA), "execve": ("exec", 30, PROGRAM)}


def rules(count: int) -> RuleSet:
    """Make ``count`` rules as people write them: mostly paths, some directories and patterns, two sources."""
    origin = Origin("benchmark", "spec")
    made: list[Rule] = []
    for number in range(count):
        kind = number % 20
        name = f"/srv/tenant-{number % 97}/application-{number}/configuration"
        if kind == 0:
            made.append(Rule(Section.FILE, ObjectKind.DIRECTORY, f"{name}/", Action.BLOCK, origin, recursive=True))
        elif kind == 1:
            made.append(Rule(Section.FILE, ObjectKind.PATTERN, f"{name}-*.yaml", Action.AUDIT, origin))
        elif kind == 2:
            made.append(Rule(Section.PROCESS, ObjectKind.PATH, f"/opt/tools/tool-{number}", Action.BLOCK, origin))
        else:
            made.append(
                Rule(Section.FILE, ObjectKind.PATH, f"{name}.key", Action.BLOCK, origin, read_only=kind % 2 == 0)
            )
    # the directory that is measured is named too, or the automaton would leave it at the first byte
    made.append(Rule(Section.FILE, ObjectKind.PATH, f"{DATA}-secret", Action.BLOCK, origin))
    made.append(Rule(Section.PROCESS, ObjectKind.PATH, f"{PROGRAM}-secret", Action.BLOCK, origin))
    return RuleSet((*made, *implied_rules(made)))


def containers(engine: BpfLsmEngine, settings: dict[str, RuleSet | None]) -> runtime.Runtime:
    """Start one container for each setting; None is one that the engine does not know."""
    rootfs.build(BASE / "rootfs", Path(".cache/containers"), deep=False)
    (BASE / "rootfs" / DATA.lstrip("/")).parent.mkdir(parents=True)
    (BASE / "rootfs" / DATA.lstrip("/")).write_text("data\n")
    subprocess.run(["/bin/cp", ".cache/containers/lsm_bench", BASE / "rootfs/usr/bin/lsm_bench"], check=True)
    started = runtime.Runtime(BASE / "runc")
    for number, (name, rule_set) in enumerate(settings.items(), 1):
        made = bundle.write(BASE / f"bundle-{number}", BASE / "rootfs", bundle.Options())
        started.create(f"c{number}", made).check()
        state = started.state(f"c{number}")
        if state is None:
            raise RuntimeError(name)
        if rule_set is not None:
            start = time.perf_counter()
            table = compile_table(rule_set)
            compiled = time.perf_counter()
            relative = Path(f"/proc/{state['pid']}/cgroup").read_text().split("::")[1].strip().lstrip("/")
            engine.register(
                EnforcedWorkload(
                    number,
                    f"c{number}",
                    (cgroup_root() / relative).stat().st_ino,
                    Path(f"/proc/{state['pid']}/ns/mnt").stat().st_ino,
                    table.blob,
                    fingerprint(rule_set),
                )
            )
            sys.stderr.write(
                f"{name}: {table.states} states, {len(table.blob)} bytes, compiled in {compiled - start:.2f} s,"
                f" in force {(time.perf_counter() - compiled) * 1000:.1f} ms later\n"
            )
        started.start(f"c{number}").check()
    return started


def measure(inside: runtime.Runtime, names: list[str], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Nanoseconds by setting and operation, one figure a round."""
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    made = bundle.Bundle(BASE / "bundle-1", BASE, bundle.Options(), overlay=False)
    for _ in range(rounds):
        for number, name in enumerate(names, 1):
            for operation, (word, count, path) in OPERATIONS.items():
                result = inside.execute(f"c{number}", made, [PROGRAM, word, str(count), path]).check()
                figures[name].setdefault(operation, []).append(float(result.output))
            script = f"a=$(date +%s%N 2>/dev/null); {BUILD}"
            start = time.perf_counter_ns()
            inside.execute(f"c{number}", made, ["/bin/sh", "-c", script]).check()
            figures[name].setdefault("small build", []).append(time.perf_counter_ns() - start)
    return figures


def main() -> int:
    """Print one table; the JSON of it goes to ``$HAUBERK_OUT`` when that is set."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rules", type=int, nargs="*", default=[1, 100, 1000, 10000])
    arguments = parser.parse_args()
    BASE.mkdir(parents=True)
    subprocess.run(["/bin/mount", "-t", "tmpfs", "-o", "size=1g", "tmpfs", BASE], check=True)
    engine = BpfLsmEngine()
    engine.seal("00" * 32, GateSettings("host", (), (), (), (), os.getpid()))
    settings: dict[str, RuleSet | None] = {"unprotected": None, "no path rules": RuleSet(())}
    settings |= {f"{count} rules": rules(count) for count in arguments.rules}
    inside = containers(engine, settings)
    names = list(settings)
    figures = measure(inside, names, arguments.rounds)
    print(f"Linux {os.uname().release}, {arguments.rounds} rounds, fastest (ratio to unprotected)")
    print(f"{'':16}" + "".join(f"{operation:>26}" for operation in figures[names[0]]))
    for name in names:
        cells = []
        for operation, values in figures[name].items():
            ratio = min(values) / min(figures["unprotected"][operation])
            cells.append(f"{min(values) / 1000:>15.2f} µs ({ratio:5.3f})")
        print(f"{name:16}" + "".join(f"{cell:>26}" for cell in cells))
    if out := os.environ.get("HAUBERK_OUT"):
        Path(out, "bench-lsm.json").write_text(json.dumps(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

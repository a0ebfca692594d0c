# SPDX-License-Identifier: Apache-2.0
"""Compile time, memory and table size by number of rules: ``python -m benchmarks.bench_plan [NUMBER…]``.

Two made-up but shaped-like-life sets: ``exact`` (only paths) and ``mixed`` (half paths, a quarter directories, the rest
globs and executable names, a few sources). Times are of one run each; memory is the peak of a second run under
tracemalloc.
"""

from __future__ import annotations

import random
import sys
import time
import tracemalloc
from typing import Final

from guest_agent.engines.bpf_lsm.plan import PlanError, compile_table
from hauberk.policy.rules import Action, ObjectKind, Origin, Rule, RuleSet, Section

ORIGIN: Final = Origin("benchmark", "")
TOPS: Final = (
    "/usr/bin",
    "/usr/lib/x86_64-linux-gnu",
    "/usr/share/doc",
    "/etc",
    "/var/lib",
    "/opt/application",
    "/home/service",
)
WORDS: Final = (
    "alpha", "backup", "cache", "config", "data", "export", "fonts", "gateway", "hosts", "index", "journal", "keys",
    "log", "modules", "network", "options", "policy", "queue", "runtime", "secrets", "tables", "users",
    "values", "worker",
)  # fmt: skip
SUFFIXES: Final = ("", ".conf", ".so.1", ".json", ".d", "-daemon")


def path(generator: random.Random) -> str:
    """Make up a path of 20 to 60 bytes."""
    parts = [generator.choice(TOPS), *generator.choices(WORDS, k=generator.randint(0, 2))]
    return "/".join([*parts, f"{generator.choice(WORDS)}{generator.randint(0, 999)}{generator.choice(SUFFIXES)}"])


def rule(generator: random.Random, kind: ObjectKind, value: str) -> Rule:
    """Make up a rule for an object."""
    return Rule(
        generator.choice((Section.PROCESS, Section.FILE, Section.FILE)), kind, value,
        generator.choice((Action.BLOCK, Action.BLOCK, Action.AUDIT)), ORIGIN,
        recursive=kind is ObjectKind.DIRECTORY and generator.random() < 0.5,
        sources=("/usr/bin/service",) if generator.random() < 0.1 else (),
    )  # fmt: skip


def exact(number: int) -> RuleSet:
    """Paths only, all of them Block."""
    generator = random.Random(number)  # noqa: S311 - made-up paths, always the same
    paths: set[str] = set()
    while len(paths) < number:
        paths.add(path(generator))
    return RuleSet(tuple(Rule(Section.FILE, ObjectKind.PATH, value, Action.BLOCK, ORIGIN) for value in sorted(paths)))


def mixed(number: int) -> RuleSet:
    """Every kind of rule."""
    generator = random.Random(number)  # noqa: S311 - made-up paths, always the same
    rules = []
    for index in range(number):
        value = path(generator)
        if index % 4 < 2:
            rules.append(rule(generator, ObjectKind.PATH, value))
        elif index % 4 == 2:
            rules.append(rule(generator, ObjectKind.DIRECTORY, value + "/"))
        elif index % 40 == 3:
            rules.append(rule(generator, ObjectKind.EXECNAME, value.rpartition("/")[2]))
        else:
            tail = generator.choice(("/*.key", "/**/id_*", "/*/secret[0-9]", "/{a,b}*/**", "*.log"))
            rules.append(rule(generator, ObjectKind.PATTERN, value + tail))
    return RuleSet(tuple(rules))


def main(arguments: list[str]) -> int:
    """Print one line per set and number of rules."""
    numbers = [int(argument) for argument in arguments] or [1, 20, 100, 1000, 10000]
    print(
        f"{'set':6} {'rules':>6} {'seconds':>9} {'peak MiB':>9} {'states':>8} {'cells':>8} {'filled':>7}"
        f" {'classes':>8} {'KiB':>8}"
    )
    for name, make in (("exact", exact), ("mixed", mixed)):
        for number in numbers:
            rule_set = make(number)
            started = time.perf_counter()
            try:
                table = compile_table(rule_set)
            except PlanError as error:
                print(f"{name:6} {number:6} {time.perf_counter() - started:9.4f} refused: {error}")
                continue
            seconds = time.perf_counter() - started
            tracemalloc.start()
            compile_table(rule_set)
            peak = tracemalloc.get_traced_memory()[1] / 2**20
            tracemalloc.stop()
            sizes = table.describe()
            cells, used = int(str(sizes["transitions"])), int(str(sizes["transitionsUsed"]))
            print(
                f"{name:6} {number:6} {seconds:9.4f} {peak:9.1f} {table.states:8} {cells:8} {used / max(cells, 1):7.1%}"
                f" {table.classes:8} {len(table.blob) / 1024:8.1f}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

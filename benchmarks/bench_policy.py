# SPDX-License-Identifier: Apache-2.0
"""What the command line costs an author of policies: ``python -m benchmarks.bench_policy [--quick]``.

Each figure is the time of a whole command, the best of several runs: what other programs do at the same time only ever
adds. Processor time is told beside, which waiting for a processor does not add to. Two floors stand with them: an
interpreter that does nothing, and the YAML library's own parser on the same texts, in one process. Ratios to these
travel from machine to machine; milliseconds do not. ``cold`` is with an empty cache, ``warm`` with the policies in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final, NamedTuple

HAUBERK: Final = (sys.executable, "-m", "hauberk.cli")
POLICY: Final = """\
apiVersion: security.kubearmor.com/v1
kind: KubeArmorPolicy
metadata:
  name: policy-{n}
  namespace: shop
spec:
  selector:
    matchLabels:
      app: application-{n}
  severity: 5
  tags: [benchmark]
  message: not here
  action: Block
  process:
    matchPaths:
      - path: /usr/bin/tool-{n}
      - path: /usr/sbin/admin-{n}
        fromSource:
          - path: /bin/bash
  file:
    matchDirectories:
      - dir: /etc/application-{n}/
        recursive: true
        readOnly: true
    matchPatterns:
      - pattern: /home/*/.application-{n}/**
"""
PARSE_ALONE: Final = """
import sys, pathlib, yaml
loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
for path in pathlib.Path(sys.argv[1]).iterdir():
    for _ in yaml.parse(path.read_bytes(), Loader=loader):
        pass
"""
QUESTION: Final = ("--operation", "read", "--path", "/etc/application-7/key")


def make(directory: Path, number: int) -> Path:
    """Write so many policies, each in a file of its own."""
    directory.mkdir()
    for index in range(number):
        (directory / f"policy-{index}.yaml").write_text(POLICY.format(n=index))
    return directory


class Cost(NamedTuple):
    """What a command took, in seconds: from start to end, and of a processor."""

    elapsed: float
    processor: float


def cost(command: tuple[str, ...], cache: Path, repetitions: int, *, cold: bool = False) -> Cost:
    """Give the least that a command took."""
    best = Cost(float("inf"), float("inf"))
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    for _ in range(repetitions):
        for entry in cache.rglob("*.policies") if cold else ():
            entry.unlink()
        started = time.perf_counter()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        elapsed = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            sys.exit(f"{' '.join(command)} ended with {process.returncode}")
        best = Cost(min(best.elapsed, elapsed), min(best.processor, usage.ru_utime + usage.ru_stime))
    return best


def main(arguments: list[str]) -> int:
    """Print one line per figure."""
    quick = "--quick" in arguments
    repetitions, sizes = (3, (100,)) if quick else (15, (1000, 10_000))
    with tempfile.TemporaryDirectory() as top:
        cache = Path(top, "cache")
        cache.mkdir()
        floor = cost((sys.executable, "-c", "pass"), cache, repetitions)
        print(f"{'what':44} {'ms':>9} {'cpu ms':>9} {'x nothing':>10} {'x yaml':>7}   ratios of processor time")

        def tell(what: str, found: Cost, yaml_floor: Cost | None = None) -> None:
            ratio = f"{found.processor / yaml_floor.processor:7.1f}" if yaml_floor else ""
            times = f"{found.elapsed * 1000:9.1f} {found.processor * 1000:9.1f}"
            print(f"{what:44} {times} {found.processor / floor.processor:10.1f} {ratio}", flush=True)

        tell("python that does nothing", floor)

        one = make(Path(top, "1"), 1)
        check = (*HAUBERK, "policy", "check")
        tell("check --help", cost((*check, "--help"), cache, repetitions))
        tell("check of 1 document, cold", cost((*check, str(one)), cache, repetitions, cold=True))
        tell("check of 1 document, warm", cost((*check, str(one)), cache, repetitions))
        for number in sizes:
            directory = str(make(Path(top, str(number)), number))
            few = max(repetitions // (number // 100), 1)
            yaml_alone = cost((sys.executable, "-c", PARSE_ALONE, directory), cache, few)
            tell(f"yaml alone, {number} documents", yaml_alone)
            tell(f"check of {number} documents, cold", cost((*check, directory), cache, few, cold=True), yaml_alone)
            tell(f"check of {number} documents, warm", cost((*check, directory), cache, few), yaml_alone)
            explain = (*HAUBERK, "policy", "explain", directory, *QUESTION)
            tell(f"explain in {number} policies, cold", cost(explain, cache, few, cold=True), yaml_alone)
            tell(f"explain in {number} policies, warm", cost(explain, cache, repetitions), yaml_alone)
            covered = (*explain, "--label", "app=application-7", "--namespace", "shop")
            tell(f"explain for one workload of {number}, warm", cost(covered, cache, repetitions), yaml_alone)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

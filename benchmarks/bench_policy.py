# SPDX-License-Identifier: Apache-2.0
"""What the command line costs an author of policies: ``python -m benchmarks.bench_policy [--quick]``.

Each figure is the time of a whole command, from the shell's view, the best of several runs: what other programs do at
the same time only ever adds. Two floors stand beside them: an interpreter that does nothing, and the YAML library's own
parser on the same texts, in one process. Ratios to these travel from machine to machine; milliseconds do not.
``cold`` is with an empty cache, ``warm`` with the policies in it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

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


def seconds(command: tuple[str, ...], cache: Path, repetitions: int, *, cold: bool = False) -> float:
    """Give the shortest time that a command took."""
    best = float("inf")
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache)}
    for _ in range(repetitions):
        for entry in cache.rglob("*.policies") if cold else ():
            entry.unlink()
        started = time.perf_counter()
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        best = min(best, time.perf_counter() - started)
        if done.returncode:
            sys.exit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr.decode()}")
    return best


def main(arguments: list[str]) -> int:
    """Print one line per figure."""
    quick = "--quick" in arguments
    repetitions, sizes = (3, (100,)) if quick else (15, (1000, 10_000))
    with tempfile.TemporaryDirectory() as top:
        cache = Path(top, "cache")
        cache.mkdir()
        floor = seconds((sys.executable, "-c", "pass"), cache, repetitions)
        print(f"{'what':44} {'ms':>9} {'x nothing':>10} {'x yaml':>7}")
        print(f"{'python that does nothing':44} {floor * 1000:9.1f} {1:10.1f}")

        def tell(what: str, found: float, yaml_floor: float | None = None) -> None:
            ratio = f"{found / yaml_floor:7.1f}" if yaml_floor else ""
            print(f"{what:44} {found * 1000:9.1f} {found / floor:10.1f} {ratio}", flush=True)

        one = make(Path(top, "1"), 1)
        check = (*HAUBERK, "policy", "check")
        tell("check --help", seconds((*check, "--help"), cache, repetitions))
        tell("check of 1 document, cold", seconds((*check, str(one)), cache, repetitions, cold=True))
        tell("check of 1 document, warm", seconds((*check, str(one)), cache, repetitions))
        for number in sizes:
            directory = str(make(Path(top, str(number)), number))
            few = max(repetitions // (number // 100), 1)
            yaml_alone = seconds((sys.executable, "-c", PARSE_ALONE, directory), cache, few)
            tell(f"yaml alone, {number} documents", yaml_alone)
            tell(f"check of {number} documents, cold", seconds((*check, directory), cache, few, cold=True), yaml_alone)
            tell(f"check of {number} documents, warm", seconds((*check, directory), cache, few), yaml_alone)
            explain = (*HAUBERK, "policy", "explain", directory, *QUESTION)
            tell(f"explain in {number} policies, cold", seconds(explain, cache, few, cold=True), yaml_alone)
            tell(f"explain in {number} policies, warm", seconds(explain, cache, repetitions), yaml_alone)
            covered = (*explain, "--label", "app=application-7", "--namespace", "shop")
            tell(f"explain for one workload of {number}, warm", seconds(covered, cache, repetitions), yaml_alone)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

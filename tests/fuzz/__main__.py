# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.fuzz [--seconds-each N] [TARGET …]``: fuzz the targets one after the other, and sum up.

Corpora and findings are kept in ``.cache/fuzz/TARGET``; a run goes on from the corpus of the last one. Ends with 1 if
there was a finding; the file it names reproduces it with ``python -m tests.fuzz.one TARGET FILE``.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from tests.fuzz import targets

REPOSITORY = Path(__file__).parents[2]
CACHE = REPOSITORY / ".cache/fuzz"
MAXIMUM_INPUT_BYTES = 16 * 1024
SECONDS_FOR_ONE_INPUT = 20
MEMORY_MEBIBYTES = 2048
MAXIMUM_WORDS = 1000
_WORD = re.compile(rb"[A-Za-z][A-Za-z0-9_.+/-]{2,40}")
_EXECUTIONS = re.compile(rb"stat::number_of_executed_units:\s+(\d+)")
_COVERED = re.compile(rb"cov: (\d+) ft: (\d+) corp: (\d+)")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one target."""

    executions: int
    covered: str
    findings: tuple[Path, ...]
    status: int


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--seconds-each", type=int, default=60, metavar="N")
    parser.add_argument("target", nargs="*", default=list(targets.TARGETS), help=", ".join(targets.TARGETS))
    arguments = parser.parse_args()
    if unknown := set(arguments.target) - targets.TARGETS.keys():
        parser.error(f"found the targets {', '.join(sorted(unknown))}, expected some of {', '.join(targets.TARGETS)}")
    failed = False
    for name in arguments.target:
        outcome = fuzz(targets.TARGETS[name], arguments.seconds_each)
        found = f"{len(outcome.findings)} findings" if outcome.findings else "no finding"
        print(f"{name:20} {outcome.executions:>10} executions, {outcome.covered}, {found}", flush=True)
        for path in outcome.findings:
            print(f"  {path.relative_to(REPOSITORY)}", flush=True)
        failed = failed or bool(outcome.findings) or outcome.status != 0 or not outcome.executions
    return int(failed)


def fuzz(target: targets.Target, seconds: int) -> Outcome:
    """Fuzz one target in a process of its own; its output goes to ``.cache/fuzz/TARGET/log``."""
    directory = CACHE / target.name
    corpus, findings, seeds = (directory / name for name in ("corpus", "findings", "seeds"))
    for path in (corpus, findings, seeds):
        path.mkdir(parents=True, exist_ok=True)
    contents = list(target.seeds())
    for content in contents:
        (seeds / sha256(content).hexdigest()[:16]).write_bytes(content)
    (directory / "words").write_bytes(_dictionary(contents))
    before = set(findings.iterdir())
    command = [
        sys.executable, "-m", "tests.fuzz.one", target.name,
        f"-max_total_time={seconds}", f"-max_len={MAXIMUM_INPUT_BYTES}", f"-timeout={SECONDS_FOR_ONE_INPUT}",
        f"-rss_limit_mb={MEMORY_MEBIBYTES}", f"-artifact_prefix={findings}/", f"-dict={directory / 'words'}",
        "-print_final_stats=1", str(corpus), str(seeds),
    ]  # fmt: skip
    log = directory / "log"
    with log.open("wb") as file:
        status = subprocess.run(command, cwd=REPOSITORY, check=False, stdout=file, stderr=subprocess.STDOUT).returncode
    said = log.read_bytes()
    executions = _EXECUTIONS.search(said)
    covered = _COVERED.findall(said)
    edges, features, inputs = (number.decode() for number in covered[-1]) if covered else ("?", "?", "?")
    if status and set(findings.iterdir()) == before:
        print(f"{target.name}: ended with {status}; see {log.relative_to(REPOSITORY)}", file=sys.stderr)
    return Outcome(
        executions=int(executions[1]) if executions else 0,
        covered=f"{edges} edges, {features} features, corpus of {inputs}",
        findings=tuple(sorted(set(findings.iterdir()) - before)),
        status=status,
    )


def _dictionary(contents: list[bytes]) -> bytes:
    """Give the words of the seeds in libFuzzer's form: what a fuzzer would hardly guess, such as names of fields."""
    words = dict.fromkeys(word for content in contents for word in _WORD.findall(content))
    lines = [b'"%b"' % word for word in list(words)[:MAXIMUM_WORDS]]
    return b"\n".join(lines) + b"\n"


if __name__ == "__main__":
    sys.exit(main())

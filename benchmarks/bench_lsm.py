# SPDX-License-Identifier: Apache-2.0
"""``make bench-lsm``: what path rules cost a workload, against the same container without them, in one run.

Boots the VM lane's guest on each kernel and runs :mod:`benchmarks.lsm_guest` there. Under software emulation a call
into a kernel helper costs more, compared with everything else, than on a real processor; ratios here are upper bounds.
"""

from __future__ import annotations

import argparse
import sys

from tests.vm import harness


def _show(output: bytes) -> None:
    sys.stdout.buffer.write(output)
    sys.stdout.flush()


def main() -> int:
    """Run the guest's half on each kernel and let it print its table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", action="append", choices=harness.KERNELS)
    parser.add_argument("--rounds", default="10")
    parser.add_argument("--rules", nargs="*", default=["1", "100", "1000", "10000"])
    arguments = parser.parse_args()
    failed = 0
    for kernel in arguments.kernel or harness.KERNELS:
        command = ["python", "-m", "benchmarks.lsm_guest", "--rounds", arguments.rounds, "--rules", *arguments.rules]
        result = harness.run(kernel, command, timeout=1800, echo=_show)
        failed += result.returncode != 0
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())

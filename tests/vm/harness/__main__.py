# SPDX-License-Identifier: Apache-2.0
"""The harness's command line: ``prepare`` (kernels and root image) and ``run`` (a command in a guest)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.vm.harness import KERNELS, HarnessError, prepare, report, run
from tests.vm.harness.machine import DEFAULT_TIMEOUT


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; give the guest command's own exit status, 125 if there is none, 2 for wrong usage."""
    parser = argparse.ArgumentParser(prog="python -m tests.vm.harness", description=__doc__)
    commands = parser.add_subparsers(dest="action", required=True)
    commands.add_parser("prepare", help="fetch kernels and build the guest's root image, if need be")
    runs = commands.add_parser("run", help="run a command in a guest")
    runs.add_argument("--kernel", choices=KERNELS, default=KERNELS[0])
    runs.add_argument("--systemd", action="store_true", help="boot systemd and run the command as a unit")
    runs.add_argument("--memory", default="2G", metavar="SIZE")
    runs.add_argument("--timeout", type=float, default=DEFAULT_TIMEOUT, metavar="SECONDS")
    runs.add_argument("--out", type=Path, metavar="DIR", help="where files from $HAUBERK_OUT go")
    runs.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    runs.add_argument("--append", action="append", default=[], metavar="ARG", help="more for the kernel's command line")
    runs.add_argument("--console", action="store_true", help="print the kernel's console to stderr at the end")
    runs.add_argument("command", nargs="+", metavar="COMMAND")
    options = parser.parse_args(arguments)
    try:
        if options.action == "prepare":
            prepare()
            return 0
        result = run(
            options.kernel,
            options.command,
            systemd=options.systemd,
            memory=options.memory,
            timeout=options.timeout,
            out_dir=options.out,
            environment=dict(pair.split("=", 1) for pair in options.env),
            kernel_arguments=options.append,
            echo=_echo,
        )
    except HarnessError as error:
        sys.stderr.write(f"vm: {error}\n")
        return 3
    if options.console:
        sys.stderr.write(result.console)
    report(result)
    return result.returncode


def _echo(chunk: bytes) -> None:
    sys.stdout.buffer.write(chunk)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())

# SPDX-License-Identifier: Apache-2.0
"""The demonstration's outer half: finds a kernel it may seal, and runs :mod:`tests.demo.steps` there.

A sealed kernel stays sealed until it is rebooted. So the demonstration seals the kernel it runs on only if that kernel
can load BPF LSM programs *and* its owner says so; otherwise it boots a guest, which is thrown away.
"""

from __future__ import annotations

import os
import sys

from tests.vm import harness

CONSENT = "HAUBERK_DEMO_SEAL_THIS_KERNEL"


def _show(output: bytes) -> None:
    sys.stdout.buffer.write(output)
    sys.stdout.flush()


def _say(text: str) -> None:
    print(text, flush=True)


def main() -> int:
    """Run the steps and give their exit code."""
    from guest_agent.engines.bpf_lsm.engine import BpfLsmEngine  # noqa: PLC0415 - not needed for --help

    probe = BpfLsmEngine().probe()
    if probe.available and os.environ.get(CONSENT) == "yes":
        _say(f"demo: on this kernel ({probe.reason}); it stays sealed until the next boot")
        from tests.demo import steps  # noqa: PLC0415 - the guest's half

        return steps.main()
    if probe.available:
        _say(f"demo: this kernel could do it, but would stay sealed until reboot; {CONSENT}=yes allows that")
    else:
        _say(f"demo: not on this kernel: {probe.reason}")
    kernel = harness.KERNELS[0]
    _say(f"demo: booting a guest instead: stock Debian kernel {kernel}, QEMU without hardware acceleration")
    result = harness.run(kernel, ["python", "-m", "tests.demo.steps"], timeout=900, echo=_show)
    if result.problem:
        _say(f"demo: {result.problem}")
    return result.returncode


if __name__ == "__main__":
    raise SystemExit(main())

# SPDX-License-Identifier: Apache-2.0
"""Coverage-guided fuzzing of everything that reads what others wrote.

``make fuzz`` installs the fuzzer (atheris) and runs each target of :mod:`tests.fuzz.targets` for a while; what it finds
is kept in ``.cache/fuzz``. A finding becomes a unit test. The unit lane runs every target over its seeds and a few
fixed mutations of them, without the fuzzer, so that the targets themselves cannot rot.
"""

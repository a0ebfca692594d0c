# SPDX-License-Identifier: Apache-2.0
"""Fuzz one target in this process: ``python -m tests.fuzz.one TARGET [libFuzzer's options and corpus directories]``.

Hauberk's own modules are instrumented as they are imported, so that the fuzzer sees which branches an input takes. The
seeds are run once before, while instrumentation is on: much is imported only when it is first needed.
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["hauberk", "guest_agent"], enable_loader_override=False):
    from tests.fuzz import targets

    _NAME, *_OPTIONS = sys.argv[1:]
    _TARGET = targets.TARGETS[_NAME]
    for _seed in _TARGET.seeds():
        _TARGET.run(_seed)
for _name in ("parse_answer", "leading_members"):  # the hook is loaded as a file, not imported
    setattr(targets.hook(), _name, atheris.instrument_func(getattr(targets.hook(), _name)))

atheris.Setup([sys.argv[0], *_OPTIONS], _TARGET.run)
atheris.Fuzz()

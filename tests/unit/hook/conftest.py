# SPDX-License-Identifier: Apache-2.0
# ruff: noqa: ANN401 - options are those of subprocess.run
"""The hook as a module (its functions) and as a process (what a runtime sees)."""

from __future__ import annotations

import subprocess
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest

if TYPE_CHECKING:
    from types import ModuleType

HOOK = Path(__file__).resolve().parents[3] / "hooks" / "hauberk-hook"


class RunHook(Protocol):
    """Run the hook file with these arguments and this stdin."""

    def __call__(self, *arguments: str, stdin: bytes = b"", **options: Any) -> subprocess.CompletedProcess[bytes]:
        """Return the finished process."""
        ...


@pytest.fixture(scope="session")
def hook() -> ModuleType:
    loader = SourceFileLoader("hauberk_hook_under_test", str(HOOK))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def run_hook() -> RunHook:
    def run(*arguments: str, stdin: bytes = b"", **options: Any) -> subprocess.CompletedProcess[bytes]:
        options.setdefault("env", {})
        return subprocess.run(
            [str(HOOK), *arguments], input=stdin, capture_output=True, timeout=60, check=False, **options
        )

    return run

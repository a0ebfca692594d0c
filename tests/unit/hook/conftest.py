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


def load_program(path: Path) -> ModuleType:
    """Load one of the programs, whose file has no suffix, as a module."""
    loader = SourceFileLoader(path.name.replace("-", "_") + "_under_test", str(path))
    spec = spec_from_loader(loader.name, loader)
    assert spec is not None
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def hook() -> ModuleType:
    return load_program(HOOK)


@pytest.fixture
def run_hook() -> RunHook:
    def run(*arguments: str, stdin: bytes = b"", **options: Any) -> subprocess.CompletedProcess[bytes]:
        options.setdefault("env", {})
        return subprocess.run(
            [str(HOOK), *arguments], input=stdin, capture_output=True, timeout=60, check=False, **options
        )

    return run

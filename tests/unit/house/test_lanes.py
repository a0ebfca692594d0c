# SPDX-License-Identifier: Apache-2.0
"""A test that did not run must turn the lane red."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ("def test_a(): pass", 0),
        ("def test_a(): pytest.skip('why')", 1),
        ("@pytest.mark.skip\ndef test_a(): pass", 1),
        ("@pytest.mark.skipif(True, reason='why')\ndef test_a(): pass", 1),
        ("@pytest.mark.xfail\ndef test_a(): raise ValueError", 1),
        ("@pytest.mark.xfail\ndef test_a(): pass", 1),
        ("pytest.skip('why', allow_module_level=True)", 2),
        ("pytest.importorskip('no_such_module')", 2),
        ("@pytest.fixture\ndef f(): pytest.skip('why')\ndef test_a(f): pass", 1),
        ("@pytest.mark.parametrize('x', [])\ndef test_a(x): pass", 1),
        ("import warnings\ndef test_a(): warnings.warn('why')", 1),
        ("def test_a(): pytest.fail('why')", 1),
        ("def helper(): pass", 5),
    ],
)
def test_only_passed_tests_pass(body: str, status: int, tmp_path: Path) -> None:
    (tmp_path / "test_sample.py").write_text(f"import pytest\n{body}\n", "utf-8")
    command = [sys.executable, "-m", "pytest", "-c", str(REPOSITORY / "pyproject.toml"), "-p", "tests.conftest"]
    done = subprocess.run([*command, str(tmp_path)], cwd=REPOSITORY, check=False, capture_output=True, text=True)
    assert done.returncode == status, done.stdout

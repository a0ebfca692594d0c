# SPDX-License-Identifier: Apache-2.0
"""daemon.json: made where there is none, added to only with leave, and put back as it was."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from hauberk.install import operations
from hauberk.install.errors import InstallError, ObstaclesError
from hauberk.install.targets import Options

from .conftest import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hauberk.install.tree import Tree

    Put = Callable[..., Path]

CONFIGURATION = "/etc/docker/daemon.json"
WRAPPER = "/usr/libexec/hauberk/hauberk-runtime-docker"


@pytest.fixture(autouse=True)
def runtimes(put: Put) -> None:
    put("/usr/bin/runc", "", 0o755)
    put("/usr/bin/crun", "", 0o755)


def configuration(image: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((image / CONFIGURATION[1:]).read_text())
    return found


def test_a_machine_without_configuration_gets_one(image: Path, tree: Tree) -> None:
    operations.install(tree, "docker", Options())
    assert configuration(image) == {"default-runtime": "hauberk", "runtimes": {"hauberk": {"path": WRAPPER}}}
    assert (image / "etc/hauberk/runtimes/docker").read_text() == "/usr/bin/runc\n"


def test_a_configuration_is_added_to_with_leave_alone(image: Path, tree: Tree, put: Put) -> None:
    theirs = {"runtimes": {"fast": {"path": "/usr/bin/crun"}}, "default-runtime": "fast", "debug": True}
    put(CONFIGURATION, json.dumps(theirs), 0o600)
    before = snapshot(image)
    with pytest.raises(ObstaclesError, match="--edit-config"):
        operations.install(tree, "docker", Options())
    assert snapshot(image) == before
    operations.install(tree, "docker", Options(edit=True))
    found = configuration(image)
    assert found["default-runtime"] == "hauberk"
    assert found["runtimes"] == {**theirs["runtimes"], "hauberk": {"path": WRAPPER}}  # type: ignore[dict-item]
    assert found["debug"] is True
    assert (image / "etc/hauberk/runtimes/docker").read_text() == "/usr/bin/crun\n"
    for _ in range(2):
        operations.install(tree, "docker", Options(edit=True))
        assert (image / "etc/hauberk/runtimes/docker").read_text() == "/usr/bin/crun\n"
        assert (image / CONFIGURATION[1:]).stat().st_mode & 0o777 == 0o600  # it stays its owner's
    assert operations.uninstall(tree, "docker")[1] == ()
    assert snapshot(image) == before


def test_a_configuration_that_was_added_to_later_is_kept(image: Path, tree: Tree) -> None:
    operations.install(tree, "docker", Options())
    (image / CONFIGURATION[1:]).write_text(json.dumps({**configuration(image), "debug": True}))
    operations.install(tree, "docker", Options())
    _, told = operations.uninstall(tree, "docker")
    assert len(told) == 1
    assert configuration(image)["debug"] is True


def test_another_default_runtime_is_found(image: Path, tree: Tree, put: Put) -> None:
    operations.install(tree, "docker", Options())
    put(CONFIGURATION, json.dumps({**configuration(image), "default-runtime": "runc"}))
    wrong = [str(finding) for finding in operations.check(tree, "docker", Options()) if not finding.well]
    assert any("default runtime is runc (its own)" in text for text in wrong)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"runtimes": []}', '{"runtimes": {"x": 1}}'])
def test_a_configuration_that_is_none_is_told(tree: Tree, put: Put, text: str) -> None:
    put(CONFIGURATION, text)
    with pytest.raises(InstallError, match=r"daemon\.json"):
        operations.install(tree, "docker", Options(edit=True))


def test_arguments_that_are_not_passed_on_are_told(tree: Tree, put: Put) -> None:
    fast = {"path": "/usr/bin/crun", "runtimeArgs": ["--debug"]}
    put(CONFIGURATION, json.dumps({"runtimes": {"fast": fast}, "default-runtime": "fast"}))
    _, notes = operations.install(tree, "docker", Options(edit=True))
    assert any("runtimeArgs of fast are not passed on" in note for note in notes)


def test_a_runtime_that_is_not_there_is_an_obstacle(image: Path, tree: Tree) -> None:
    (image / "usr/bin/runc").unlink()
    with pytest.raises(ObstaclesError, match="'runc' was not found"):
        operations.install(tree, "docker", Options())

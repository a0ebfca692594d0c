# SPDX-License-Identifier: Apache-2.0
"""containerd's configuration: what is added, and that nothing else changes, whichever version reads it."""

from __future__ import annotations

import json
import string
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hauberk.install import containerd_configuration as configurations
from hauberk.install import operations, toml_reading
from hauberk.install.errors import InstallError, ObstaclesError
from hauberk.install.material import hooks, material
from hauberk.install.targets import Options
from hauberk.install.targets.containerd import with_hooks

from .conftest import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hauberk.install.tree import Tree

    Put = Callable[..., Path]

MAIN = "/etc/containerd/config.toml"
DROP_IN = "etc/containerd/conf.d/zz-hauberk.toml"
SPECIFICATION = "etc/containerd/hauberk-base-spec.json"
CRI2 = "io.containerd.grpc.v1.cri"
CRI3 = "io.containerd.cri.v1.runtime"


@pytest.fixture(autouse=True)
def runc(put: Put) -> None:
    put("/usr/sbin/runc", "", 0o755)
    put("/usr/bin/crun", "", 0o755)


def installed(image: Path) -> dict[str, Any]:
    return tomllib.loads((image / DROP_IN).read_text())


def runtimes(image: Path, plugin: str) -> dict[str, Any]:
    found: dict[str, Any] = installed(image)["plugins"][plugin]["containerd"]["runtimes"]
    return found


def one(main: dict[str, Any], drop_in: dict[str, Any]) -> dict[str, Any]:
    """Merge as containerd 1 does: a plugin's table in the later file takes the place of the earlier one."""
    return {**main.get("plugins", {}), **drop_in.get("plugins", {})}


def two(main: dict[str, Any], drop_in: dict[str, Any]) -> dict[str, Any]:
    """Merge as containerd 2 does: key by key."""
    return configurations.merge(main.get("plugins", {}), drop_in.get("plugins", {}))


def test_a_machine_without_configuration_gets_one(image: Path, tree: Tree) -> None:
    operations.install(tree, "containerd", Options())
    main = tomllib.loads((image / MAIN[1:]).read_text())
    assert main == {"version": 2, "imports": ["/etc/containerd/conf.d/*.toml"]}
    assert runtimes(image, CRI2) == {
        "runc": {
            "runtime_type": "io.containerd.runc.v2",
            "base_runtime_spec": "/etc/containerd/hauberk-base-spec.json",
        }
    }
    specification = json.loads((image / SPECIFICATION).read_text())
    assert specification["hooks"] == hooks(fail_open=False)
    del specification["hooks"]
    assert specification == json.loads(material("deploy/containerd/base-spec.json"))


def test_a_version_2_file_is_repeated_so_that_both_readings_agree(image: Path, tree: Tree, put: Put) -> None:
    text = f"""version = 2
imports = ["/etc/containerd/conf.d/*.toml"]
[plugins."{CRI2}"]
sandbox_image = "registry.example/pause:3.9"
[plugins."{CRI2}".containerd]
snapshotter = "overlayfs"
[plugins."{CRI2}".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."{CRI2}".containerd.runtimes.runc.options]
SystemdCgroup = true
[plugins."io.containerd.internal.v1.opt"]
path = "/opt/x"
"""
    put(MAIN, text)
    operations.install(tree, "containerd", Options())
    main = tomllib.loads(text)
    assert one(main, installed(image)) == two(main, installed(image))
    merged = two(main, installed(image))
    runc = merged[CRI2]["containerd"]["runtimes"]["runc"]
    assert runc.pop("base_runtime_spec") == "/etc/containerd/hauberk-base-spec.json"
    assert merged == main["plugins"]
    assert (image / MAIN[1:]).read_text() == text


def test_a_version_3_file_is_added_to(image: Path, tree: Tree, put: Put) -> None:
    put(
        MAIN,
        f"""version = 3
imports = ["conf.d/*.toml"]
[plugins."{CRI3}".containerd.runtimes.runc.options]
SystemdCgroup = true
[plugins."{CRI3}".containerd.runtimes.kata]
runtime_type = "io.containerd.kata.v2"
""",
    )
    _, notes = operations.install(tree, "containerd", Options())
    assert installed(image)["version"] == 3
    assert runtimes(image, CRI3) == {
        "runc": {
            "runtime_type": "io.containerd.runc.v2",
            "base_runtime_spec": "/etc/containerd/hauberk-base-spec.json",
        }
    }
    assert any("kata" in note for note in notes)


def test_a_later_version_is_added_to_in_version_3(image: Path, tree: Tree, put: Put) -> None:
    put(MAIN, 'version = 4\nimports = ["/etc/containerd/conf.d/*.toml"]\n')
    operations.install(tree, "containerd", Options())
    assert installed(image)["version"] == 3


@pytest.mark.parametrize("text", ["", "version = 1\n", 'root = "/x"\n'])
def test_a_version_1_file_is_refused(tree: Tree, put: Put, text: str) -> None:
    put(MAIN, text)
    with pytest.raises(InstallError, match="config migrate"):
        operations.install(tree, "containerd", Options())


def test_two_files_with_the_plugin_are_refused_in_version_2_only(tree: Tree, put: Put) -> None:
    for version, plugin in ((2, CRI2), (3, CRI3)):
        put(
            MAIN,
            f'version = {version}\nimports = ["/etc/containerd/conf.d/*.toml"]\n'
            f'[plugins."{plugin}".containerd.runtimes.a]\nruntime_type = "io.containerd.runc.v2"\n',
        )
        put(
            "/etc/containerd/conf.d/other.toml",
            f'version = {version}\n[plugins."{plugin}".containerd.runtimes.b]\nruntime_type = "io.containerd.runc.v2"',
        )
        if version == 2:
            with pytest.raises(InstallError, match=r"config\.toml and .*other\.toml both configure"):
                operations.install(tree, "containerd", Options())
        else:
            operations.install(tree, "containerd", Options())
            assert configurations.read(tree).handlers().keys() == {"runc", "a", "b"}


def test_every_handler_of_runcs_shim_is_covered_and_may_be_chosen(image: Path, tree: Tree, put: Put) -> None:
    put(
        MAIN,
        f"""version = 2
imports = ["/etc/containerd/conf.d/*.toml"]
[plugins."{CRI2}".containerd.runtimes.crun]
runtime_type = "io.containerd.runc.v2"
options = {{ BinaryName = "/usr/bin/crun" }}
[plugins."{CRI2}".containerd.runtimes.gvisor]
runtime_type = "io.containerd.runsc.v1"
""",
    )
    operations.install(tree, "containerd", Options(wrapper=True))
    found = runtimes(image, CRI2)
    assert found["runc"]["options"]["BinaryName"] == "/usr/libexec/hauberk/hauberk-runtime-runc"
    assert found["crun"]["options"]["BinaryName"] == "/usr/libexec/hauberk/hauberk-runtime-crun"
    assert found["gvisor"] == {"runtime_type": "io.containerd.runsc.v1"}
    assert (image / "etc/hauberk/runtimes/runc").read_text() == "/usr/sbin/runc\n"
    assert (image / "etc/hauberk/runtimes/crun").read_text() == "/usr/bin/crun\n"
    _, notes = operations.install(tree, "containerd", Options(wrapper=True, runtimes=("crun",)))
    assert not (image / "etc/hauberk/runtimes/runc").exists()
    assert any(note.startswith("Handler runc was not asked for") for note in notes)
    with pytest.raises(ObstaclesError, match="no such handler"):
        operations.install(tree, "containerd", Options(runtimes=("gvisor",)))


def test_a_runtime_that_is_not_there_is_an_obstacle_for_its_wrapper(image: Path, tree: Tree) -> None:
    (image / "usr/sbin/runc").unlink()
    with pytest.raises(ObstaclesError, match="'runc' of handler runc was not found"):
        operations.install(tree, "containerd", Options(wrapper=True))


def test_a_handlers_own_base_specification_is_kept(image: Path, tree: Tree, put: Put) -> None:
    theirs = {"path": "/usr/bin/theirs", "args": ["theirs"]}
    put(
        MAIN,
        f"""version = 3
imports = ["/etc/containerd/conf.d/*.toml"]
[plugins."{CRI3}".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
base_runtime_spec = "/etc/containerd/limits.json"
""",
    )
    own = {"ociVersion": "1.1.0", "process": {"rlimits": [{"hard": 1048576}]}, "hooks": {"createRuntime": [theirs]}}
    put("/etc/containerd/limits.json", json.dumps(own))
    operations.install(tree, "containerd", Options())
    path = "etc/containerd/hauberk-base-spec-runc.json"
    assert runtimes(image, CRI3)["runc"] == {"base_runtime_spec": f"/{path}"}
    specification = json.loads((image / path).read_text())
    assert specification["process"] == own["process"]
    assert specification["hooks"]["createRuntime"] == [theirs, *hooks(fail_open=False)["createRuntime"]]
    assert json.loads((image / "etc/containerd/limits.json").read_text()) == own
    put("/etc/containerd/limits.json", json.dumps({**own, "process": {}}))
    assert any("another content" in finding.what for finding in operations.check(tree, "containerd", Options()))
    (image / "etc/containerd/limits.json").unlink()
    with pytest.raises(InstallError, match="is missing"):
        operations.install(tree, "containerd", Options())


def test_hooks_that_a_specification_has_already_are_not_doubled() -> None:
    once = with_hooks(b"{}", "x", fail_open=False)
    assert with_hooks(once, "x", fail_open=False) == once


@pytest.mark.parametrize("content", [b"", b"[]", b"1", b'{"hooks": []}', b'{"hooks": {"createRuntime": 1}}'])
def test_a_base_specification_that_is_none_is_refused(content: bytes) -> None:
    with pytest.raises(InstallError, match="no OCI specification"):
        with_hooks(content, "file", fail_open=False)


def test_a_file_without_imports_is_not_touched_without_leave(image: Path, tree: Tree, put: Put) -> None:
    put(MAIN, "version = 2\n")
    before = snapshot(image)
    with pytest.raises(ObstaclesError) as caught:
        operations.install(tree, "containerd", Options())
    assert 'imports = ["/etc/containerd/conf.d/*.toml"]' in str(caught.value)
    assert "--edit-config" in str(caught.value)
    assert snapshot(image) == before


@pytest.mark.parametrize(
    "text",
    [
        "version = 2\n",
        "# a comment\nversion = 2 # another\n\n[grpc]\naddress = '/run/x.sock'\n",
        "version = 2\nimports = []\n",
        "version = 2\nimports = [\n  # theirs\n  '/etc/containerd/theirs.toml',\n]\n",
        "version = 2\r\n[grpc]\r\nuid = 0\r\n",
        'version = 2\nroot = """\nimports = [\n"""\n',
    ],
)
def test_with_leave_one_line_is_added_and_taken_back(image: Path, tree: Tree, put: Put, text: str) -> None:
    put("/etc/containerd/theirs.toml", "version = 2\n")
    put(MAIN, text, 0o640)
    before = snapshot(image)
    operations.install(tree, "containerd", Options(edit=True))
    after = tomllib.loads((image / MAIN[1:]).read_text())
    expected = tomllib.loads(text)
    assert after.pop("imports") == ["/etc/containerd/conf.d/*.toml", *expected.pop("imports", [])]
    assert after == expected
    assert (image / MAIN[1:]).stat().st_mode & 0o7777 == 0o640
    assert all(finding.well for finding in operations.check(tree, "containerd", Options()) if "imports" in finding.what)
    operations.install(tree, "containerd", Options(edit=True))
    assert operations.uninstall(tree, "containerd")[1] == ()
    assert snapshot(image) == before


def test_a_main_file_that_was_changed_after_the_edit_is_kept(image: Path, tree: Tree, put: Put) -> None:
    put(MAIN, "version = 2\n")
    prepared, _ = operations.install(tree, "containerd", Options(edit=True))
    assert [step.detail for step in prepared.steps if step.action == "edit"] == [
        'add "/etc/containerd/conf.d/*.toml" to imports'
    ]
    with (image / MAIN[1:]).open("a") as file:
        file.write("# later\n")
    _, told = operations.uninstall(tree, "containerd")
    assert len(told) == 1
    assert 'take "/etc/containerd/conf.d/*.toml" out of imports' in told[0]
    assert (image / MAIN[1:]).read_text().endswith("# later\n")
    assert not (image / DROP_IN).exists()


def test_a_directory_that_is_imported_already_is_used(image: Path, tree: Tree, put: Put) -> None:
    put(MAIN, 'version = 3\nimports = ["/etc/containerd/extra.toml", "/opt/containerd/*.toml"]\n')
    put("/etc/containerd/extra.toml", "version = 3\n")
    operations.install(tree, "containerd", Options())
    assert (image / "opt/containerd/zz-hauberk.toml").is_file()
    assert not (image / DROP_IN).exists()


def test_an_import_that_is_missing_is_told(tree: Tree, put: Put) -> None:
    put(MAIN, 'version = 3\nimports = ["/etc/containerd/extra.toml"]\n')
    with pytest.raises(InstallError, match="is missing; containerd would not start"):
        operations.install(tree, "containerd", Options())


def test_files_that_import_each_other_are_read_once(tree: Tree, put: Put) -> None:
    put(MAIN, 'version = 3\nimports = ["a.toml"]\n')
    put("/etc/containerd/a.toml", 'version = 3\nimports = ["config.toml", "/etc/containerd/../containerd/a.toml"]\n')
    assert [path for path, _ in configurations.read(tree).files] == [MAIN, "/etc/containerd/a.toml"]


@pytest.mark.parametrize("text", ["version = [", "version = 2\nversion = 2\n", "\xff"])
def test_a_file_that_is_no_toml_is_told(tree: Tree, put: Put, text: str) -> None:
    put(MAIN, text.encode("latin-1"))
    with pytest.raises(InstallError, match="no TOML file"):
        operations.install(tree, "containerd", Options())


@pytest.mark.parametrize("name", ["a/b", "..", "ä", "a b", ""])
def test_a_handler_that_cannot_be_a_file_is_refused(tree: Tree, put: Put, name: str) -> None:
    table = json.dumps(name, ensure_ascii=False)
    put(
        MAIN,
        f'version = 2\nimports = ["/etc/containerd/conf.d/*.toml"]\n[plugins."{CRI2}".containerd.runtimes.{table}]\n'
        'runtime_type = "io.containerd.runc.v2"\n',
    )
    with pytest.raises(InstallError, match="expected a name"):
        operations.install(tree, "containerd", Options(wrapper=True))


# ---- properties ----

CHARACTERS = st.characters(codec="utf-8")
KEYS = st.text(CHARACTERS, max_size=6)
SCALARS = (
    st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(CHARACTERS, max_size=12)
    | st.datetimes()
    | st.dates()
    | st.times()
)
VALUES = st.recursive(
    SCALARS,
    lambda children: st.lists(children, max_size=3) | st.dictionaries(KEYS, children, max_size=3),
    max_leaves=10,
)
TABLES = st.dictionaries(KEYS, VALUES, max_size=5)


@given(TABLES)
@settings(max_examples=400, deadline=None)
def test_what_is_rendered_is_read_back(table: dict[str, Any]) -> None:
    assert tomllib.loads(toml_reading.render(table)) == table


BARE = st.text(string.ascii_letters + string.digits + "-_", min_size=1, max_size=6)
LINES = st.sampled_from(
    [
        "imports = []", 'imports = ["/a.toml"]', "imports = [ # [", "]", '"/b.toml",', "imports=[]", '"imports" = []',
        "version = 2", "# imports = []", "", "[imports]", "[[imports]]", "[x]", 'root = """', '"""', "x = [", "a.b = 1",
        "imports.x = 1", "imports = 1", "imports = [[]]", "   imports   =   [   ]  # x",
    ]
)  # fmt: skip


@given(st.lists(LINES, max_size=8), st.sampled_from(["\n", "\r\n"]), st.booleans())
@settings(max_examples=1000, deadline=None)
def test_an_edit_adds_the_import_and_nothing_else_or_is_not_made(lines: list[str], ending: str, end: bool) -> None:  # noqa: FBT001
    content = (ending.join(lines) + (ending if end else "")).encode()
    try:
        before = tomllib.loads(content.decode())
    except tomllib.TOMLDecodeError:
        with pytest.raises(InstallError):
            configurations.add_import(content)
        return
    edited = configurations.add_import(content)
    if edited is None:
        return
    after = tomllib.loads(edited.decode())
    imports = before.pop("imports", [])
    assert isinstance(imports, list)
    assert after.pop("imports") == ["/etc/containerd/conf.d/*.toml", *imports]
    assert after == before
    at = next(
        at for at in range(len(content) + 1) if edited[at:].endswith(content[at:]) and edited[:at] == content[:at]
    )
    assert edited[at : at + len(edited) - len(content)].strip(b"\r\n ").endswith((b"]", b","))


@given(plugin=st.dictionaries(BARE, VALUES, max_size=4), version=st.sampled_from([2, 3]))
@settings(max_examples=200, deadline=None)
def test_a_drop_in_changes_the_handlers_it_names_and_nothing_else(plugin: dict[str, Any], version: int) -> None:
    plugin.pop("containerd", None)
    name = CRI2 if version == 2 else CRI3
    main = {"version": version, "plugins": {name: plugin}}
    configuration = configurations.Configuration(version, b"", ((MAIN, main),), plugin)
    added = tomllib.loads(configurations.drop_in(configuration, {"runc": {"base_runtime_spec": "/x"}}).decode())
    merged = two(main, added)
    if version == 2:
        assert one(main, added) == merged
    assert merged[name].pop("containerd") == {
        "runtimes": {"runc": {"runtime_type": "io.containerd.runc.v2", "base_runtime_spec": "/x"}}
    }
    assert merged == {name: plugin}

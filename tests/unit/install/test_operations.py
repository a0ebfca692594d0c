# SPDX-License-Identifier: Apache-2.0
"""What is put is exactly what is told and recorded, and uninstalling takes back exactly that."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hauberk.install import operations
from hauberk.install import plan as plans
from hauberk.install.errors import InstallError, ObstaclesError
from hauberk.install.material import material
from hauberk.install.targets import NAMES, Options
from hauberk.install.tree import Tree, digest

from .conftest import snapshot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from hauberk.install.plan import Step

    Put = Callable[..., Path]

HOOK = "usr/libexec/hauberk/hauberk-hook"
CREATE = "usr/share/containers/oci/hooks.d/zz-hauberk-create.json"
OPTIONS = {
    "podman": [Options(), Options(fail_open=True), Options(directory="/etc/containers/oci/hooks.d")],
    "crio": [Options(), Options(fail_open=True)],
    "containerd": [Options(), Options(wrapper=True), Options(fail_open=True), Options(wrapper=True, fail_open=True)],
    "docker": [Options(), Options(edit=True)],
    "kata-guest": [Options(), Options(directory="/opt/hooks")],
    "systemd": [Options()],
}
EVERY = [(name, options) for name, choices in OPTIONS.items() for options in choices]


@pytest.fixture(autouse=True)
def runtimes(put: Put) -> None:
    """The image has the runtimes that wrappers stand for."""
    for path in ("/usr/sbin/runc", "/usr/bin/podman", "/usr/bin/crio", "/usr/bin/containerd", "/usr/bin/dockerd"):
        put(path, "", 0o755)
    put("/usr/bin/python3.11", "", 0o755).with_name("python3").symlink_to("python3.11")


def changed(steps: tuple[Step, ...]) -> list[str]:
    return [str(step) for step in steps if step.changes and step.action != "rmdir"]


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_uninstalling_leaves_the_image_as_it_was(image: Path, tree: Tree, name: str, options: Options) -> None:
    before = snapshot(image)
    operations.install(tree, name, options)
    assert snapshot(image) != before
    prepared, told = operations.uninstall(tree, name)
    assert prepared.record.items == ()
    assert told == ()
    assert snapshot(image) == before


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_a_dry_run_tells_what_is_then_done_and_does_nothing(
    image: Path, tree: Tree, name: str, options: Options
) -> None:
    before = snapshot(image)
    told, _ = operations.install(tree, name, options, dry_run=True)
    assert snapshot(image) == before
    done, _ = operations.install(tree, name, options)
    assert told == done
    after = set(snapshot(image)) - set(before)
    records = {f"var/lib/hauberk/install/{name}.json"}
    assert {step.path.removeprefix("/") for step in done.steps} == after - records
    installed = snapshot(image)
    told, _ = operations.uninstall(tree, name, dry_run=True)
    assert snapshot(image) == installed
    done, _ = operations.uninstall(tree, name)
    assert told == done


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_installing_again_changes_nothing(image: Path, tree: Tree, name: str, options: Options) -> None:
    operations.install(tree, name, options)
    installed = snapshot(image)
    prepared, _ = operations.install(tree, name, options)
    assert changed(prepared.steps) == []
    assert snapshot(image) == installed


@pytest.mark.parametrize(("name", "options"), EVERY)
def test_what_is_installed_is_found_complete(tree: Tree, put: Put, name: str, options: Options) -> None:
    put("/usr/bin/hauberk", "", 0o755)
    put("/usr/lib/systemd/systemd", "", 0o755)
    put("/usr/bin/kata-agent", "", 0o755)
    put("/etc/containers/containers.conf", '[engine]\nhooks_dir = ["/etc/containers/oci/hooks.d", {append = true}]\n')
    for setting, content in (("agent.yaml", "mode: sealed\n"), ("trust-root.json", ""), ("bundle.json", "")):
        put(f"/etc/hauberk/{setting}", content)
    put("/etc/hauberk/bundle.json.sig")
    assert not all(finding.well for finding in operations.check(tree, name, options))
    operations.install(tree, name, options)
    findings = operations.check(tree, name, Options())
    assert [str(finding) for finding in findings if not finding.well] == []


@given(
    actions=st.lists(
        st.one_of(
            st.sampled_from(EVERY),
            st.sampled_from([(name, None) for name in NAMES]),
        ),
        max_size=8,
    )
)
@settings(max_examples=40, deadline=None)
def test_any_order_of_installing_and_uninstalling_ends_where_it_began(
    tmp_path_factory: pytest.TempPathFactory, actions: list[tuple[str, Options | None]]
) -> None:
    image = tmp_path_factory.mktemp("image")
    for program in ("usr/sbin/runc", "usr/bin/python3"):
        (image / program).parent.mkdir(parents=True, exist_ok=True)
        (image / program).touch(0o755)
    before = snapshot(image)
    with Tree(image) as tree:
        for name, options in actions:
            try:
                if options is None:
                    operations.uninstall(tree, name)
                else:
                    operations.install(tree, name, options)
            except InstallError:
                continue
        for name in operations.records(tree):
            _, told = operations.uninstall(tree, name)
            assert told == ()
    assert snapshot(image) == before


@pytest.mark.parametrize("cut", range(12))
def test_an_installation_cut_short_can_be_finished_and_taken_back(
    image: Path, tree: Tree, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(image)
    real, count = plans._apply, 0  # noqa: SLF001 - the place where a machine loses power

    def apply(step: Step, where: Tree) -> None:
        nonlocal count
        count += 1
        if count > cut:
            raise KeyboardInterrupt
        real(step, where)

    for finish in (False, True):
        count = 0
        monkeypatch.setattr(plans, "_apply", apply)
        with suppress(KeyboardInterrupt):
            operations.install(tree, "containerd", Options(wrapper=True))
        assert finish or count > cut
        monkeypatch.setattr(plans, "_apply", real)
        if finish:
            operations.install(tree, "containerd", Options(wrapper=True))
            assert (image / HOOK).is_file()
        if operations.records(tree):
            assert operations.uninstall(tree, "containerd")[1] == ()
            assert set(snapshot(image)) - set(before) <= {
                "var",
                "var/lib",
                "var/lib/hauberk",
                "var/lib/hauberk/install",
            }


@pytest.mark.parametrize("cut", range(8))
def test_an_upgrade_cut_short_can_be_finished_and_taken_back(
    image: Path, tree: Tree, cut: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an earlier version put, and this one has not replaced yet, is known as ours; so is what it takes away."""
    before = snapshot(image)
    with monkeypatch.context() as patch:
        patch.setattr("hauberk.install.targets.hooks_directory.material", lambda name: material(name) + b"# old\n")
        operations.install(tree, "podman", Options(fail_open=True))
    real, count = plans._apply, 0  # noqa: SLF001 - as above

    def apply(step: Step, where: Tree) -> None:
        nonlocal count
        count += 1
        if count > cut:
            raise KeyboardInterrupt
        real(step, where)

    with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
        patch.setattr(plans, "_apply", apply)
        operations.install(tree, "podman", Options())
    operations.install(tree, "podman", Options())
    assert (image / HOOK).read_bytes() == material("hooks/hauberk-hook")
    assert operations.uninstall(tree, "podman")[1] == ()
    assert snapshot(image) == before


def test_a_shared_file_that_another_target_brought_up_to_date_is_ours(
    image: Path, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("hauberk.install.targets.hooks_directory.material", lambda name: material(name) + b"# old\n")
        operations.install(tree, "podman", Options())
    with monkeypatch.context() as patch:
        patch.setattr("hauberk.install.targets.hooks_directory.material", lambda name: material(name) + b"# newer\n")
        operations.install(tree, "crio", Options())
    operations.install(tree, "podman", Options())
    assert (image / HOOK).read_bytes() == material("hooks/hauberk-hook")


def test_what_another_choice_cannot_put_back_is_told(image: Path, tree: Tree, put: Put) -> None:
    program = "usr/libexec/hauberk/hauberk-fail-open"
    put(f"/{program}", "theirs", 0o755)
    operations.install(tree, "podman", Options(fail_open=True), replace=True)
    (image / f"{program}.before-hauberk").unlink()
    _, notes = operations.install(tree, "podman", Options())
    assert any(f"{program} cannot be put back" in note for note in notes)


@pytest.mark.parametrize("items", [["x"], [1], [[]]])
def test_a_record_whose_entries_are_no_objects_is_refused(tree: Tree, items: list[object]) -> None:
    operations.install(tree, "podman", Options())
    record = json.loads(tree.read("/var/lib/hauberk/install/podman.json") or b"")
    tree.write("/var/lib/hauberk/install/podman.json", json.dumps({**record, "items": items}).encode(), 0o644)
    with pytest.raises(InstallError, match="no record of an installation"):
        operations.uninstall(tree, "podman")


def test_a_file_of_others_is_not_overwritten(image: Path, tree: Tree, put: Put) -> None:
    put(f"/{CREATE}", "{}")
    put(f"/{HOOK}", "#!/bin/sh\n", 0o755)
    before = snapshot(image)
    with pytest.raises(ObstaclesError) as caught:
        operations.install(tree, "podman", Options())
    assert len(caught.value.obstacles) == 2
    assert "--replace" in str(caught.value)
    assert snapshot(image) == before


def test_replacing_keeps_a_copy_and_uninstalling_puts_it_back(image: Path, tree: Tree, put: Put) -> None:
    put(f"/{HOOK}", "#!/bin/sh\n", 0o700)
    before = snapshot(image)
    operations.install(tree, "podman", Options(), replace=True)
    assert (image / f"{HOOK}.before-hauberk").read_text() == "#!/bin/sh\n"
    assert (image / HOOK).read_bytes() == material("hooks/hauberk-hook")
    operations.install(tree, "podman", Options())
    assert operations.uninstall(tree, "podman")[1] == ()
    assert snapshot(image) == before


def test_a_copy_that_was_kept_is_not_overwritten(tree: Tree, put: Put) -> None:
    put(f"/{HOOK}", "theirs")
    put(f"/{HOOK}.before-hauberk", "older")
    with pytest.raises(ObstaclesError, match="saved before"):
        operations.install(tree, "podman", Options(), replace=True)


def test_an_equal_file_that_was_there_stays(image: Path, tree: Tree, put: Put) -> None:
    put(f"/{HOOK}", material("hooks/hauberk-hook"), 0o755)
    before = snapshot(image)
    operations.install(tree, "podman", Options())
    operations.uninstall(tree, "podman")
    assert snapshot(image) == before


@pytest.mark.parametrize("kind", ["link", "dangling link", "directory", "fifo"])
def test_nothing_but_a_file_is_replaced(image: Path, tree: Tree, kind: str) -> None:
    place = image / HOOK
    place.parent.mkdir(parents=True)
    if kind == "directory":
        place.mkdir()
    elif kind == "fifo":
        os.mkfifo(place)
    else:
        place.symlink_to("/usr/sbin/runc" if kind == "link" else "/nowhere")
    with pytest.raises(ObstaclesError, match="move it away"):
        operations.install(tree, "podman", Options(), replace=True)


def test_a_changed_file_is_kept_and_told(image: Path, tree: Tree) -> None:
    operations.install(tree, "podman", Options())
    (image / CREATE).write_text("{}")
    prepared, told = operations.uninstall(tree, "podman")
    assert len(told) == 1
    assert "was changed since" in told[0]
    assert (image / CREATE).read_text() == "{}"
    assert not (image / HOOK).exists()
    assert [item.path for item in prepared.record.items] == [f"/{CREATE}"]
    (image / CREATE).unlink()
    assert operations.uninstall(tree, "podman")[1] == ()
    assert not (image / "var").exists()


def test_a_changed_file_is_not_overwritten_by_installing_again(image: Path, tree: Tree) -> None:
    operations.install(tree, "podman", Options())
    (image / CREATE).write_text("{}")
    with pytest.raises(ObstaclesError, match="not ours"):
        operations.install(tree, "podman", Options())


def test_a_file_of_an_older_version_is_replaced(image: Path, tree: Tree) -> None:
    operations.install(tree, "podman", Options())
    record = image / "var/lib/hauberk/install/podman.json"
    content = json.loads(record.read_text())
    (image / HOOK).write_text("older")
    for item in content["items"]:
        if item["path"] == f"/{HOOK}":
            item["sha256"] = digest(b"older")
    record.write_text(json.dumps(content))
    operations.install(tree, "podman", Options())
    assert (image / HOOK).read_bytes() == material("hooks/hauberk-hook")


def test_a_wrong_mode_of_our_file_is_corrected(image: Path, tree: Tree) -> None:
    operations.install(tree, "podman", Options())
    (image / HOOK).chmod(0o644)
    assert not all(finding.well for finding in operations.check(tree, "podman", Options()))
    operations.install(tree, "podman", Options())
    assert (image / HOOK).stat().st_mode & 0o7777 == 0o755


def test_what_targets_share_goes_with_the_last(image: Path, tree: Tree) -> None:
    before = snapshot(image)
    operations.install(tree, "podman", Options())
    operations.install(tree, "crio", Options())
    operations.uninstall(tree, "podman")
    assert (image / HOOK).is_file()
    assert (image / CREATE).is_file()
    operations.uninstall(tree, "crio")
    assert snapshot(image) == before


def test_targets_that_share_files_agree_on_failing_open(image: Path, tree: Tree) -> None:
    operations.install(tree, "podman", Options(fail_open=True))
    assert "--fail-open" in (image / CREATE).read_text()
    with pytest.raises(ObstaclesError, match="--fail-open"):
        operations.install(tree, "crio", Options())
    operations.install(tree, "crio", Options(fail_open=True))


def test_another_choice_takes_back_what_the_first_put(image: Path, tree: Tree) -> None:
    operations.install(tree, "containerd", Options(wrapper=True, fail_open=True))
    operations.install(tree, "containerd", Options())
    files = {name for name, (_, content) in snapshot(image).items() if content and "usr/libexec" in name}
    assert files == {HOOK}
    assert not (image / "etc/hauberk/runtimes/runc").exists()


@pytest.mark.parametrize(
    "harm",
    ["", "{", "[]", '{"version": 1}', '{"version":2,"target":"podman","options":{},"items":[],"directories":[]}',
     '{"version":1,"target":"crio","options":{},"items":[],"directories":[]}',
     '{"version":1,"target":"podman","options":{},"items":[{"kind":"file","path":"/../x","made":true}],"directories":[]}',
     '{"version":1,"target":"podman","options":{},"items":[{"kind":"tree","path":"/x","made":true}],"directories":[]}',
     '{"version":1,"target":"podman","options":{},"items":[{"kind":"file","path":"/x","made":1}],"directories":[]}',
     '{"version":1,"target":"podman","options":{},"items":[],"directories":["x"]}'],
)  # fmt: skip
def test_a_record_that_is_none_deletes_nothing(image: Path, tree: Tree, put: Put, harm: str) -> None:
    put("/var/lib/hauberk/install/podman.json", harm)
    before = snapshot(image)
    with pytest.raises(InstallError, match="no record of an installation"):
        operations.uninstall(tree, "podman")
    assert snapshot(image) == before


def test_without_a_record_there_is_nothing_to_take_back(tree: Tree) -> None:
    with pytest.raises(InstallError, match="nothing to do"):
        operations.uninstall(tree, "podman")


def test_a_missing_runtime_is_found(image: Path, tree: Tree) -> None:
    (image / "usr/bin/podman").unlink()
    _, notes = operations.install(tree, "podman", Options())
    assert "was not found" in notes[0]
    assert [finding.no_runtime for finding in operations.check(tree, "podman", Options())].count(True) == 1


def test_a_missing_or_old_interpreter_is_found(image: Path, tree: Tree) -> None:
    operations.install(tree, "podman", Options())
    (image / "usr/bin/python3.11").rename(image / "usr/bin/python3.8")
    interpreter = image / "usr/bin/python3"
    for made in (None, "python3.8", "data"):
        interpreter.unlink(missing_ok=True)
        if made == "data":
            interpreter.touch(0o755)  # its version is not to be guessed from what lies beside it
        elif made:
            interpreter.symlink_to(made)
        wrong = [finding.what for finding in operations.check(tree, "podman", Options()) if not finding.well]
        assert ["interpreter" in what for what in wrong] == [True]


@pytest.mark.parametrize("what", [HOOK, CREATE])
def test_what_is_missing_is_found(image: Path, tree: Tree, what: str) -> None:
    operations.install(tree, "podman", Options())
    (image / what).unlink()
    wrong = [finding for finding in operations.check(tree, "podman", Options()) if not finding.well]
    assert [finding.what for finding in wrong] == [f"{image}/{what} is missing"]


def test_hooks_directories_elsewhere_are_found(tree: Tree, put: Put) -> None:
    operations.install(tree, "podman", Options())
    operations.install(tree, "crio", Options())
    put("/etc/containers/containers.conf", '[engine]\nhooks_dir = ["/opt/hooks"]\n')
    put("/etc/crio/crio.conf.d/50-hooks", '[crio.runtime]\nhooks_dir = ["/opt/hooks"]\n')
    for name in ("podman", "crio"):
        wrong = [str(finding) for finding in operations.check(tree, name, Options()) if not finding.well]
        assert len(wrong) == 1
        assert "looks for hooks in /opt/hooks, not in /usr/share/containers/oci/hooks.d" in wrong[0]
    put("/etc/containers/containers.conf.d/1.conf", '[engine]\nhooks_dir = ["/usr/share/containers/oci/hooks.d"]\n')
    assert all(finding.well for finding in operations.check(tree, "podman", Options()))


def test_a_file_that_masks_ours_is_found(tree: Tree, put: Put) -> None:
    operations.install(tree, "podman", Options())
    put(
        "/etc/containers/containers.conf",
        '[engine]\nhooks_dir = ["/usr/share/containers/oci/hooks.d", "/etc/containers/oci/hooks.d"]\n',
    )
    put("/etc/containers/oci/hooks.d/zz-hauberk-create.json", "{}")
    wrong = [str(finding) for finding in operations.check(tree, "podman", Options()) if not finding.well]
    assert len(wrong) == 1
    assert "takes the place" in wrong[0]


def test_a_kata_guest_gets_regular_files_and_the_units_links(image: Path, tree: Tree) -> None:
    operations.install(tree, "kata-guest", Options())
    for stage in ("prestart", "poststop"):
        place = image / "usr/share/oci/hooks" / stage / "hauberk-hook"
        assert place.is_file()
        assert not place.is_symlink()
        assert place.stat().st_mode & 0o7777 == 0o755
    link = image / "etc/systemd/system/multi-user.target.wants/hauberk-agent.service"
    assert os.readlink(link) == "/etc/systemd/system/hauberk-agent.service"  # noqa: PTH115 - the text itself
    assert (image / "etc/systemd/system/kata-agent.service.d/10-hauberk.conf").is_file()
    assert (image / "etc/hauberk").stat().st_mode & 0o7777 == 0o700


def test_a_masked_unit_is_not_unmasked(image: Path, tree: Tree) -> None:
    unit = image / "etc/systemd/system/hauberk-agent.service"
    unit.parent.mkdir(parents=True)
    unit.symlink_to("/dev/null")
    with pytest.raises(ObstaclesError, match="symbolic link"):
        operations.install(tree, "systemd", Options(), replace=True)


def test_an_agent_of_another_mode_is_told_in_a_guest(tree: Tree, put: Put) -> None:
    operations.install(tree, "kata-guest", Options())
    put("/etc/hauberk/agent.yaml", "mode: host\n")
    assert any("mode: sealed" in finding.what for finding in operations.check(tree, "kata-guest", Options()))


def test_the_tree_may_be_moved(image: Path, tree: Tree, tmp_path: Path) -> None:
    operations.install(tree, "podman", Options())
    shutil.copytree(image, tmp_path / "copy", symlinks=True)
    with Tree(tmp_path / "copy") as copy:
        assert all(finding.well for finding in operations.check(copy, "podman", Options()))
        assert operations.uninstall(copy, "podman")[1] == ()

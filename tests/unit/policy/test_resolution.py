# SPDX-License-Identifier: Apache-2.0
"""What paths lead to, in real directories with real links."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hauberk.errors import FactsError
from hauberk.policy import globs, resolution
from hauberk.policy.resolution import HardLink, RootResolver, expand
from hauberk.policy.rules import Action, ObjectKind, Origin, Rule, RuleSet, Section


def rule(kind: ObjectKind, value: str, **fields: object) -> Rule:
    defaults: dict[str, object] = {"section": Section.FILE, "action": Action.BLOCK, "origin": Origin("p", "f")}
    return Rule(kind=kind, value=value, **{**defaults, **fields})  # type: ignore[arg-type]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root file system as images have it, with some hostile links."""
    top = tmp_path / "root"
    for directory in ("usr/bin", "usr/lib", "etc/alternatives", "run", "var", "proc", "secret/deep", "opt"):
        (top / directory).mkdir(parents=True)
    for file in ("usr/bin/dash", "usr/bin/real", "secret/key", "run/file"):
        (top / file).write_text("x")
    links = {
        "bin": "usr/bin", "lib": "/usr/lib", "usr/bin/sh": "dash", "usr/bin/editor": "/etc/alternatives/editor",
        "etc/alternatives/editor": "../../usr/bin/real", "var/run": "/run", "loop": "loop", "a": "b", "b": "a",
        "out": "../../../../etc/passwd", "outside": "/../../etc/hostname", "dangling": "/nowhere/at/all",
        "up": "var/run/../secret", "proc/mounts": "self/mounts", "etc/mtab": "../proc/mounts", "opt/key": "/secret/key",
        "opt/missing": "gone/../secret",
    }  # fmt: skip
    for name, target in links.items():
        (top / name).symlink_to(target)
    return top


@pytest.mark.parametrize(
    ("path", "forms"),
    [
        ("/", ("/",)),
        ("/usr/bin/dash", ("/usr/bin/dash",)),
        ("/bin/sh", ("/bin/sh", "/usr/bin/sh", "/usr/bin/dash")),
        ("/bin/editor", ("/bin/editor", "/usr/bin/editor", "/etc/alternatives/editor", "/usr/bin/real")),
        ("/bin", ("/bin", "/usr/bin")),
        ("/lib/x/y.so", ("/lib/x/y.so", "/usr/lib/x/y.so")),
        ("/bin/none", ("/bin/none", "/usr/bin/none")),
        ("/none/bin/sh", ("/none/bin/sh",)),
        ("/usr/bin/dash/x", ("/usr/bin/dash/x",)),
        ("/var/run/file", ("/var/run/file", "/run/file")),
        ("/out", ("/out", "/etc/passwd")),
        ("/outside", ("/outside", "/etc/hostname")),
        ("/dangling", ("/dangling", "/nowhere/at/all")),
        ("/dangling/x", ("/dangling/x", "/nowhere/at/all/x")),
        # '..' after a link means the link's target's parent: no form is made up by cancelling names
        ("/up", ("/up", "/secret")),
        ("/up/key", ("/up/key", "/secret/key")),
        ("/opt/missing", ("/opt/missing", "/opt/secret")),
        # where links of /proc lead depends on who asks
        ("/etc/mtab", ("/etc/mtab", "/proc/mounts")),
        ("/" + "n" * 300, ("/" + "n" * 300,)),
    ],
)
def test_every_path_the_kernel_may_see(root: Path, path: str, forms: tuple[str, ...]) -> None:
    with RootResolver(root) as resolver:
        assert resolver.resolve(path) == forms
        assert resolver.resolve(path) == forms, "the cache must not change the answer"


@pytest.mark.parametrize("path", ["/loop", "/a", "/loop/x", "/a/x"])
def test_loops_are_refused(root: Path, path: str) -> None:
    with RootResolver(root) as resolver, pytest.raises(FactsError, match="more than 40 symbolic links"):
        resolver.resolve(path)


def test_forty_links_are_followed_and_not_one_more(tmp_path: Path) -> None:
    for number in range(41):
        (tmp_path / f"l{number}").symlink_to(f"l{number + 1}")
    (tmp_path / "l41").write_text("x")
    with RootResolver(tmp_path) as resolver:
        assert resolver.resolve("/l1")[-1] == "/l41"
        with pytest.raises(FactsError):
            resolver.resolve("/l0")


def test_a_relative_path_is_refused(root: Path) -> None:
    with RootResolver(root) as resolver, pytest.raises(FactsError, match="relative path"):
        resolver.resolve("bin/sh")


def test_a_root_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FactsError, match="no directory to use as root"):
        RootResolver(tmp_path / "none")


def test_a_descriptor_serves_as_root_and_stays_the_callers(root: Path) -> None:
    descriptor = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        resolver = RootResolver(descriptor)
        assert resolver.resolve("/bin/sh")[-1] == "/usr/bin/dash"
        resolver.close()
        resolver.close()
        assert os.fstat(descriptor)
    finally:
        os.close(descriptor)


def test_names_that_are_not_utf8(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(os.fsdecode(b"\xff\xfe"))
    with RootResolver(tmp_path) as resolver:
        assert resolver.resolve("/link") == ("/link", "/\udcff\udcfe")


def open_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_many_directories_do_not_exhaust_descriptors(tmp_path: Path) -> None:
    paths = []
    for number in range(300):
        (tmp_path / f"d{number}").mkdir()
        (tmp_path / f"d{number}" / "f").symlink_to("/target")
        paths.append(f"/d{number}/f")
    before = open_descriptors()
    with RootResolver(tmp_path) as resolver:
        assert {resolver.resolve(path)[-1] for path in paths} == {"/target"}
        assert open_descriptors() - before < 140
        assert resolver.resolve("/d0/g") == ("/d0/g",), "a directory whose descriptor was given up is opened again"
    assert open_descriptors() == before


def test_a_directory_exchanged_for_a_link_meanwhile_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolution, "_MAXIMUM_OPEN_DIRECTORIES", 1)
    for name in ("d", "e"):
        (tmp_path / name).mkdir()
    with RootResolver(tmp_path) as resolver:
        assert resolver.resolve("/d/x") == ("/d/x",)
        assert resolver.resolve("/e/x") == ("/e/x",)
        (tmp_path / "d").rmdir()
        (tmp_path / "d").symlink_to("e")
        with pytest.raises(FactsError, match="changed meanwhile"):
            resolver.resolve("/d/y")


NAMES = ("a", "b", "c")
TARGETS = st.lists(st.sampled_from([*NAMES, "..", "."]), min_size=1, max_size=4).map("/".join)


@given(
    links=st.dictionaries(st.sampled_from(["a", "b", "c", "d/a", "d/b", "d/c"]), st.tuples(st.booleans(), TARGETS)),
    path=st.lists(st.sampled_from([*NAMES, "d"]), min_size=1, max_size=4),
)
def test_the_last_form_is_where_the_kernel_goes(
    tmp_path_factory: pytest.TempPathFactory, links: dict[str, tuple[bool, str]], path: list[str]
) -> None:
    """Relative links below a root of two levels: realpath, clamped at the root by hand, gives the same."""
    top = tmp_path_factory.mktemp("root")
    (top / "d").mkdir()
    for name, (absolute, target) in links.items():
        (top / name).symlink_to(("/" if absolute else "") + target)
    with RootResolver(top) as resolver:
        try:
            forms = resolver.resolve("/" + "/".join(path))
        except FactsError:
            return
        assert all(form.startswith("/") and "/../" not in form + "/" and "//" not in form for form in forms)
        final = top / forms[-1].lstrip("/")
        assert not final.is_symlink(), "the last form is no link"
        assert resolver.resolve(forms[-1]) == (forms[-1],), "and resolves to itself"


# ---- expanding rules ----


def test_rules_are_copied_to_all_forms(root: Path) -> None:
    shell = rule(ObjectKind.PATH, "/bin/sh", sources=("/bin/editor", "/usr/bin/real"))
    directory = rule(ObjectKind.DIRECTORY, "/bin/", recursive=True)
    top = rule(ObjectKind.DIRECTORY, "/")
    pattern = rule(ObjectKind.PATTERN, "/bin/*sh")
    anywhere = rule(ObjectKind.PATTERN, "**/sh")
    name = rule(ObjectKind.EXECNAME, "sh")
    with RootResolver(root) as resolver:
        found = expand(RuleSet((shell, directory, top, pattern, anywhere, name)), resolver.resolve)
    values = [(one.kind.value, one.value) for one in found.rules]
    assert values == [
        ("path", "/bin/sh"), ("path", "/usr/bin/sh"), ("path", "/usr/bin/dash"),
        ("directory", "/bin/"), ("directory", "/usr/bin/"), ("directory", "/"),
        ("pattern", "/bin/*sh"), ("pattern", "/usr/bin/*sh"), ("pattern", "**/sh"), ("execname", "sh"),
    ]  # fmt: skip
    sources = ("/bin/editor", "/usr/bin/editor", "/etc/alternatives/editor", "/usr/bin/real")
    assert all(one.sources == sources for one in found.rules[:3])
    assert all(one.origin == shell.origin for one in found.rules)


def test_wildcards_in_a_resolved_directory_are_escaped(tmp_path: Path) -> None:
    (tmp_path / "odd*[name]").mkdir()
    (tmp_path / "d").symlink_to("odd*[name]")
    with RootResolver(tmp_path) as resolver:
        found = expand(RuleSet((rule(ObjectKind.PATTERN, "/d/*.key"),)), resolver.resolve)
    assert [globs.matches(one, "/odd*[name]/x.key") for one in found.rules] == [False, True]
    assert not any(globs.matches(one, "/oddn/x.key") for one in found.rules)


def test_a_directory_that_leads_to_the_root(tmp_path: Path) -> None:
    (tmp_path / "self").symlink_to("/")
    with RootResolver(tmp_path) as resolver:
        found = expand(
            RuleSet((rule(ObjectKind.DIRECTORY, "/self/"), rule(ObjectKind.PATTERN, "/self/*.x"))), resolver.resolve
        )
    assert [one.value for one in found.rules] == ["/self/", "/", "/self/*.x", "/*.x"]


def test_each_path_is_resolved_once() -> None:
    asked: list[str] = []

    def resolve(path: str) -> tuple[str, ...]:
        asked.append(path)
        return (path,)

    rules = tuple(rule(ObjectKind.PATH, f"/f{number % 3}", sources=("/s",)) for number in range(9))
    assert len(expand(RuleSet(rules), resolve).rules) == 3
    assert sorted(asked) == ["/f0", "/f1", "/f2", "/s"]


# ---- hard links ----


@pytest.fixture
def linked(root: Path) -> Path:
    os.link(root / "secret/key", root / "run/other")
    (root / "secret/deep/also").write_text("y")
    os.link(root / "secret/deep/also", root / "usr/also")
    return root


def links_of(root: Path, *rules: Rule) -> set[str]:
    with RootResolver(root) as resolver:
        found = resolver.hard_links(RuleSet(rules))
    for entry in found:
        status = (root / entry.path.lstrip("/")).lstat()
        assert entry == HardLink(status.st_dev, status.st_ino, entry.path)
    return {entry.path for entry in found}


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (rule(ObjectKind.PATH, "/secret/key"), {"/secret/key"}),
        (rule(ObjectKind.PATH, "/run/file"), set()),
        (rule(ObjectKind.PATH, "/none/at/all"), set()),
        (rule(ObjectKind.PATH, "/opt/key"), set()),  # a link: its target is another form of the rule
        (rule(ObjectKind.DIRECTORY, "/secret/"), {"/secret/key"}),
        (rule(ObjectKind.DIRECTORY, "/secret/", recursive=True), {"/secret/key", "/secret/deep/also"}),
        (rule(ObjectKind.DIRECTORY, "/bin/", recursive=True), set()),
        (rule(ObjectKind.DIRECTORY, "/none/", recursive=True), set()),
        (rule(ObjectKind.DIRECTORY, "/", recursive=True), set()),
        (rule(ObjectKind.DIRECTORY, "/proc/", recursive=True), set()),
        (rule(ObjectKind.PATTERN, "/secret/*"), {"/secret/key"}),
        (rule(ObjectKind.PATTERN, "/secret/**"), {"/secret/key", "/secret/deep/also"}),
        (rule(ObjectKind.PATTERN, "/secret/*/a*"), {"/secret/deep/also"}),
        (rule(ObjectKind.PATTERN, "/secret/{deep/also,nothing}"), {"/secret/deep/also"}),
        (rule(ObjectKind.PATTERN, "/secret/*.pem"), set()),
        (rule(ObjectKind.EXECNAME, "key"), set()),
        (rule(ObjectKind.PATH, "/secret/key", action=Action.ALLOW), set()),
        (rule(ObjectKind.PATH, "/secret/key", action=Action.AUDIT), {"/secret/key"}),
        (rule(ObjectKind.PATH, "/secret/key", action=Action.ALLOW, sources=("/bin/a",)), {"/secret/key"}),
        (rule(ObjectKind.PATH, "/secret/key", action=Action.ALLOW, read_only=True), {"/secret/key"}),
        (rule(ObjectKind.PATH, "/secret/key", action=Action.ALLOW, owner_only=True), {"/secret/key"}),
        (rule(ObjectKind.PATH, "/secret/key", action=Action.ALLOW, terminal=False), {"/secret/key"}),
        (rule(ObjectKind.PATH, "/secret/key", action=Action.ALLOW, terminal=True), set()),
        (rule(ObjectKind.PATH, "/secret/key", action=Action.ALLOW, allowed_arguments=("-l",)), {"/secret/key"}),
        (rule(ObjectKind.PATH, "/secret/key", section=Section.PROCESS), {"/secret/key"}),
        (rule(ObjectKind.PATH, "/secret/key", implied=True), {"/secret/key"}),
        (rule(ObjectKind.DIRECTORY, "/secret/", implied=True), set()),
    ],
)
def test_files_with_another_name(linked: Path, one: Rule, expected: set[str]) -> None:
    assert links_of(linked, one) == expected


def test_directories_are_listed_once_for_all_rules(linked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolution, "MAXIMUM_ENTRIES", 4)
    one = rule(ObjectKind.DIRECTORY, "/secret/", recursive=True)
    other = rule(ObjectKind.PATTERN, "/secret/k*")
    assert links_of(linked, one, other, one) == {"/secret/key", "/secret/deep/also"}


def test_too_many_entries_are_refused_with_the_rule(linked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolution, "MAXIMUM_ENTRIES", 2)
    one = rule(ObjectKind.DIRECTORY, "/secret/", recursive=True)
    with RootResolver(linked) as resolver, pytest.raises(FactsError, match="rule p f cannot be checked"):
        resolver.hard_links(RuleSet((one,)))

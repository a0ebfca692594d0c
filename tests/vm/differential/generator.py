# SPDX-License-Identifier: Apache-2.0
"""Policies and questions from a seed.

Policies are documents, as people write them, and go through the reader, the models and everything behind; nothing here
knows the normal form. Values are drawn from the universe's names and bent: a pattern is made from a path it then
matches or just misses. Half of the questions are about what some rule names, since most others would meet a default.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import yaml

from hauberk.policy.globs import to_text
from tests.vm.differential.universe import ENTRIES, SOURCES, TREES, USER

if TYPE_CHECKING:
    import random

Document = dict[str, Any]

QUESTIONS: Final = 120
FOLLOWING: Final = (
    "open-read", "open-write", "open-read-write", "open-append", "open-trunc-read", "open-trunc-write", "truncate",
    "ftruncate", "chmod", "fchmod", "chown", "map-exec", "mprotect-exec", "exec", "execveat", "opendir", "stat",
)  # fmt: skip
"""Operations on what stands at the end of the links."""
MAKING: Final = ("creat", "creat-read", "symlink", "mkdir", "mknod")
REMOVING: Final = ("unlink", "rmdir")
NAMING: Final = ("link", "rename", "exchange")
_WEIGHTS: Final = {"open-read": 4, "open-write": 3, "exec": 4, "map-exec": 4, "mprotect-exec": 2, "unlink": 3,
                   "rename": 6, "link": 5, "exchange": 2, "stat": 0.3, "opendir": 0.7, "rmdir": 1.5}  # fmt: skip
_NEW: Final = ("new", "key2", "x3", "xz", "plug.so.2", "later.conf", "a,b", ".dot", "naïve")
_WRITTEN_SOURCES: Final = (*SOURCES, *SOURCES, "/bin/prober", "/opt/alias", "/usr/bin/dash", "/bin/sh", "/usr/bin/gone")


class Question(NamedTuple):
    """One line for the prober, asked by a source as a user."""

    operation: str
    path: bytes
    other: bytes
    source: str
    user: int


@dataclass(frozen=True)
class Case:
    """Policies with their questions, in the order in which they are to be asked."""

    documents: tuple[Document, ...]
    posture: str
    questions: tuple[Question, ...]

    @property
    def text(self) -> str:
        """The policies as one YAML file."""
        return as_yaml(self.documents)


def as_yaml(documents: tuple[Document, ...]) -> str:
    """Write documents as one YAML file."""
    return yaml.safe_dump_all(documents, sort_keys=False, allow_unicode=True, width=120)


def _utf8(path: bytes) -> bool:
    try:
        path.decode()
    except UnicodeDecodeError:
        return False
    return True


_DIRECTORIES: Final = [path for path, entry in ENTRIES.items() if entry.kind == "directory"]
_TREE_DIRECTORIES: Final = [path for path in _DIRECTORIES if path.startswith(TREES)]
_NAMED: Final = [path.decode() for path in ENTRIES if _utf8(path)]
_FILE_LINKS: Final = [b"/usr/bin/sh", b"/opt/alias", *(tree + b"/pub/key-link" for tree in TREES)]


def _respell(random: random.Random, path: bytes) -> bytes:
    """Reach a path through one of the links to a directory above it, sometimes."""
    detours = {b"/usr/bin": b"/bin", b"/usr/lib": b"/lib", b"/vol/t/app/conf": b"/srv/abs"}
    for tree in TREES:
        detours |= {tree + b"/app/prod": tree + b"/link", tree + b"/app/data": tree + b"/own/up",
                    tree + b"/pub": tree + b"/pub/loop/back"}  # fmt: skip
    for directory, link in detours.items():
        if path.startswith(directory + b"/") and random.random() < 0.3:
            return link + path[len(directory) :]
    return path


def _escaped(text: str) -> str:
    return "".join("\\" + character if character in "*?[]{}\\," else character for character in text)


class Generator:
    """Everything that is drawn comes from one generator, so that a seed names a case."""

    def __init__(self, random: random.Random) -> None:
        """Draw from ``random``."""
        self.random = random
        self.named: list[str] = []  # what the case's rules are about

    def case(self, questions: int = QUESTIONS) -> Case:
        """Draw one case."""
        documents = tuple(self._document(number) for number in range(self.random.choice((1, 2, 2, 3, 4))))
        if any(_allows(document) for document in documents):
            documents += (_probers_allowed(),)
        posture = self.random.choice(("block", "block", "block", "audit", "allow"))
        users = [(source, user) for source in SOURCES for user in (0, USER)]
        share, rest = divmod(questions, len(users))
        asked = [
            self._question(source, user)
            for index, (source, user) in enumerate(users)
            for _ in range(share + (index < rest))
        ]
        return Case(documents, posture, tuple(asked))

    # ---- policies

    def _document(self, number: int) -> Document:
        sections = self.random.choice((("file",), ("process",), ("process", "file"), ("process", "file"), ("file",)))
        spec: dict[str, Any] = {"selector": {"matchLabels": {"kubearmor.io/container.name": ".*"}}}
        if self.random.random() < 0.5:
            spec["action"] = self._action()
        for section in sections:
            spec[section] = self._section(section)
        return {
            "apiVersion": "security.kubearmor.com/v1",
            "kind": "KubeArmorPolicy",
            "metadata": {"name": f"policy-{number}"},
            "spec": spec,
        }

    def _action(self) -> str:
        return self.random.choice(("Allow", "Allow", "Allow", "Audit", "Audit", "Block", "Block"))

    def _section(self, section: str) -> dict[str, Any]:
        result: dict[str, Any] = {}
        if self.random.random() < 0.3:
            result["action"] = self._action()
        for _ in range(self.random.choice((1, 2, 3, 4, 5))):
            name, rule = self.random.choice((self._path, self._path, self._directory, self._directory, self._pattern))(
                section
            )
            if self.random.random() < 0.5:
                rule["action"] = self._action()
            if self.random.random() < 0.2:
                rule["ownerOnly"] = True
            if section == "file" and self.random.random() < 0.2:
                rule["readOnly"] = True
            if name != "matchPatterns" and self.random.random() < 0.35:
                sources = self.random.sample(_WRITTEN_SOURCES, self.random.choice((1, 1, 2)))
                rule["fromSource"] = [{"path": source} for source in sources]
            result.setdefault(name, []).append(rule)
        return result

    def _some_path(self) -> str:
        """Give a path that exists, or could; as the kernel sees it or through a link."""
        if self.random.random() < 0.15:
            directory = self.random.choice(_TREE_DIRECTORIES).decode()
            return f"{directory}/{self.random.choice(_NEW)}"
        return self.random.choice(_NAMED)

    def _literal_path(self) -> str:
        while True:
            path = to_text(_respell(self.random, self._some_path().encode()))
            if "*" not in path and "?" not in path:
                self.named.append(path)
                return path

    def _path(self, section: str) -> tuple[str, dict[str, Any]]:
        path = self._literal_path()
        if section == "process" and self.random.random() < 0.25:
            return "matchPaths", {"execname": path.rsplit("/", 1)[1]}
        return "matchPaths", {"path": path}

    def _directory(self, _: str) -> tuple[str, dict[str, Any]]:
        if self.random.random() < 0.05:
            rule: dict[str, Any] = {"dir": "/"}
        else:
            path = to_text(_respell(self.random, self.random.choice((*_TREE_DIRECTORIES, *_DIRECTORIES))))
            self.named.append(path)
            rule = {"dir": path + "/"}
        if self.random.random() < 0.6:
            rule["recursive"] = True
        return "matchDirectories", rule

    def _pattern(self, _: str) -> tuple[str, dict[str, Any]]:
        path = self._some_path()
        self.named.append(path)
        components = path[1:].split("/")
        bent = [self._bent(component) if self.random.random() < 0.5 else _escaped(component)
                for component in components]  # fmt: skip
        cut = self.random.randrange(len(bent) + 1)
        form = self.random.random()
        if form < 0.25:
            bent = [*bent[:cut], "**"]
        elif form < 0.35:
            bent = [*bent[:cut], "**", *bent[cut:]]
        elif form < 0.45:
            return "matchPatterns", {"pattern": "**/" + bent[-1]}
        elif form < 0.55 and cut:
            bent = ["{" + "/".join(bent[:cut]) + ",other/" + bent[0] + "}", *bent[cut:]]
        return "matchPatterns", {"pattern": "/" + "/".join(bent)}

    def _bent(self, name: str) -> str:
        """Give a pattern for a name, which mostly matches it."""
        place = self.random.randrange(len(name))
        before, character, after = _escaped(name[:place]), name[place], _escaped(name[place + 1 :])
        plain = character.isascii() and character.isalnum()
        single = "?" * len(character.encode())
        choices = ["*", before + "*", "*" + _escaped(name[place:]), before + single + after, before + "*" + after,
                   f"{{{_escaped(name)},{self.random.choice(('x', 'other', '*.so'))}}}",
                   f"{before}{{,zz,{single}}}{after}",
                   f"{before}**{after}", f"{before}?{after}"]  # fmt: skip
        if plain:
            choices += [f"{before}[{character}z]{after}", f"{before}[a-m0-4]{after}", f"{before}[^{character}]{after}",
                        f"{before}[^_Z]{after}"]  # fmt: skip
        return self.random.choice(choices)

    # ---- questions

    def _question(self, source: str, user: int) -> Question:
        operations = (*FOLLOWING, *MAKING, *REMOVING, *NAMING)
        weights = [_WEIGHTS.get(operation, 1) for operation in operations]
        operation = self.random.choices(operations, weights)[0]
        other = b""
        if operation in FOLLOWING:
            path = self._existing(operation == "opendir")
        elif operation in MAKING:
            path = self._new()
        elif operation == "rmdir":
            tree = self.random.choice(TREES)
            path = tree + (b"/own/hollow" if user else b"/app/empty")
        elif operation == "unlink":
            path = self._removable(user)
        else:
            path = self._within(self.random.choice(TREES), directories=operation != "link")
            tree = path[: len(TREES[0])]
            other = self._new(tree) if operation != "exchange" else self._within(tree, directories=True)
            other = _respell(self.random, other)
        return Question(operation, _respell(self.random, path), other, source, user)

    def _rule_paths(self, kinds: tuple[str, ...]) -> list[bytes]:
        return [path for name in self.named if (path := name.encode()) in ENTRIES and ENTRIES[path].kind in kinds]

    def _existing(self, directory: bool) -> bytes:  # noqa: FBT001 - one of two kinds
        kinds = ("directory",) if directory else ("file", "program", "script")
        named = self._rule_paths(kinds)
        if named and self.random.random() < 0.4:
            return self.random.choice(named)
        if not directory and (below := self._below_rules()) and self.random.random() < 0.4:
            return self.random.choice(below)
        return self.random.choice([path for path, entry in ENTRIES.items() if entry.kind in kinds] + _FILE_LINKS)

    def _below_rules(self) -> list[bytes]:
        above = tuple(path + b"/" for path in self._rule_paths(("directory",)))
        return [path for path, entry in ENTRIES.items() if above and path.startswith(above) and entry.kind == "file"]

    def _new(self, tree: bytes | None = None) -> bytes:
        if tree is None:
            tree = self.random.choice(TREES)
        wanted = [
            path
            for name in self.named
            if (path := name.encode()).startswith(tree)
            and path not in ENTRIES
            and path.rsplit(b"/", 1)[0] in _TREE_DIRECTORIES
        ]
        if wanted and self.random.random() < 0.3:
            return self.random.choice(wanted)
        near = [directory for directory in self._rule_paths(("directory",)) if directory.startswith(tree)]
        if not near or self.random.random() < 0.5:
            near = [directory for directory in _TREE_DIRECTORIES if directory.startswith(tree)]
        return self.random.choice(near) + b"/" + self.random.choice(_NEW).encode()

    def _removable(self, user: int) -> bytes:
        """Give a file that the prober can make again as it was."""
        files = [
            path
            for path, entry in ENTRIES.items()
            if path.startswith(TREES) and entry.kind == "file" and user in (0, entry.owner)
        ]
        named = [path for path in (*self._rule_paths(("file",)), *self._below_rules()) if path in files]
        return self.random.choice(named if named and self.random.random() < 0.5 else files)

    def _within(self, tree: bytes, *, directories: bool) -> bytes:
        """Give something in a tree that may be taken away: a file, a link, or a directory."""
        kinds = ("file", "link", "directory") if directories and self.random.random() < 0.5 else ("file", "link")
        named = [path for path in (*self._rule_paths(kinds), *self._below_rules()) if path.startswith(tree + b"/")]
        if named and self.random.random() < 0.5:
            return self.random.choice(named)
        return self.random.choice(
            [path for path, entry in ENTRIES.items() if path.startswith(tree + b"/") and entry.kind in kinds]
        )


def _allows(document: Document) -> bool:
    spec = document["spec"]
    process = spec.get("process", {})
    rules = [rule for name, rules in process.items() if name.startswith("match") for rule in rules]
    return any(rule.get("action", process.get("action", spec.get("action"))) == "Allow" for rule in rules)


def _probers_allowed() -> Document:
    """Give the policy without which an allow-list of programs would leave nobody to ask."""
    return {
        "apiVersion": "security.kubearmor.com/v1",
        "kind": "KubeArmorPolicy",
        "metadata": {"name": "probers"},
        "spec": {
            "selector": {"matchLabels": {"kubearmor.io/container.name": ".*"}},
            "process": {"action": "Allow", "matchPaths": [{"path": source} for source in SOURCES]},
        },
    }

# SPDX-License-Identifier: Apache-2.0
"""KubeArmorPolicy documents as strict models; every refusal with its place.

The models accept what KubeArmor's custom resource definition accepts for ``process`` and ``file``, without coercion
and without unknown fields. What KubeArmor knows and Hauberk does not enforce yet (other kinds, other sections,
``allowedArgs``, ``pts``) is refused as such: a policy that is half in force is worse than one that is refused, since
its author believes in the other half.

pydantic's messages speak to programmers. :func:`load` translates each into "found, expected, what to do" with file,
line and column. This module imports pydantic, which is large: import it where a document is read, not at start-up.
"""

from __future__ import annotations

import difflib
import json
import re
import typing
from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from hauberk.errors import PolicyError, Problem
from hauberk.policy import documents, globs, selectors
from hauberk.policy.documents import Document, FieldPath, field_name, type_name

if typing.TYPE_CHECKING:
    from collections.abc import Iterable

API_VERSION = "security.kubearmor.com/v1"
KIND = "KubeArmorPolicy"
OTHER_KINDS = ("KubeArmorHostPolicy", "KubeArmorClusterPolicy", "KubeArmorNetworkPolicy")
NOT_ENFORCED = frozenset(
    ("network", "capabilities", "syscalls", "presets", "apparmor", "device", "allowedArgs", "pts", "nodeSelector")
)
"""Fields that KubeArmor has and Hauberk refuses until an engine enforces them."""

_MAXIMUM_PATH = 4095
_MAXIMUM_NAME = 255
_MAXIMUM_RULES = 20_000
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,251}[A-Za-z0-9])?")


def _refuse(expected: str, advice: str, found: str = "", below: tuple[str, ...] = ()) -> NoReturn:
    """Refuse the value being validated, or what stands in it at ``below``."""
    context = {"found": found, "expected": expected, "advice": advice, "below": below}
    raise PydanticCustomError("hauberk", "{expected}", context)  # noqa: EM101


def _check_components(path: str) -> None:
    if "\0" in path:
        _refuse("a path without NUL characters", "Remove the NUL character; no path can hold one")
    if len(globs.to_bytes(path)) > _MAXIMUM_PATH:
        _refuse(
            f"at most {_MAXIMUM_PATH} bytes",
            "Shorten the path; the kernel knows none that long",
            f"{len(path)} characters",
        )
    if not path.startswith("/"):
        _refuse("an absolute path", f"Write it from the root, such as {_shown('/' + path)}")
    for component in path.strip("/").split("/") if path != "/" else ():
        if component in (".", ".."):
            _refuse("a path without '.' and '..'", "Write the path that the kernel sees, without detours")
    if "//" in path:
        _refuse("a path without empty components", "Write a single '/' between names")
    if re.match(r"/proc/(self|thread-self)(/|$)", path):
        _refuse(
            "a path as the kernel sees it", "Write /proc/PID as a pattern in matchPatterns, such as /proc/*/environ"
        )


def _check_literal(path: str) -> None:
    if "*" in path or "?" in path:
        _refuse("a path without wildcards", "Move it to matchPatterns, where '*' and '?' are wildcards")


def _path(path: str) -> str:
    _check_components(path)
    _check_literal(path)
    if path == "/" or path.endswith("/"):
        _refuse(
            "the path of a file, without a '/' at its end",
            "Remove the '/', or name a directory with dir in matchDirectories",
        )
    return path


def _directory(path: str) -> str:
    _check_components(path)
    _check_literal(path)
    if not path.endswith("/"):
        _refuse("the path of a directory, with a '/' at its end", f"Write {_shown(path + '/')}")
    return path


def _pattern(pattern: str) -> str:
    if not pattern.startswith(("/", "{", "**")):
        _refuse("a pattern for absolute paths", "Start it with '/', or with '**' for any directory")
    _check_components("/" + pattern.lstrip("/") if not pattern.startswith("//") else pattern)
    try:
        globs.parse(pattern)
    except globs.GlobError as error:
        _refuse(
            "a pattern of *, **, ?, [...], {a,b} and \\x",
            f"Correct it {error}",
            _shown(pattern),
        )
    return pattern


def _executable_name(name: str) -> str:
    if not name or "/" in name or "\0" in name or name in (".", "..") or len(globs.to_bytes(name)) > _MAXIMUM_NAME:
        _refuse(
            "the last component of an executable's path", "Write the file's name alone, or use path for a whole path"
        )
    _check_literal(name)
    return name


def _name(name: str) -> str:
    if not _NAME.fullmatch(name):
        _refuse("letters, digits, '-', '_' and '.', starting and ending with a letter or digit", "Choose such a name")
    return name


def _label_pair(pair: str) -> str:
    key, equals, _ = pair.partition("=")
    if not key or not equals:
        _refuse("a label and its value as 'key=value'", "Write the label's name, '=' and its value")
    return pair


def _check_container_name(value: str) -> None:
    try:
        selectors.check_container_name(value)
    except selectors.ExpressionError as error:
        _refuse(
            "a list '[a, b]' of container names or a regular expression",
            f"It has {error.message}",
            _shown(value),
            ("matchLabels", selectors.CONTAINER_NAME_LABEL),
        )


Severity = Annotated[int, Field(ge=1, le=10)]
Action = Literal["Allow", "Audit", "Block"]
FilePath = Annotated[str, AfterValidator(_path)]
DirectoryPath = Annotated[str, AfterValidator(_directory)]
GlobPattern = Annotated[str, AfterValidator(_pattern)]
ExecutableName = Annotated[str, AfterValidator(_executable_name)]
Name = Annotated[str, AfterValidator(_name)]
LabelPair = Annotated[str, AfterValidator(_label_pair)]


def _not_null(value: object) -> object:
    if value is None:
        _refuse("a value", "Write one, or remove the field", "null")
    return value


_NOT_NULL = BeforeValidator(_not_null)
"""For fields that may be absent (None in the model) but not written as null, which other readers take in different
ways.
"""


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class Attributes(_Strict):
    """What each level may say and the next one inherits. ``None``: not said here."""

    severity: Annotated[Severity | None, _NOT_NULL] = None
    tags: Annotated[list[str] | None, _NOT_NULL] = None
    message: Annotated[str | None, _NOT_NULL] = None
    action: Annotated[Action | None, _NOT_NULL] = None


class Source(_Strict):
    """One executable of ``fromSource``."""

    path: FilePath


Sources = Annotated[list[Source], Field(min_length=1, max_length=256)]


class _Rule(Attributes):
    ownerOnly: bool = False  # noqa: N815 - the document's spelling


class _SourcedRule(_Rule):
    fromSource: Annotated[Sources | None, _NOT_NULL] = None  # noqa: N815


class ProcessPath(_SourcedRule):
    """A program by path or by name."""

    path: Annotated[FilePath | None, _NOT_NULL] = None
    execname: Annotated[ExecutableName | None, _NOT_NULL] = None

    @model_validator(mode="after")
    def _one_object(self) -> ProcessPath:
        if (self.path is None) == (self.execname is None):
            found = "neither path nor execname" if self.path is None else "both path and execname"
            _refuse("exactly one of them", "Say what the rule is about, and make two rules for two things", found)
        return self


class ProcessDirectory(_SourcedRule):
    """All programs in a directory."""

    dir: DirectoryPath
    recursive: bool = False


class ProcessPattern(_Rule):
    """All programs whose path matches a glob."""

    pattern: GlobPattern


class FilePathRule(_SourcedRule):
    """A file by path."""

    path: FilePath
    readOnly: bool = False  # noqa: N815


class FileDirectory(_SourcedRule):
    """All files in a directory, and the directory itself."""

    dir: DirectoryPath
    recursive: bool = False
    readOnly: bool = False  # noqa: N815


class FilePattern(_Rule):
    """All files whose path matches a glob."""

    pattern: GlobPattern
    readOnly: bool = False  # noqa: N815


class ProcessSection(Attributes):
    """``spec.process``: what may be executed, and mapped as code."""

    matchPaths: list[ProcessPath] = []  # noqa: N815
    matchDirectories: list[ProcessDirectory] = []  # noqa: N815
    matchPatterns: list[ProcessPattern] = []  # noqa: N815

    @model_validator(mode="after")
    def _some_rule(self) -> ProcessSection:
        _check_rules(self)
        return self


class FileSection(Attributes):
    """``spec.file``: what may be read and changed."""

    matchPaths: list[FilePathRule] = []  # noqa: N815
    matchDirectories: list[FileDirectory] = []  # noqa: N815
    matchPatterns: list[FilePattern] = []  # noqa: N815

    @model_validator(mode="after")
    def _some_rule(self) -> FileSection:
        _check_rules(self)
        return self


def _check_rules(section: ProcessSection | FileSection) -> None:
    number = len(section.matchPaths) + len(section.matchDirectories) + len(section.matchPatterns)
    if number == 0:
        _refuse(
            "at least one rule",
            "Add a rule to matchPaths, matchDirectories or matchPatterns, or remove it",
            "a section without rules",
        )
    if number > _MAXIMUM_RULES:
        _refuse(f"at most {_MAXIMUM_RULES} rules", "Split the policy, or name directories", f"{number} rules")


class MatchExpression(_Strict):
    """One element of ``matchExpressions``."""

    key: Literal["label"]
    operator: Literal["In", "NotIn"]
    values: Annotated[list[LabelPair], Field(min_length=1)]


class SelectorModel(_Strict):
    """``spec.selector``."""

    matchLabels: dict[str, str] = {}  # noqa: N815
    matchExpressions: list[MatchExpression] = []  # noqa: N815

    @model_validator(mode="after")
    def _selects_something(self) -> SelectorModel:
        if not self.matchLabels and not self.matchExpressions:
            _refuse(
                "at least one label or expression",
                f'Name what the policy covers; for every container write {selectors.CONTAINER_NAME_LABEL}: ".*"',
                "a selector that selects by nothing",
            )
        name = self.matchLabels.get(selectors.CONTAINER_NAME_LABEL)
        if name is not None:
            _check_container_name(name)
        return self


class Metadata(_Strict):
    """``metadata``. What the Kubernetes API server adds is accepted and has no meaning here."""

    name: Name
    namespace: Name = ""
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}
    creationTimestamp: Any = None  # noqa: N815
    deletionGracePeriodSeconds: Any = None  # noqa: N815
    deletionTimestamp: Any = None  # noqa: N815
    finalizers: Any = None
    generateName: Any = None  # noqa: N815
    generation: Any = None
    managedFields: Any = None  # noqa: N815
    ownerReferences: Any = None  # noqa: N815
    resourceVersion: Any = None  # noqa: N815
    selfLink: Any = None  # noqa: N815
    uid: Any = None


class Spec(Attributes):
    """``spec``: whom the policy covers, and its rules."""

    selector: SelectorModel
    process: Annotated[ProcessSection | None, _NOT_NULL] = None
    file: Annotated[FileSection | None, _NOT_NULL] = None

    @model_validator(mode="after")
    def _some_section(self) -> Spec:
        if self.process is None and self.file is None:
            _refuse("a process or file section", "Add rules, or remove the document", "a policy without rules")
        return self


class KubeArmorPolicy(_Strict):
    """One policy document of kind KubeArmorPolicy."""

    apiVersion: Literal["security.kubearmor.com/v1"]  # noqa: N815
    kind: Literal["KubeArmorPolicy"]
    metadata: Metadata
    spec: Spec
    status: Any = None


class Policy:
    """A valid document and where its parts stand."""

    __slots__ = ("document", "model")

    def __init__(self, model: KubeArmorPolicy, document: Document) -> None:
        """Join a model and the document it was read from."""
        self.model = model
        self.document = document

    @property
    def name(self) -> str:
        """``namespace/name``, or ``name`` where the document names no namespace."""
        metadata = self.model.metadata
        return f"{metadata.namespace}/{metadata.name}" if metadata.namespace else metadata.name


def load(files: Iterable[tuple[str, bytes]]) -> tuple[Policy, ...]:
    """Read policies from ``(name for messages, content)`` pairs.

    Raises :class:`hauberk.errors.PolicyError` with every problem of every document of every file, also for two
    policies of one name.
    """
    policies, problems = examine(files)
    if problems:
        raise PolicyError(problems)
    return tuple(policies)


def examine(files: Iterable[tuple[str, bytes]]) -> tuple[list[Policy], list[Problem]]:
    """Read policies as :func:`load` does, but give both what is valid and what is wrong."""
    problems: list[Problem] = []
    policies: list[Policy] = []
    seen: dict[str, Policy] = {}
    for file, data in files:
        for document in documents.read(data, file, problems):
            policy = _validate(document, problems)
            if policy is None:
                continue
            first = seen.setdefault(policy.name, policy)
            if first is not policy:
                path: FieldPath = ("metadata", "name")
                place = first.document.place(path)
                found = f"a second policy named {policy.name!r} (first at {first.document.file}:{place.line})"
                problems.append(_problem(document, path, found, "each name once", "Rename one of them"))
            policies.append(policy)
    return policies, problems


def _problem(  # noqa: PLR0913 - the parts of one sentence
    document: Document, path: FieldPath, found: str, expected: str, advice: str, *, of_key: bool = False
) -> Problem:
    line, column = document.place(path, of_key=of_key)
    return Problem(document.file, line, column, field_name(path), found, expected, advice)


def _validate(document: Document, problems: list[Problem]) -> Policy | None:
    value = document.value
    if not isinstance(value, dict):
        problems.append(
            _problem(
                document, (), type_name(value), "a mapping with apiVersion, kind, metadata and spec", "Write a policy"
            )
        )
        return None
    kind = value.get("kind")
    if kind in OTHER_KINDS:
        advice = "Remove the document from the bundle until Hauberk enforces this kind"
        problems.append(_problem(document, ("kind",), f"the kind {kind}, which is not enforced yet", KIND, advice))
        return None
    if isinstance(kind, str) and kind != KIND:  # nothing else about it would be worth telling
        problems.append(_wrong_word(document, ("kind",), kind))
        return None
    try:
        return Policy(KubeArmorPolicy.model_validate(value), document)
    except ValidationError as errors:
        problems.extend(_translate(document, dict(error)) for error in errors.errors(include_url=False))
        return None


def _translate(document: Document, error: dict[str, Any]) -> Problem:
    """Turn one of pydantic's errors into a located problem."""
    path: FieldPath = tuple(part for part in error["loc"] if part != "[key]")
    kind: str = error["type"]
    context: dict[str, Any] = error.get("ctx", {})
    if kind == "extra_forbidden":
        return _unknown_field(document, path)
    if kind == "missing":
        owner = path[:-1]
        found, expected = "no such field", f"the field {path[-1]!r}"
        line, column = document.place(owner)
        return Problem(document.file, line, column, field_name(path), found, expected, "Add it")
    found = context.get("found") or _shown(error["input"])
    if kind == "hauberk":
        return _problem(document, (*path, *context["below"]), found, context["expected"], context["advice"])
    if kind == "literal_error":
        return _wrong_word(document, path, error["input"])
    expected, advice = _EXPECTATIONS.get(kind, (error["msg"], "Correct the value"))
    if kind in ("greater_than_equal", "less_than_equal"):
        expected, advice = "a whole number from 1 to 10", "Choose one of them"
    elif kind == "too_long":
        expected, advice, found = (
            f"at most {context['max_length']} elements",
            "Split the rule",
            f"{context['actual_length']} elements",
        )
    return _problem(document, path, found, expected, advice)


_EXPECTATIONS: dict[str, tuple[str, str]] = {
    "string_type": ("text", "Put the value in quotes"),
    "int_type": ("a whole number", "Write digits without quotes"),
    "bool_type": ("true or false", "Write true or false, without quotes"),
    "list_type": ("a list", "Start each element with '- '"),
    "dict_type": ("a mapping", "Write 'key: value' lines below it"),
    "model_type": ("a mapping", "Write 'key: value' lines below it"),
    "too_short": ("at least one element", "Add one, or remove the field"),
}


def _shown(value: object) -> str:
    """Show a value of the document, shortened."""
    if isinstance(value, str):
        text = json.dumps(value, ensure_ascii=False)
        return text if len(text) <= 100 else text[:97] + '…"'  # noqa: PLR2004 - a line of a message
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if value == []:
        return "an empty list"
    return type_name(value)


def _suggestion(word: str, choices: Iterable[str]) -> str:
    by_folded = {choice.casefold(): choice for choice in choices}
    close = difflib.get_close_matches(word.casefold(), by_folded, n=1, cutoff=0.6)
    return f"Did you mean {by_folded[close[0]]!r}?" if close else ""


def _wrong_word(document: Document, path: FieldPath, value: object) -> Problem:
    field = path[-1]
    choices = {
        "action": ("Allow", "Audit", "Block"),
        "operator": ("In", "NotIn"),
        "key": ("label",),
        "apiVersion": (API_VERSION,),
        "kind": (KIND,),
    }[str(field)]
    suggestion = _suggestion(value, choices) if isinstance(value, str) else ""
    return _problem(document, path, _shown(value), " or ".join(choices), suggestion or f"Write {' or '.join(choices)}")


def _unknown_field(document: Document, path: FieldPath) -> Problem:
    name = str(path[-1])
    known = _fields_at(path[:-1])
    if name in NOT_ENFORCED:
        found = f"{name!r}, which is not enforced yet"
        return _problem(
            document, path, found, _listed(known), "Remove it; what is not enforced is not accepted", of_key=True
        )
    suggestion = _suggestion(name, known)
    if not suggestion and name == "readOnly":
        suggestion = "Only rules of the file section can be readOnly"
    if not suggestion and name == "fromSource":
        suggestion = "Patterns cannot be limited to a source; use a path or directory"
    return _problem(
        document, path, f"the unknown field {name!r}", _listed(known), suggestion or "Remove it", of_key=True
    )


def _listed(names: Iterable[str]) -> str:
    names = [name for name in names if name not in _SERVER_FIELDS]
    return "one of " + ", ".join(names)


_SERVER_FIELDS = frozenset(name for name, field in Metadata.model_fields.items() if field.annotation is Any) | {
    "status"
}


def _fields_at(path: FieldPath) -> list[str]:
    """Give the field names the models know at a place of the document."""
    current: Any = KubeArmorPolicy
    for part in path:
        if isinstance(part, str) and issubclass(current, BaseModel):
            current = current.model_fields[part].annotation
        while arguments := typing.get_args(current):  # lists, optional and annotated types
            current = arguments[0]
    return list(current.model_fields) if issubclass(current, BaseModel) else []

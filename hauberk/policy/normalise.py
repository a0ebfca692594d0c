# SPDX-License-Identifier: Apache-2.0
"""Policies -> rules in the normal form -> the rule set of one workload.

Here inheritance ends: a rule's action, severity, tags and message are its own, else its section's, else the spec's;
an action that nobody gives is Block. Here spellings end too: words in upper case, lists with commas, names of device
classes and of services, networks with bits behind their prefix. Each rule carries the place it was written at, down to
the engine and back in every alert; a list with commas makes several rules of one place.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hauberk.policy import cilium, globs, kubernetes, packets, vocabulary
from hauberk.policy.inheritance import inherited, rule
from hauberk.policy.rules import (
    Action,
    DeviceMatch,
    ObjectKind,
    RuleSet,
    Section,
    SyscallMatch,
    Verdict,
    join,
)
from hauberk.policy.selectors import (
    CONTAINER_NAME_LABEL,
    HOST_EXPRESSION_LABELS,
    HOST_NAME_LABELS,
    Scope,
    Selector,
    WorkloadIdentity,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from hauberk.policy.documents import FieldPath
    from hauberk.policy.models import Policy, PolicyModel
    from hauberk.policy.rules import Rule

_LISTS = (
    ("matchPaths", ObjectKind.PATH, "path"),
    ("matchDirectories", ObjectKind.DIRECTORY, "dir"),
    ("matchPatterns", ObjectKind.PATTERN, "pattern"),
)
_WORDS = (
    (Section.NETWORK, "network", "matchProtocols", ObjectKind.PROTOCOL, "protocol"),
    (Section.DNS, "network", "matchDNSQueries", ObjectKind.DOMAIN, "domain"),
    (Section.CAPABILITIES, "capabilities", "matchCapabilities", ObjectKind.CAPABILITY, "capability"),
)
"""Sections whose rules name one thing by a word: section, its field, the list's field, and the word's."""
_KINDS_OF_PACKETS = {
    "KubeArmorNetworkPolicy": packets.of_kubearmor,
    "CiliumNetworkPolicy": cilium.rules,
    "CiliumClusterwideNetworkPolicy": cilium.rules,
    "NetworkPolicy": kubernetes.rules,
}
"""What makes rules of the policies about packets, by their kind."""
_SELECTORS: dict[str, Callable[[PolicyModel], Selector]] = {
    "CiliumNetworkPolicy": cilium.selector,
    "CiliumClusterwideNetworkPolicy": cilium.selector,
    "NetworkPolicy": kubernetes.selector,
}
"""What makes selectors of the policies that do not select as KubeArmor's do, by their kind."""


def selector(model: PolicyModel) -> Selector:
    """Give the selector of a policy in the form that is matched against workloads."""
    of_others = _SELECTORS.get(model.kind)
    if of_others is not None:
        return of_others(model)
    spec: Any = model.spec
    if getattr(spec, "nodeSelector", None) is not None:
        return _of_hosts(spec.nodeSelector.matchLabels)
    pairs: dict[tuple[str, str], list[str]] = {}
    for expression in spec.selector.matchExpressions:
        pairs.setdefault((expression.key, expression.operator), []).extend(expression.values)
    labels = dict(getattr(spec.selector, "matchLabels", {}))
    container_name = labels.pop(CONTAINER_NAME_LABEL, None)
    return Selector(
        tuple(labels.items()),
        tuple(pairs.get(("label", "In"), ())),
        tuple(pairs.get(("label", "NotIn"), ())),
        container_name,
        cluster=model.kind != "KubeArmorPolicy",
        namespaces=tuple(pairs.get(("namespace", "In"), ())),
        excluded_namespaces=tuple(pairs.get(("namespace", "NotIn"), ())),
    )


def _of_hosts(labels: dict[str, str]) -> Selector:
    special = {*HOST_NAME_LABELS, *HOST_EXPRESSION_LABELS}
    return Selector(
        labels=tuple((key, value) for key, value in labels.items() if key not in special),
        scope=Scope.HOST,
        host_names=tuple((key, labels[key]) for key in HOST_NAME_LABELS if key in labels),
        host_expressions=tuple((about, labels[key]) for key, about in HOST_EXPRESSION_LABELS.items() if key in labels),
    )


def rules(policy: Policy) -> tuple[Rule, ...]:
    """Give the rules of one policy, section by section in the order they are written, with inheritance applied."""
    parts = (_of_paths, _of_words, _of_calls, _of_presets, _of_devices, _of_text)
    of_packets = _KINDS_OF_PACKETS.get(policy.kind)
    return tuple(found for part in ((of_packets,) if of_packets else parts) for found in part(policy))


def _of_paths(policy: Policy) -> Iterator[Rule]:
    for section in (Section.PROCESS, Section.FILE):
        for list_name, kind, field in _LISTS:
            for entry, path, levels in _entries(policy, section.value, list_name):
                by_name = getattr(entry, "execname", None)
                value = by_name if by_name is not None else getattr(entry, field)
                yield rule(
                    policy,
                    path,
                    levels,
                    section=section,
                    kind=ObjectKind.EXECNAME if by_name is not None else _object_kind(kind, value),
                    value=value,
                    recursive=getattr(entry, "recursive", False),
                    read_only=getattr(entry, "readOnly", False),
                    owner_only=entry.ownerOnly,
                    sources=_sources(entry),
                    allowed_arguments=tuple(getattr(entry, "allowedArgs", None) or ()),
                    terminal=_terminal(entry),
                )


def _object_kind(kind: ObjectKind, value: str) -> ObjectKind:
    """Give what the value of a list names; a path with wildcards is taken for the pattern that it is."""
    return ObjectKind.PATTERN if kind is ObjectKind.PATH and globs.has_wildcards(value) else kind


def _of_words(policy: Policy) -> Iterator[Rule]:
    for section, field, list_name, kind, name in _WORDS:
        for entry, path, levels in _entries(policy, field, list_name):
            for word in dict.fromkeys(getattr(entry, name).split(",")):
                yield rule(
                    policy,
                    path,
                    levels,
                    section=section,
                    kind=kind,
                    value=word.replace(" ", "").lower().strip("."),
                    sources=_sources(entry),
                    terminal=_terminal(entry),
                )


def _of_calls(policy: Policy) -> Iterator[Rule]:
    for list_name in ("matchSyscalls", "matchPaths"):
        for entry, path, levels in _entries(policy, "syscalls", list_name):
            sources = entry.fromSource or ()
            match = SyscallMatch(
                names=tuple(dict.fromkeys(entry.syscall)),
                path=getattr(entry, "path", None),
                recursive=getattr(entry, "recursive", False),
                source_directories=tuple(
                    dict.fromkeys((source.dir, source.recursive) for source in sources if source.dir is not None)
                ),
            )
            about = f" on {match.path}" if match.path else ""
            yield rule(
                policy,
                path,
                levels,
                section=Section.SYSCALLS,
                kind=ObjectKind.SYSCALL,
                value=", ".join(match.names) + about,
                recursive=match.recursive,
                sources=tuple(dict.fromkeys(source.path for source in sources if source.path is not None)),
                match=match,
                action=Action.AUDIT,
            )


def _of_presets(policy: Policy) -> Iterator[Rule]:
    spec: Any = policy.model.spec
    for index, entry in enumerate(getattr(spec, "presets", None) or ()):
        written = inherited((entry, spec), "action", Action.BLOCK)
        yield rule(
            policy,
            ("spec", "presets", index),
            (entry, spec),
            section=Section.PRESETS,
            kind=ObjectKind.PRESET,
            value=entry.name,
            action=Action.AUDIT if written == Action.AUDIT else Action.BLOCK,
        )


def _of_devices(policy: Policy) -> Iterator[Rule]:
    for entry, path, levels in _entries(policy, "device", "matchDevice"):
        match = DeviceMatch(vocabulary.device_class(entry.class_), entry.subClass, entry.protocol, entry.level)
        yield rule(
            policy,
            path,
            levels,
            section=Section.DEVICE,
            kind=ObjectKind.DEVICE,
            value=device_text(match),
            match=match,
        )


def _of_text(policy: Policy) -> Iterator[Rule]:
    spec: Any = policy.model.spec
    if spec.apparmor is not None:
        yield rule(
            policy,
            ("spec", "apparmor"),
            (spec,),
            section=Section.APPARMOR,
            kind=ObjectKind.PROFILE,
            value=spec.apparmor,
        )


def device_text(match: DeviceMatch) -> str:
    """Name the devices of a rule for people: ``MASS-STORAGE subclass 6 level 1``."""
    names = {code: name for name, code in vocabulary.DEVICE_CLASSES.items()}
    device_class = match.device_class
    words = [vocabulary.ALL_DEVICES if device_class is None else names.get(device_class, f"class {device_class}")]
    numbers = (("subclass", match.subclass), ("protocol", match.protocol), ("level", match.level))
    return " ".join(words + [f"{name} {number}" for name, number in numbers if number is not None])


def _entries(policy: Policy, field: str, list_name: str) -> Iterator[tuple[Any, FieldPath, tuple[Any, ...]]]:
    """Give the entries of one list with their paths and the levels they inherit from."""
    spec = policy.model.spec
    section = getattr(spec, field, None)
    if section is not None:
        for index, entry in enumerate(getattr(section, list_name)):
            yield entry, ("spec", field, list_name, index), (entry, section, spec)


def _sources(entry: Any) -> tuple[str, ...]:  # noqa: ANN401 - a model, which is not imported here
    return tuple(dict.fromkeys(source.path for source in getattr(entry, "fromSource", None) or ()))


def _terminal(entry: Any) -> bool | None:  # noqa: ANN401 - a model, which is not imported here
    """Give False for ``pts: false``. ``pts: true`` asks for nothing: with a terminal or without."""
    return False if getattr(entry, "pts", None) is False else None


def covering(policies: Iterable[Policy], workload: WorkloadIdentity) -> tuple[Policy, ...]:
    """Give the policies that cover a workload. None: the bundle's default decides, not an empty rule set."""
    return tuple(
        policy for policy in policies if selector(policy.model).matches(policy.model.metadata.namespace, workload)
    )


def build(
    policies: Iterable[Policy], posture: Verdict = Verdict.DENY, postures: tuple[tuple[Section, Verdict], ...] = ()
) -> RuleSet:
    """Give the rule set of policies already selected: their rules, and what Hauberk implies."""
    return join((rule for policy in policies for rule in rules(policy)), posture, postures)


def rule_set(policies: Iterable[Policy], workload: WorkloadIdentity, posture: Verdict = Verdict.DENY) -> RuleSet | None:
    """Give the rule set of a workload, before its paths are resolved; None if no policy covers it.

    None is not "no rules": the caller applies the bundle's default for uncovered workloads, which is deny unless
    signed otherwise.
    """
    selected = covering(policies, workload)
    return build(selected, posture) if selected else None

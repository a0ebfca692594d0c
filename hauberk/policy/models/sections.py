# SPDX-License-Identifier: Apache-2.0
"""The sections of container, host and cluster policies: what is allowed, audited or blocked.

One class for each kind of rule, with exactly the fields that KubeArmor's custom resource definitions give it, so that
a field at a rule which cannot have it is a mistake with a place and not a wish without effect.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import ConfigDict, Field, model_validator

from hauberk.policy.models.base import NOT_NULL, NULL_IS_ABSENT, Action, Attributes, Notes, Strict, refuse
from hauberk.policy.models.values import (
    AnyPath,
    Argument,
    Byte,
    Capabilities,
    DeviceClass,
    DirectoryPath,
    Domains,
    ExecutableName,
    FilePath,
    GlobPattern,
    PathOrPattern,
    PresetName,
    Protocols,
    SyscallName,
)

MAXIMUM_RULES = 20_000
"""Most rules of one section."""
MAXIMUM_SOURCES = 256
"""Most executables in one ``fromSource``."""
MAXIMUM_ARGUMENTS = 20
"""Most arguments in one ``allowedArgs``."""
_MAXIMUM_HUBS = 6


def one_of(*names: str) -> ConfigDict:
    """Tell editors that exactly one of these fields must be there."""
    return ConfigDict(json_schema_extra={"oneOf": [{"required": [name]} for name in names]})


def _any_of(*names: str) -> ConfigDict:
    """Tell editors that one of these lists must be there and hold something."""
    choices: list[Any] = [{"required": [name], "properties": {name: {"minItems": 1}}} for name in names]
    return ConfigDict(json_schema_extra={"anyOf": choices})


class Source(Strict):
    """One executable of ``fromSource``."""

    path: FilePath


Sources = Annotated[list[Source], Field(min_length=1, max_length=MAXIMUM_SOURCES)]


class _Sourced(Attributes):
    fromSource: Annotated[Sources | None, NULL_IS_ABSENT] = None


class _Owned(Attributes):
    ownerOnly: bool = False


class _OwnedSourced(_Owned, _Sourced):
    pts: Annotated[bool | None, NOT_NULL] = None


class ProcessPath(_OwnedSourced):
    """A program by path or by name."""

    model_config = one_of("path", "execname")

    path: Annotated[PathOrPattern | None, NOT_NULL] = None
    execname: Annotated[ExecutableName | None, NOT_NULL] = None
    allowedArgs: Annotated[
        Annotated[list[Argument], Field(min_length=1, max_length=MAXIMUM_ARGUMENTS)] | None, NOT_NULL
    ] = None

    @model_validator(mode="after")
    def _one_object(self) -> Self:
        if (self.path is None) == (self.execname is None):
            found = "neither path nor execname" if self.path is None else "both path and execname"
            refuse("exactly one of them", "Say what the rule is about, and make two rules for two things", found)
        return self


class ProcessDirectory(_OwnedSourced):
    """All programs in a directory."""

    dir: DirectoryPath
    recursive: bool = False


class ProcessPattern(_Owned):
    """All programs whose path matches a glob."""

    pattern: GlobPattern


class FilePathRule(_OwnedSourced):
    """A file by path."""

    path: PathOrPattern
    readOnly: bool = False


class FileDirectory(_OwnedSourced):
    """All files in a directory, and the directory itself."""

    dir: DirectoryPath
    recursive: bool = False
    readOnly: bool = False


class FilePattern(_Owned):
    """All files whose path matches a glob."""

    pattern: GlobPattern
    readOnly: bool = False


class HostProtocol(_Sourced):
    """Sockets of a protocol or type, on a host. ``protocol`` may list several with commas between them."""

    protocol: Protocols


class NetworkProtocol(HostProtocol):
    """Sockets of a protocol or type, in containers."""

    pts: Annotated[bool | None, NOT_NULL] = None


class DnsQuery(_Sourced):
    """Look-ups of a domain name. ``domain`` may list several with commas between them."""

    domain: Domains


class CapabilityRule(_Sourced):
    """Use of a capability. ``capability`` may list several with commas between them."""

    capability: Capabilities


class SyscallSource(Strict):
    """One executable, or the executables of a directory, in ``fromSource`` of a system call rule."""

    model_config = one_of("path", "dir")

    path: Annotated[FilePath | None, NOT_NULL] = None
    dir: Annotated[DirectoryPath | None, NOT_NULL] = None
    recursive: bool = False

    @model_validator(mode="after")
    def _one_object(self) -> Self:
        if (self.path is None) == (self.dir is None):
            found = "neither path nor dir" if self.path is None else "both path and dir"
            refuse("exactly one of them", "Name an executable with path, or a directory with dir", found)
        if self.recursive and self.dir is None:
            refuse("recursive with dir alone", "Remove it, or name a directory with dir", "true", ("recursive",))
        return self


_SyscallNames = Annotated[list[SyscallName], Field(min_length=1)]
_SyscallSources = Annotated[list[SyscallSource], Field(min_length=1, max_length=MAXIMUM_SOURCES)]


class SyscallRule(Strict):
    """Calls by name."""

    syscall: _SyscallNames
    fromSource: Annotated[_SyscallSources | None, NULL_IS_ABSENT] = None


class SyscallPath(Strict):
    """Calls by name on a file, or on what is in a directory (a path with ``/`` at its end)."""

    path: AnyPath
    recursive: bool = False
    syscall: _SyscallNames
    fromSource: Annotated[_SyscallSources | None, NULL_IS_ABSENT] = None

    @model_validator(mode="after")
    def _recursive_directory(self) -> Self:
        if self.recursive and not self.path.endswith("/"):
            refuse("a directory, with a '/' at its end", f'Write "{self.path}/", or remove recursive', below=("path",))
        return self


class Preset(Strict):
    """A rule that KubeArmor has ready made."""

    name: PresetName
    action: Annotated[Action | None, NOT_NULL] = None


class DeviceRule(Attributes):
    """USB devices. What is not said matches any; ``level`` counts ports from a root port, which is 1."""

    class_: Annotated[DeviceClass, Field(alias="class")]
    subClass: Annotated[Byte | None, NOT_NULL] = None
    protocol: Annotated[Byte | None, NOT_NULL] = None
    level: Annotated[Annotated[int, Field(ge=1, le=_MAXIMUM_HUBS)] | None, NOT_NULL] = None


def _number_of_rules(entry: Strict) -> int:
    """Count the rules of an entry: a list with commas makes one of each word, and aliases repeat it cheaply."""
    match entry:
        case HostProtocol(protocol=words) | DnsQuery(domain=words) | CapabilityRule(capability=words):
            return 1 + words.count(",")
        case _:
            return 1


class _Section(Notes):
    """A section whose lists, together, must hold a rule and not too many."""

    @model_validator(mode="after")
    def _some_rule(self) -> Self:
        lists = [name for name in type(self).model_fields if name.startswith("match")]
        number = sum(_number_of_rules(entry) for name in lists for entry in getattr(self, name))
        if number == 0:
            refuse("at least one rule", f"Add a rule to {' or '.join(lists)}, or remove it", "a section without rules")
        if number > MAXIMUM_RULES:
            refuse(f"at most {MAXIMUM_RULES} rules", "Split the policy", f"{number} rules")
        return self


class ProcessSection(_Section, Attributes):
    """``spec.process``: what may be executed, and mapped as code."""

    model_config = _any_of("matchPaths", "matchDirectories", "matchPatterns")

    matchPaths: list[ProcessPath] = []
    matchDirectories: list[ProcessDirectory] = []
    matchPatterns: list[ProcessPattern] = []


class FileSection(_Section, Attributes):
    """``spec.file``: what may be read and changed."""

    model_config = _any_of("matchPaths", "matchDirectories", "matchPatterns")

    matchPaths: list[FilePathRule] = []
    matchDirectories: list[FileDirectory] = []
    matchPatterns: list[FilePattern] = []


class NetworkSection(_Section, Attributes):
    """``spec.network`` of containers: which sockets, and which names may be looked up."""

    model_config = _any_of("matchProtocols", "matchDNSQueries")

    matchProtocols: list[NetworkProtocol] = []
    matchDNSQueries: list[DnsQuery] = []


class HostNetworkSection(_Section, Attributes):
    """``spec.network`` of hosts."""

    model_config = _any_of("matchProtocols", "matchDNSQueries")

    matchProtocols: list[HostProtocol] = []
    matchDNSQueries: list[DnsQuery] = []


class CapabilitiesSection(_Section, Attributes):
    """``spec.capabilities``: which capabilities may be used."""

    model_config = _any_of("matchCapabilities")

    matchCapabilities: list[CapabilityRule] = []


class SyscallsSection(_Section):
    """``spec.syscalls``: which system calls are reported. They are audited whatever the policy's action is."""

    model_config = _any_of("matchSyscalls", "matchPaths")

    matchSyscalls: list[SyscallRule] = []
    matchPaths: list[SyscallPath] = []


class DeviceSection(_Section, Attributes):
    """``spec.device``: which USB devices may be used on a host."""

    model_config = _any_of("matchDevice")

    matchDevice: list[DeviceRule] = []

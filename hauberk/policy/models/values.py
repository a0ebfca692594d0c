# SPDX-License-Identifier: Apache-2.0
"""Texts that a policy holds, each with its check: paths, names, words of the vocabulary, addresses, quotas.

The values stay as they are written (comma lists, upper case), with one exception: a directory gets the ``/`` at its
end. What a text means is for the normal form; here is decided whether it means anything.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from hauberk.policy import globs, traffic
from hauberk.policy.models.base import refuse, shown
from hauberk.policy.syscall_names import SYSCALL_NAMES
from hauberk.policy.vocabulary import (
    ALL_DEVICES,
    CAPABILITIES,
    DEVICE_CLASSES,
    PRESETS,
    PROTOCOLS,
    SERVICES,
    device_class,
)

MAXIMUM_PATH = 4095
_MAXIMUM_NAME = 255
_MAXIMUM_DOMAIN = 253
_MAXIMUM_WORDS = 256
_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,251}[A-Za-z0-9])?")
_LABEL_KEY = re.compile(r"[A-Za-z0-9][-A-Za-z0-9_./]*")
_DOMAIN_LABEL = re.compile(r"[A-Za-z0-9_]([-A-Za-z0-9_]{0,61}[A-Za-z0-9_])?")


def _check_components(path: str) -> None:
    if "\0" in path:
        refuse("a path without NUL characters", "Remove the NUL character; no path can hold one")
    if len(globs.to_bytes(path)) > MAXIMUM_PATH:
        refuse(
            f"at most {MAXIMUM_PATH} bytes",
            "Shorten the path; the kernel knows none that long",
            f"{len(path)} characters",
        )
    if not path.startswith("/"):
        refuse("an absolute path", f"Write it from the root, such as {shown('/' + path)}")
    for component in path.strip("/").split("/") if path != "/" else ():
        if component in (".", ".."):
            refuse("a path without '.' and '..'", "Write the path that the kernel sees, without detours")
    if "//" in path:
        refuse("a path without empty components", "Write a single '/' between names")
    if re.match(r"/proc/(self|thread-self)(/|$)", path):
        refuse("a path as the kernel sees it", "Write /proc/PID as a pattern in matchPatterns, such as /proc/*/environ")


def _check_literal(path: str) -> None:
    if globs.has_wildcards(path):
        refuse("a path without wildcards", "Move it to matchPatterns, where '*' and '?' are wildcards")


def _path(path: str) -> str:
    _check_components(path)
    _check_literal(path)
    if path == "/" or path.endswith("/"):
        refuse(
            "the path of a file, without a '/' at its end",
            "Remove the '/', or name a directory with dir in matchDirectories",
        )
    return path


def _path_or_pattern(path: str) -> str:
    return _pattern(path) if globs.has_wildcards(path) else _path(path)


def _directory(path: str) -> str:
    _check_components(path)
    _check_literal(path)
    return path if path.endswith("/") else path + "/"


def _path_or_directory(path: str) -> str:
    _check_components(path)
    _check_literal(path)
    return path


def _pattern(pattern: str) -> str:
    if not pattern.startswith(("/", "{", "**")):
        refuse("a pattern for absolute paths", "Start it with '/', or with '**' for any directory")
    _check_components("/" + pattern.lstrip("/") if not pattern.startswith("//") else pattern)
    if pattern.endswith("/"):
        refuse(
            "a pattern of paths, which have no '/' at their end",
            "Remove the '/', or write '/**' for all that is below a directory",
        )
    try:
        globs.parse(pattern)
    except globs.GlobError as error:
        refuse("a pattern of *, **, ?, [...], {a,b} and \\x", f"Correct it {error}", shown(pattern))
    return pattern


def _executable_name(name: str) -> str:
    if not name or "/" in name or "\0" in name or name in (".", "..") or len(globs.to_bytes(name)) > _MAXIMUM_NAME:
        refuse(
            "the last component of an executable's path", "Write the file's name alone, or use path for a whole path"
        )
    _check_literal(name)
    return name


def _argument(argument: str) -> str:
    if "\0" in argument:
        refuse("an argument without NUL characters", "Remove the NUL character; no argument can hold one")
    return argument


def _name(name: str) -> str:
    if not _NAME.fullmatch(name):
        refuse("letters, digits, '-', '_' and '.', starting and ending with a letter or digit", "Choose such a name")
    return name


def _word_of(choices: tuple[str, ...], expected: str, *, case: Callable[[str], str] = str) -> Callable[[str], str]:
    """Give the check of one word."""

    def check(word: str) -> str:
        if case(word) not in choices:
            refuse(expected, f"Write one of {', '.join(choices)}", shown(word), near=(word, choices))
        return word

    return check


def _list_of(check: Callable[[str], str]) -> Callable[[str], str]:
    """Give the check of words with commas between them; spaces around them do not count."""

    @functools.lru_cache(maxsize=256)  # aliases repeat long lists cheaply; what is refused is not kept
    def check_all(words: str) -> str:
        if words.count(",") >= _MAXIMUM_WORDS:
            refuse(
                f"at most {_MAXIMUM_WORDS} of them",
                "Write several rules",
                f"{words.count(',') + 1} with commas between",
            )
        for word in words.split(","):
            check(word.strip(" "))
        return words

    return check_all


def _lower_unless_mixed(word: str) -> str:
    return word.lower() if word.isupper() else word


def _domain(name: str) -> str:
    labels = name.removesuffix(".").split(".")
    if len(name) > _MAXIMUM_DOMAIN or not all(_DOMAIN_LABEL.fullmatch(label) for label in labels):
        refuse(
            "a domain name such as example.com",
            "Write the whole name in ASCII; wildcards are unknown here, and other letters are written as xn--…",
            shown(name),
        )
    return name


def _syscall(name: str) -> str:
    if name not in SYSCALL_NAMES:
        advice = "Write the name as in syscalls(2), such as unlink"
        refuse("the name of a Linux system call", advice, near=(name, SYSCALL_NAMES))
    return name


def _device_class(text: str) -> str:
    try:
        device_class(text)
    except ValueError:
        refuse(
            "a USB class: a name, a number from 1 to 255 or 0x1 to 0xff, or ALL",
            f"Write one of {', '.join(DEVICE_CLASSES)}",
            near=(text, (*DEVICE_CLASSES, ALL_DEVICES)),
        )
    return text


def _traffic(check: Callable[[str], Any], names: Iterable[str] = ()) -> AfterValidator:
    """Give the validator of a text that :mod:`hauberk.policy.traffic` reads. ``names``: words it may be."""

    def validate(text: str) -> str:
        try:
            check(text)
        except traffic.TrafficError as error:
            refuse(error.expected, error.advice, near=(text, names))
        return text

    return AfterValidator(validate)


def _label_pair(pair: str) -> str:
    check_label_pair(pair)
    return pair


def check_label_pair(pair: str, below: tuple[str | int, ...] = ()) -> None:
    """Refuse what is not ``key=value``, and what no label can be: it would be looked for in vain."""
    key, equals, value = pair.partition("=")
    if not _LABEL_KEY.fullmatch(key) or not equals or value != value.strip() or value.startswith("="):
        refuse("a label and its value as 'key=value'", "Write the label's name, '=' and its value", shown(pair), below)


def _comma_pattern(choices: tuple[str, ...]) -> str:
    word = f" *({'|'.join(choices)}) *"
    return f"^{word}(,{word})*$"


def in_editors(**schema: Any) -> Any:  # noqa: ANN401 - what pydantic takes as metadata
    """Give what an editor's schema can say of a text that a validator checks in full."""
    return Field(json_schema_extra=schema)


PathOrPattern = Annotated[str, AfterValidator(_path_or_pattern), in_editors(pattern="^/.*[^/]$")]
FilePath = Annotated[str, AfterValidator(_path), in_editors(pattern="^/.*[^/]$")]
DirectoryPath = Annotated[str, AfterValidator(_directory), in_editors(pattern="^/")]
AnyPath = Annotated[str, AfterValidator(_path_or_directory), in_editors(pattern="^/")]
GlobPattern = Annotated[str, AfterValidator(_pattern), in_editors(pattern=r"^(/|\{|\*\*)")]
ExecutableName = Annotated[str, AfterValidator(_executable_name), in_editors(pattern="^[^/*?]+$")]
Argument = Annotated[str, AfterValidator(_argument)]
Name = Annotated[str, AfterValidator(_name), in_editors(pattern="^[A-Za-z0-9]([-A-Za-z0-9_.]{0,251}[A-Za-z0-9])?$")]
LabelPair = Annotated[str, AfterValidator(_label_pair), in_editors(pattern="^[^=]+=")]
Protocols = Annotated[
    str,
    AfterValidator(
        _list_of(_word_of(PROTOCOLS, "a protocol or socket type, in lower or upper case", case=_lower_unless_mixed))
    ),
    in_editors(pattern=_comma_pattern((*PROTOCOLS, *(word.upper() for word in PROTOCOLS)))),
]
Capabilities = Annotated[
    str,
    AfterValidator(_list_of(_word_of(CAPABILITIES, "a capability in lower case and without 'cap_'"))),
    in_editors(pattern=_comma_pattern(CAPABILITIES)),
]
Domains = Annotated[str, AfterValidator(_list_of(_domain))]
SyscallName = Annotated[str, AfterValidator(_syscall), in_editors(enum=sorted(SYSCALL_NAMES))]
PresetName = Annotated[str, AfterValidator(_word_of(PRESETS, "the name of a preset")), in_editors(enum=list(PRESETS))]
DeviceClass = Annotated[
    str,
    AfterValidator(_device_class),
    in_editors(
        anyOf=[{"enum": [ALL_DEVICES, *DEVICE_CLASSES]}, {"pattern": "^([0-9]+|0[xX][0-9a-fA-F]+|[A-Za-z].*)$"}]
    ),
]
Byte = Annotated[int, Field(ge=0, le=255)]
Cidr = Annotated[str, _traffic(traffic.network), in_editors(pattern="^[0-9a-fA-F:.]+(/[0-9]{1,3})?$")]
Port = Annotated[
    str, _traffic(traffic.port_number, SERVICES), in_editors(pattern="^([1-9][0-9]{0,4}|[A-Za-z][-A-Za-z0-9]*)$")
]
PortNumber = Annotated[int, Field(ge=1, le=traffic.MAXIMUM_PORT)]
Interface = Annotated[str, _traffic(traffic.check_interface), in_editors(pattern=r"^[^\s/:*]+\*?$")]
Limit = Annotated[str, _traffic(traffic.quota_bytes), in_editors(pattern="^[0-9]+(KB|MB|GB|K|M|G)?$")]
Duration = Annotated[str, _traffic(traffic.duration_seconds), in_editors(pattern="^([0-9.]+(ns|us|µs|μs|ms|s|m|h))+$")]

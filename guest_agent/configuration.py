# SPDX-License-Identifier: Apache-2.0
"""The agent's configuration: one YAML file of the machine, read once, strictly.

It lies in the measured image (sealed mode) or belongs to the machine's operator (host mode); nothing a container's
creator can write is ever looked at. An unknown key is an error, because a misspelt restriction is none.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from guest_agent import child
from guest_agent.network import settings
from hauberk.policy import coverage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from hauberk.policy.exemptions import Exemption

DEFAULT_PATH: Final = Path("/etc/hauberk/agent.yaml")
MAXIMUM_BYTES: Final = 1 << 20
_MANAGERS: Final = (
    "/usr/bin/runc", "/usr/sbin/runc", "/usr/local/sbin/runc", "/usr/bin/crun", "/usr/local/bin/crun",
    "/usr/bin/kata-agent", "/usr/local/bin/kata-agent", "/usr/bin/containerd-shim-runc-v2", "/usr/bin/conmon",
    "/usr/bin/podman",  # conmon starts it to clean up after a container, poststop hooks included
)  # fmt: skip
_HELPERS: Final = (
    "/usr/libexec/hauberk/hauberk-hook", "/usr/share/oci/hooks/prestart/hauberk-hook",
    "/usr/share/oci/hooks/poststop/hauberk-hook",
    # the wrapper runtime: scripts between a manager and the runtime it wraps
    "/usr/libexec/hauberk/hauberk-add-hooks", "/usr/libexec/hauberk/hauberk-runtime-runc",
    "/usr/libexec/hauberk/hauberk-runtime-crun", "/usr/libexec/hauberk/hauberk-runtime-docker",
)  # fmt: skip
_KERNEL_HELPERS: Final = ("/sbin/modprobe",)
_MOUNT_POINTS: Final = ("/etc/resolv.conf",)  # kata-agent binds the pod's resolver file there
_SERVICE_CGROUPS: Final = ("/init.scope", "/system.slice", "/user.slice")
_KEYS: Final[dict[str, str]] = {
    "mode": "mode",
    "trustRoot": "trust_root",
    "bundle": "bundle",
    "bundleSignature": "bundle_signature",
    "hookSocket": "hook_socket",
    "agentSocket": "agent_socket",
    "stateDirectory": "state_directory",
    "managers": "managers",
    "helpers": "helpers",
    "kernelHelpers": "kernel_helpers",
    "managerMountPoints": "mount_points",
    "serviceCgroups": "service_cgroups",
    "alertLog": "alert_log",
    "tableRegions": "table_regions",
    "engines": "engines",
    "nodeLabels": "node_labels",
    "networkManagement": "management",
    "networkEntities": "entities",
    "networkResolvers": "resolvers",
}
_LISTS: Final = frozenset({"managers", "helpers", "kernel_helpers", "mount_points", "service_cgroups"})
_MAXIMUM_REGIONS: Final = 64
_ENGINES: Final = (coverage.ENGINE, coverage.NFTABLES)


def _engines(found: object) -> tuple[str, ...]:
    if not isinstance(found, list) or not found or not set(map(str, found)) <= set(_ENGINES):
        message = f"found {found!r}, expected a list of {' or '.join(_ENGINES)}"
        raise ValueError(message)
    return tuple(dict.fromkeys(found))


_READERS: Final[dict[str, Callable[[object], object]]] = {
    "engines": _engines,
    "node_labels": settings.labels,
    "management": settings.management,
    "entities": settings.entities,
    "resolvers": settings.resolvers,
}


class ConfigurationError(Exception):
    """The configuration cannot be used. The message names file and key, what was found and what was expected."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """The agent's configuration. Paths of lists that were not given are those of the defaults that exist.

    ``management`` are the machine's own exemptions from network policies, ``entities`` the networks that entities
    stand for, ``resolvers`` whose answers names are learned from: by default those of ``/etc/resolv.conf``.
    """

    mode: Literal["sealed", "host"]
    trust_root: Path = Path("/etc/hauberk/trust-root.json")
    bundle: Path = Path("/etc/hauberk/bundle.json")
    bundle_signature: Path = Path("/etc/hauberk/bundle.json.sig")
    hook_socket: Path = Path("/run/hauberk/hook.sock")
    agent_socket: Path = Path("/run/hauberk/agent.sock")
    state_directory: Path = Path("/run/hauberk/workloads")
    managers: tuple[str, ...] = ()
    helpers: tuple[str, ...] = ()
    kernel_helpers: tuple[str, ...] = ()
    mount_points: tuple[str, ...] = ()
    service_cgroups: tuple[str, ...] = _SERVICE_CGROUPS
    alert_log: Path | None = None
    table_regions: int = 4  # of 4 MiB kernel memory each
    engines: tuple[str, ...] = _ENGINES
    node_labels: tuple[tuple[str, str], ...] = ()
    management: tuple[Exemption, ...] = ()
    entities: tuple[tuple[str, tuple[str, ...]], ...] = ()
    resolvers: tuple[str, ...] = ()


def load(path: Path = DEFAULT_PATH) -> Configuration:
    """Read the configuration file. Raises ConfigurationError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAXIMUM_BYTES + 1)
    except OSError as error:
        message = f"{path} cannot be read ({error.strerror}); write one (docs/agent.md) or name it with --configuration"
        raise ConfigurationError(message) from error
    if len(data) > MAXIMUM_BYTES:
        message = f"{path} is larger than {MAXIMUM_BYTES} bytes, expected a short list of settings"
        raise ConfigurationError(message)
    try:
        answer = child.ask("configuration", {"text": data.decode(), "file": str(path)})
    except (child.ChildError, UnicodeDecodeError) as error:
        message = f"{path}: {error}"
        raise ConfigurationError(message) from error
    value = answer.get("value")
    if not isinstance(value, dict):
        message = f"{path} holds no mapping of settings, expected at least 'mode: sealed' or 'mode: host'"
        raise ConfigurationError(message)
    return parse(value, str(path))


def parse(value: Mapping[str, object], file: str) -> Configuration:
    """Check the settings. Raises ConfigurationError."""
    found_settings: dict[str, object] = {}
    for key, found in value.items():
        name = _KEYS.get(key)
        if name is None:
            near = difflib.get_close_matches(str(key), _KEYS, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(_KEYS)}"
            message = f"{file}: unknown setting {key!r}; {hint}"
            raise ConfigurationError(message)
        found_settings[name] = _setting(name, key, found, file)
    mode = found_settings.get("mode")
    if mode not in ("sealed", "host"):
        message = f"{file}: mode: found {mode!r}, expected sealed or host; say which, there is no default"
        raise ConfigurationError(message)
    if mode == "sealed" and coverage.ENGINE not in found_settings.get("engines", _ENGINES):  # type: ignore[operator] # a tuple
        message = f"{file}: engines: found none that gates programs, expected {coverage.ENGINE} for mode sealed"
        raise ConfigurationError(message)
    for name, defaults in (
        ("managers", _MANAGERS),
        ("helpers", _HELPERS),
        ("kernel_helpers", _KERNEL_HELPERS),
        ("mount_points", _MOUNT_POINTS),
    ):
        found_settings.setdefault(name, tuple(path for path in defaults if Path(path).is_file()))
    found_settings.setdefault("resolvers", settings.system_resolvers())
    return Configuration(**found_settings)  # type: ignore[arg-type] # checked one by one above


def _setting(name: str, key: str, found: object, file: str) -> object:
    if name in _LISTS:
        if not isinstance(found, list) or not all(map(_is_path, found)):
            message = f"{file}: {key}: found {found!r}, expected a list of absolute paths"
            raise ConfigurationError(message)
        return tuple(found)
    if name == "table_regions":
        if not isinstance(found, int) or isinstance(found, bool) or not 0 < found <= _MAXIMUM_REGIONS:
            message = (
                f"{file}: {key}: found {found!r}, expected an integer from 1 to {_MAXIMUM_REGIONS} (units of 4 MiB)"
            )
            raise ConfigurationError(message)
        return found
    if name == "mode":
        return found
    if name in _READERS:
        try:
            return _READERS[name](found)
        except ValueError as error:
            message = f"{file}: {key}: {error}"
            raise ConfigurationError(message) from error
    if not _is_path(found):
        message = f"{file}: {key}: found {found!r}, expected an absolute path"
        raise ConfigurationError(message)
    return Path(str(found))


def _is_path(found: object) -> bool:
    return isinstance(found, str) and found.startswith("/") and "\0" not in found


assert set(_KEYS.values()) == {entry.name for entry in fields(Configuration)}  # noqa: S101 - a slip of ours, not input

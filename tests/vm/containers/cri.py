# SPDX-License-Identifier: Apache-2.0
"""A client of the container runtime interface, as small as tests need: what kubelet says to containerd.

``base_runtime_spec`` and runtime handlers are options of containerd's CRI plugin, which its own command line goes
past; and a cluster's tool for it is no package of Debian 12. Pods share the host's network, so that no network
plugin is needed.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import grpc

from tests.vm.containers.runtime import DEFAULT_LIMIT, Completed

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_PROTO: Final = "tests/vm/containers/cri.proto"  # from the repository's root, which tests run in
_EXITED: Final = 2


class CriError(Exception):
    """The runtime refused a request; the message is its own."""


@dataclass
class Pod:
    """A pod sandbox and the containers made in it."""

    identifier: str
    configuration: Any
    containers: list[str] = field(default_factory=list)


class Cri:
    """One connection to a CRI runtime."""

    def __init__(self, socket: Path, logs: Path) -> None:
        """Connect when first used; what containers print goes to ``logs``.

        The messages are compiled here, from the definitions beside this file.
        """
        self._logs = logs
        self._messages, services = grpc.protos_and_services(_PROTO)
        self._channel = grpc.insecure_channel(f"unix://{socket}")
        self._service = services.RuntimeServiceStub(self._channel)
        self._pods: list[Pod] = []

    def close(self) -> None:
        """Remove every pod made here, and hang up."""
        self.remove_pods()
        self._channel.close()

    def remove_pods(self) -> None:
        """Remove every pod made here, with its containers."""
        for pod in list(self._pods):
            self.remove_pod(pod)

    def version(self) -> tuple[str, str]:
        """Give the runtime's name and version; waits until it answers."""
        answer = self._call("Version", self._messages.VersionRequest(), wait=True)
        return answer.runtime_name, answer.runtime_version

    def pod(
        self,
        name: str,
        handler: str = "",
        *,
        namespace: str = "default",
        labels: Mapping[str, str] | None = None,
        annotations: Mapping[str, str] | None = None,
    ) -> Pod:
        """Start a pod sandbox in the host's network. Raises CriError."""
        messages = self._messages
        configuration = messages.SandboxConfig(
            metadata=messages.SandboxMetadata(name=name, uid=f"uid-{name}", namespace=namespace, attempt=0),
            log_directory=str(self._logs),
            labels=labels or {},
            annotations=annotations or {},
            linux=messages.LinuxSandbox(
                cgroup_parent=f"/pods/{name}",
                security_context=messages.SandboxSecurity(namespace_options=self._namespaces()),
            ),
        )
        request = messages.RunPodSandboxRequest(config=configuration, runtime_handler=handler)
        pod = Pod(self._call("RunPodSandbox", request).pod_sandbox_id, configuration)
        self._pods.append(pod)
        return pod

    def remove_pod(self, pod: Pod) -> None:
        """Stop and remove a pod and its containers."""
        for container in list(pod.containers):
            self.remove(pod, container)
        sandbox = self._messages.PodSandbox(pod_sandbox_id=pod.identifier)
        self._call("StopPodSandbox", sandbox)
        self._call("RemovePodSandbox", sandbox)
        self._pods.remove(pod)

    def create(  # noqa: PLR0913 - the parts of a container
        self,
        pod: Pod,
        name: str,
        image: str,
        command: Sequence[str],
        *,
        annotations: Mapping[str, str] | None = None,
        mounts: Mapping[str, Path] | None = None,
    ) -> str:
        """Create a container (nothing of it runs, not even the OCI runtime); give its id. Raises CriError."""
        messages = self._messages
        configuration = messages.ContainerConfig(
            metadata=messages.ContainerMetadata(name=name, attempt=len(pod.containers)),
            image=messages.Image(image=image),
            command=command,
            annotations=annotations or {},
            log_path=f"{pod.identifier}-{name}.log",
            mounts=[
                messages.Mount(container_path=inside, host_path=str(path)) for inside, path in (mounts or {}).items()
            ],
            linux=messages.LinuxContainer(
                security_context=messages.ContainerSecurity(namespace_options=self._namespaces())
            ),
        )
        request = messages.CreateContainerRequest(
            pod_sandbox_id=pod.identifier, config=configuration, sandbox_config=pod.configuration
        )
        identifier: str = self._call("CreateContainer", request).container_id
        pod.containers.append(identifier)
        return identifier

    def start(self, container: str) -> None:
        """Have the OCI runtime create and start it: hooks run here. Raises CriError."""
        self._call("StartContainer", self._messages.Container(container_id=container))

    def run(self, pod: Pod, name: str, image: str, command: Sequence[str], **more: Any) -> str:  # noqa: ANN401 - create's
        """Create and start a container; give its id. Raises CriError."""
        container = self.create(pod, name, image, command, **more)
        self.start(container)
        return container

    def inside(self, container: str, *command: str) -> Completed:
        """Run a program in a running container. A program that cannot be started is a CriError."""
        request = self._messages.ExecSyncRequest(container_id=container, cmd=command, timeout=int(DEFAULT_LIMIT))
        answer = self._call("ExecSync", request)
        return Completed(command, answer.exit_code, answer.stdout.decode(), answer.stderr.decode())

    def printed(self, pod: Pod, name: str) -> list[str]:
        """Give the lines that a container printed: each is "TIME STREAM TAG TEXT" in its log."""
        log = self._logs / f"{pod.identifier}-{name}.log"
        return [row.split(" ", 3)[3] for row in log.read_text("utf-8").splitlines()] if log.exists() else []

    def pid(self, container: str) -> int:
        """Give the pid of a running container's init."""
        request = self._messages.ContainerStatusRequest(container_id=container, verbose=True)
        return int(json.loads(self._call("ContainerStatus", request).info["info"])["pid"])

    def exited(self, container: str) -> bool:
        """Whether the container has ended."""
        request = self._messages.ContainerStatusRequest(container_id=container)
        return bool(self._call("ContainerStatus", request).status.state == _EXITED)

    def remove(self, pod: Pod, container: str) -> None:
        """Stop and remove a container."""
        self._call("StopContainer", self._messages.StopContainerRequest(container_id=container, timeout=0))
        self._call("RemoveContainer", self._messages.Container(container_id=container))
        pod.containers.remove(container)

    def _namespaces(self) -> Any:  # noqa: ANN401 - a message
        messages = self._messages
        return messages.NamespaceOption(network=messages.NODE, pid=messages.CONTAINER)

    def _call(self, method: str, request: Any, *, wait: bool = False) -> Any:  # noqa: ANN401 - messages
        try:
            return getattr(self._service, method)(request, timeout=DEFAULT_LIMIT, wait_for_ready=wait)
        except grpc.RpcError as error:
            message = f"{method}: {error.details()}"
            raise CriError(message) from error

# SPDX-License-Identifier: Apache-2.0
"""The NRI plugin's place: it will talk to the agent, never to the kernel. The import contracts bind it already."""

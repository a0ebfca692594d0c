# SPDX-License-Identifier: Apache-2.0
"""The agent's two doors: the hook socket and the gRPC service, both on Unix sockets of root alone."""

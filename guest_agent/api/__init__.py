# SPDX-License-Identifier: Apache-2.0
"""The agent's doors: the hook socket for container runtimes, gRPC for the command line and the NRI plugin.

Each door only frames, bounds and authenticates; what is asked is decided elsewhere. The modules are imported one by
one, so that a process that needs one door does not pay for the other.
"""

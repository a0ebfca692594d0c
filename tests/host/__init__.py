# SPDX-License-Identifier: Apache-2.0
"""The host lane: root on this machine, real runtimes, no BPF."""

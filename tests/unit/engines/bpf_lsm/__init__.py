# SPDX-License-Identifier: Apache-2.0
"""Tests of the BPF LSM engine's pure parts: automaton and plan."""

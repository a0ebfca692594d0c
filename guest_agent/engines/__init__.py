# SPDX-License-Identifier: Apache-2.0
"""Enforcement engines: one package per kernel mechanism, behind one port; none knows another."""

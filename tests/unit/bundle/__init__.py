# SPDX-License-Identifier: Apache-2.0
"""Bundles: format, keys, signatures, command line."""

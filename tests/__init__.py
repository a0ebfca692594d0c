# SPDX-License-Identifier: Apache-2.0
"""Hauberk's tests: ``unit`` needs nothing, ``host`` needs root, ``vm`` needs QEMU. No part of any wheel."""

# SPDX-License-Identifier: Apache-2.0
"""The rules of the lanes and of the build, tested themselves."""

# SPDX-License-Identifier: Apache-2.0
"""Hauberk's library: policies, bundles and the command line. It needs no root and no kernel.

This package imports nothing of the daemon or of the plugin; both build on it. Keep this module empty of imports, so
that every program that needs one small part of the library pays for that part only.
"""

__version__ = "0.1.0"

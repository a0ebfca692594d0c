# SPDX-License-Identifier: Apache-2.0
"""Every figure Hauberk publishes, one command each."""

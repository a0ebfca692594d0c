# SPDX-License-Identifier: Apache-2.0
"""Network policies in the agent: whose packets are known by what, who is a member of which group, what is in force."""

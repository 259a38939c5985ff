# SPDX-License-Identifier: MIT
"""What the longer scripts are made of: options, networks and losses of one system a file."""

# SPDX-License-Identifier: MIT
"""What tests share: small systems, networks, checkpoints, and the cases compared with diffusers."""

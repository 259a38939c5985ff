# SPDX-License-Identifier: MIT
"""The only room that touches disk or network: data, checkpoints, images, logs, weights."""

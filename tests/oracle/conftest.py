# SPDX-License-Identifier: MIT
"""PyTorch computes on one thread: networks this small only wait for more."""

import importlib.util

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    if importlib.util.find_spec("torch") is None:
        return
    import torch

    torch.set_num_threads(1)

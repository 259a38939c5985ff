# SPDX-License-Identifier: MIT
"""Stores the latents that diffusers' pipelines with a ControlNet end with.

    python tests/oracle/make_controlnet_values.py       # writes tests/data/controlnet.npz

The cases are `controlnets.STORED`; `controlnets.ours` runs the same in jaxgen.
"""

import pathlib
import sys

sys.path[:0] = [str(pathlib.Path(__file__).parents[i]) for i in (1, 2)]

import diffusers
import numpy as np
import pytest
import test_controlnet_diffusers
import torch
from support import controlnets


def main():
    component = controlnets.component("sd1")
    net = diffusers.ControlNetModel.from_config(component.config).eval()
    stored = {
        name: torch.tensor(component.tensors[name].read()).reshape(values.shape)
        for name, values in net.state_dict().items()
    }
    net.load_state_dict(stored)
    with pytest.MonkeyPatch.context() as patch:
        values = {
            str(i): test_controlnet_diffusers.theirs(case, [net], patch)
            for i, case in enumerate(controlnets.STORED)
        }
    np.savez_compressed(pathlib.Path(__file__).parents[1] / "data" / "controlnet.npz", **values)


if __name__ == "__main__":
    main()

# SPDX-License-Identifier: MIT
"""Options for GPUs that compiled programs speak for and no GPU has confirmed yet; XLA's but one.

None is on: `compile_for_gpu --prepared` counts what each changes, and `gpu_report` measures it on a
device. What pays there belongs into the start of every script. Counts below are the compiler's, of
a UNet step of SD 1.5 on an H100: without an option 683 kernels, 157 launches, 6.76 GB.
"""

import os

GPU: dict[str, dict[str, str]] = {
    # cuDNN's convolutions as parts of CUDA graphs: 2 launches; XLA's default is without, since not
    # all convolutions can be
    "graphs": {"xla_gpu_enable_command_buffer": "+CONVOLUTION"},
    # and a whole scan as one graph: no launch a step, 3 an image instead of 3,218
    "scans": {"xla_gpu_enable_command_buffer": "+CONVOLUTION,+WHILE"},
    # convolutions with what follows them as one call of cuDNN: 783 kernels, 7.29 GB
    "convolutions": {"xla_gpu_experimental_enable_conv_fusion": "true"},
    # products of queries, keys and values apart (710 kernels, 6.63 GB): merged ones are split by
    # copies
    "products": {"xla_gpu_dot_merger_threshold_mb": "0"},
    # also short runs of kernels as graphs, 106 launches; XLA's default is 5 and more
    "short": {"xla_gpu_graph_min_graph_size": "2"},
}
# No option of XLA's, but `StableDiffusion(kernel_layout="cudnn")`: kernels of convolutions lie in
# memory as cuDNN reads them. Temporaries of the UNet take 0.11 instead of 1.19 GB, the decoder has
# 253 kernels instead of 286.
KERNELS = "kernels"


def flags(names: tuple[str, ...]) -> str:
    """The options as XLA_FLAGS. Raises ValueError for an unknown name, or two of one option."""
    settings: dict[str, str] = {}
    for name in names:
        if name not in (*GPU, KERNELS):
            raise ValueError(f"unknown prepared option {name!r}; use {', '.join((*GPU, KERNELS))}")
        for flag, value in GPU.get(name, {}).items():
            if flag in settings:
                raise ValueError(f"two of {', '.join(names)} set {flag}; name one of them")
            settings[flag] = value
    return " ".join(f"--{flag}={value}" for flag, value in settings.items())


def use(names: tuple[str, ...]) -> None:
    """Adds the options to those of this process; before it compiles anything."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags(names)}".strip()

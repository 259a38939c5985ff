# SPDX-License-Identifier: MIT
"""Times the UNet of Stable Diffusion 1.5 in jaxgen, PyTorch diffusers and the last Flax diffusers.

    python benchmarks/flax_diffusers/unet.py --flax-python OTHER/bin/python --output FILE.json

Each candidate lives in a process of its own with random weights in float32, and they take turns.
Flax left diffusers with 0.40: its candidate needs an environment with diffusers==0.39.0 and
transformers==4.57.6. The others need the extra `oracle`.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

CONFIG = {"sample_size": 64, "cross_attention_dim": 768}  # the classes' defaults are SD 1.5's
CANDIDATES = ("jaxgen", "pytorch", "flax_diffusers")


def jaxgen_step(batch_size: int, size: int):
    """A function that evaluates the UNet once and waits, and its number of parameters."""
    import jax
    import jax.numpy as jnp

    from jaxgen.nn.unet import UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=(320, 640, 1280, 1280), attention_head_dim=8, **CONFIG
    )
    x, t = jnp.ones((batch_size, size, size, 4)), jnp.full((batch_size,), 500.0)
    text = jnp.ones((batch_size, 77, 768))
    variables = jax.jit(unet.init)(jax.random.key(0), x, t, text)
    step = jax.jit(unet.apply)
    count = sum(leaf.size for leaf in jax.tree.leaves(variables))
    return lambda: jax.block_until_ready(step(variables, x, t, text)), count


def flax_diffusers_step(batch_size: int, size: int):
    import jax
    import jax.numpy as jnp
    from diffusers import FlaxUNet2DConditionModel

    unet = FlaxUNet2DConditionModel(attention_head_dim=8, **CONFIG)
    x, t = jnp.ones((batch_size, 4, size, size)), jnp.full((batch_size,), 500)
    text = jnp.ones((batch_size, 77, 768))
    params = jax.jit(unet.init_weights)(jax.random.PRNGKey(0))
    step = jax.jit(lambda params, *inputs: unet.apply({"params": params}, *inputs).sample)
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    return lambda: jax.block_until_ready(step(params, x, t, text)), count


def pytorch_step(batch_size: int, size: int):
    import diffusers
    import torch

    torch.set_grad_enabled(False)
    unet = diffusers.UNet2DConditionModel(attention_head_dim=8, **CONFIG).eval()
    x, t = torch.ones(batch_size, 4, size, size), torch.full((batch_size,), 500)
    text = torch.ones(batch_size, 77, 768)
    return lambda: unet(x, t, text).sample, sum(p.numel() for p in unet.parameters())


def work(name: str, batch_size: int, size: int) -> None:
    """Runs once for every line on stdin and answers with the seconds it took."""
    step, count = globals()[f"{name}_step"](batch_size, size)
    for _ in range(2):  # compile, warm up
        step()
    print(f"RESULT {count}", flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        step()
        print(f"RESULT {time.perf_counter() - began}", flush=True)


def answer(process: subprocess.Popen) -> float:
    """The next number that a worker prints; libraries may print around it."""
    for line in process.stdout:
        if line.startswith("RESULT "):
            return float(line.split()[1])
    raise RuntimeError(f"a candidate stopped with {process.wait()}: {process.args}")


def race(args: argparse.Namespace) -> dict:
    pythons = {"jaxgen": sys.executable, "pytorch": sys.executable}
    if args.flax_python:
        pythons["flax_diffusers"] = args.flax_python
    shape = ["--batch-size", str(args.batch_size), "--size", str(args.size)]
    processes = {
        name: subprocess.Popen(
            [python, __file__, "--work", name, *shape], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )
        for name, python in pythons.items()
    }  # fmt: skip
    counts = {name: int(answer(process)) for name, process in processes.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f"the networks differ: {counts} parameters")
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    for _ in range(args.turns):
        for name, process in processes.items():
            process.stdin.write("go\n")
            process.stdin.flush()
            seconds[name].append(answer(process))
    for process in processes.values():
        process.stdin.close()
        process.wait()
    return {"parameters": counts["jaxgen"], "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--flax-python", help="interpreter of the environment with diffusers 0.39")
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--size", type=int, default=32, help="of the latents")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--output", help="JSON to write")
    parser.add_argument("--work", choices=CANDIDATES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.work:
        work(args.work, args.batch_size, args.size)
        return
    result = race(args)
    result["medians"] = {name: statistics.median(s) for name, s in result["seconds"].items()}
    for name, median in result["medians"].items():
        print(f"{name:15s} {median:.2f} s")
    if args.output:
        from jaxgen.measure import environment

        with open(args.output, "w") as file:
            json.dump(result | {"environment": environment.record()}, file, indent=1)


if __name__ == "__main__":
    main()

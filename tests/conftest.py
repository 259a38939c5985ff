# SPDX-License-Identifier: MIT
"""Every test runs strict: 8 forced host devices, no rank promotion, no key used twice.

The strict settings hold for the package's own code; warnings are errors (pyproject.toml). XLA
optimises nothing, here and in the scripts that tests start: programs as tiny as these spend more
time in the compiler than they ever save. Tests marked `optimized` are about the programs that users
run. Compiled programs are kept beside pytest's own cache, for other processes and the next run.
"""

import gc
import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = os.environ.get("JAXGEN_TEST_PLATFORM", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=1",  # LLVM's part, also of optimized tests
        "--xla_cpu_parallel_codegen_split_count=1",  # two workers: a seventh less for all cores
        os.environ.get("XLA_FLAGS", ""),  # of two equal flags the last one counts
        "--xla_force_host_platform_device_count=8",
    ]
)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".pytest_cache" / "xla")
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"

import jax
import pytest
from support import compilations

gc.set_threshold(100_000, 50, 100)  # a tenth of the time was spent walking through JAX's traces
gc.freeze()  # what is imported stays

# These take longest and go to the workers first, so that none is left over at the end.
LONG = (
    "test_latent_diffusion", "test_experiments", "test_notebooks", "test_pipeline",
    "test_pipeline_devices", "test_step", "test_cpu_convolution", "test_unet", "test_benchmark",
    "test_text_to_image", "test_parallel", "test_shapes", "test_minimal", "test_generate",
    "test_fuzz", "test_docs", "test_controlnet", "test_losses", "test_run_faults",
)  # fmt: skip

# a quarter of the time of tests that trace large networks; a second stack need not look again
jax.config.update("jax_debug_key_reuse", os.environ.get("JAXGEN_TEST_KEYS", "1") != "0")
jax.config.update("jax_numpy_rank_promotion", "raise")
compilations.use_old_emitters_when_quick()


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Compiles quickly unless the test is marked `optimized`; its child processes do the same."""
    quick = item.get_closest_marker("optimized") is None
    if quick != jax.config.read("jax_disable_most_optimizations"):
        jax.config.update("jax_disable_most_optimizations", quick)
        jax.clear_caches()  # the setting is no part of their keys
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = str(int(quick))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the files of `LONG` first, in that order."""
    ranks = {name: i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(item.path.stem, len(LONG)))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Gives a whole file to one worker, so that what its tests share is made once."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False  # by the number of tests; the order here is by time
    return LoadFileScheduling(config, log)

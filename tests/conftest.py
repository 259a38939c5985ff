# SPDX-License-Identifier: MIT
"""Every test runs strict: 8 forced host devices, no rank promotion, no key used twice.

The strict settings hold for the package's own code; warnings are errors (pyproject.toml).
Programs are compiled without most of XLA's optimisations, which take longer than they save for
programs as tiny as these, in this process and in those of the scripts. Tests of what users run to
the last bit carry the marker `optimized`. All processes share one folder of compiled programs.
"""

import os
import shutil
import tempfile

os.environ["JAX_PLATFORMS"] = os.environ.get("JAXGEN_TEST_PLATFORM", "cpu")
os.environ["XLA_FLAGS"] = " ".join(
    [
        "--xla_backend_optimization_level=1",  # LLVM's part; the marker does not change it
        os.environ.get("XLA_FLAGS", ""),  # of two equal flags the last one counts
        "--xla_force_host_platform_device_count=8",
    ]
)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# the first process of a run makes the folder; workers and scripts inherit its name
_OWN_CACHE = "JAX_COMPILATION_CACHE_DIR" not in os.environ
_folder = {"JAX_COMPILATION_CACHE_DIR": tempfile.mkdtemp()} if _OWN_CACHE else {}
os.environ.update(_folder)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import pytest
from support import compilations

jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture(autouse=True)
def _compilation(request):
    """Compiles as users' programs are compiled, if the test carries the marker `optimized`."""
    if request.node.get_closest_marker("optimized") is None:
        yield
        return
    with compilations.optimized():
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Whole files go to one worker, so that what a module prepares is prepared once."""
    from xdist.scheduler import LoadFileScheduling

    return LoadFileScheduling(config, log)


def pytest_unconfigure(config):
    """Removes the compiled programs with the process that made their folder."""
    if _OWN_CACHE and not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# SPDX-License-Identifier: MIT
"""Programs and pipelines kept for the next start: the same bits, and never trusted blindly."""

import copy
import errno
import hashlib
import os
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P
from support import checkpoints

from benchmarks.sd import sd_models
from jaxgen.stable_diffusion import loading, programs
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.warm import stored_programs
from jaxgen.warm.stored_programs import Store
from jaxgen.weights.tokenizer import new_words

X = np.linspace(-1, 1, 6, dtype=np.float32)
CALL = {"prompt": "a b", "num_steps": 2, "seed": 3}


def started(folder, state="", power=3):
    """What a process does: the value, and how often the function was traced."""
    traced = []

    def function(tree, x, power):
        traced.append(x.shape)
        return {"sum": tree["a"] + jnp.sin(x) ** power, "x": x}

    store = Store(folder, state)
    jitted = store.jit("function", function, static_argnames="power", donate_argnames="x")
    value = jitted({"a": jnp.asarray(X)}, jnp.asarray(X), power=power)
    again = jitted({"a": jnp.asarray(X)}, jnp.asarray(X), power=power)
    jax.tree.map(np.testing.assert_array_equal, value, again)
    store.keep()
    return value, len(traced), store


def test_a_second_start_traces_nothing_and_gives_the_same_bits(tmp_path):
    first, traced, _ = started(tmp_path)
    second, traced_again, _ = started(tmp_path)
    assert (traced, traced_again) == (1, 0)
    assert second.keys() == first.keys()
    jax.tree.map(np.testing.assert_array_equal, first, second)
    plain = jax.jit(lambda x: x + jnp.sin(x) ** 3)(jnp.asarray(X))
    np.testing.assert_array_equal(first["sum"], plain)


@pytest.mark.parametrize("backend", ["cpu", "gpu", "tpu"])
def test_programs_that_name_their_mesh_are_not_kept(tmp_path, monkeypatch, backend):
    store, kept = Store(tmp_path, ""), []

    def jit(name, function, **options):
        kept.append(name)
        return jax.jit(function, **options)

    monkeypatch.setattr(store, "jit", jit)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    networks = sd_models.networks("tiny", jnp.dtype("float32"))
    programs.build(networks, jax.make_mesh((2,), ("data",)), store)
    assert bool(kept) == (backend == "cpu")
    programs.build(networks, None, store)
    assert "step" in kept


def test_other_code_state_and_static_arguments_have_programs_of_their_own(tmp_path, monkeypatch):
    started(tmp_path)
    assert started(tmp_path, state="another network")[1] == 1
    value, traced, _ = started(tmp_path, power=2)
    assert traced == 1
    np.testing.assert_allclose(value["sum"], X + np.sin(X) ** 2, rtol=1e-6)
    monkeypatch.setattr(stored_programs, "code", lambda: "a later version")
    assert started(tmp_path)[1] == 1
    monkeypatch.setenv("XLA_FLAGS", "--xla_another_flag")
    assert started(tmp_path)[1] == 1
    assert len(list(tmp_path.iterdir())) == 5


def test_one_file_serves_one_device_and_every_mesh(tmp_path):
    traced = []

    def product(x, kernel):
        traced.append(x.shape)
        return x @ kernel

    def on(mesh, folder):
        store, x, kernel = Store(folder, ""), jnp.arange(32.0).reshape(8, 4), jnp.ones((4, 16))
        if mesh is not None:
            x = jax.device_put(x, NamedSharding(mesh, P("data")))
            kernel = jax.device_put(kernel, NamedSharding(mesh, P(None, "model")))
        jitted = store.jit("product", product)
        y, costs = jitted(x, kernel), jitted.lower(x, kernel).compile().cost_analysis()
        store.write(tmp_path)
        return y, costs["flops"]

    mesh = jax.make_mesh((2, 4), ("data", "model"), axis_types=(AxisType.Auto,) * 2)
    on(mesh, None)  # written afterwards, as `save` does
    traced.clear()
    alone, flops = on(None, tmp_path)
    for _ in range(2):
        divided, share = on(mesh, tmp_path)
        np.testing.assert_array_equal(divided, alone)
        assert divided.sharding.spec == P("data", "model")
        assert share == flops / 8
    assert (len(traced), len(list(tmp_path.iterdir()))) == (0, 1)


def seal(content):
    return hashlib.sha256(content).digest() + content


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[:-1], "it is damaged"),
        (lambda data: b"", "it is damaged"),
        (lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:], "it is damaged"),
        (lambda data: seal(b"no program at all"), "made anew"),
        (lambda data: seal(data[32:] + b"xla_python_cpu_callback"), "calls functions of Python"),
    ],
    ids=["cut", "empty", "a bit", "sealed anew", "callback"],
)
def test_a_damaged_program_is_passed_over_in_one_line_and_made_anew(tmp_path, damage, said):
    first, _, _ = started(tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with pytest.warns(UserWarning, match=f"passed over {path}.*{said}"):
        second, traced, _ = started(tmp_path)
    assert traced == 1
    jax.tree.map(np.testing.assert_array_equal, first, second)
    assert started(tmp_path)[1] == 0  # it was written again


def test_a_folder_in_the_place_of_a_program_is_left_alone(tmp_path):
    first, _, _ = started(tmp_path)
    (path,) = tmp_path.iterdir()
    path.unlink()
    path.mkdir()
    with pytest.warns(UserWarning, match=f"passed over {path}, remove it: .*not a regular file"):
        second, traced, _ = started(tmp_path)
    assert traced == 1
    assert path.is_dir()
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_a_program_for_other_arguments_is_passed_over(tmp_path):
    store = started(tmp_path / "one")[2]
    (path,) = (tmp_path / "one").iterdir()
    other = Store(tmp_path / "two", "")
    other.jit("function", lambda x: x)(jnp.zeros(3))
    other.keep()
    (foreign,) = (tmp_path / "two").iterdir()
    path.write_bytes(foreign.read_bytes())
    with pytest.warns(UserWarning, match="it takes other arguments"):
        assert started(tmp_path / "one")[1] == 1
    assert store.folder == tmp_path / "one"


@pytest.mark.parametrize("name", ["file/programs", 300 * "n"])
def test_a_folder_that_cannot_be_used_is_one_note_and_loses_nothing(tmp_path, name):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="programs are not kept in ") as notes:
        value, traced, store = started(tmp_path / name)
    store.keep()  # says nothing more: a warning would be an error here
    assert (len(notes), traced) == (1, 1)
    np.testing.assert_array_equal(value["sum"], started(None)[0]["sum"])


def test_a_full_folder_loses_the_programs_that_were_used_longest_ago(tmp_path, monkeypatch):
    for power in (2, 3, 4):
        started(tmp_path, power=power)
    oldest, _, newest = sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    started(tmp_path, power=2)  # used again, so that the second is the oldest now
    (tmp_path / "notes.json").write_text("not a program")
    for name, age in ((".killed.partial", 90_000), (".at_work.partial", 60)):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (time.time() - age,) * 2)
    monkeypatch.setattr(stored_programs, "FOLDER_BYTES", 2 * oldest.stat().st_size + 9)

    started(tmp_path, power=2)

    kept = {"notes.json", ".at_work.partial"}
    assert {path.name for path in tmp_path.iterdir()} == {oldest.name, newest.name, *kept}
    monkeypatch.setattr(stored_programs, "FOLDER_BYTES", 1)
    assert started(tmp_path, power=2)[1] == 0
    assert {path.name for path in tmp_path.iterdir()} == {oldest.name, *kept}


def test_a_program_that_another_process_deletes_meanwhile_is_no_fault(tmp_path):
    (tmp_path / f"gone-{'0' * 32}.stablehlo").symlink_to(tmp_path / "nothing")
    assert started(tmp_path)[1] == 1  # a warning would be an error
    assert started(tmp_path)[1] == 0


def test_without_a_folder_programs_are_written_when_asked(tmp_path):
    first, _, store = started(None)
    store.write(tmp_path / "later")
    second, traced, _ = started(tmp_path / "later")
    assert traced == 0
    jax.tree.map(np.testing.assert_array_equal, first, second)


def test_texts_are_kept_and_checked(tmp_path):
    store = Store(tmp_path, "")
    assert store.text("shapes", "a", lambda: "[1]") == "[1]"
    store.keep()
    assert Store(tmp_path, "").text("shapes", "a", lambda: "not called") == "[1]"
    assert Store(tmp_path, "").text("shapes", "b", lambda: "[2]") == "[2]"
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"[3]")
    with pytest.warns(UserWarning, match="it is damaged"):
        assert Store(tmp_path, "").text("shapes", "a", lambda: "[1]") == "[1]"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A pipeline, its picture, and the folder that it was saved to after drawing that."""
    pipe = StableDiffusion(checkpoints.small(), jnp.bfloat16)
    picture, folder = pipe(**CALL), tmp_path_factory.mktemp("warm") / "pipe"
    pipe.save(folder)
    return pipe, picture, folder


def test_a_saved_pipeline_draws_the_same_bits_and_runs_no_network_in_python(saved, monkeypatch):
    pipe, picture, folder = saved

    def no_network(*args, **kwargs):
        raise AssertionError("a network was traced")

    with monkeypatch.context() as patch:
        patch.setattr(nn.Module, "apply", no_network)
        patch.setattr(nn.Module, "init", no_network)
        loading.traced_shapes.cache_clear()  # a new process has none
        warm = StableDiffusion.from_pretrained(folder, jnp.bfloat16)
        np.testing.assert_array_equal(warm(**CALL), picture)
    jax.tree.map(np.testing.assert_array_equal, warm.params, pipe.params)
    before = set((folder / "programs").iterdir())
    wider = warm(**CALL, guidance_scale=1.0)  # another program, which the folder gets
    assert wider.shape == picture.shape
    assert set((folder / "programs").iterdir()) > before


def test_equal_networks_of_a_process_share_their_programs_unless_they_have_a_folder(tmp_path):
    checkpoint, mesh = checkpoints.checkpoint("sd1"), jax.make_mesh((8,), ("data",))
    networks = loading.networks(checkpoint)
    first, store = programs.of_networks(networks)
    assert programs.of_networks(loading.networks(checkpoint)) == (first, store)
    half = loading.networks(checkpoint, jnp.bfloat16)
    inpaint = loading.networks(checkpoints.checkpoint("inpaint"))
    others = [(half, None), (inpaint, None), (networks, mesh), (networks, None, tmp_path)]
    for other in others:
        assert programs.of_networks(*other)[0].step is not first.step
        assert programs.of_networks(*other)[1] is not store


@pytest.mark.parametrize(("backend", "is_kept"), [("cpu", True), ("gpu", False)])
def test_programs_of_several_gpus_are_not_kept(monkeypatch, backend, is_kept):
    names = []

    class Names(Store):
        def jit(self, name, function, **options):
            names.append(name)

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    networks = loading.networks(checkpoints.checkpoint("sd1"))
    programs.build(networks, jax.make_mesh((8,), ("data",)), Names(None, ""))
    assert bool(names) == is_kept
    programs.build(networks, None, Names(None, ""))
    assert names


def test_a_saved_pipeline_may_be_loaded_in_another_type(saved):
    pipe, _, folder = saved
    other = StableDiffusion.from_pretrained(folder)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(other.params)} == {"float32"}
    as_before = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), other.params)
    jax.tree.map(np.testing.assert_array_equal, as_before, pipe.params)


def test_saving_never_touches_a_folder_that_exists(saved):
    pipe, _, folder = saved
    with pytest.raises(ValueError, match="exists; choose a new folder"):
        pipe.save(folder)


def test_a_folder_is_saved_whole_or_not_at_all(saved, tmp_path, monkeypatch):
    def full(store, folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Store, "write", full)
        with pytest.raises(OSError, match=f"{tmp_path}/pipe could not be written: .*disk full"):
            saved[0].save(tmp_path / "pipe")
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("HOME", str(tmp_path))
    saved[0].save("~/pipe")
    assert (tmp_path / "pipe" / "programs").is_dir()
    loaded = StableDiffusion.from_pretrained("~/pipe", jnp.bfloat16)
    assert loaded.store.folder == tmp_path / "pipe" / "programs"


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        (lambda pipe: {"quantize": "int8"}, "kernels in 8 bits"),
        (lambda pipe: {"networks": pipe.networks._replace(controlnets=("a",))}, "ControlNets"),
        (lambda pipe: {"adapters": ("a",)}, "adapters that each image chooses"),
        (lambda pipe: {"embedder": with_words(pipe.embedder)}, "words of embeddings"),
    ],
)
def test_what_a_saved_folder_has_no_place_for_is_refused(saved, tmp_path, changed, what):
    pipe = copy.copy(saved[0])
    pipe.__dict__.update(changed(pipe))
    with pytest.raises(ValueError, match=f"{what} are not saved; save without"):
        pipe.save(tmp_path / "pipe")
    assert not (tmp_path / "pipe").exists()


def with_words(embedder):
    (name, tokenizer), *_ = embedder.tokenizers.items()
    words = new_words({"<cat>": [49_500]})
    return embedder._replace(tokenizers={name: tokenizer._replace(new_words=words)})

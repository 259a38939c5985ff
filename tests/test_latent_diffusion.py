# SPDX-License-Identifier: MIT
"""latent_autoencoder.py and latent_diffusion.py, tiny, in this process: train, resume, export."""

import dataclasses
import functools
import json
import shutil

import jax
import numpy as np
import pytest
from PIL import Image
from support import compilations, scripts, systems
from support.scripts import newest_state, rows, width_of

from jaxgen.miniature import captioned, following
from jaxgen.pictures import images
from jaxgen.runs import command_line, plan
from jaxgen.stable_diffusion import loading
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.weights import diffusers, tokenizer

pytestmark = pytest.mark.slow
NAMES = {"first": "latent_autoencoder", "second": "latent_diffusion"}
TINY = (
    "--num-devices", "1", "--batch-size", "4", "--warmup-steps", "0", "--draw-every", "0",
    "--log-every", "1",
)  # fmt: skip
WORLD = (*TINY, "--num-scenes", "64", "--steps", "4")
FIRST = ("latent_autoencoder", "--norm-groups", "4", "--vae-channels", "8", "8", "8")
SECOND = (
    "latent_diffusion", "--unet-channels", "8", "--unet-heads", "2", "--text-width", "32",
    "--text-layers", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def script():
    """The two scripts as a function of a name and flags; `first` and `second` are their modules."""
    with (
        scripts.loaded(NAMES["first"]) as first,
        scripts.loaded(NAMES["second"]) as second,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(second, "NUM_STEPS", 2)  # of the pictures that a run draws
        patch.setattr(images, "save_curves", lambda *inputs: None)  # test_experiments.py has them
        for module in (first, second):  # each run is read once, and its functions are compiled once
            patch.setattr(module, "trained", functools.cache(module.trained))

        def call(name, *flags):
            scripts.call(name, *flags)

        call.first, call.second = first, second
        yield call


@pytest.fixture(scope="module")
def runs(script, tmp_path_factory):
    """A folder with finished runs "first" and "second" of the world."""
    folder = tmp_path_factory.mktemp("runs")
    script(*FIRST, *WORLD, "--run-dir", folder / "first")
    script(
        *SECOND, *WORLD, "--autoencoder", folder / "first", "--run-dir", folder / "second",
        "--checkpoint-every", "2",
    )  # fmt: skip
    return folder


def stored(script, runs, name, **changes):
    """The configuration of the run "first" or "second", with changes."""
    config = command_line.read(getattr(script, name).Config, str(runs / name), NAMES[name])
    return dataclasses.replace(config, **changes)


@pytest.fixture(scope="module")
def parts(script, runs):
    """What the run "second" is built from."""
    return script.second.prepare(stored(script, runs, "second"))


@pytest.fixture(scope="module")
def exported(script, runs):
    """(folder of the exported model, state that it was made from)."""
    states, params_of = [], script.second.params_of
    measure = functools.partial(following.measure, num_steps=2, batch_size=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(following, "measure", measure)
        patch.setattr(
            script.second,
            "params_of",
            lambda parts, state: states.append(state) or params_of(parts, state),
        )
        script(
            "latent_diffusion", "--run-dir", runs / "second", "--action", "export",
            "--num-prompts", "2",
            "--output", runs / "model",
        )  # fmt: skip
    return runs / "model", states[0]


def no_painter(parts):
    """Replaces the pictures of a run that is not about them."""
    return lambda *inputs: {"samples": Image.new("RGB", (8, 8))}


def test_both_stages_leave_metrics_and_pictures(runs):
    for name, shown in (("first", {"l1", "mse", "kl_nats"}), ("second", {"loss", "grad_norm"})):
        assert [row["step"] for row in rows(runs / name)] == [1, 2, 3, 4]
        assert rows(runs / name)[0].keys() >= shown
        assert all(np.isfinite(row["loss"]) for row in rows(runs / name))
    assert width_of(runs / "first" / "reconstructions.png") > 100
    assert width_of(runs / "second" / "samples.png") >= 8 * 64


def test_a_resumed_second_stage_equals_a_straight_one_bit_for_bit(
    script, runs, tmp_path, monkeypatch
):
    folder = tmp_path / "resumed"
    shutil.copytree(runs / "second", folder)
    shutil.rmtree(folder / "checkpoints" / "4")
    monkeypatch.setattr(script.second, "painter", no_painter)

    script("latent_diffusion", "--run-dir", folder, "--resume", "--num-devices", "1")

    assert newest_state(folder) == newest_state(runs / "second")
    assert (folder / "metrics.jsonl").read_bytes() == (
        runs / "second" / "metrics.jsonl"
    ).read_bytes()


def test_the_exported_model_is_the_average_and_the_first_stages_autoencoder(script, runs, exported):
    folder, state = exported
    checkpoint = diffusers.read(folder)
    params = loading.load(checkpoint, loading.networks(checkpoint))
    first = script.first.trained(str(runs / "first"))
    trained = jax.device_get({**state.ema, "vae": first.params})
    expected = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), trained)
    assert systems.identical(params, expected)
    assert systems.largest_difference(state.ema, state.train.params) > 1e-5


def test_the_exported_model_draws_and_knows_its_words(exported):
    pipe = StableDiffusion.from_pretrained(exported[0])
    prompts = ["a large red star", "a small blue ring on a white background"]
    pictures = pipe(prompts, num_steps=2, guidance_scale=3.0)
    assert pictures.shape == (2, 64, 64, 3)
    assert pictures.dtype == np.uint8
    assert (pictures[0] != pictures[1]).any()
    with pytest.raises(ValueError, match="this model does not know 'cat'; the words it knows are"):
        pipe("a large red cat", num_steps=2)


def test_the_exported_model_says_what_it_is(exported):
    folder, _ = exported
    card = (folder / "README.md").read_text()
    assert "| held out, two objects | 2 |" in card
    assert "latent_autoencoder, 4 steps" in card
    assert "latent_diffusion, 4 steps" in card
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"
    unet, vae, text = (
        json.loads((folder / name / "config.json").read_text())
        for name in ("unet", "vae", "text_encoder")
    )
    assert (unet["sample_size"], vae["sample_size"]) == (16, 64)
    assert unet["cross_attention_dim"] == text["hidden_size"] == 32
    assert text["max_position_embeddings"] == 24


def test_latents_are_scaled_to_unit_variance(script, runs, parts, exported):
    folder, _ = exported
    scale = json.loads((folder / "vae" / "config.json").read_text())["scaling_factor"]
    config = stored(script, runs, "second")
    assert parts.checkpoint.components["vae"].config["scaling_factor"] == scale
    source = script.second.open_split(config, parts, config.run, "train")
    moments, ids = source.read(list(range(64)))
    mean, logvar = np.split(moments.astype(float), 2, axis=-1)
    z = mean + np.exp(logvar / 2) * np.random.default_rng(0).standard_normal(mean.shape)
    assert z.std() == pytest.approx(1, abs=0.05)
    assert moments.shape == (64, 16, 16, 8)
    assert ids.shape == (64, 24)


@pytest.mark.parametrize("stage", ["first", "second"])
def test_pictures_of_a_later_state_compile_nothing(script, runs, parts, stage):
    config = stored(script, runs, stage)
    if stage == "first":
        system = script.first.build(config, None)
        examples = plan.read_examples(
            config.run, *(script.first.open_split(config, config.run, s) for s in ("train", "test"))
        )
    else:
        system, examples = script.second.build(parts, config, None), None
    states = [jax.jit(system.init)(jax.random.key(seed)) for seed in (0, 1)]
    key, pictures = jax.random.key(0), []
    for state, expected in zip(states, (True, False), strict=True):
        with compilations.counted() as seconds:
            (picture,) = system.draw(state, examples, key).values()
        pictures.append(np.asarray(picture))
        assert bool(seconds) == expected
    assert (pictures[0] != pictures[1]).any()


def test_latents_of_another_split_and_scale_compile_nothing(script, runs, parts):
    config, first = stored(script, runs, "second"), parts.first
    pictures = script.second.captions_of(config, first, config.run, "test")
    captioned.scale_of_latents(pictures.source, first.encode, first.params, 3)
    with compilations.counted() as seconds:
        captioned.encoded(pictures.source, first.encode, first.params, 0.5).read([1, 2])
    assert seconds == []


def test_an_existing_folder_is_never_overwritten(script, runs, exported):
    before = (exported[0] / "README.md").read_bytes()
    with pytest.raises(ValueError, match="model exists; choose a new folder"):
        script(
            "latent_diffusion", "--run-dir", runs / "second", "--action", "export",
            "--output", exported[0],
        )  # fmt: skip
    assert (exported[0] / "README.md").read_bytes() == before


@pytest.mark.parametrize("stage", ["first", "second"])
def test_a_run_can_begin_with_the_parameters_of_another(script, runs, stage):
    config = stored(script, runs, stage, begin_with=str(runs / stage))
    if stage == "first":
        state = script.first.build(config, None).init(jax.random.key(9))
        expected, params = script.first.trained(str(runs / stage)).params, state.params
    else:
        parts = script.second.prepare(config)
        assert [done for _, done in parts.runs] == [4]
        state = script.second.build(parts, config, None).init(jax.random.key(9))
        expected, params = parts.earlier, state.ema
        assert systems.identical(state.train.params, state.ema)
    assert systems.identical(params, expected)
    assert int(state.step) == 0


def test_the_ids_of_a_run_are_those_of_its_folder_whatever_the_captions_are_now(script, runs):
    config = stored(script, runs, "second", num_scenes=2)
    new, kept = (
        script.second.prepare(config, has_folder).checkpoint.tokenizers["tokenizer"].vocab
        for has_folder in (False, True)
    )
    assert kept == tokenizer.read(runs / "second" / "tokenizer").vocab
    assert new != kept


def test_an_earlier_run_of_other_captions_gives_the_words_that_both_know(script, runs, tmp_path):
    config = stored(script, runs, "second", num_scenes=2, begin_with=str(runs / "second"))
    both = script.second.trained(str(runs / "second")), script.second.prepare(config)
    tables = [
        parts.earlier["text_encoder"]["text_model"]["embeddings"]["token_embedding"]["embedding"]
        for parts in both
    ]
    old, new = (parts.checkpoint.tokenizers["tokenizer"].vocab for parts in both)
    assert len(tables[1]) == len(new) < len(old)
    shared = old.keys() & new.keys()
    assert len(shared) > 500  # bytes, and the words of two captions
    for token in shared:
        np.testing.assert_array_equal(tables[1][new[token]], tables[0][old[token]])


def test_a_frozen_encoder_stays_and_its_new_decoder_can_be_exported(script, runs, monkeypatch):
    monkeypatch.setattr(script.first, "draw_reconstructions", lambda *inputs: {})
    module, flags = script.first, (*FIRST, *WORLD, "--begin-with", runs / "first")
    script(*flags, "--freeze-encoder", "--run-dir", runs / "frozen")
    first, frozen = (module.trained(str(runs / name)) for name in ("first", "frozen"))
    for name in ("encoder", "quant_conv"):
        assert systems.identical(first.params[name], frozen.params[name])
    for name in ("decoder", "post_quant_conv"):
        assert systems.largest_difference(first.params[name], frozen.params[name]) > 1e-5

    taken = module.with_decoder(first, str(runs / "frozen"))
    assert systems.identical(taken.params, frozen.params)
    assert [done for _, done in taken.runs] == [4, 4]
    moved = first._replace(params=jax.tree.map(lambda x: x + 1e-3, first.params))
    with pytest.raises(ValueError, match="frozen has another encoder than the diffusion"):
        module.with_decoder(moved, str(runs / "frozen"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["diffusion"], "which autoencoder? Give --autoencoder a run of latent_autoencoder.py"),
        (["diffusion", "--autoencoder", "RUNS/second"],
         "is a run of latent_diffusion, not of latent_autoencoder"),
        (["diffusion", "--autoencoder", "RUNS/none"], "none"),
        (["diffusion", "--begin-with", "RUNS/first", "--autoencoder", "RUNS/first"],
         "is a run of latent_autoencoder, not of latent_diffusion"),
        (["autoencoder", "--vae-channels", "16", "8", "8", "--begin-with", "RUNS/first"],
         "has a AutoencoderKL of other sizes; give the sizes of that run"),
        (["diffusion", "--autoencoder", "RUNS/first", "--image-size", "32"],
         "first was trained with 64 pixels; leave --image-size out"),
        (["diffusion", "--augment", "flip"], "--augment changes pictures"),
        (["diffusion", "--action", "export", "--run-dir", "RUNS/first"],
         "is a run of latent_autoencoder, not of latent_diffusion"),
        (["diffusion", "--action", "export"], "say which run with --run-dir"),
        (["autoencoder", "--image-size", "32"], "the world is drawn in 64 pixels"),
        (["autoencoder", "--data", "RUNS"], "a folder of pictures needs --image-size"),
        (["autoencoder", "--vae-channels", "8", "12"],
         "--vae-channels has 12; use multiples of 8 (norm_groups)"),
        (["autoencoder", "--vae-channels", *["8"] * 8],
         "--image-size has 64; use multiples of 128"),
        (["autoencoder", "--num-scenes", "0"], "--num-scenes is 0; use 1 or more"),
        (["autoencoder", "--data", "RUNS", "--image-size", "64", "--num-scenes", "9"],
         "--num-scenes needs --data world; leave it out"),
        (["diffusion", "--data", "RUNS", "--num-scenes", "9"], "--num-scenes needs --data world"),
        (["autoencoder", "--kl-weight", "-1"], "--kl-weight is -1.0; use 0 or more"),
        (["diffusion", "--num-scenes", "0"], "--num-scenes is 0; use 1 or more"),
        (["diffusion", "--accumulate", "3"], "of 32 cannot be dealt into 3 microbatches"),
        (["autoencoder", "--data", "RUNS/none", "--image-size", "64", "--log-every", "0"],
         "--log-every is 0; use 1 or more"),
        (["diffusion", "--unet-channels", "24", "--unet-heads", "16"],
         "--unet-channels has 24; use multiples of 16"),
        (["diffusion", "--unet-channels", "6", "--unet-heads", "2", "--autoencoder", "RUNS/first"],
         "--unet-channels has 6; use multiples of 4 (its --norm-groups)"),
        (["diffusion", "--text-width", "48"], "--text-width has 48; use multiples of 32"),
        (["diffusion", "--ema-decay", "1"], "--ema-decay is 1.0"),
        (["diffusion", "--caption-dropout", "1"], "--caption-dropout is 1.0"),
        (["diffusion", "--max-tokens", "2"], "--max-tokens is 2; use 3 or more"),
    ],
)  # fmt: skip
def test_bad_use_is_said_before_any_work(script, runs, tmp_path, flags, words):
    name, *flags = [flag.replace("RUNS", str(runs)) for flag in flags]
    where = [] if "export" in flags else ["--run-dir", tmp_path / "run"]
    with pytest.raises((ValueError, OSError)) as caught:
        script(f"latent_{name}", "--num-devices", "1", *flags, *where)
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_the_world_needs_an_autoencoder_of_its_size(script, runs):
    with pytest.raises(ValueError, match="first was trained with pictures of 16 pixels, and the w"):
        script.second.denoiser.check(stored(script, runs, "second"), 16, 4)


def test_a_folder_of_captioned_pictures_is_read_and_trained_on(script, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(script.second, "painter", no_painter)
    generator = np.random.default_rng(0)
    # as many pictures and tokens as `runs` has, whose programs serve again
    words = [a + b for a in "bcdfgh" for b in "bcdfghjklmnpqrstvwxz"]
    for split, count in (("train", 64), ("test", 3)):
        place = tmp_path / "pictures" / split
        place.mkdir(parents=True)
        lines = []
        for i in range(count):
            pixels = generator.integers(0, 256, (20, 16, 3), np.uint8)
            Image.fromarray(pixels).save(place / f"{i}.png")
            text = " ".join(["picture number", str(i), *words[2 * i : 2 * i + 2]])
            lines.append(json.dumps({"file_name": f"{i}.png", "text": text}))
        (place / "metadata.jsonl").write_text("\n".join(lines))
    first = stored(script, runs, "first")  # a run like it would differ in its pictures alone
    options = dataclasses.replace(first.run, data=str(tmp_path / "pictures"), image_size=64)
    config = dataclasses.replace(first, run=options)
    (picture,), _ = script.first.open_split(config, options, "train").read([0])
    assert (picture.shape, picture.dtype) == ((64, 64, 3), np.uint8)

    data = (*TINY, "--data", tmp_path / "pictures", "--steps", "4")
    second = tmp_path / "second"
    script(*SECOND, *data, "--autoencoder", runs / "first", "--run-dir", second)
    script(
        "latent_diffusion", "--run-dir", second, "--action", "export",
        "--output", tmp_path / "model",
    )  # fmt: skip

    pipe = StableDiffusion.from_pretrained(tmp_path / "model")
    pictures = pipe(["picture number 7", "picture number 8"], num_steps=2)
    assert pictures.shape == (2, 64, 64, 3)
    with pytest.raises(ValueError, match="does not know 'sun'"):
        pipe("picture sun", num_steps=2)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "on captioned pictures" in card
    assert "held out" not in card

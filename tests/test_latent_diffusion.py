# SPDX-License-Identifier: MIT
"""Both stages of experiments/latent_diffusion.py, tiny, in this process: train, resume, export."""

import functools
import json
import pathlib
import shutil
import sys

import jax
import numpy as np
import pytest
from PIL import Image
from support import systems
from test_experiments import newest_state, rows, width_of

from jaxgen.miniature import following
from jaxgen.runs import command_line
from jaxgen.stable_diffusion import loading
from jaxgen.stable_diffusion.pipeline import StableDiffusion
from jaxgen.weights import diffusers, tokenizer

pytestmark = pytest.mark.slow
EXPERIMENTS = pathlib.Path(__file__).parent.parent / "experiments"
TINY = (
    "--num-devices", "1", "--batch-size", "4", "--warmup-steps", "0", "--draw-every", "0",
    "--log-every", "1", "--norm-groups", "4",
)  # fmt: skip
WORLD = (*TINY, "--num-scenes", "64", "--steps", "4")
FIRST = ("--stage", "autoencoder", "--vae-channels", "8", "8", "8", "8")
SECOND = (
    "--stage", "diffusion", "--vae-channels", "8", "8", "8", "8", "--unet-channels", "8",
    "--unet-heads", "2", "--text-width", "32", "--text-layers", "1",
)  # fmt: skip


@pytest.fixture(scope="module")
def script():
    """The script as a function of its flags."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(EXPERIMENTS))
        patch.setattr(
            "jaxgen.script.set_up", lambda distributed: None
        )  # changes this process for good
        import latent_diffusion

        def call(*flags):
            patch.setattr(sys, "argv", ["latent_diffusion.py", *map(str, flags)])
            latent_diffusion.main()

        call.module = latent_diffusion
        yield call


@pytest.fixture(scope="module")
def runs(script, tmp_path_factory):
    """A folder with finished runs "first" and "second" of the world."""
    folder = tmp_path_factory.mktemp("runs")
    script(*WORLD, *FIRST, "--run-dir", folder / "first")
    script(
        *WORLD, *SECOND, "--autoencoder", folder / "first", "--run-dir", folder / "second",
        "--checkpoint-every", "2",
    )  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def exported(script, runs):
    """(folder of the exported model, state that it was made from)."""
    states, trained = [], script.module.diffusion.trained
    settings = functools.partial(following.Settings, num_steps=2, batch_size=2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(following, "Settings", settings)
        patch.setattr(
            script.module.diffusion,
            "trained",
            lambda second, state: states.append(state) or trained(second, state),
        )
        script(
            "--run-dir", runs / "second", "--action", "export", "--num-prompts", "2",
            "--output", runs / "model",
        )  # fmt: skip
    return runs / "model", states[0]


def nothing_drawn(*inputs):
    """In place of the pictures of a run that is not about them."""
    return {"samples": Image.new("RGB", (8, 8))}


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
    monkeypatch.setattr(script.module.diffusion, "draw_samples", nothing_drawn)

    script("--run-dir", folder, "--resume", "--num-devices", "1")

    assert newest_state(folder) == newest_state(runs / "second")
    assert (folder / "metrics.jsonl").read_bytes() == (
        runs / "second" / "metrics.jsonl"
    ).read_bytes()


def test_the_exported_model_is_the_average_and_the_first_stages_autoencoder(script, runs, exported):
    folder, state = exported
    stored = diffusers.read(folder)
    found = loading.load(stored, loading.networks(stored))
    first = script.module.autoencoder.trained(str(runs / "first"))
    params = jax.device_get({**state.ema, "vae": first.params})
    expected = jax.tree.map(lambda x: x.astype(np.float16).astype(np.float32), params)
    assert systems.identical(found, expected)
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
    assert "autoencoder, 4 steps" in card
    assert "diffusion, 4 steps" in card
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    assert scheduler["prediction_type"] == "v_prediction"
    unet, vae, text = (
        json.loads((folder / name / "config.json").read_text())
        for name in ("unet", "vae", "text_encoder")
    )
    assert (unet["sample_size"], vae["sample_size"]) == (8, 64)
    assert unet["cross_attention_dim"] == text["hidden_size"] == 32
    assert text["max_position_embeddings"] == 24


def test_latents_are_scaled_to_unit_variance(script, runs, exported):
    folder, _ = exported
    scale = json.loads((folder / "vae" / "config.json").read_text())["scaling_factor"]
    config = command_line.from_dict(
        script.module.Config, json.loads((runs / "second" / "config.json").read_text())["config"]
    )
    second = script.module.diffusion.prepare(config)
    assert second.checkpoint.components["vae"].config["scaling_factor"] == scale
    source = script.module.diffusion.open_split(config, second, config.run, "train")
    moments, ids = source.read(list(range(64)))
    mean, logvar = np.split(moments.astype(float), 2, axis=-1)
    z = mean + np.exp(logvar / 2) * np.random.default_rng(0).standard_normal(mean.shape)
    assert z.std() == pytest.approx(1, abs=0.05)
    assert moments.shape == (64, 8, 8, 8)
    assert ids.shape == (64, 24)


def test_an_existing_folder_is_never_overwritten(script, runs, exported):
    before = (exported[0] / "README.md").read_bytes()
    with pytest.raises(ValueError, match="model exists; choose a new folder"):
        script("--run-dir", runs / "second", "--action", "export", "--output", exported[0])
    assert (exported[0] / "README.md").read_bytes() == before


@pytest.mark.parametrize("stage", ["first", "second"])
def test_a_run_can_begin_with_the_parameters_of_another(script, runs, stage):
    module = script.module
    stored = json.loads((runs / stage / "config.json").read_text())["config"]
    stored["begin_with"] = str(runs / stage)
    config = command_line.from_dict(module.Config, stored)
    if stage == "first":
        state = module.autoencoder.build(config, None, 4).init(jax.random.key(9))
        expected, found = module.autoencoder.trained(str(runs / stage)).params, state.params
    else:
        second = module.diffusion.prepare(config)
        assert [done for _, done in second.runs] == [4]
        state = module.diffusion.build(second, config, None, 4).init(jax.random.key(9))
        expected, found = second.begun, state.ema
        assert systems.identical(state.train.params, state.ema)
    assert systems.identical(found, expected)
    assert int(state.step) == 0


def test_the_ids_of_a_run_are_those_of_its_folder_whatever_the_captions_are_now(script, runs):
    prepare = script.module.diffusion.prepare
    stored = json.loads((runs / "second" / "config.json").read_text())["config"]
    config = command_line.from_dict(script.module.Config, {**stored, "num_scenes": 2})
    new, kept = (
        prepare(config, begun_before).checkpoint.tokenizers["tokenizer"].vocab
        for begun_before in (False, True)
    )
    assert kept == tokenizer.read(runs / "second" / "tokenizer").vocab
    assert new != kept


def test_an_earlier_run_of_other_captions_gives_the_words_that_both_know(script, runs, tmp_path):
    prepare = script.module.diffusion.prepare
    stored = json.loads((runs / "second" / "config.json").read_text())["config"]
    changes = {"num_scenes": 2, "begin_with": str(runs / "second")}
    second = prepare(command_line.from_dict(script.module.Config, {**stored, **changes}))
    earlier = script.module.diffusion._earlier(str(runs / "second"))
    tables = [
        each.begun["text_encoder"]["text_model"]["embeddings"]["token_embedding"]["embedding"]
        for each in (earlier, second)
    ]
    old, new = (each.checkpoint.tokenizers["tokenizer"].vocab for each in (earlier, second))
    assert len(tables[1]) == len(new) < len(old)
    shared = old.keys() & new.keys()
    assert len(shared) > 500  # bytes, and the words of two captions
    for token in shared:
        np.testing.assert_array_equal(tables[1][new[token]], tables[0][old[token]])


def test_a_frozen_encoder_stays_and_its_new_decoder_can_be_exported(script, runs):
    module, flags = script.module.autoencoder, (*WORLD, *FIRST, "--begin-with", runs / "first")
    script(*flags, "--freeze-encoder", "--run-dir", runs / "frozen")
    script(*flags, "--run-dir", runs / "thawed")
    first, frozen = (module.trained(str(runs / name)) for name in ("first", "frozen"))
    for name in ("encoder", "quant_conv"):
        assert systems.identical(first.params[name], frozen.params[name])
    for name in ("decoder", "post_quant_conv"):
        assert systems.largest_difference(first.params[name], frozen.params[name]) > 1e-5

    taken = module.with_decoder(first, str(runs / "frozen"))
    assert systems.identical(taken.params, frozen.params)
    assert [done for _, done in taken.runs] == [4, 4]
    with pytest.raises(ValueError, match="thawed has another encoder than the diffusion"):
        module.with_decoder(first, str(runs / "thawed"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--stage", "diffusion"], "which autoencoder? Give --autoencoder the run folder"),
        (["--stage", "diffusion", "--autoencoder", "RUNS/second"], "is a run of the stage diffus"),
        (["--stage", "diffusion", "--autoencoder", "RUNS/none"], "none"),
        (["--stage", "diffusion", "--begin-with", "RUNS/first", "--autoencoder", "RUNS/first"],
         "is a run of the stage autoencoder, not of diffusion"),
        (["--vae-channels", "16", "8", "8", "8", "--begin-with", "RUNS/first"],
         "has a AutoencoderKL of other sizes; give the sizes of that run"),
        (["--stage", "diffusion", "--autoencoder", "RUNS/first"],
         "--vae-channels is (16, 32, 64, 64) and"),
        (["--stage", "diffusion", "--augment", "flip"], "--augment changes pictures"),
        (["--stage", "vae"], "unknown stage 'vae'; use one of autoencoder, diffusion"),
        (["--action", "export", "--run-dir", "RUNS/first"], "export the run of --stage diffusion"),
        (["--action", "export"], "say which run with --run-dir"),
        (["--image-size", "32"], "the world is drawn in 64 pixels"),
        (["--data", "RUNS"], "a folder of pictures needs --image-size"),
        (["--vae-channels", "8", "12"], "--vae-channels has 12; use multiples of 8 (norm_groups)"),
        (["--vae-channels", *["8"] * 8], "--image-size has 64; use multiples of 128"),
        (["--unet-channels", "24", "--unet-heads", "16"], "--unet-channels has 24; use multiples"),
        (["--text-width", "48"], "--text-width has 48; use multiples of 32"),
        (["--num-scenes", "0"], "--num-scenes is 0; use 1 or more"),
        (["--kl-weight", "-1"], "--kl-weight is -1.0; use 0 or more"),
        (["--ema-decay", "1"], "--ema-decay is 1.0"),
        (["--caption-dropout", "1"], "--caption-dropout is 1.0"),
        (["--max-tokens", "2"], "--max-tokens is 2; use 3 or more"),
    ],
)  # fmt: skip
def test_bad_use_is_said_before_any_work(script, runs, tmp_path, flags, words):
    flags = [flag.replace("RUNS", str(runs)) for flag in flags]
    where = [] if "export" in flags else ["--run-dir", tmp_path / "run"]
    with pytest.raises((ValueError, OSError)) as caught:
        script("--num-devices", "1", *flags, *where)
    assert words in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_of_captioned_pictures_trains_both_stages(script, tmp_path, monkeypatch):
    monkeypatch.setattr(script.module.diffusion, "draw_samples", nothing_drawn)
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 3)):
        place = tmp_path / "pictures" / split
        place.mkdir(parents=True)
        lines = []
        for i in range(count):
            pixels = generator.integers(0, 256, (20, 16, 3), np.uint8)
            Image.fromarray(pixels).save(place / f"{i}.png")
            lines.append(json.dumps({"file_name": f"{i}.png", "text": f"picture number {i}"}))
        (place / "metadata.jsonl").write_text("\n".join(lines))
    data = (*TINY, "--data", tmp_path / "pictures", "--image-size", "16", "--steps", "2")

    first = ("--stage", "autoencoder", "--vae-channels", "8", "8", "--run-dir", tmp_path / "first")
    script(*data, *first)
    script(
        *data, *SECOND, "--vae-channels", "8", "8", "--autoencoder", tmp_path / "first",
        "--run-dir", tmp_path / "second",
    )  # fmt: skip
    script("--run-dir", tmp_path / "second", "--action", "export", "--output", tmp_path / "model")

    pipe = StableDiffusion.from_pretrained(tmp_path / "model")
    assert pipe("picture number 7", num_steps=2).shape == (1, 16, 16, 3)
    with pytest.raises(ValueError, match="does not know 'sun'"):
        pipe("picture sun", num_steps=2)
    card = (tmp_path / "model" / "README.md").read_text()
    assert "on captioned pictures" in card
    assert "held out" not in card

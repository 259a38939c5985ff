# SPDX-License-Identifier: MIT
"""The script as a user runs it, on a small checkpoint: pictures, their stories, errors, Ctrl-C."""

import functools
import re
import signal
import subprocess
import time
import warnings

import numpy as np
import pytest
from PIL import Image
from support import adapters, checkpoints, scripts

import jaxgen
from jaxgen import script
from jaxgen.pictures import images
from jaxgen.weights import diffusers
from jaxgen.world import reader, scene

SIZE = checkpoints.SIZE
call = functools.partial(scripts.call, "text_to_image")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "small"
    diffusers.write(folder, checkpoints.checkpoint("sd1"))
    return folder


def test_a_call_leaves_pictures_with_their_story_and_a_grid(model, tmp_path):
    output = tmp_path / "out"
    flags = ["--model", model, "--output", output, "--steps", 3, "--sampler", "euler"]
    stdout, stderr = scripts.execute(
        "text_to_image", *flags, "--prompt", "a cat", "the (dog:1.2)", "--negative", "blur",
        "--seed", 7, "--batch-size", 2,
    )  # fmt: skip
    assert "load " in stdout
    assert "compile " in stdout
    assert "run " in stdout
    assert "step 3 of 3" in stderr
    assert "it/s" in stderr
    names = ["00001-grid.png", "00001.png", "00002.png", "00003.png", "00004.png"]
    assert sorted(path.name for path in output.iterdir()) == names
    assert images.read_text(output / "00003.png") == {
        "prompt": "the (dog:1.2)", "seed": "9", "negative_prompt": "blur", "steps": "3",
        "sampler": "euler", "guidance_scale": "7.5", "guidance_rescale": "0.0", "clip_skip": "0",
        "width": str(SIZE), "height": str(SIZE), "model": str(model), "dtype": "float32",
        "software": f"jaxgen {jaxgen.__version__}",
        "parameters": "the (dog:1.2)\nNegative prompt: blur\nSteps: 3, Sampler: Euler, "
        f"CFG scale: 7.5, Seed: 9, Size: {SIZE}x{SIZE}, Model: {model}, "
        f"Version: jaxgen {jaxgen.__version__}",
    }  # fmt: skip

    # the same picture from what its file says, on two devices, beside the first ones
    call(*flags, "--prompt", "the (dog:1.2)", "a cat", "--negative", "blur",
         "--seed", 9, "--data-devices", 2)  # fmt: skip
    assert {"00005.png", "00006.png", "00005-grid.png"} <= {p.name for p in output.iterdir()}
    pictures = []
    for name in ("00003.png", "00005.png"):
        with Image.open(output / name) as picture:
            pictures.append(np.asarray(picture.convert("RGB")).astype(int))
    assert np.abs(pictures[0] - pictures[1]).max() <= 1


def test_without_a_model_the_embedded_one_draws_what_is_asked(tmp_path):
    output = tmp_path / "out"
    stdout = call("--prompt", "a large green heart on white", "--output", output)
    assert "1 image of 64 x 64" in stdout
    text = images.read_text(output / "00001.png")
    assert (text["model"], text["steps"], text["guidance_scale"]) == ("shapes", "20", "3.0")
    with Image.open(output / "00001.png") as picture:
        found = reader.read(np.asarray(picture.convert("RGB")))
    assert scene.BACKGROUNDS[found.background] == "white"
    assert [scene.COLORS[one.color] for one in found.objects] == ["green"]


@pytest.mark.slow
def test_an_image_is_fitted_and_its_mask_with_it(model, tmp_path):
    colours = np.random.default_rng(0).integers(0, 256, (43, 50, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "image.png")
    white = np.zeros((43, 50), np.uint8)
    white[:, 25:] = 255
    Image.fromarray(white).save(tmp_path / "mask.png")
    output = tmp_path / "out"
    stdout = call(
        "--model", model, "--output", output, "--prompt", "a cat",
        "--sampler", "euler", "--times", 900, 700, 400, 100, "--prediction-type", "sample",
        "--image", tmp_path / "image.png", "--mask", tmp_path / "mask.png", "--strength", 0.5,
    )  # fmt: skip
    assert "1 image of 48 x 40" in stdout
    assert [path.name for path in output.iterdir()] == ["00001.png"]
    story = images.read_text(output / "00001.png")
    assert story["strength"] == "0.5"
    assert (story["sampler"], story["times"], story["steps"]) == ("euler", "900 700 400 100", "4")


def test_orientation_turns_the_photo_and_its_mask_and_16_bits_are_not_clipped(
    tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(scripts.EXPERIMENTS))
    import text_to_image
    from parts import text_to_image_options as options

    exif = Image.Exif()
    exif[0x0112] = 6  # EXIF 2.3, table 4: shown turned 90 degrees clockwise
    grey = np.random.default_rng(0).integers(0, 256, (16, 24), dtype=np.uint8)
    for name in ("image.png", "mask.png"):
        Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / name, exif=exif)
    from_image = options.FromImage(image=tmp_path / "image.png", mask=tmp_path / "mask.png")
    image, mask, _ = text_to_image.read_pictures(options.Config(from_image=from_image))
    np.testing.assert_array_equal(np.asarray(image)[..., 0], np.rot90(grey, 3))
    np.testing.assert_array_equal(np.asarray(mask) > 0, np.rot90(grey, 3) >= 128)


@pytest.mark.slow
def test_notes_are_single_lines_and_the_picture_tells_its_sampler(model, tmp_path, capsys):
    turbo = tmp_path / "sd-turbo"
    turbo.symlink_to(model)
    output = tmp_path / "out"
    word = adapters.write(tmp_path / "tabby.safetensors", {"emb_params": np.ones((2, 24))})
    flags = (
        "--model", turbo, "--output", output, "--steps", 2, "--prompt", "a tabby",
        "--sampler", "DPM++ 2M Karras", "--spacing", "trailing", "--vae", model / "vae",
        "--unet", model, "--embedding", word, "--guidance", 7.5,
    )  # fmt: skip
    with scripts.loaded("text_to_image", *flags) as module, warnings.catch_warnings():
        warnings.simplefilter("default")
        script.main(module.main)
    stderr = capsys.readouterr().err
    notes = [line for line in stderr.splitlines() if line.startswith("note: ")]
    assert len(notes) == 1
    assert "a distilled model (Turbo)" in notes[0]
    assert "guidance scale 7.5" in notes[0]
    assert ".py" not in stderr
    story = images.read_text(output / "00001.png")
    assert (story["sampler"], story["spacing"]) == ("dpmpp_2m_karras", "trailing")
    assert story["vae"] == str(model / "vae")
    assert story["unet"] == str(model)
    assert story["embedding"] == str(word)
    assert "Sampler: DPM++ 2M Karras," in story["parameters"]


def test_the_last_preview_is_the_picture(model, tmp_path):
    flags = ("--model", model, "--prompt", "a cat", "--steps", 3, "--sampler", "euler")
    call(*flags, "--preview", "own", "--output", tmp_path / "out")
    pictures = []
    for name in ("preview.png", "00001.png"):
        with Image.open(tmp_path / "out" / name) as picture:
            pictures.append(np.asarray(picture.convert("RGB")).astype(int))
    last, final = pictures
    margin = (np.asarray(last.shape) - final.shape) // 2
    cut = last[margin[0] : margin[0] + SIZE, margin[1] : margin[1] + SIZE]
    assert np.abs(cut - final).max() <= 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "error: what should the image show? Give --prompt"),
        (["--model", "MODEL"], "what should the image show? Give --prompt"),
        (["--model", "nothing/here/x", "--prompt", "a"], "no such file or folder: 'nothing/here/x"),
        (["--model", "MODEL", "--prompt", "a", "--sampler", "eulr"], "unknown sampler 'eulr'"),
        (
            ["--model", "MODEL", "--prompt", "a", "--sampler", "lcm", "--levels", "beta"],
            "no levels",
        ),
        (["--model", "MODEL", "--prompt", "a", "--vae", "none/x.bin"], "no such file or folder"),
        (["--model", "MODEL", "--prompt", "a", "--preview", "x.bin"], "no such file or folder"),
        (
            ["--model", "MODEL", "--prompt", "a", "--preview", "shapes-tiny"],
            "--preview shapes-tiny draws latents of shapes alone",
        ),
        (["--prompt", "a", "--pag-layers", "up"], "--pag-layers needs --pag-scale"),
        (["--prompt", "a", "--pag-scale", "2", "--pag-layers", "x"], "'x', which is no self-att"),
        (["--prompt", "a", "--unet", "none.safetensors"], "no such file or folder"),
        (
            ["--model", "MODEL", "--prompt", "a", "--lora", "no.safetensors:0.5"],
            "Expected a LoRA",
        ),
        (
            ["--model", "MODEL", "--prompt", "a", "--embedding", "no.safetensors:<x>"],
            "Expected a textual inversion",
        ),
        (
            ["--model", "MODEL", "--prompt", "a", "b", "--lora", "x", "--lora-rows", "1", "1,0"],
            "--lora-rows is '1 1,0'; give for each of the 2 prompts 1 numbers",
        ),
        (["--model", "MODEL", "--prompt", "a", "--width", "31"], "width is 31; it must be a pos"),
        (["--model", "MODEL", "--prompt", "a", "--mask", "m.png"], "give both"),
        (["--model", "MODEL", "--prompt", "a", "--image", "m.png"], "No such file"),
        (["--model", "MODEL", "--prompt", "a", "--data-devices", "9"], "need 9 devices; there are"),
        (["--model", "MODEL", "--prompt", "a", "--batch-size", "0"], "--batch-size is 0"),
        (
            ["--model", "MODEL", "--prompt", "a", "--guidance-interval", "0.2", "0.8"],
            "needs --guidance",
        ),
        (["--prompt", "a", "--guidance", "0", "--guidance-interval", "0", "1"], "above 1"),
        (["--prompt", "a", "--hires-strength", "0.2"], "need --hires"),
        (["--prompt", "a", "--control-edges"], "--control-edges are of --control-image"),
        (["--prompt", "a", "--strength", "0.3"], "strength is 0.3, the share of an image"),
        (
            ["--prompt", "a", "--image", "PICTURE", "--width", "99992", "--height", "99992"],
            "99992 x 99992 pixels are too many",
        ),
        (["--prompt", "a", "--control-image", "PICTURE"], "4 x 4 pixels are too few"),
    ],
)
def test_bad_use_is_one_line(model, tmp_path, monkeypatch, flags, message):
    Image.new("RGB", (4, 4)).save(tmp_path / "picture.png")
    values = {"MODEL": model, "PICTURE": tmp_path / "picture.png"}
    flags = [values.get(flag, flag) for flag in flags]
    monkeypatch.chdir(tmp_path)
    assert message in scripts.refusal("text_to_image", *flags)
    assert not (tmp_path / "outputs").exists()


def test_each_prompt_takes_its_row_of_the_files(model, tmp_path):
    files = []
    for name in ("a", "b"):
        stem = f"unet.{adapters.UNET}"
        values = {
            f"{stem}.lora_A.weight": np.ones((1, 24)),
            f"{stem}.lora_B.weight": np.ones((16, 1)),
        }
        files.append(str(adapters.write(tmp_path / f"{name}.safetensors", values)))
    with scripts.loaded("text_to_image") as text_to_image:
        from parts import text_to_image_options as options

        weights = options.Weights(lora=(files[0], f"{files[1]}:0.5"), lora_rows=("1,0", "2,-1"))
        config = options.Config(
            prompt=("a cat", "a dog"), batch_size=2, model=str(model), weights=weights
        )
        pipe = text_to_image.load_model(config, text_to_image.request_of(config))
    of_each = pipe.adapters.scale[:, [0, -1]]  # a column of each file
    np.testing.assert_array_equal(of_each, [[1, 0], [1, 0], [2, -0.5], [2, -0.5]])


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, (20, 3.0)),
        ({"model": "other"}, (None, None)),
        ({"steps": 7}, (7, 3.0)),
        ({"model": "other", "guidance": 1.0}, (None, 1.0)),
        ({"steps": 0, "guidance": 0.0}, (0, 0.0)),
    ],
)
def test_steps_and_guidance_suit_the_model_unless_given(flags, expected):
    with scripts.loaded("text_to_image") as text_to_image:
        config = text_to_image.Config(**flags)
        assert text_to_image.steps_and_guidance(config) == expected


def test_help_explains_every_option():
    stdout, _ = scripts.execute("text_to_image", "--help")
    for words in ("--model", "--negative", "how much of --image is made anew", "(word:1.3)"):
        assert words in stdout
    lines = [line.strip() for line in stdout.splitlines()]
    examples = [line for line in lines if line.startswith("python experiments/text_to_image.py")]
    assert len(examples) == 6
    titles = [line.split("options")[0].strip(" ╭─") for line in lines if line.startswith("╭")]
    assert titles == ["", "from-image", "sampling", "weights", "devices"]
    first = stdout[: stdout.index("from-image options")]
    flags = ["prompt", "negative", "model", "steps", "guidance", "seed", "batch-size", "width",
             "height", "output", "preview"]  # fmt: skip
    assert re.findall(r"│ --([a-z-]+)", first) == flags


@pytest.mark.slow
def test_control_c_stops_without_a_traceback(model, tmp_path):
    flags = ["--model", model, "--prompt", "a cat", "--steps", 900, "--output", tmp_path / "out"]
    process = subprocess.Popen(
        scripts.command("text_to_image", *flags, "--height", 128, "--width", 128), text=True,
        env=scripts.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().startswith("load")
    time.sleep(1)  # into the compilation
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr
    assert "stopped at step" in stderr
    assert not (tmp_path / "out").exists()

# SPDX-License-Identifier: MIT
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.scripts import call, loaded, refusal

from jaxgen.evaluate import judge
from jaxgen.pictures import images, plots

TINY = ["--num-runs", "2", "--steps", "3", "--batch-size", "4", "--width", "4"]


def test_a_study_leaves_a_row_for_each_run(tmp_path):
    path, picture = tmp_path / "study.json", tmp_path / "study.png"
    flags = ["--output", path, "--figure", picture]
    out = call("gan_study", *TINY, "--variants", "hinge", "relativistic_r1_r2", *flags)
    rows = json.loads(path.read_text())["rows"]
    assert [row["variant"] for row in rows] == ["hinge"] * 2 + ["relativistic_r1_r2"] * 2
    assert rows[0]["learning_rate"] == rows[2]["learning_rate"] != rows[1]["learning_rate"]
    assert all(row["of"] == 8 and 0 <= row["modes"] <= 8 for row in rows)
    assert "| relativistic_r1_r2 |" in out
    assert "| real examples | 8 of 8 | | 0.99 | |" in out  # 1 - exp(-9 / 2) within 3 deviations

    again = tmp_path / "again.png"
    table = call("gan_study", "--action", "table", "--results", path, "--figure", again)
    assert table.splitlines()[:4] == out.splitlines()[:4]
    assert images.read(again) == images.read(picture)


def row(variant, modes, quality=0.5):
    return {
        "variant": variant, "modes": modes, "of": 8, "high_quality": quality, "diverged": False,
        "learning_rate": 1e-3,
    }  # fmt: skip


def test_a_row_of_the_table_has_median_range_and_wilsons_interval():
    """Wilson 1927: (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)."""
    with loaded("gan_study") as module:
        text = module.line("hinge", [row("hinge", m, q) for m, q in [(8, 1), (8, 0.5), (2, 0)]])
    p, n, z = 2 / 3, 3, 1.959964
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    middle = (p + z**2 / (2 * n)) / (1 + z**2 / n)
    assert f"| 2 of 3 ({middle - half:.2f} to {middle + half:.2f}) |" in text
    assert "| 8 of 8 (2 to 8) |" in text
    assert "| 0.50 (0.00 to 1.00) | 0 |" in text


def test_every_run_is_seen_in_the_picture():
    values = {"hinge": [0.0, 0.0, 1.0], "minimax": [0.5, 0.5, 0.5]}
    colours = {name: [1e-4, 1e-3, 1e-2] for name in values}
    picture = plots.spreads([plots.Panel("share", values, colours, 1.0)], "learning rate")
    seen = {colour for _, colour in picture.getcolors(1 << 20)}
    assert {(68, 1, 84), (33, 145, 140), (253, 231, 37)} <= seen  # ends and middle of viridis
    other = plots.Panel("other", {"hinge": [1.0]}, {"hinge": [1e-3]}, 1.0)
    for panels in ([], [plots.Panel("share", values, colours, 1.0), other]):
        with pytest.raises(ValueError, match="give one or more panels of the same rows"):
            plots.spreads(panels, "learning rate")


def test_runs_side_by_side_are_the_runs_alone():
    with loaded("gan_study") as module:
        config = module.Config(num_runs=2, steps=4, batch_size=4, width=4)
        target = module.gan_targets.by_name("ring", 10, 0)
        points = module.samples_of(config, module.VARIANTS["non_saturating_r1"], target)
        keys = lambda: jax.random.split(jax.random.key(0), 2)  # noqa: E731
        draws = module.Draws(*map(jnp.array, ([1e-2, 1e-3], [0.5, 0.0], [0.1, 1.0])))
        both = points(draws, keys())
        alone = points(module.Draws(*(x[1:] for x in draws)), keys()[1:])
    np.testing.assert_allclose(both[1], alone[0], rtol=1e-4, atol=1e-5)
    assert np.abs(both[0] - both[1]).max() > 0.003


def test_a_run_that_is_not_finite_is_a_row_and_no_error():
    with loaded("parts.gan_targets") as module:
        counts = module.by_name("ring", 10, 0).count(np.full((5, 2), np.nan))
    assert counts == {"modes": 0, "of": 8, "high_quality": 0.0, "diverged": True}


def test_images_are_counted_by_the_classes_that_a_judge_is_sure_of(tmp_path, monkeypatch):
    """Two classes, by brightness; of 40 draws all but one are of the first, 36 of them surely."""
    bright = np.arange(60) % 2
    pixels = np.broadcast_to(np.uint8(250 * bright)[:, None, None, None], (60, 2, 3, 1))
    np.savez(tmp_path / "flat.npz", images=pixels, labels=bright)

    def classify(images):
        first = 1 - images.mean(axis=(1, 2, 3)) / 255
        return np.stack([first, 1 - first], axis=1)

    monkeypatch.setattr(judge, "train", lambda *sets: judge.Judge(classify, 1.0, classify))
    with loaded("parts.gan_targets") as module:
        target = module.by_name(str(tmp_path / "flat.npz"), 4, 0)
        assert target.data.shape[1:] == (6,)
        assert target.held_out.shape == (4, 6)
        np.testing.assert_allclose(np.unique(target.data), [-1, 250 / 127.5 - 1], rtol=1e-6)
        drawn = np.full((40, 6), -1.0)
        drawn[:3], drawn[3] = -0.5, 1.0  # 0.75 sure; the other class
        counts = target.count(drawn)
        assert target.count(np.full((3, 6), np.inf))["diverged"]
    # one in 40 is less than a tenth of a half
    assert counts == {"modes": 1, "of": 2, "high_quality": 37 / 40, "diverged": False}


def test_generators_of_images_stay_in_range(tmp_path):
    with loaded("gan_study") as module:
        config = module.Config(num_runs=1, steps=1, batch_size=4, width=4)
        data = np.random.default_rng(0).uniform(-1, 1, (20, 12)).astype(np.float32)
        target = module.Target(data, data, lambda x: {}, 3, True)
        samples = module.samples_of(config, module.VARIANTS["hinge"], target)
        drawn = samples(module.draws_of(config), jax.random.split(jax.random.key(0), 1))
    assert drawn.shape == (1, module.NUM_DRAWS, 12)
    assert 0 < np.abs(drawn).max() <= 1


def test_a_file_of_something_else_is_no_study(tmp_path):
    path = tmp_path / "other.json"
    path.write_text('{"config": {"target": "ring"}, "rows": [{"nats": 3}]}')
    words = f"{path} holds no results of this study; give files of its --output"
    assert words in refusal("gan_study", "--action", "table", "--results", path)
    path.write_text('{"config": {"target": "ring"}, "rows": [], "real": {"modes": 8}}')
    assert words in refusal("gan_study", "--action", "table", "--results", path)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--target", "rnig"], "--target rnig is not ring or grid: unknown data set 'rnig'"),
        (["--variants"], "--variants names none; use some of minimax"),
        (["--variants", "hinge", "hinge"], "--variants are hinge hinge; give each once"),
        (["--variants", "softmax"], "unknown variant 'softmax'; use some of minimax"),
        (["--rates", "1", "0.1"], "give a lower and an upper positive number"),
        (["--penalties", "0", "1"], "--penalties are 0.0 1.0; give a lower and an upper"),
        (["--b1", "0.5", "1"], "give a lower and an upper number from 0 to below 1"),
        (["--num-runs", "0"], "--num-runs is 0; use 1 or more"),
        (["--results", "x.json"], "--results needs --action table; leave it out"),
        (["--action", "table", "--num-runs", "9"], "--num-runs needs --action run; leave it out"),
        (["--action", "table", "--output", "x.json"], "--output needs --action run; leave it out"),
        (["--action", "table", "--results"], "--results names no file; give files of raw results"),
    ],
)
def test_bad_input_of_a_study_is_one_line(flags, words):
    assert words in refusal("gan_study", *flags)


@pytest.mark.parametrize(
    ("flag", "path", "words"),
    [
        ("--output", f"{__file__}/x.json", "x.json cannot be written (Not a directory)"),
        ("--output", f"{__file__}/x.png", "raw results are JSON: end it in .json"),
        ("--output", "CITATION.json", "CITATION.json exists; choose a new --output or remove it"),
        ("--figure", f"{__file__}/x.png", "x.png cannot be written (Not a directory)"),
        ("--figure", "x.jpg", "--figure is x.jpg; pictures are PNG: end it in .png"),
    ],
)
@pytest.mark.parametrize(
    ("script", "work"), [("gan_study", "run"), ("studies.rate_distortion", "curve")]
)
def test_results_that_cannot_be_written_are_not_worked_for(
    script, work, flag, path, words, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "CITATION.json").write_text("somebody's")
    with loaded(script) as module, monkeypatch.context() as patch:
        patch.setattr(module, work, lambda config: pytest.fail("it trains"))
        assert words in refusal(script, flag, path)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["somebody's"]

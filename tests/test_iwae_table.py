# SPDX-License-Identifier: MIT
"""The settings of Burda et al. 2016's code, and a table that goes on where it stopped."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.scripts import call, loaded, refusal

from jaxgen.train import objectives, optimizer

IMAGES = np.random.default_rng(0).integers(0, 256, (44, 4, 4, 1), dtype=np.uint8)

ROW = {
    "layers": 1, "k": 50, "objective": "vae", "swapped": True, "stages": 8,
    "training_images": 59600, "nats": 84.98, "active": "22", "noise": 0.01,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, images=IMAGES, labels=np.zeros(44, np.int64))
    return path


def flags(data, folder, budget, *more):
    common = ["--data", data, "--cells", "1x5", "--batch-size", "10", "--nll-samples", "10"]
    return [*common, "--folder", folder, "--budget", budget, *more]


def test_without_epsilon_it_is_adam_whose_second_moment_begins_at_one():
    params = {"w": jnp.array([0.5, -2.0]), "b": jnp.float32(3.0)}
    ours = optimizer.adam_of_ones(optax.constant_schedule(0.1), epsilon=0.0)
    theirs = optax.adam(0.1, b1=0.99, eps=0.0)
    adam, *rest = theirs.init(params)
    state, other = ours.init(params), (adam._replace(nu=jax.tree.map(jnp.ones_like, params)), *rest)
    for scale in (1.0, -3.0, 0.2):
        grads = jax.tree.map(lambda x, s=scale: s * x, params)
        moves, state = ours.update(grads, state)
        expected, other = theirs.update(grads, other)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), moves, expected)


def test_epsilon_is_added_to_the_root_of_the_second_moment():
    """A gradient of 0 keeps m = 0; one of g gives 0.01 g / (sqrt(0.999 + 0.001 g^2) + epsilon)."""
    tx = optimizer.adam_of_ones(optax.constant_schedule(1.0), epsilon=0.5)
    moves, _ = tx.update(jnp.array([0.0, 2.0]), tx.init(jnp.zeros(2)))
    correction = np.sqrt(0.001) / 0.01
    np.testing.assert_allclose(
        moves, [0, -correction * 0.02 / (np.sqrt(0.999 + 0.004) + 0.5)], rtol=1e-4
    )


def test_the_schedule_is_the_papers():
    with loaded("parts.iwae_cells") as cells:
        rates = [1.0e-3, 7.2e-4, 5.2e-4, 3.7e-4, 2.7e-4, 1.9e-4, 1.4e-4, 1.0e-4]
        np.testing.assert_allclose(cells.stage_rates(), rates)
        rate = cells.learning_rate(2980)
        ends = np.cumsum(3 ** np.arange(8)) * 2980
        assert ends[-1] == 9_774_400
        for i, end in enumerate(ends):
            assert float(rate(end - 1)) == pytest.approx(rates[i])
        assert float(rate(ends[-1] + 1)) == pytest.approx(1e-4)  # the swapped stage


@pytest.mark.parametrize(("text", "count"), [("1x1", 425_284), ("2x50", 521_084)])
def test_models_have_the_parameters_and_the_start_of_the_code(text, count):
    """784-200-200-50 and back; 784-200-200-100-100-100-50 and back, with two heads a layer."""
    images = np.random.default_rng(1).integers(0, 256, (30, 28, 28, 1), dtype=np.uint8)
    images[:, 0, 0] = 0
    with loaded("iwae_table") as table:
        cell = table.CELLS[text]
        params = jax.jit(lambda key: table.iwae_cells.init(cell, images, key))(jax.random.key(0))
    assert sum(x.size for x in jax.tree.leaves(params)) == count
    bias = params["decoder"]["head"]["bias"]
    assert float(bias[0]) == pytest.approx(np.log(0.001 / 0.999), rel=1e-4)
    mean = images.reshape(30, -1).mean(axis=0)[1:] / 255
    np.testing.assert_allclose(jax.nn.sigmoid(bias[1:]), mean, rtol=1e-4)
    bound = np.sqrt(6 / (200 + {"1x1": 50, "2x50": 100}[text]))
    kernel = np.asarray(params["encoder"]["mean"]["kernel"])
    assert 0.95 * bound < abs(kernel).max() <= bound


def test_a_table_goes_on_where_it_stopped_and_stands_beside_the_papers(data, tmp_path):
    whole, parts, page = tmp_path / "whole", tmp_path / "parts", tmp_path / "table.md"
    call("iwae_table", *flags(data, whole, 1, "--seeds", "2"))
    call("iwae_table", *flags(data, parts, 0, "--seeds", "2"))
    call("iwae_table", *flags(data, parts, 1, "--seeds", "2"))

    read = lambda folder: json.loads((folder / "1x5-stage1.json").read_text())["rows"]  # noqa: E731
    assert read(parts) == read(whole)
    assert [(row["objective"], row["seed"]) for row in read(whole)] == [
        ("vae", 0), ("vae", 1), ("iwae", 0), ("iwae", 1),
    ]  # fmt: skip
    assert len({row["nats"] for row in read(whole)}) == 4
    assert {(row["stages"], row["training_images"]) for row in read(whole)} == {(2, 40)}

    written = call("iwae_table", "--action", "table", "--folder", parts, "--table", page)
    assert page.read_text() in written
    lines = page.read_text().splitlines()
    mean = np.mean([row["nats"] for row in read(parts)[2:]])
    wanted = f"| {mean - 85.54:+.2f} |"
    assert [line for line in lines if "| paper | 1 | 5 | IWAE | 4 |" in line and wanted in line]


@pytest.mark.slow
def test_a_modern_run_goes_on_with_its_moving_average(data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    modern = ["--mode", "modern", "--save-every", "2", "--test-images", "9"]
    call("iwae_table", *flags(data, whole, 1, *modern))
    with loaded("iwae_table") as table, pytest.MonkeyPatch.context() as patch:
        of, count = table.iwae_cells.epoch_of, itertools.count(1)

        def stopping(*arguments):
            epoch = of(*arguments)
            return lambda *state: 1 / 0 if next(count) == 4 else epoch(*state)

        patch.setattr(table.iwae_cells, "epoch_of", stopping)
        with pytest.raises(ZeroDivisionError):
            call("iwae_table", *flags(data, parts, 1, *modern))
    call("iwae_table", *flags(data, parts, 1, *modern))

    rows, again = (
        json.loads((folder / "1x5-stage1-modern.json").read_text())["rows"]
        for folder in (whole, parts)
    )
    assert rows == again
    text = call("iwae_table", "--action", "table", "--folder", parts, "--table", tmp_path / "t.md")
    half = 1.96 * np.hypot(rows[1]["noise"], rows[1]["pixels"])
    line = f"| 1 | {rows[1]['nats']:.2f} | +- {half:.2f} (draws of z and pixels) | 85.54 |"
    line = f"| modern | 1 | 5 | DReG | 4 | 40 {line}"
    assert line in text


def test_a_swap_goes_on_from_the_plain_runs(data, tmp_path):
    after, alone = tmp_path / "after", tmp_path / "alone"
    call("iwae_table", *flags(data, after, 0))
    for folder in (after, alone):
        call("iwae_table", *flags(data, folder, 0, "--swap"))
    rows, again = (
        json.loads((folder / "1x5-stage0-swap.json").read_text())["rows"]
        for folder in (after, alone)
    )
    assert rows == again
    plain = json.loads((after / "1x5-stage0.json").read_text())["rows"]
    assert not {row["nats"] for row in rows} & {row["nats"] for row in plain}
    text = call("iwae_table", "--action", "table", "--folder", after, "--table", tmp_path / "t.md")
    assert "| paper | 1 | 5 | VAE | 1 |" in text
    assert "| paper | 1 | 5 | IWAE, then VAE | 2 |" in text


def test_differences_are_from_the_papers_two_tables_with_students_interval():
    """For two runs d apart, Student's factor is 12.706, and the half width 12.706 d / 2."""
    with loaded("parts.iwae_paper") as paper:
        both = paper.table([{"rows": [ROW, ROW | {"swapped": False}]}])
        line = paper.table([{"rows": [ROW, ROW | {"nats": 85.08}]}]).splitlines()[2]
    swapped, plain = both.splitlines()[:1:-1]
    assert (
        "| VAE, then IWAE | 5467 | 59600 | 1 | 84.98 | +- 0.02 (draws of z) | 84.88 | +0.10 |"
        in swapped
    )
    assert "| VAE | 3280 | 59600 | 1 | 84.98 | +- 0.02 (draws of z) | 86.35 | -1.37 |" in plain
    assert f"| 85.03 | +- {12.7062 * 0.05:.2f} (seeds) | 84.88 | +0.15 | 22, 22 | 22 |" in line


def test_runs_in_turn_are_the_runs_at_once(monkeypatch):
    with loaded("parts.iwae_cells") as cells:

        def sums(state, images, key, is_iwae, order):
            noise = jax.random.normal(key, ())
            rows = images if order is None else images[order]
            value = rows[0] * state["x"] + noise + is_iwae
            return {"x": state["x"] + 1}, value

        keys = lambda: jax.random.split(jax.random.key(0), 3)  # noqa: E731
        states, kinds = {"x": jnp.arange(3.0)}, jnp.array([True, False, True])
        for order in (None, jnp.array([[1, 0], [0, 1], [1, 0]])):
            arguments = (states, jnp.array([2.0, 3.0]), keys(), kinds, order)
            in_turn = cells.side_by_side(sums)(*arguments)
            monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
            at_once = cells.side_by_side(sums)(*arguments[:2], keys(), kinds, order)
            monkeypatch.undo()
            jax.tree.map(np.testing.assert_array_equal, in_turn, at_once)


def test_a_run_that_is_not_finite_names_its_step_and_what_is_saved(tmp_path):
    path, losses = tmp_path / "1x1-1.msgpack", np.array([3.0, np.nan])
    states = {"w": jnp.ones(2), "step": jnp.array([40])}
    with loaded("iwae_table") as table:
        cell = table.CELLS["1x1"]
        table.check_finite(cell, losses[:1], states, 40, path)
        with pytest.raises(ValueError, match="after step 40, at .*nan.* none are saved"):
            table.check_finite(cell, losses, states, 40, path)
        path.touch()
        overflown = states | {"w": jnp.array([1, np.inf])}  # by the last update
        with pytest.raises(ValueError, match="1x1-1.msgpack holds the last that were saved"):
            table.check_finite(cell, losses[:1], overflown, 40, path)


def test_the_modern_gradient_for_iwae_is_dreg_and_for_the_vae_the_mean():
    with loaded("parts.iwae_cells") as cells:
        bounds = [cells.modern(10, 2).bound(jnp.array(is_iwae)) for is_iwae in (True, False)]

    def gradient(bound):
        log_weights = lambda p, z, of_posterior: p * z + jnp.float32([0, 1]) * of_posterior  # noqa: E731
        weigh = objectives.Weigh(log_weights, jnp.float32(1))
        return jax.grad(lambda p: bound(weigh, p, p * jnp.float32([2, 2])))(0.3)

    grads = list(map(gradient, bounds))
    expected = list(map(gradient, (objectives.dreg, objectives.k_sample)))
    np.testing.assert_allclose(grads, expected, rtol=1e-6)
    assert abs(grads[0] - grads[1]) > 0.1


def test_bad_input_of_the_table_is_one_line(data, tmp_path):
    assert "--cells are 1x1 3x1; use some of 1x1, 1x5" in refusal(
        "iwae_table", "--cells", "1x1", "3x1"
    )
    assert "--cells are none; use some of 1x1, 1x5" in refusal("iwae_table", "--cells")
    assert "--nll-samples is 70; above 50 use a multiple of it" in refusal(
        "iwae_table", "--nll-samples", "70"
    )
    assert "--budget is 8; use 0 to 7" in refusal("iwae_table", "--budget", "8")
    assert "less than --batch-size 100" in refusal(
        "iwae_table", "--data", data, "--batch-size", "100"
    )
    assert "--swap is of the paper's Table 2" in refusal("iwae_table", "--mode", "modern", "--swap")
    assert "holds no results; run the cells first" in refusal(
        "iwae_table", "--action", "table", "--folder", tmp_path
    )
    call("iwae_table", *flags(data, tmp_path, 1))
    assert "has seen 4 epochs, more than the 1 of --budget 0" in refusal(
        "iwae_table", *flags(data, tmp_path, 0)
    )
    assert "1x5-1.msgpack cannot be written (Not a directory)" in refusal(
        "iwae_table", *flags(data, data, 0)
    )
    states = tmp_path / "1x5-1.msgpack"
    content = bytearray(states.read_bytes())
    content[len(content) // 2] ^= 1
    states.write_bytes(content)
    assert f"{states}: it is damaged; a new one is needed" in refusal(
        "iwae_table", *flags(data, tmp_path, 1)
    )


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"rows": 3},
        {"rows": []},
        {"rows": [3]},
        {"rows": [{}]},
        {"rows": [ROW | {"objective": "x"}]},
        {"rows": [ROW | {"nats": "x"}]},
    ],
)
def test_a_file_of_something_else_is_no_part_of_the_table(content, tmp_path):
    path = tmp_path / "1x1-stage0.json"
    path.write_text(json.dumps(content))
    assert f"{path} holds no results of this table; run its cell again" in refusal(
        "iwae_table", "--action", "table", "--folder", tmp_path
    )

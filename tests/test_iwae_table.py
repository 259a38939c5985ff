# SPDX-License-Identifier: MIT
"""The settings of Burda et al. 2016's code, and a table that goes on where it stopped."""

import contextlib
import itertools
import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from support.scripts import call, loaded, refusal

from jaxgen import script
from jaxgen.train import objectives, optimizer

IMAGES = np.random.default_rng(0).integers(0, 256, (44, 4, 4, 1), dtype=np.uint8)

ROW = {
    "layers": 1, "k": 50, "objective": "vae", "swapped": True, "stages": 8,
    "training_images": 59600, "revision": 2, "nats": 84.98, "active": "22", "noise": 0.01,
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    np.savez(path, images=IMAGES, labels=np.zeros(44, np.int64))
    return path


def flags(data, folder, budget, *more):
    common = ["--data", data, "--cells", "1x5", "--batch-size", "10", "--nll-samples", "10"]
    return [*common, "--folder", folder, "--budget", budget, *more]


def test_without_epsilon_it_is_adam_whose_second_moment_begins_at_one_a_step_late():
    """The code uses the moments of the step before with the correction of this one."""
    params = {"w": jnp.array([0.5, -2.0]), "b": jnp.float32(3.0)}
    ours = optimizer.adam_of_ones(optax.constant_schedule(0.1), epsilon=0.0)
    theirs = optax.adam(0.1, b1=0.99, eps=0.0)
    adam, *rest = theirs.init(params)
    state, other = ours.init(params), (adam._replace(nu=jax.tree.map(jnp.ones_like, params)), *rest)
    late, correction = jax.tree.map(jnp.zeros_like, params), 1.0
    for i, scale in enumerate((1.0, -3.0, 0.2), start=1):
        grads = jax.tree.map(lambda x, s=scale: s * x, params)
        moves, state = ours.update(grads, state)
        rate = np.sqrt(1 - 0.999**i) / (1 - 0.99**i)
        expected = jax.tree.map(lambda x, c=rate / correction: c * x, late)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), moves, expected)
        late, other = theirs.update(grads, other)
        correction = rate


def test_epsilon_is_added_to_the_root_of_the_second_moment():
    """A gradient g gives m = 0.01 g and v = 0.999 + 0.001 g^2, which the next step uses."""
    tx = optimizer.adam_of_ones(optax.constant_schedule(1.0), epsilon=0.5)
    gradient = jnp.array([0.0, 2.0])
    moves, state = tx.update(gradient, tx.init(jnp.zeros(2)))
    np.testing.assert_array_equal(moves, [0, 0])
    moves, _ = tx.update(gradient, state)
    correction = np.sqrt(1 - 0.999**2) / (1 - 0.99**2)
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
        early = cells.learning_rate(2980, plain_epochs=4)
        assert float(early(4 * 2980 - 1)) == pytest.approx(rates[1])
        assert float(early(4 * 2980)) == pytest.approx(1e-4)


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

    with loaded("parts.iwae_cells") as cells:
        first, second = (cells.with_weights_of_the_code(params, seed) for seed in (0, 1))
    encoder = first["encoder"]
    of_code = np.random.RandomState(123).uniform(-bound, bound, kernel.shape)  # nnet.py, Linear
    np.testing.assert_array_equal(encoder["mean"]["kernel"], np.float32(of_code))
    np.testing.assert_array_equal(encoder["mean"]["kernel"], encoder["log_std"]["kernel"])
    np.testing.assert_array_equal(first["decoder"]["head"]["bias"], bias)
    assert not np.array_equal(encoder["mean"]["kernel"], second["encoder"]["mean"]["kernel"])


def rows_of(folder, ending):
    """Reads the results of a folder, of one ending, by the names of their runs."""
    paths = sorted(folder.glob(f"*-{ending}.json"))
    rows = [row for path in paths for row in json.loads(path.read_text())["rows"]]
    return {(f"{row['layers']}x{row['k']}", row["objective"], row["seed"]): row for row in rows}


@contextlib.contextmanager
def stopping_at(number):
    """Patches the training so that a SIGTERM comes during its epoch of that number, from 1."""
    with loaded("iwae_table") as table, pytest.MonkeyPatch.context() as patch:
        of, count = table.iwae_cells.epoch_of, itertools.count(1)

        def epoch_of(*arguments):
            epoch = of(*arguments)

            def stopping(*state):
                if next(count) == number:
                    signal.raise_signal(signal.SIGTERM)
                return epoch(*state)

            return stopping

        patch.setattr(table.iwae_cells, "epoch_of", epoch_of)
        yield


def test_a_table_goes_on_where_it_stopped_and_stands_beside_the_papers(data, tmp_path):
    whole, parts, page = tmp_path / "whole", tmp_path / "parts", tmp_path / "table.md"
    call("iwae_table", *flags(data, whole, 1, "--seeds", "2"))
    call("iwae_table", *flags(data, parts, 0))
    call("iwae_table", *flags(data, parts, 1, "--objectives", "iwae"))
    call("iwae_table", *flags(data, parts, 1, "--seeds", "2"))

    rows = rows_of(whole, "stage1")
    assert rows_of(parts, "stage1") == rows
    assert list(rows) == [("1x5", kind, seed) for kind in ("iwae", "vae") for seed in (0, 1)]
    assert len({row["nats"] for row in rows.values()}) == 4
    assert {(row["stages"], row["training_images"]) for row in rows.values()} == {(2, 40)}

    before = {path: path.read_bytes() for path in parts.iterdir()}
    known = f"1x5 vae seed0: {rows['1x5', 'vae', 0]['nats']:.2f} nats, in "
    assert known in call("iwae_table", *flags(data, parts, 1, "--seeds", "2"))
    assert {path: path.read_bytes() for path in parts.iterdir()} == before
    other = [*flags(data, parts, 1), "--test-images", "3"]
    assert "seed0-stage1.json is of other test_images, test images; use" in refusal(
        "iwae_table", *other
    )

    written = call("iwae_table", "--action", "table", "--folder", parts, "--table", page)
    assert page.read_text() in written
    lines = page.read_text().splitlines()
    mean = np.mean([rows["1x5", "iwae", seed]["nats"] for seed in (0, 1)])
    wanted = f"| {mean - 85.54:+.2f} |"
    assert [line for line in lines if "| paper | 1 | 5 | IWAE | 4 |" in line and wanted in line]


@pytest.mark.slow
def test_a_modern_run_goes_on_with_its_moving_average_after_a_signal(data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    modern = ["--mode", "modern", "--save-every", "9", "--test-images", "4"]
    call("iwae_table", *flags(data, whole, 1, *modern))
    with stopping_at(3), pytest.raises(script.Interrupted, match="saved after epoch 3 of 4; the s"):
        call("iwae_table", *flags(data, parts, 1, *modern))
    call("iwae_table", *flags(data, parts, 1, *modern))

    rows = rows_of(whole, "stage1-modern")
    assert rows == rows_of(parts, "stage1-modern")
    row = rows["1x5", "iwae", 0]
    text = call("iwae_table", "--action", "table", "--folder", parts, "--table", tmp_path / "t.md")
    half = 1.96 * np.hypot(row["noise"], row["pixels"])
    line = f"| 1 | {row['nats']:.2f} | +- {half:.2f} (draws of z and pixels) | 85.54 |"
    assert f"| modern | 1 | 5 | DReG | 4 | 40 {line}" in text


def test_swaps_of_two_budgets_do_not_go_on_from_each_other(data, tmp_path):
    both, alone = tmp_path / "both", tmp_path / "alone"
    vae = ["--swap", "--objectives", "vae"]
    call("iwae_table", *flags(data, both, 0, *vae))
    for folder in (both, alone):
        call("iwae_table", *flags(data, folder, 1, *vae))
    assert rows_of(both, "stage1-swap") == rows_of(alone, "stage1-swap")
    message = refusal("iwae_table", *flags(data, both, 0, "--objectives", "vae", "--cells", "1x1"))
    assert "1x1-vae-seed0.msgpack has seen 4 epochs, more than the 1 of --budget 0" in message


def test_a_swap_goes_on_from_the_vae_of_one_sample_and_from_the_iwae(data, tmp_path):
    """The authors' `experiment2`: VAE of k = 1, then IWAE of k; IWAE of k, then VAE of k = 1."""
    after, alone = tmp_path / "after", tmp_path / "alone"
    call("iwae_table", *flags(data, after, 0, "--objectives", "iwae"))
    seen = []
    with loaded("iwae_table") as table, pytest.MonkeyPatch.context() as patch:
        of = table.iwae_cells.epoch_of

        def epoch_of(cell, *arguments):
            epoch = of(cell, *arguments)
            return lambda *state: seen.append((cell, *state[3].tolist())) or epoch(*state)

        patch.setattr(table.iwae_cells, "epoch_of", epoch_of)
        call("iwae_table", *flags(data, after, 0, "--swap"))
    assert seen == [((1, 1), False), ((1, 1), False), ((1, 5), True)]
    call("iwae_table", *flags(data, alone, 0, "--swap"))

    rows = rows_of(after, "stage0-swap")
    assert len(rows) == 2
    assert rows == rows_of(alone, "stage0-swap")
    assert not {row["nats"] for row in rows.values()} & {
        row["nats"] for row in rows_of(after, "stage0").values()
    }
    text = call("iwae_table", "--action", "table", "--folder", after, "--table", tmp_path / "t.md")
    assert "| paper | 1 | 5 | VAE of k = 1, then IWAE | 2 |" in text
    assert "| paper | 1 | 5 | IWAE, then VAE of k = 1 | 2 |" in text


def test_differences_are_from_the_papers_two_tables_with_students_interval():
    """For two runs d apart, Student's factor is 12.706, and the half width 12.706 d / 2."""
    with loaded("parts.iwae_paper") as paper:
        both = paper.table([{"rows": [ROW, ROW | {"swapped": False}]}])
        line = paper.table([{"rows": [ROW, ROW | {"nats": 85.08}]}]).splitlines()[2]
        first = paper.table([{"rows": [{k: v for k, v in ROW.items() if k != "revision"}]}])
    assert first.splitlines()[2].startswith("| paper, revision 1 | 1 | 50 |")
    swapped, plain = both.splitlines()[:1:-1]
    assert "| VAE of k = 1, then IWAE | 5467 | 59600 | 1 | 84.98 |" in swapped
    assert "| +- 0.02 (draws of z) | 84.88 | +0.10 |" in swapped
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


def test_a_run_that_is_not_finite_names_its_step_and_the_others_are_saved(tmp_path):
    losses = np.array([3.0, np.nan])
    states = {"w": jnp.array([[1.0, 2], [3, 4]]), "step": jnp.array([40, 40])}
    with loaded("iwae_table") as table:
        runs = [table.Run(table.CELLS["1x1"], "vae", seed) for seed in (0, 1)]
        store = table.Store(tmp_path, "these settings", "a digest")
        store.check_finite(runs, np.ones(2), states, 40)
        assert not list(tmp_path.iterdir())
        with pytest.raises(ValueError, match="^1x1-vae-seed1: no longer finite after step 40, at"):
            store.check_finite(runs, losses, states, 40)
        first = jax.tree.map(lambda x: x[0], states)
        empty = jax.tree.map(jnp.zeros_like, first)
        restored = store.restored(runs[0], empty)
        jax.tree.map(np.testing.assert_array_equal, restored, first)
        assert store.restored(runs[1], empty) is empty
        overflown = states | {"w": jnp.array([[1, np.inf], [3, 4]])}  # by the last update
        with pytest.raises(ValueError, match="last good states: .*1x1-vae-seed0.msgpack"):
            store.check_finite(runs, np.ones(2), overflown, 40)
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        assert set(before) == {store.path(run) for run in runs}
        with pytest.raises(ValueError, match="^1x1-vae-seed0, 1x1-vae-seed1: no longer finite"):
            store.check_finite(runs, losses * np.nan, states, 80)
        assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_modern_gradient_for_iwae_is_dreg_and_for_the_vae_the_mean():
    with loaded("parts.iwae_cells") as cells:
        bounds = [cells.modern(10, 2).bound(jnp.array(is_iwae)) for is_iwae in (True, False)]

    def gradient(bound):
        def value(p):
            of_q = objectives.Posterior(p, p)
            return bound(objectives.Weigh(log_weights, of_q, jnp.float32(1)), p, p * twos)

        log_weights = lambda p, z, of_q: p * z + jnp.float32([0, 1]) * of_q.params  # noqa: E731
        twos = jnp.float32([2, 2])
        return jax.grad(value)(0.3)

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
    assert "--objectives are none; use some of vae, iwae" in refusal("iwae_table", "--objectives")
    assert "--swap needs --cells of k > 1" in refusal("iwae_table", "--swap", "--cells", "1x1")
    assert "--budget is 8; use 0 to 7" in refusal("iwae_table", "--budget", "8")
    assert "less than --batch-size 100" in refusal(
        "iwae_table", "--data", data, "--batch-size", "100"
    )
    assert "--swap is of the paper's Table 2" in refusal("iwae_table", "--mode", "modern", "--swap")
    assert f"--test-images is 10000, and {data} has" in refusal(
        "iwae_table", *flags(data, tmp_path, 1, "--test-images", "10000")
    )
    assert "holds no results; run the cells first" in refusal(
        "iwae_table", "--action", "table", "--folder", tmp_path
    )
    assert "--seeds needs --action run" in refusal(
        "iwae_table", "--action", "table", "--seeds", "3"
    )
    call("iwae_table", *flags(data, tmp_path, 1))
    assert "has seen 4 epochs, more than the 1 of --budget 0" in refusal(
        "iwae_table", *flags(data, tmp_path, 0)
    )
    assert f"{data}/in-use cannot be written (Not a directory)" in refusal(
        "iwae_table", *flags(data, data, 0)
    )
    states = tmp_path / "1x5-vae-seed0.msgpack"
    before = data.read_bytes()
    np.savez(data, images=IMAGES[::-1], labels=np.zeros(44, np.int64))
    assert "seed0-stage1.json is of other training images, test images; use" in refusal(
        "iwae_table", *flags(data, tmp_path, 1)
    )
    assert f"{states}: trained on other images than these; use another --folder" in refusal(
        "iwae_table", *flags(data, tmp_path, 2)
    )
    data.write_bytes(before)
    content = bytearray(states.read_bytes())
    content[len(content) // 2] ^= 1
    states.write_bytes(content)
    assert f"{states}: it is damaged; a new one is needed" in refusal(
        "iwae_table", *flags(data, tmp_path, 2)
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

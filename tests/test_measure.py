# SPDX-License-Identifier: MIT
"""Taking turns, counting arithmetic, reading the compiler, the ceilings and the environment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec as P
from support import systems

from jaxgen.measure import ceilings, cost, environment, products, turns
from jaxgen.nn import tpu_attention
from jaxgen.train import parallel, step


class FakeClock:
    """Time that passes only while somebody works."""

    def __init__(self):
        self.now, self.order = 0.0, []

    def __call__(self):
        return self.now

    def worker(self, name, seconds, unit=1):
        def run(count):
            self.order.append((name, count))
            self.now += seconds * count

        return turns.Candidate(run, unit)


def test_candidates_take_turns_and_are_timed_by_unit_of_work():
    clock = FakeClock()
    candidates = {"a": clock.worker("a", 0.25), "b": clock.worker("b", 0.5)}
    found = turns.take_turns(candidates, 3, seconds=1.0, clock=clock)
    assert found == {"a": [0.25] * 3, "b": [0.5] * 3}
    assert [name for name, _ in clock.order[-6:]] == ["a", "b", "a", "b", "a", "b"]
    assert dict(clock.order[-2:]) == {"a": 4, "b": 2}  # a second each


def test_a_candidate_only_gets_multiples_of_its_unit():
    clock = FakeClock()
    turns.take_turns({"a": clock.worker("a", 0.01, unit=7)}, 2, seconds=0.1, clock=clock)
    assert all(count % 7 == 0 for _, count in clock.order)


def test_a_slow_first_call_does_not_shrink_the_turns():
    clock = FakeClock()
    calls = iter([100.0])  # seconds that the first call takes more: it compiles

    def run(count):
        clock.now += next(calls, 0.0) + 0.125 * count
        clock.order.append(count)

    found = turns.take_turns({"a": turns.Candidate(run)}, 2, seconds=1.0, clock=clock)
    assert found == {"a": [0.125] * 2}
    assert clock.order[-2:] == [8, 8]


def test_a_slow_turn_hits_both_sides_of_a_ratio():
    assert turns.ratio([2.0, 20.0, 2.0], [1.0, 10.0, 1.0]) == turns.Spread(2.0, 2.0, 2.0)


def test_spread_is_median_and_quartiles():
    assert turns.spread([5, 1, 2, 3, 4]) == turns.Spread(3.0, 2.0, 4.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: turns.spread([]), "no measurement"),
        (lambda: turns.take_turns({}, 0, 1.0), "0 turns; use 1 or more"),
        (lambda: turns.take_turns({}, 1, 0.0), "use a positive time"),
        (lambda: turns.ratio([1.0], [1.0, 2.0]), "time both in the same run"),
    ],
)
def test_wrong_arguments_say_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def shape(*sides):
    return jax.ShapeDtypeStruct(sides, jnp.float32)


def test_products_of_matrices_are_two_m_n_k():
    assert products.flops(lambda a, b: a @ b, shape(3, 5), shape(5, 7)) == 2 * 3 * 5 * 7
    batched = products.flops(
        lambda a, b: jnp.einsum("bij,bjk->bik", a, b), shape(4, 3, 5), shape(4, 5, 7)
    )
    assert batched == 4 * 2 * 3 * 5 * 7


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [8, 9])
def test_convolutions_count_weights_that_meet_pixels(stride, side):
    """With one feature in and out and all ones, the output's sum IS the number of meetings."""
    image, kernel = jnp.ones((1, side, side, 1)), jnp.ones((3, 3, 1, 1))

    def convolve(image, kernel):
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            image, kernel, (stride, stride), "SAME", dimension_numbers=layout
        )

    forward = products.flops(convolve, image, kernel)
    assert forward == 2 * int(jnp.sum(convolve(image, kernel)))

    # both gradients meet the same pairs: with stride 2 one of them dilates the image with zeros
    def gradient(image, kernel):
        return jax.grad(lambda i, k: jnp.sum(convolve(i, k) ** 2), (0, 1))(image, kernel)

    assert products.flops(gradient, image, kernel) == 3 * forward


def test_attention_of_a_library_is_counted_as_that_of_equations(monkeypatch):
    cudnn = "jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version"
    monkeypatch.setattr(cudnn, lambda: 91000)  # tracing asks for it, and nothing is run
    q = jax.ShapeDtypeStruct((2, 128, 4, 64), jnp.bfloat16)
    kv = jax.ShapeDtypeStruct((2, 256, 4, 64), jnp.bfloat16)

    def attend(implementation):
        return lambda q, k, v: jax.nn.dot_product_attention(q, k, v, implementation=implementation)

    plain = products.flops(attend("xla"), q, kv, kv)
    assert plain == 2 * 2 * 2 * 4 * 128 * 256 * 64
    assert products.flops(attend("cudnn"), q, kv, kv) == plain
    assert products.flops(tpu_attention.on_one_device, q, kv, kv) == plain


def test_loops_branches_and_devices_are_multiplied_out():
    square = jnp.eye(4)
    one = 2 * 4**3

    def looped(x):
        return jax.lax.scan(lambda y, _: (y @ square, None), x, length=5)[0]

    def branched(x):
        return jax.lax.cond(x[0, 0] > 0, lambda y: y @ square @ square, lambda y: y, x)

    mesh = parallel.data_mesh(4)
    divided = jax.shard_map(
        lambda x: x @ square, mesh=mesh, in_specs=P("data"), out_specs=P("data")
    )
    assert products.flops(jax.jit(looped), square) == 5 * one
    assert products.flops(branched, square) == 2 * one
    assert products.flops(divided, jnp.ones((16, 4))) == 4 * one


def test_a_dense_training_step_is_counted_as_by_hand():
    """Forward, weights' gradient, input's gradient; the first layer has no input to move."""
    layer_1, layer_2 = nn.Dense(500), nn.Dense(40)
    x = jnp.zeros((128, 784))
    params = [layer_1.init(jax.random.key(0), x), layer_2.init(jax.random.key(0), x[:, :500])]

    def loss(params, x):
        return jnp.sum(layer_2.apply(params[1], nn.relu(layer_1.apply(params[0], x))) ** 2)

    by_hand = 2 * 128 * (784 * 500 + 500 * 40) * 3 - 2 * 128 * 784 * 500
    assert products.flops(jax.grad(loss), params, x) == by_hand
    lowered = jax.jit(jax.grad(loss)).lower(params, x)
    told = cost.cost(lowered, lowered.compile())
    assert told.flops == pytest.approx(by_hand, rel=0.02)  # the compiler counts relu and sums too
    assert told.peak_bytes > sum(leaf.size * 4 for leaf in jax.tree.leaves(params))
    assert told.collectives == {}


@pytest.mark.parametrize("how", parallel.MODES)
def test_a_step_on_several_devices_reduces_its_gradient(how):
    init, one = systems.make("autoencoder")
    mesh = parallel.data_mesh(4)
    run = parallel.parallelize(step.scan_steps(one), mesh, how, parallel.SCANNED)
    rows = np.zeros((1, 8), np.int32)
    args = (init(jax.random.key(0)), (systems.dataset(), rows), jax.random.key(1))
    lowered = jax.jit(run, donate_argnums=0).lower(*args)
    told = cost.cost(lowered, lowered.compile())
    weights = sum(leaf.size * 4 for leaf in jax.tree.leaves(args[0].params))
    assert told.collectives["all-reduce"] >= 1
    assert told.collective_bytes >= weights


def test_collectives_are_read_from_a_program_with_their_sizes():
    program = """
      %a = f32[64,10]{1,0} all-reduce(%x), channel_id=1
      %b = (bf16[8]{0}, bf16[2,4]{1,0}) all-gather-start(%y), dimensions={0}
      %c = f32[] add(%a, %b)
    """
    found = cost.collectives(program)
    assert found == ({"all-reduce": 1, "all-gather": 1}, 64 * 10 * 4 + 2 * 16)


def test_ceilings_are_positive_and_finite():
    found = ceilings.measure(jnp.float32, sides=(64,), copy_bytes=2**16, repeats=2)
    assert all(0 < value < np.inf for value in found)


def test_the_environment_names_device_versions_and_command():
    found = environment.record()
    assert found["versions"]["jax"] == jax.__version__
    assert found["num_devices"] == jax.device_count()
    assert found["command"].startswith("python ")
    assert found["device"]

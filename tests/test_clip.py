# SPDX-License-Identifier: MIT
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.networks import (
    CLIPS,
    make_clip,
    norm_epsilons,
    psnr,
    relative_error,
    token_ids,
    weights_by_path,
)

from jaxgen.nn.stable_diffusion.clip import end_of_text

STORED = Path(__file__).parent / "data" / "networks.npz"

FULL_SIZE = {
    "clip_l": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
    "openclip_h": {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 23,
    },
    "openclip_bigg": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_attention_heads": 20,
        "num_hidden_layers": 32,
        "projection_dim": 1280,
        "with_projection": True,
    },
}


def small(name, dtype=jnp.float32, **options):
    clip, shapes = make_clip(CLIPS[name], dtype)
    params = {"params": weights_by_path(shapes)}
    return jax.jit(lambda ids: clip.apply(params, ids, **options))


@pytest.mark.parametrize("name", CLIPS)
def test_text_encoder_equals_stored_transformers_output(name):
    out = small(name)(token_ids())
    with np.load(STORED) as stored:
        assert relative_error(out.context, stored[f"clip/{name}/context"]) < 1e-4
        assert relative_error(out.pooled, stored[f"clip/{name}/pooled"]) < 1e-4
        assert relative_error(out.hidden_states[-2], stored[f"clip/{name}/penultimate"]) < 1e-4


def test_every_norm_has_the_epsilon_of_the_config():
    config = CLIPS["clip_l"] | {"layer_norm_eps": 1e-4}
    epsilons = norm_epsilons(make_clip(config)[0], token_ids())
    assert len(epsilons) == 2 * config["num_hidden_layers"] + 1
    assert set(epsilons.values()) == {1e-4}


def test_xl_context_is_the_state_before_the_last_without_norm():
    out = small("openclip_bigg", skip_layers=1, final_norm=False)(token_ids())
    np.testing.assert_array_equal(out.context, out.hidden_states[-2])


def test_skipping_layers_equals_a_shallower_encoder():
    ids = token_ids()
    skipped = small("clip_l", skip_layers=1)(ids)

    shallow = CLIPS["clip_l"] | {"num_hidden_layers": CLIPS["clip_l"]["num_hidden_layers"] - 1}
    clip, shapes = make_clip(shallow)  # weights follow from paths: the first layers agree
    direct = jax.jit(clip.apply)({"params": weights_by_path(shapes)}, ids)
    np.testing.assert_allclose(skipped.context, direct.context, rtol=1e-5, atol=1e-6)


def test_later_tokens_do_not_change_earlier_states():
    encode = small("openclip_h")
    ids = token_ids()
    changed = ids.copy()
    changed[:, 5:] = 3
    np.testing.assert_allclose(
        encode(ids).context[:, :5], encode(changed).context[:, :5], rtol=1e-5, atol=1e-6
    )


def test_short_texts_need_no_padding():
    encode = small("clip_l")
    ids = token_ids()
    short = encode(ids[:, :20])
    assert short.context.shape == (3, 20, 32)
    np.testing.assert_allclose(short.context, encode(ids).context[:, :20], rtol=1e-4, atol=1e-5)


def test_pooling_takes_the_first_end_token_or_by_the_old_rule_the_largest_id():
    ids = jnp.asarray([[5, 9, 12, 9, 9], [5, 7, 7, 7, 9]])
    np.testing.assert_array_equal(end_of_text(ids, 9), [1, 4])
    np.testing.assert_array_equal(end_of_text(ids, 2), [2, 4])


def test_bfloat16_text_encoder_is_close_to_float32():
    out = small("clip_l", jnp.bfloat16)(token_ids())
    assert out.context.dtype == jnp.bfloat16
    with np.load(STORED) as stored:
        assert psnr(out.context, stored["clip/clip_l/context"]) > 30


@pytest.mark.parametrize(
    ("name", "tensors"), [("clip_l", 196), ("openclip_h", 372), ("openclip_bigg", 517)]
)
def test_full_size_text_encoder_has_as_many_tensors_as_its_file(name, tensors):
    assert len(jax.tree.leaves(make_clip(FULL_SIZE[name])[1])) == tensors


def test_too_many_tokens_are_an_error():
    with pytest.raises(ValueError, match="takes 77; encode longer prompts in chunks"):
        small("clip_l")(jnp.zeros((1, 78), jnp.int32))


def test_unknown_activation_is_an_error():
    with pytest.raises(ValueError, match="use one of quick_gelu, gelu"):
        make_clip(CLIPS["clip_l"] | {"hidden_act": "relu"})


def test_skipping_more_layers_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="use 0 to 3"):
        small("clip_l", skip_layers=4)(token_ids())

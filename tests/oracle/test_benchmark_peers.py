# SPDX-License-Identifier: MIT
"""The PyTorch twins of the benchmark compute the same losses, before and after an update."""

import jax.numpy as jnp
import pytest

pytest.importorskip("torch")

from benchmarks import diffusion, training
from benchmarks.peers import torch_networks, twins
from benchmarks.sd import sd_models, sd_programs
from jaxgen.nn import gan
from jaxgen.train import parallel

pytestmark = pytest.mark.oracle

TINY_XL = {
    **sd_models.TINY,
    "unet": {
        **sd_models.TINY["unet"], "addition_embed_type": "text_time", "cross_attention_dim": 80,
        "transformer_layers_per_block": [1, 2], "attention_head_dim": [4, 8],
        "use_linear_projection": True, "addition_time_embed_dim": 32,
        "projection_class_embeddings_input_dim": 6 * 32 + 24,
    },
    "text_encoder_2": {
        **sd_models.TINY["text_encoder"], "hidden_size": 48, "hidden_act": "gelu",
        "projection_dim": 24,
    },
}  # fmt: skip


@pytest.mark.parametrize("model", list(training.SCRIPTS))
@pytest.mark.parametrize(
    ("network", "dtype"),
    [*((network, "float32") for network in training.NETWORKS), ("conv", "bfloat16")],
)
def test_a_peer_starts_only_if_it_trains_the_same(model, network, dtype):
    case = training.Case(model, network, 8, dtype)
    like = training.start(case, training.Way("step", "jit", 1), parallel.data_mesh(1), 1)
    peer = twins.start(case, "pytorch", like)
    assert peer.facts["parameters"] == like.facts["parameters"]
    peer.candidate.run(1)  # it trains on by itself
    if network == "conv":
        return

    wrong = like._replace(facts=like.facts | {"losses": [x * 1.1 for x in like.facts["losses"]]})
    with pytest.raises(ValueError, match="do not train the same"):
        twins.start(case, "pytorch", wrong)


def test_networks_without_a_twin_are_refused():
    with pytest.raises(ValueError, match="neither conditional nor spectrally"):
        torch_networks.twin(gan.DenseDiscriminator(spectral=True), (28, 28, 1))
    with pytest.raises(ValueError, match="norm='group' only"):
        torch_networks.twin(gan.ConvGenerator((28, 28, 1), norm="batch"), 8)


@pytest.mark.parametrize("peer", ["pytorch", "flax_diffusers"])
@pytest.mark.parametrize(
    ("name", "dtype"), [("tiny", "float32"), ("tiny_xl", "float32"), ("tiny_xl", "bfloat16")]
)
def test_peers_compute_the_same_parts_of_stable_diffusion(name, peer, dtype, monkeypatch):
    monkeypatch.setitem(sd_models.MODELS, "tiny_xl", TINY_XL)
    reason = twins.missing(peer, diffusion=True)
    if reason is not None:
        pytest.skip(reason)
    model = sd_models.random(name, jnp.dtype(dtype))
    size = sd_programs.Size(batch_size=2, resolution=64, num_steps=2)
    ours, given = diffusion.start(model, size)
    theirs = twins.start_diffusion(model, size, dtype, peer, ours, given)
    for part in diffusion.PARTS:
        theirs[part].candidate.run(1)
        ours[part].candidate.run(1)

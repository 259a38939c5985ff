# SPDX-License-Identifier: MIT
"""The script that distils a tiny autoencoder: what it writes, and what it refuses."""

import numpy as np
import pytest
from support.scripts import call, refusal

from jaxgen.stable_diffusion import loading
from jaxgen.weights import autoencoder, diffusers, hub, tensors

SMALL = (
    "--steps", "2", "--encoder-steps", "2", "--num-scenes", "4", "--num-tests", "4",
    "--batch-size", "2", "--width", "4", "--encoder-blocks", "0", "0", "0", "0",
    "--decoder-blocks", "1", "0", "0", "0",
)  # fmt: skip


@pytest.mark.slow
def test_it_writes_an_autoencoder_that_draws_previews(tmp_path):
    folder = tmp_path / "runs" / "tiny"
    lines = call("studies.tiny_autoencoder", *SMALL, "--output", folder).splitlines()
    assert [line.split(":")[0] for line in lines[:2]] == ["encoder, step 2", "decoder, step 2"]
    own = {line.split(":")[0]: float(line.split()[-2]) for line in lines[3:]}
    assert own["the model's own decoder beside the scenes"] > 30
    assert own["its decoder beside the scenes"] < 20  # of two steps

    component = autoencoder.read(folder)
    networks = loading.networks(hub.open_checkpoint(hub.EMBEDDED))
    pictures = loading.previewer(component, networks)(np.zeros((1, 8, 8, 4), np.float32))
    assert (pictures.shape, pictures.dtype) == ((1, 64, 64, 3), np.uint8)
    # a file without its config says how many blocks its levels have
    file = tmp_path / "tiny.safetensors"
    tensors.write_file(file, component.tensors)
    fields = diffusers.fields(autoencoder.read(file))
    assert fields["num_encoder_blocks"] == (0, 0, 0, 0)
    assert fields["num_decoder_blocks"] == (1, 0, 0, 0)
    assert "exists; choose a new folder" in refusal(
        "studies.tiny_autoencoder", *SMALL, "--output", folder
    )


def test_wrong_options_are_one_line(tmp_path):
    flags = ("studies.tiny_autoencoder", "--output", tmp_path / "new")
    assert "--decoder-blocks needs 4 numbers" in refusal(*flags, "--decoder-blocks", "1", "1")
    assert "--width is 0; use 1 or more" in refusal(*flags, "--width", "0")
    assert not (tmp_path / "new").exists()

# SPDX-License-Identifier: MIT
"""Names of models -> local files: paths, Hub ids online (a pretended Hub), offline, and cached."""

import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
import safetensors.numpy
from support import checkpoints, clip_words, ldm_shapes
from support.ldm_shapes import TINY_XL

from jaxgen.diffusion import config
from jaxgen.weights import diffusers, hub, tokenizer

REPO = "someone/some-model"


@pytest.fixture
def online(monkeypatch):
    """A Hub that lists the given files; returns what is asked of snapshot_download."""
    asked = []

    def listing(*names):
        files = [SimpleNamespace(rfilename=name) for name in names]
        info = SimpleNamespace(siblings=files)
        monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *args, **kwargs: info)

        def download(repo, allow_patterns, revision):
            asked.extend(allow_patterns)
            return f"/cache/{revision or 'main'}"

        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        return asked

    return listing


def _component(name, stem, *endings):
    return [f"{name}/config.json", *(f"{name}/{stem}{ending}" for ending in endings)]


def _repository(*endings):
    """The files of a repository as they usually are, with weights of the given endings."""
    return [
        "README.md", "model_index.json", "v1-5-pruned.ckpt", "v1-5-pruned.safetensors",
        "safety_checker/model.safetensors", "scheduler/scheduler_config.json",
        "tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/special_tokens_map.json",
        *_component("unet", "diffusion_pytorch_model", *endings),
        *_component("vae", "diffusion_pytorch_model", *endings),
        *_component("text_encoder", "model", *endings),
    ]  # fmt: skip


NEEDED = {
    "model_index.json", "scheduler/scheduler_config.json", "tokenizer/vocab.json",
    "tokenizer/merges.txt", "tokenizer/special_tokens_map.json", "unet/config.json",
    "vae/config.json", "text_encoder/config.json",
}  # fmt: skip


@pytest.mark.parametrize(
    ("endings", "variant", "chosen"),
    [
        (
            [".safetensors", ".bin", ".fp16.safetensors", ".non_ema.safetensors"],
            None,
            ".safetensors",
        ),
        ([".safetensors", ".fp16.safetensors", ".fp16.bin"], "fp16", ".fp16.safetensors"),
        ([".fp16.safetensors", ".fp16.bin"], None, ".fp16.safetensors"),
    ],
)
def test_only_what_is_read_is_fetched(online, endings, variant, chosen):
    asked = online(*_repository(*endings))
    hub.resolve(REPO, variant)
    stems = ("unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model", "text_encoder/model")
    assert set(asked) == NEEDED | {stem + chosen for stem in stems}


@pytest.mark.parametrize("order", ["{}-{}.fp16", "{}.fp16-{}"])
def test_all_shards_of_a_variant_are_fetched(online, order):
    stem = "diffusion_pytorch_model"
    shards = [order.format(stem, f"0000{i}-of-00002") + ".safetensors" for i in (1, 2)]
    plain = [f"{stem}-0000{i}-of-00002.safetensors" for i in (1, 2)]
    index = f"{stem}.safetensors.index.fp16.json"
    unet = [f"unet/{n}" for n in [*shards, *plain, index, f"{stem}.safetensors.index.json"]]
    names = [n for n in _repository(".fp16.safetensors") if n != f"unet/{stem}.fp16.safetensors"]
    asked = online(*names, *unet)
    hub.resolve(REPO, "fp16")
    fetched = {n for n in asked if n.startswith("unet/")}
    assert fetched == {"unet/config.json", f"unet/{index}", *(f"unet/{n}" for n in shards)}


def test_repository_without_safetensors_is_refused_before_anything_is_fetched(online):
    asked = online(*_repository(".bin"))
    with pytest.raises(ValueError, match=r"only as diffusion_pytorch_model\.bin"):
        hub.resolve(REPO)
    assert asked == []


def test_repository_without_a_pipeline_is_refused(online):
    online("README.md", "model.safetensors")
    with pytest.raises(ValueError, match=r"it has no model_index.*hf download .*: model\.safetens"):
        hub.resolve(REPO)


def test_a_file_named_as_on_the_hub_is_answered_with_its_page():
    with pytest.raises(ValueError, match=f"give https://huggingface.co/{REPO}/blob/main/a/x.safe"):
        hub.resolve(f"{REPO}/a/x.safetensors")


@pytest.mark.parametrize("page", ["https://huggingface.co/{}", "hf.co/{}/tree/main/", "{}"])
def test_the_address_of_a_repository_is_its_name(online, page):
    online(*_repository(".safetensors"))
    assert hub.resolve(page.format(REPO)) == hub.resolve(REPO)
    assert hub.name_of(page.format(REPO)) == REPO


def test_the_address_of_a_branch_is_that_branch(online):
    online(*_repository(".safetensors"))
    assert hub.resolve(f"https://huggingface.co/{REPO}/tree/fp16") == Path("/cache/fp16")


def test_the_address_of_a_file_is_the_file(monkeypatch, tmp_path):
    def download(repo, name, revision):
        return str(tmp_path / repo / name / revision)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    path = tmp_path / REPO / "a" / "x.safetensors" / "main"
    for kind, end in (("blob", ""), ("resolve", "?download=true")):
        page = f"https://huggingface.co/{REPO}/{kind}/main/a/x.safetensors{end}"
        assert hub.resolve(page) == hub.resolve_vae(page) == path
        assert hub.name_of(page) == f"{REPO}/a/x.safetensors"
    with pytest.raises(ValueError, match=r"x\.ckpt is not safetensors"):
        hub.resolve(f"https://huggingface.co/{REPO}/blob/main/x.ckpt")


def test_a_file_that_cannot_be_fetched_is_one_error(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"x\.safetensors of .* is not in the Hub's cache and"):
        hub.resolve(f"https://huggingface.co/{REPO}/blob/main/x.safetensors")


def test_tokenizer_repository_gives_its_files_only(online):
    asked = online("vocab.json", "merges.txt", "tokenizer.json", "config.json", "model.safetensors")
    hub.resolve_tokenizer(REPO)
    assert set(asked) == {"vocab.json", "merges.txt", "tokenizer.json"}


def test_autoencoder_repository_gives_its_files_only(online):
    stem = "diffusion_pytorch_model"
    asked = online("README.md", "config.json", f"{stem}.bin", f"{stem}.safetensors", "x.ckpt")
    hub.resolve_vae(REPO)
    assert set(asked) == {"config.json", f"{stem}.safetensors"}


def test_autoencoder_of_a_pipeline_repository_is_fetched_alone(online):
    asked = online(*_repository(".safetensors"))
    hub.resolve_vae(REPO)
    assert set(asked) == {"vae/config.json", "vae/diffusion_pytorch_model.safetensors"}


def test_parts_without_the_variant_are_fetched_plain(online):
    names = [n for n in _repository(".safetensors") if not n.startswith("unet/diffusion")]
    asked = online(*names, "unet/diffusion_pytorch_model.fp16.safetensors")
    hub.resolve(REPO, "fp16")
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in asked
    assert "vae/diffusion_pytorch_model.safetensors" in asked
    with pytest.raises(ValueError, match="has no weights of the variant 'bf16'"):
        hub.resolve(REPO, "bf16")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """An empty cache without a Hub; returns a function that puts a folder into the cache."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def cache(repo, inside=""):
        folder, commit = tmp_path / "cache" / f"models--{repo.replace('/', '--')}", "0" * 40
        (folder / "blobs").mkdir(parents=True)
        tokenizer.write(folder / "blobs", tokenizer.build(*clip_words.small_vocabulary()))
        snapshot = folder / "snapshots" / commit / inside
        snapshot.mkdir(parents=True)
        for path in (folder / "blobs").iterdir():  # as the Hub's cache has them
            (snapshot / path.name).symlink_to(path)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(commit)

    return cache


@pytest.fixture
def file(tmp_path):
    """A single-file checkpoint, which has no tokenizer."""
    arrays = {name: np.zeros(s, np.float32) for name, s in ldm_shapes.shapes(TINY_XL).items()}
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.mark.parametrize(
    ("repo", "inside"),
    [
        ("openai/clip-vit-large-patch14", ""),
        ("laion/CLIP-ViT-bigG-14-laion2B-39B-b160k", ""),
        ("stabilityai/stable-diffusion-2", "tokenizer"),
    ],
)
def test_a_single_file_takes_the_public_tokenizer_from_the_cache(offline, file, repo, inside):
    offline(repo, inside)
    tokens = hub.open_checkpoint(file).tokenizers
    assert tokens["tokenizer"].pad_id == tokens["tokenizer"].eos_id
    assert tokens["tokenizer_2"].pad_id == tokens["tokenizer_2"].vocab["!"]


def test_a_single_file_fetches_the_public_tokenizer(online, file, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    asked = online("vocab.json", "merges.txt", "config.json", "model.safetensors")
    (tmp_path / "words").mkdir()
    tokenizer.write(tmp_path / "words", tokenizer.build(*clip_words.small_vocabulary()))
    fetch = huggingface_hub.snapshot_download
    repos = []

    def download(repo, allow_patterns, revision):
        repos.append(repo)
        fetch(repo, allow_patterns, revision)
        return str(tmp_path / "words")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.open_checkpoint(file).tokenizers.keys() == {"tokenizer", "tokenizer_2"}
    assert repos == ["openai/clip-vit-large-patch14"]
    assert set(asked) == {"vocab.json", "merges.txt"}


def test_without_hub_and_cache_the_error_says_what_to_fetch_and_what_to_pass(offline, file):
    with pytest.raises(ValueError, match="carries no tokenizer") as error:
        hub.open_checkpoint(file)
    for words in ("openai/clip-vit-large-patch14", "tokenizer=", "--tokenizer"):
        assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_nothing_is_fetched_for_a_file_that_is_no_checkpoint(monkeypatch, tmp_path):
    safetensors.numpy.save_file({"lora_x": np.zeros(3)}, tmp_path / "lora.safetensors")
    monkeypatch.setattr(hub, "public_tokenizer", lambda: pytest.fail("a tokenizer is looked for"))
    with pytest.raises(ValueError, match="it is a LoRA"):
        hub.open_checkpoint(tmp_path / "lora.safetensors")


def test_a_folder_has_its_own_tokenizer_and_may_be_told_what_its_unet_returns(tmp_path):
    own = checkpoints.checkpoint()
    scheduler = own.scheduler | {"_use_default_values": ["prediction_type", "steps_offset"]}
    diffusers.write(tmp_path / "model", own._replace(scheduler=scheduler))
    with pytest.raises(ValueError, match="tokenizer is for single files, and .* is a folder"):
        hub.open_checkpoint(tmp_path / "model", tokenizer=tmp_path)
    for kind in ("epsilon", "v_prediction", "sample"):
        told = hub.open_checkpoint(tmp_path / "model", prediction_type=kind).scheduler
        assert config.training_schedule(told).prediction_type == kind
    with pytest.raises(ValueError, match="prediction_type is 'sigma'; use"):
        hub.open_checkpoint(tmp_path / "model", prediction_type="sigma")


def test_offline_and_not_cached_is_one_error_within_seconds(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(ValueError, match="Give a local folder, or run once online"):
        hub.resolve(REPO)
    assert time.monotonic() - start < 5


def test_offline_and_cached_is_read(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    cached, commit = tmp_path / "models--someone--some-model", "0" * 40
    diffusers.write(cached / "snapshots" / commit, checkpoints.checkpoint())
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    assert hub.open_checkpoint(REPO).components.keys() == {"unet", "vae", "text_encoder"}


@pytest.mark.parametrize(
    "name",
    ["nothing", "./some/model", "/some/model", "a/b/c", "some/model.safetensors", "../x", ""],
)
def test_path_that_is_not_there_is_not_looked_up(monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delattr(huggingface_hub.HfApi, "model_info")
    with pytest.raises(ValueError, match="no such file or folder"):
        hub.resolve(name)


def test_existing_paths_are_taken_as_they_are(tmp_path):
    (tmp_path / "model.safetensors").touch()
    assert hub.resolve(tmp_path) == tmp_path
    assert hub.resolve(str(tmp_path / "model.safetensors")) == tmp_path / "model.safetensors"
    (tmp_path / "model.ckpt").touch()
    with pytest.raises(ValueError, match="is not safetensors"):
        hub.resolve(tmp_path / "model.ckpt")


def test_shapes_is_the_model_that_comes_with_jaxgen(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "MODELS", tmp_path / "models")
    monkeypatch.delattr(huggingface_hub.HfApi, "model_info")  # it is not looked up
    diffusers.write(tmp_path / "models" / "shapes", checkpoints.checkpoint())
    assert hub.resolve("shapes") == tmp_path / "models" / "shapes"
    assert hub.open_checkpoint("shapes").components.keys() == {"unet", "vae", "text_encoder"}

    (tmp_path / "shapes").mkdir()  # what lies here goes first
    assert hub.resolve("shapes") == Path("shapes")


@pytest.mark.parametrize(
    ("resolve", "expected"),
    [
        (hub.resolve_vae, "an autoencoder, a Hub id such as"),
        (hub.resolve_tokenizer, "with vocab.json"),
    ],
)
def test_parts_that_are_nothing_are_told_what_they_may_be(resolve, expected):
    with pytest.raises(ValueError, match=f"no such file or folder: 'nothing'.* {expected}"):
        resolve("nothing")


def test_names_that_are_nothing_are_told_of_the_model_that_comes_with_jaxgen():
    with pytest.raises(ValueError, match="or 'shapes', the small model that comes with jaxgen"):
        hub.resolve("shape")

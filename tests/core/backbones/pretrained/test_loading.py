"""The door: what is found, and what is said about what is not."""

from __future__ import annotations

import json

import pytest
import torch
from diffusers import UNet2DModel

from polydit.core.backbones.pretrained import adapt_transformer, load_transformer
from polydit.core.errors import PolyditError


@pytest.fixture
def saved(families, tmp_path):
    families["sd3"].build().save_pretrained(tmp_path / "pipeline" / "transformer")
    return tmp_path / "pipeline"


def test_a_pipeline_folder_or_the_transformers_own(saved):
    first, second = load_transformer(str(saved)), load_transformer(str(saved / "transformer"))
    assert not first.training
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)
    other = saved / "transformer_2"
    (saved / "transformer").rename(other)
    assert load_transformer(str(saved), subfolder="transformer_2").config.num_layers == 3


@pytest.mark.parametrize("dtype", ["bfloat16", torch.bfloat16])
def test_precision(saved, dtype):
    assert {p.dtype for p in load_transformer(str(saved), dtype=dtype).parameters()} == {torch.bfloat16}
    with pytest.raises(PolyditError, match=r"dtype 'int8': is none; use float32"):
        load_transformer(str(saved), dtype="int8")


def test_on_the_meta_device_only_the_configuration_is_read(saved):
    for file in (saved / "transformer").glob("*.safetensors"):
        file.unlink()
    with torch.device("meta"):
        adapter = load_transformer(str(saved), dtype="bfloat16")
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in adapter.parameters())
    assert adapter.config._name_or_path == f"{saved}/transformer"


def test_what_is_missing_is_named(saved, tmp_path):
    with pytest.raises(PolyditError, match=r"nowhere: no such folder, and no hub id"):
        load_transformer(str(tmp_path / "nowhere"))
    with pytest.raises(
        PolyditError, match=r"pipeline/unet: holds no config.json; give a folder that diffusers saved"
    ):
        load_transformer(str(saved), subfolder="unet")
    weights = next((saved / "transformer").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(PolyditError, match=r"pipeline/transformer: the weights cannot be loaded \("):
        load_transformer(str(saved))
    (saved / "transformer" / "config.json").write_text("{")
    with pytest.raises(PolyditError, match=r"pipeline/transformer: no transformer in diffusers format \("):
        load_transformer(str(saved))


def test_a_checkpoint_that_lacks_weights_is_refused(families, tmp_path):
    families["pixart"].build().save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_layers": 3}))
    with pytest.raises(PolyditError, match=r"\d+ weights are missing, transformer_blocks.2.*; copy it anew"):
        load_transformer(str(tmp_path))


def test_another_model_is_refused_with_the_names_that_are_known(tmp_path):
    unet = UNet2DModel(sample_size=8, block_out_channels=(32,), down_block_types=("DownBlock2D",),
                       up_block_types=("UpBlock2D",), layers_per_block=1, in_channels=1, out_channels=1)  # fmt: skip
    unet.save_pretrained(tmp_path)
    for call in (lambda: load_transformer(str(tmp_path)), lambda: adapt_transformer(unet)):
        with pytest.raises(
            PolyditError, match=r"UNet2DModel is not a transformer that is known; use one of DiT"
        ):
            call()

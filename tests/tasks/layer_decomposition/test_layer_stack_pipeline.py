"""Qwen-Image-Layered in diffusers format: opened as it is, equal to diffusers, written as layers."""

from __future__ import annotations

import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
from diffusers.pipelines.qwenimage import pipeline_qwenimage_layered
from PIL import Image
from torch import nn

from polydit.core.errors import PolyditError
from polydit.core.load import read_index
from polydit.core.media import OutputWriter, read_layers
from polydit.tasks.layer_decomposition.layer_stack_pipeline import LayerStackPipeline
from polydit.tasks.layer_decomposition.layer_stack_predict import predict_stack
from polydit.tasks.layer_decomposition.predict import predict_one


class NoText(nn.Module):
    """Stands where the text encoder is: embeddings are given."""

    dtype, device = torch.float32, torch.device("cpu")


@pytest.fixture
def pipe(monkeypatch) -> LayerStackPipeline:
    torch.manual_seed(0)
    transformer = QwenImageTransformer2DModel(
        patch_size=2, in_channels=32, out_channels=8, num_layers=1, attention_head_dim=16, num_attention_heads=1,
        joint_attention_dim=8, axes_dims_rope=(8, 4, 4), use_layer3d_rope=True, use_additional_t_cond=True,
    )  # fmt: skip
    vae = AutoencoderKLQwenImage(
        base_dim=4, z_dim=8, dim_mult=[1, 1], num_res_blocks=1, temperal_downsample=[False], input_channels=4,
        latents_mean=[0.0] * 8, latents_std=[1.0] * 8,
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    # The released model's smallest picture has 640 x 640 pixels.
    monkeypatch.setattr(pipeline_qwenimage_layered, "calculate_dimensions", lambda area, ratio: (16, 24))
    made = LayerStackPipeline(scheduler, vae, NoText(), None, None, transformer)
    made.get_image_caption = lambda *args, **kwargs: (
        None
    )  # diffusers asks for one even where embeddings are given
    made.set_progress_bar_config(disable=True)
    return made


def text() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    embeds = torch.randn(1, 3, 8, generator=generator)
    mask = torch.ones(1, 3, dtype=torch.long)
    return {
        "prompt_embeds": embeds, "prompt_embeds_mask": mask,
        "negative_prompt_embeds": 0 * embeds, "negative_prompt_embeds_mask": mask,
    }  # fmt: skip


def picture() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 16, 4), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_it_is_diffusers_pipeline_called_directly(pipe):
    stack = pipe.decompose(
        picture(), layers=3, num_inference_steps=2, generator=torch.Generator().manual_seed(5), **text()
    )
    direct = pipeline_qwenimage_layered.QwenImageLayeredPipeline.__call__(
        pipe,
        image=picture(),
        prompt=None,
        layers=3,
        num_inference_steps=2,
        true_cfg_scale=4.0,
        generator=torch.Generator().manual_seed(5),
        prompt_embeds=text()["prompt_embeds"],
        prompt_embeds_mask=text()["prompt_embeds_mask"],
        negative_prompt_embeds=text()["negative_prompt_embeds"],
        negative_prompt_embeds_mask=text()["negative_prompt_embeds_mask"],
        output_type="pil",
    ).images[0]
    assert [layer.name for layer in stack.layers] == [
        "layer 1",
        "layer 2",
        "layer 3",
    ]  # the composite is dropped
    for layer, expected in zip(stack.layers, direct, strict=True):
        resized = expected.convert("RGBA").resize((16, 24), Image.Resampling.BICUBIC)
        assert np.array_equal(layer.pixels, np.array(resized))


def test_predict_writes_the_stack(pipe, tmp_path, monkeypatch):
    picture().save(tmp_path / "cat.png")
    kept = pipe.decompose
    monkeypatch.setattr(pipe, "decompose", lambda image, **o: kept(image, **{**o, **text()}), raising=False)
    options = Namespace(layers=2, prompt="", steps=1, size=None, export="ora", mask=None)
    writer = OutputWriter(tmp_path / "out")
    record = predict_stack(pipe, tmp_path / "cat.png", writer, options, torch.Generator().manual_seed(0))
    assert sorted(record["files"]) == sorted(p.name for p in (tmp_path / "out").iterdir())
    assert "cat.ora" in record["files"]
    stack = read_layers(tmp_path / "out" / "cat_layers.json")
    assert (stack.width, stack.height, len(stack.layers)) == (16, 24, 2)
    with pytest.raises(PolyditError, match="--mask"):
        predict_one(pipe, tmp_path / "cat.png", writer, Namespace(mask="m.png"), torch.Generator())


def test_a_folder_of_diffusers_is_opened_by_our_class(tmp_path):
    index = {"_class_name": "QwenImageLayeredPipeline", "vae": ["diffusers", "AutoencoderKLQwenImage"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    found = read_index(tmp_path)
    assert found.task.name == "layer-decomposition"
    assert found.pipeline.endswith(":LayerStackPipeline")


def test_refusals(pipe):
    with pytest.raises(PolyditError, match="--layers 0"):
        pipe.decompose(picture(), layers=0)
    with pytest.raises(PolyditError, match="640 and 1024"):
        pipe.decompose(picture(), resolution=512)

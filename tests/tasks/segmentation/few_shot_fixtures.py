"""Small things that the tests of few-shot segmentation share."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import transformers
from diffusers import AutoencoderKL, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image, ImageDraw

from polydit.core.conditioning import ReferenceDiT
from polydit.tasks.segmentation.few_shot.formulation import Formulation
from polydit.tasks.segmentation.few_shot.pipeline import FewShotPipeline

UNET = {
    "sample_size": 8,
    "block_out_channels": (8, 16, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": (1, 2, 2, 2),
    "cross_attention_dim": 8,
    "use_linear_projection": True,
}


def tiny_dit(seed: int = 0) -> ReferenceDiT:
    """Every weight matters."""
    torch.manual_seed(seed)
    model = ReferenceDiT(
        reference_channels=6, input_size=16, patch_size=4, in_channels=3, hidden_size=24, depth=2, num_heads=2,
        position="rope", gate_init=0.5,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def tiny_pipeline(seed: int = 0, size: int = 16) -> FewShotPipeline:
    form = Formulation(size=size, threshold=0.5, relative=False)
    return FewShotPipeline(tiny_dit(seed), formulation=form.config())


def stable_diffusion_folder(folder: Path) -> Path:
    """A folder as people download it, of tiny random models."""
    letters = "abcdefghijklmnopqrstuvwxyz,"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=77
    )
    torch.manual_seed(1)
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=len(words) - 2, eos_token_id=len(words) - 1, pad_token_id=len(words) - 1,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4), norm_num_groups=1, down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, layers_per_block=1,
    )  # fmt: skip
    StableDiffusionPipeline(
        vae=vae, text_encoder=transformers.CLIPTextModel(config), tokenizer=tokenizer,
        unet=UNet2DConditionModel(**UNET), scheduler=PNDMScheduler(skip_prk_steps=True), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def marked(folder: Path, name: str, size: tuple[int, int] = (40, 30), spot: int = 0) -> tuple[Path, Path]:
    """A picture with a disk, and the disk's mask."""
    rng = np.random.default_rng(spot)
    picture = Image.fromarray(rng.integers(0, 90, (size[1], size[0], 3)).astype(np.uint8))
    mask = Image.new("L", size)
    box = (4 + spot, 6, 18 + spot, 20)
    ImageDraw.Draw(picture).ellipse(box, fill=(250, 40, 30))
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    (folder / "masks").mkdir(exist_ok=True)
    files = folder / f"{name}.png", folder / "masks" / f"{name}_mask.png"
    picture.save(files[0])
    mask.save(files[1])
    return files

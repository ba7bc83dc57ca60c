"""DiT4SR on Stable Diffusion 3 through the commands: a tiny random folder in diffusers format, pictures, a pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from PIL import Image
from safetensors.torch import load_file

import polydit
from polydit.core.backbones.dit4sr_sd3 import DiT4SR
from polydit.core.cli import main
from polydit.core.conditioning import FixedText
from polydit.core.errors import PolyditError
from polydit.core.training.checkpoints import read_checkpoint
from polydit.core.training.export import load_module, save_pipeline
from polydit.tasks.super_resolution import TASK
from polydit.tasks.super_resolution.pipeline import SuperResolutionPipeline

transformers = pytest.importorskip("transformers")

MODEL = {
    "sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8,
    "num_attention_heads": 2, "joint_attention_dim": 20, "caption_projection_dim": 16, "pooled_projection_dim": 12,
    "pos_embed_max_size": 16, "dual_attention_layers": (0,), "qk_norm": "rms_norm",
}  # fmt: skip
FIT = [
    "super-resolution", "fit", "--config", "dit4sr_sd3.yaml", "--model.backbone.source", "sd3",
    "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true", "--model.optimizer.lr=0.01",
    "--data.path=pictures", "--data.crop=64", "--data.batch_size=2", "--data.num_workers=0",
    "--data.degradations={bicubic: 1.0}", "--data.samples_per_epoch=100", "--trainer.logger=false",
]  # fmt: skip


def encoder(projection, seed):
    """A CLIP text model over single letters, and its tokenizer."""
    letters = "abcdefghijklmnopqrstuvwxyz,"
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = transformers.CLIPTokenizer(
        vocab={word: number for number, word in enumerate(words)}, merges=[], model_max_length=77
    )
    torch.manual_seed(seed)
    config = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
        projection_dim=projection, bos_token_id=len(words) - 2, eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )  # fmt: skip
    return transformers.CLIPTextModelWithProjection(config).eval(), tokenizer


@pytest.fixture(scope="module")
def sd3(tmp_path_factory):
    """A folder as people download it, without T5."""
    first, first_tokenizer = encoder(5, 1)
    second, second_tokenizer = encoder(7, 2)
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 4), norm_num_groups=1, down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, layers_per_block=1, scaling_factor=1.5,
        shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip
    pipeline = StableDiffusion3Pipeline(
        transformer=SD3Transformer2DModel(**MODEL), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=vae,
        text_encoder=first, tokenizer=first_tokenizer, text_encoder_2=second, tokenizer_2=second_tokenizer,
        text_encoder_3=None, tokenizer_3=None,
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("models") / "sd3"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture
def workplace(tmp_path, monkeypatch, sd3, make_texture):
    (tmp_path / "pictures").mkdir()
    for number in range(3):
        make_texture(80, 72, number).save(tmp_path / "pictures" / f"picture_{number}.png")
    make_texture(40, 36, 7).save(tmp_path / "photo.png")
    (tmp_path / "sd3").symlink_to(sd3)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_fit_trains_the_stream_only_and_predict_runs_what_came_out(workplace, capsys):
    assert main([*FIT, "--name", "run", "--trainer.max_steps=3"]) == 0
    run = Path("runs/super_resolution/run")
    base = load_file("sd3/transformer/diffusion_pytorch_model.safetensors")

    # a checkpoint holds what was trained, not the base
    kept = read_checkpoint(run / "checkpoints/last.ckpt")["state_dict"]
    assert all("control" in name or name == "backbone.pos_embed.pos_embed" for name in kept), list(kept)[:3]

    # the pipeline holds both, and the base is what it was
    out = load_file(run / "pipeline/transformer/diffusion_pytorch_model.safetensors")
    assert all(torch.equal(out[name], value) for name, value in base.items())
    moved = [name for name in out if "control_conv.weight" in name and out[name].abs().sum() > 0]
    assert len(moved) == MODEL["num_layers"]
    config = json.loads((run / "pipeline/scheduler/scheduler_config.json").read_text())
    assert config["shift"] == 3.0

    command = ["super-resolution", "predict", "--input", "photo.png", "--device", "cpu", "--steps", "2"]
    folder = ["--weights", str(run / "pipeline")]
    assert main([*command, *folder, "--output", "plain"]) == 0
    assert main([*command, *folder, "--output", "guided", "--guidance-scale", "4"]) == 0
    assert main([*command, *folder, "--output", "tiled", "--tile", "64", "--overlap", "16"]) == 0
    # 18 x 20 tokens, and positions for 16
    assert main([*command, *folder, "--output", "whole", "--tile", "0"]) == 0
    plain, guided, tiled, whole = (
        np.asarray(Image.open(f"{name}/photo.png")).astype(int)
        for name in ("plain", "guided", "tiled", "whole")
    )
    assert plain.shape == guided.shape == tiled.shape == whole.shape == (144, 160, 3)
    assert (plain != guided).any()
    assert (plain != tiled).any()
    assert (np.abs(plain - whole) <= 1).all()

    # going on, and exporting later, find the base again
    words = ["--name", "more", "--trainer.max_steps=4", "--ckpt_path", str(run / "checkpoints/last.ckpt")]
    assert main([*FIT, *words, "--export", "false"]) == 0
    last = "runs/super_resolution/more/checkpoints/last.ckpt"
    save_pipeline(load_module(TASK, last).build_pipeline(), "exported")
    again = polydit.load("exported")
    state = again.transformer.state_dict()
    assert all(torch.equal(state[name], value) for name, value in base.items())
    assert again.text.config.texts["prompt"] == "a sharp and detailed photograph"


def test_the_exported_pipeline_calls_the_network_as_training_did(workplace):
    module = built(FIT[4:]).eval()
    batch = {"enlarged": torch.rand(1, 3, 64, 64) * 2 - 1, "scale": torch.tensor([4])}
    x_t, t = torch.randn(1, 4, 16, 16), torch.tensor([600.0])
    with torch.no_grad():
        condition = module.condition(batch)
        trained = module.denoise(x_t, t, condition)
        pipeline = module.build_pipeline()
        called = pipeline.predictor(condition["condition"], 4)(x_t, t)
        assert torch.equal(trained, called)
        direct = module.backbone(x_t, condition["condition"], **pipeline.text(["prompt"]), timestep=t).sample
        assert torch.equal(trained, direct)
        plain, pushed = (pipeline.text([name]) for name in ("prompt", "negative"))
        low, high = (
            module.backbone(x_t, condition["condition"], **text, timestep=t).sample
            for text in (pushed, plain)
        )
        guided = pipeline.predictor(condition["condition"], 4, guidance_scale=3.0)(x_t, t)
        torch.testing.assert_close(guided, low + 3.0 * (high - low))
    names = {id(p) for p in module.backbone.control_parameters().values()}
    assert {id(p) for p in module.parameters() if p.requires_grad} == names


def built(words):
    """The module of the config with these words behind it."""
    from polydit.core.training.config import TaskCLI

    return TaskCLI(TASK, "fit", ["--config", str(TASK.config_folder() / "dit4sr_sd3.yaml"), *words]).model


def test_a_released_checkpoint_becomes_a_pipeline(workplace):
    trained = DiT4SR.from_sd3("sd3", compat="published", control_conv_factor=1.2)
    with torch.no_grad():
        for parameter in trained.control_parameters().values():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    trained.save_pretrained("released/transformer")
    config = Path("released/transformer/config.json")
    plain = {
        k: v for k, v in json.loads(config.read_text()).items() if k not in ("compat", "control_conv_factor")
    }
    config.write_text(json.dumps(plain))  # the released ones do not name them
    pipe = SuperResolutionPipeline(
        transformer=DiT4SR.from_pretrained("released/transformer"),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=AutoencoderKL.from_pretrained("sd3", subfolder="vae"),
        text=FixedText.from_pipeline("sd3", prompt="sharp", negative_prompt="blurry"),
    )
    assert pipe.transformer.config.compat == "published"
    pipe.save_pretrained("dit4sr")
    again = polydit.load("dit4sr", task="super-resolution")
    for loaded in (pipe, again):
        loaded.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 2, "guidance_scale": 2.0, "output_type": "pt"}
    first, second = (
        loaded("photo.png", generator=torch.Generator().manual_seed(1), **settings).images
        for loaded in (pipe, again)
    )
    torch.testing.assert_close(first, second)


def test_the_text_is_dropped_in_training_only(workplace):
    module = built(FIT[4:])
    batch = {"enlarged": torch.zeros(400, 3, 8, 8), "scale": torch.full((400,), 4)}
    torch.manual_seed(0)
    empty, prompt = (module.text([name])["pooled_projections"][0] for name in ("empty", "prompt"))
    assert not torch.equal(empty, prompt)
    drawn = module.train().condition(batch)["text"]["pooled_projections"]
    assert 0.15 < (drawn == empty).all(1).float().mean() < 0.25
    assert (module.eval().condition(batch)["text"]["pooled_projections"] == prompt).all()


def test_check_runs_a_batch_through_the_shapes(workplace, capsys):
    assert main(["super-resolution", "check", *FIT[2:]]) == 0
    said = capsys.readouterr().out
    assert "model: DiT4SR" in said
    assert "no problem found" in said


def test_published_sizes_without_a_folder():
    """What `check` counts: 351 million weights learn, of 2.7 billion."""
    with torch.device("meta"):
        module = built([])
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert trained == 350_877_696
    assert sum(p.numel() for p in module.backbone.parameters()) == 2_716_814_144
    assert module.text(["prompt"])["encoder_hidden_states"].shape == (1, 154, 4096)


def test_texts_are_embedded_as_the_pipeline_does(sd3):
    text = FixedText.from_pipeline(sd3, "sharp", "blurry", dtype="float32")
    pipe = StableDiffusion3Pipeline.from_pretrained(sd3, text_encoder_3=None, tokenizer_3=None)
    for name, words in {"prompt": "sharp", "negative": "blurry", "empty": ""}.items():
        with torch.no_grad():
            hidden, _, pooled, _ = pipe.encode_prompt(
                words, None, None, do_classifier_free_guidance=False, max_sequence_length=77
            )
        found = text([name, name])
        torch.testing.assert_close(found["encoder_hidden_states"], hidden.expand(2, -1, -1))
        torch.testing.assert_close(found["pooled_projections"], pooled.expand(2, -1))


def test_texts_are_saved_and_read_back(sd3, tmp_path):
    text = FixedText.from_pipeline(sd3, "sharp", dtype="float32")
    text.save_pretrained(tmp_path)
    again = FixedText.from_pretrained(tmp_path)
    assert again.config.texts == {"prompt": "sharp", "negative": "", "empty": ""}
    assert torch.equal(again(["prompt"])["pooled_projections"], text(["prompt"])["pooled_projections"])
    assert not any(p.requires_grad for p in text.parameters())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model.backbone.source", "null"], "--model.backbone.source: the folder of Stable Diffusion 3.5"),
        (["--model.autoencoder", "polydit.core.autoencoders.PixelSpace"], "the backbone predicts 4 channels"),
        (["--model.backbone.source", "pictures"], "pictures: no SD3 transformer in diffusers format"),
        (["--model.backbone.source", "sd3/transformer"], "sd3/transformer: no Stable Diffusion 3 pipeline"),
    ],
)
def test_folders_that_do_not_fit(workplace, capsys, words, message):
    assert main([*FIT, *words]) == 2
    assert message in capsys.readouterr().err


def test_guidance_needs_text(workplace, capsys):
    words = ["--input", "pictures/picture_0.png", "--output", "out", "--guidance-scale", "2"]
    assert main(["super-resolution", "predict", *words]) == 2
    assert "--guidance-scale 2: these weights read no text" in capsys.readouterr().err
    folder = workplace / "flux"
    (folder / "transformer").mkdir(parents=True)
    (folder / "transformer" / "config.json").write_text("{}")
    (folder / "model_index.json").write_text('{"_class_name": "PixArtAlphaPipeline"}')
    with pytest.raises(
        PolyditError, match="a PixArtAlphaPipeline, and texts are embedded with Stable Diffusion 3"
    ):
        FixedText.from_pipeline(folder)

"""The published configs on tiny random folders of FLUX and Stable Diffusion 3 in diffusers format."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.models.embeddings import CombinedTimestepGuidanceTextProjEmbeddings
from safetensors.torch import load_file

import polydit
from polydit.core.adapters import LoraOptions, inject_group
from polydit.core.backbones.pretrained import load_transformer
from polydit.core.cli import main
from polydit.core.conditioning import FixedText
from polydit.core.diffusion import Objective, Shifted
from polydit.core.errors import PolyditError
from polydit.core.training.checkpoints import read_checkpoint
from polydit.tasks.virtual_try_on.distillation import DistilledTryOn
from polydit.tasks.virtual_try_on.model import TokenGroupTryOn

transformers = pytest.importorskip("transformers")


def clip(projection, seed, kind="CLIPTextModelWithProjection"):
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
    return getattr(transformers, kind)(config).eval(), tokenizer


def t5():
    from tokenizers import Tokenizer, models

    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((c, -2.0) for c in "Modelabc")]
    made = Tokenizer(models.Unigram(pieces, unk_id=2))
    torch.manual_seed(5)
    config = transformers.T5Config(
        vocab_size=16, d_model=12, d_kv=4, d_ff=8, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return transformers.T5EncoderModel(config).eval(), transformers.T5TokenizerFast(
        tokenizer_object=made, extra_ids=0
    )


def autoencoder():
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(4, 4, 4), norm_num_groups=1, down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3, latent_channels=4, layers_per_block=1, scaling_factor=1.5,
        shift_factor=0.06, use_quant_conv=False, use_post_quant_conv=False,
    )  # fmt: skip


def awake(model):
    """diffusers starts some output layers at zero, under which no LoRA has a gradient."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    home = tmp_path_factory.mktemp("models")
    (first, first_tokens), (second, second_tokens) = clip(5, 1), clip(7, 2)
    torch.manual_seed(0)
    sd3 = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, joint_attention_dim=20, caption_projection_dim=16, pooled_projection_dim=12,
        pos_embed_max_size=16, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    StableDiffusion3Pipeline(
        transformer=awake(sd3), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=autoencoder(),
        text_encoder=first, tokenizer=first_tokens, text_encoder_2=second, tokenizer_2=second_tokens,
        text_encoder_3=None, tokenizer_3=None,
    ).save_pretrained(home / "sd3")  # fmt: skip
    flux = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=12, pooled_projection_dim=8, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    (words, word_tokens), (long, long_tokens) = clip(5, 3, "CLIPTextModel"), t5()
    FluxPipeline(
        transformer=awake(flux), scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=autoencoder(), text_encoder=words, tokenizer=word_tokens, text_encoder_2=long, tokenizer_2=long_tokens,
    ).save_pretrained(home / "flux")  # fmt: skip
    return home


def fit_words(folders, config, family):
    return [
        "virtual-try-on", "fit", "--config", config, "--name", "run", "--pictures", "false",
        "--model.init_args.backbone.init_args.source", str(folders / family),
        "--model.init_args.height=32", "--model.init_args.width=24", "--model.init_args.optimizer.lr=0.01",
        "--data.init_args.path=VITON-HD", "--data.init_args.height=32", "--data.init_args.width=24",
        "--data.init_args.batch_size=2", "--data.init_args.num_workers=0",
        "--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.precision=32-true", "--trainer.max_steps=2",
        "--trainer.logger=false", "--trainer.limit_val_batches=0",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("config", "family"),
    [("mc_vton_flux.yaml", "flux"), ("mc_vton_sd3.yaml", "sd3"), ("catvton.yaml", "sd3")],
)
def test_the_published_configs(folders, viton, monkeypatch, config, family):
    monkeypatch.chdir(viton.parent)
    words = fit_words(folders, config, family)
    if config != "catvton.yaml":
        words.append("--model.init_args.backbone.init_args.dtype=float32")
    assert main(words) == 0
    run = Path("runs/virtual_try_on/run")
    name = "transformer/diffusion_pytorch_model.safetensors"
    base, mine = load_file(folders / family / name), load_file(run / "pipeline" / name)
    kept = read_checkpoint(run / "checkpoints/last.ckpt")["state_dict"]
    if config == "catvton.yaml":
        assert mine["pos_embed.proj.weight"].shape[1] == 9
        changed = [
            key
            for key, value in base.items()
            if key != "pos_embed.proj.weight" and (mine[key] != value).any()
        ]
        assert changed
        assert all(".attn" in key or key.startswith("pos_embed.proj") for key in changed)
    else:
        assert base.keys() == mine.keys()
        assert all(torch.equal(mine[key], value) for key, value in base.items())
        assert kept  # of 11.9 billion weights, a checkpoint holds the LoRAs
        assert all(".lora_" in key or key.endswith("pos_embed.pos_embed") for key in kept)
        loras = {f.stem: load_file(f) for f in (run / "pipeline/adapters").iterdir()}
        assert loras.keys() == {"person", "garment"}
        for lora in loras.values():
            assert any(value.abs().sum() > 0 for key, value in lora.items() if "lora_B" in key)

    pipe = polydit.load(run / "pipeline")
    pipe.set_progress_bar_config(disable=True)
    assert pipe.text.config.texts["prompt"] == ("" if config == "catvton.yaml" else "Model")
    generator = torch.Generator().manual_seed(0)
    person, garment = (torch.rand(1, 3, 32, 24, generator=generator) * 2 - 1 for _ in range(2))
    mask = torch.zeros(1, 1, 32, 24)
    mask[..., 8:24, 6:18] = 1

    def dress(**options):
        return pipe.generate(person, garment, mask, 2, generator=torch.Generator().manual_seed(1), **options)

    answer = dress()
    assert answer.shape == person.shape
    torch.testing.assert_close(answer, dress(cache=False), atol=1e-4, rtol=0)
    assert not torch.allclose(answer, dress(guidance_scale=4.0))


def test_the_word_is_embedded_as_flux_does_it(folders):
    text = FixedText.from_pipeline(folders / "flux", "Model", max_sequence_length=16, dtype="float32")
    pipe = FluxPipeline.from_pretrained(folders / "flux", vae=None, transformer=None)
    with torch.no_grad():
        hidden, pooled, _ = pipe.encode_prompt("Model", None, max_sequence_length=16)
    mine = text(["prompt", "empty"])
    torch.testing.assert_close(mine["encoder_hidden_states"][:1], hidden)
    torch.testing.assert_close(mine["pooled_projections"][:1], pooled)
    assert not torch.equal(mine["pooled_projections"][0], mine["pooled_projections"][1])


def try_on(folders, family="flux", module=TokenGroupTryOn, groups=("person", "garment"), **options):
    """A module over a tiny folder, with a LoRA for each of some groups."""
    torch.manual_seed(0)
    targets = [r"transformer_blocks\.\d+\.(attn\.to_[qkv]|norm1\.linear)"]
    ranks = {"target": 2, "person": 4, "garment": 8}
    adapters = {name: LoraOptions(ranks[name], targets=targets) for name in groups}
    settings = {"adapters": adapters, "height": 32, "width": 24, **options}
    if family == "sd3":
        settings["garment_place"] = "shared"
    objective = Objective(prediction="velocity", timesteps=Shifted(shift=3.0))
    source = settings.pop("source", folders / family)
    return module(load_transformer(str(source)), objective=objective, **settings)


def some_batch():
    generator = torch.Generator().manual_seed(0)
    person, garment = (torch.rand(2, 3, 32, 24, generator=generator) * 2 - 1 for _ in range(2))
    mask = torch.zeros(2, 1, 32, 24)
    mask[..., 8:24, 6:18] = 1
    return {"person": person, "garment": garment, "mask": mask}


@pytest.fixture
def scales(monkeypatch):
    """The guidance that FLUX embeds, one entry for each time it does."""
    seen = []
    original = CombinedTimestepGuidanceTextProjEmbeddings.forward

    def forward(self, timestep, guidance, pooled):
        seen.append(guidance[0].item() / 1000)
        return original(self, timestep, guidance, pooled)

    monkeypatch.setattr(CombinedTimestepGuidanceTextProjEmbeddings, "forward", forward)
    return seen


@pytest.mark.parametrize("attention", ["independent", "separate", "full"])
def test_guidance_of_each_group_of_flux(folders, scales, attention):
    module = try_on(folders, attention=attention)
    module.prepare()
    batch = some_batch()
    terms, _ = module.train().losses(batch)
    sum(terms.values()).backward()
    assert scales == [1, 1, 1]
    assert any(p.grad is not None and "lora_B.garment" in name for name, p in module.named_parameters())
    pipe = module.eval().build_pipeline()
    pipe.set_progress_bar_config(disable=True)
    scales.clear()
    answer = pipe.generate(**batch, num_inference_steps=2, generator=torch.Generator().manual_seed(0))
    assert answer.isfinite().all()
    assert sorted(scales) == ([1, 1, 3.5, 3.5] if attention == "independent" else [1, 1, 1, 1, 3.5, 3.5])
    scales.clear()
    other = try_on(folders, attention=attention, guidance=5, training_guidance=2, condition_guidance=0.5)
    other.prepare()
    other.train().losses(batch)
    assert sorted(scales) == [0.5, 0.5, 2]


def test_what_cannot_be_attended_to_or_is_no_guidance_is_said_at_once(folders):
    with pytest.raises(PolyditError, match="attention separate: groups of SD3Transformer2DModel"):
        try_on(folders, "sd3", attention="separate")
    with pytest.raises(PolyditError, match="guidance inf: a scale"):
        try_on(folders, guidance=float("inf"))


# -- the second stage ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teachers(folders, tmp_path_factory):
    """Pipelines of the first stage, with LoRAs that do something."""
    home = tmp_path_factory.mktemp("teachers")
    for family in ("flux", "sd3"):
        module = try_on(folders, family)
        module.prepare()
        with torch.no_grad():
            for name, parameter in module.named_parameters():
                if "lora_B" in name:
                    parameter.add_(0.1 * torch.randn(parameter.shape))
        module.eval().build_pipeline().save_pretrained(home / family)
    return home


@pytest.mark.parametrize("own_folder", [False, True])
@pytest.mark.parametrize("kind", ["trajectory", "adversarial"])
@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_a_student_on_pretrained_weights(folders, teachers, tmp_path, family, kind, own_folder):
    """Over the base's folder or over the teacher's, which has no text encoders."""
    student = try_on(
        folders, family, DistilledTryOn, ("target", "person", "garment"), kind=kind, teacher_steps=4, steps=2,
        teacher=str(teachers / family), source=(teachers if own_folder else folders) / family,
    )  # fmt: skip
    student.setup("fit")
    batch = some_batch()
    condition = student.eval().condition(batch)
    x_t, timestep = torch.randn(2, 4, 8, 6), torch.full((2,), 800.0)
    with torch.no_grad():
        taught = student.teach(condition)(x_t, timestep)
        torch.testing.assert_close(student.denoise(x_t, timestep, condition), taught)
        answered = polydit.load(teachers / family).predictor(condition["conditions"])(x_t, timestep)
        torch.testing.assert_close(answered, taught, atol=1e-5, rtol=1e-4)
        assert not torch.allclose(student.ask(x_t, timestep, condition, {}), taught)

    student.backbone.enable_gradient_checkpointing()
    optimizer = torch.optim.Adam([p for p in student.parameters() if p.requires_grad], lr=0.05)
    terms, _ = student.train().losses(batch)
    sum(terms.values()).backward()
    optimizer.step()
    with torch.no_grad():
        learnt = student.eval().denoise(x_t, timestep, condition)
        assert not torch.allclose(learnt, taught, atol=1e-3)
        torch.testing.assert_close(student.teach(condition)(x_t, timestep), taught)
    student.build_pipeline().save_pretrained(tmp_path)
    pipe = polydit.load(tmp_path)
    # The steps that are learned are those of sampling, shifted by the number of tokens where the base's own are.
    pipe.scheduler.set_timesteps(sigmas=[1.0, 0.5], **(pipe.time_shift(x_t) or {}))
    torch.testing.assert_close(pipe.scheduler.sigmas, torch.tensor(student.distillation.times[::2]))
    shift = math.exp(pipe.time_shift(x_t)["mu"]) if family == "flux" else 3.0
    assert student.distillation.times[2] == pytest.approx(shift / (1 + shift))
    with torch.no_grad():
        kept = pipe.predictor(condition["conditions"])(x_t, timestep)
    torch.testing.assert_close(kept, learnt, atol=1e-5, rtol=1e-4)
    assert pipe.config.steps == 2


@pytest.mark.parametrize("family", ["flux", "sd3"])
def test_the_config_of_the_second_stage(folders, teachers, viton, monkeypatch, family):
    monkeypatch.chdir(viton.parent)
    words = [
        *fit_words(teachers, f"mc_vton_{family}_distil.yaml", family),
        "--model.init_args.backbone.init_args.dtype=float32",
        f"--model.init_args.teacher={teachers / family}", "--model.init_args.teacher_steps=8",
        "--data.init_args.batch_size=1", "--trainer.max_steps=1",
    ]  # fmt: skip
    assert main(words) == 0
    run = Path("runs/virtual_try_on/run")
    assert {f.stem for f in (run / "pipeline/adapters").iterdir()} == {"target", "person", "garment"}
    kept = read_checkpoint(run / "checkpoints/last.ckpt")["state_dict"]
    assert kept
    assert not any("teacher_" in name for name in kept)
    assert polydit.load(run / "pipeline").config.steps == 8


def test_the_published_number_of_weights_of_the_second_stage():
    file = Path(polydit.__file__).parent / "configs/virtual_try_on/mc_vton_flux_distil.yaml"
    adapters = yaml.safe_load(file.read_text())["model"]["init_args"]["adapters"]
    with torch.device("meta"):
        flux = FluxTransformer2DModel(guidance_embeds=True)
        for name, options in adapters.items():
            inject_group(flux.requires_grad_(False), LoraOptions(**options), name)
    count = sum(p.numel() for name, p in flux.named_parameters() if "lora_" in name)
    assert count == 86_775_616


def test_another_word_than_the_saved_one_is_refused(teachers, folders):
    with pytest.raises(PolyditError, match="was saved with the texts"):
        try_on(folders, source=teachers / "flux", prompt="dress")
    (damaged := teachers / "damaged").mkdir()
    for name in ("model_index.json", "transformer/config.json", "text/config.json"):
        (damaged / name).parent.mkdir(exist_ok=True)
        (damaged / name).write_text((teachers / "flux" / name).read_text())
    (damaged / "text/diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(PolyditError, match=r"text: cannot be used \(.*\); get the folder again"):
        FixedText.from_pipeline(damaged, "Model")

"""Training of DiT-IC: what is trained, what each term does, and what a run leaves behind."""

import pytest
import torch
from torch import nn

from polydit.core.adapters import LoraOptions
from polydit.core.adapters.lora import lora_layers
from polydit.core.backbones.pretrained import load_transformer
from polydit.core.errors import PolyditError
from polydit.tasks.compression.dit_ic.model import GenerativeCompression
from polydit.tasks.compression.losses import (
    PatchDiscriminator,
    PerceptualLoss,
    adaptive_weight,
    adversarial_terms,
    distillation_loss,
)

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "conv_inverted", "conv_point", "proj_out"]
DECODER = ["conv1", "conv2", "conv_in"]


@pytest.fixture(scope="module")
def sana(parts_with_seed, tmp_path_factory):
    """A folder as SANA's: transformer and autoencoder."""
    folder = tmp_path_factory.mktemp("sana")
    parts = parts_with_seed(5)
    for name in ("transformer", "vae"):
        parts[name].save_pretrained(folder / name)
    return folder


def module(folder, seed=0, **settings):
    torch.manual_seed(seed)
    options = {
        "channel": 16, "feature_width": 8, "tokens": 7, "pooled_tokens": 4, "lpips_weight": 0.0, "dists_weight": 0.0,
        "transformer_adapter": LoraOptions(rank=2, targets=TARGETS),
        "decoder_adapter": LoraOptions(rank=2, targets=DECODER),
        "ema": None, **settings,
    }  # fmt: skip
    made = GenerativeCompression(load_transformer(str(folder)), **options)
    made.prepare()
    return made.train()


def batch(count=1, seed=7):
    coarse = torch.rand(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return {"picture": nn.functional.interpolate(coarse, (256, 256), mode="bicubic").clamp(-1, 1)}


def step(made, optimizer, data):
    terms, _ = made.losses(data)
    optimizer.zero_grad()
    sum(terms.values()).backward()
    optimizer.step()
    return {name: float(term.detach()) for name, term in terms.items()}


def test_trained_are_the_codec_the_tokens_and_the_adapters(sana):
    made = module(sana)
    trained = {name for name, p in made.named_parameters() if p.requires_grad}
    assert {name.split(".")[0] for name in trained} == {
        "backbone", "autoencoder", "codec", "prompter", "features",
    }  # fmt: skip
    assert all("lora_" in name for name in trained if name.startswith(("backbone", "autoencoder")))
    assert not any(".encoder." in name for name in trained)
    terms, _ = made.losses(batch())
    sum(terms.values()).backward()
    without = {
        name
        for name, p in made.named_parameters()
        if p.requires_grad and (p.grad is None or not p.grad.any())
    }
    # An adapter starts at nothing, so its first factor learns from the second step on.
    assert {name for name in without if "lora_A" not in name} == set()
    assert made.codec.entropy_bottleneck.quantiles.lr_scale == 10


def test_a_run_learns_and_more_rate_weight_means_fewer_bits(sana):
    rates = []
    for weight in (0.05, 5.0):
        made = module(sana, rate_weight=weight)
        optimizer = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], lr=6e-3)
        first = step(made, optimizer, batch())
        for _ in range(12):
            last = step(made, optimizer, batch())
        rates.append(last["rate"] / weight)
        assert last["distortion"] < first["distortion"] or weight > 1
    assert rates[1] < 0.9 * rates[0]


def test_alignment_pulls_the_latents_to_the_encoders(sana):
    cosines = []
    for weight in (0.0, 20.0):
        made = module(sana, rate_weight=0.1, distillation_weight=weight, least_cosine=0.9)
        optimizer = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], lr=4e-3)
        for _ in range(10):
            terms, out = made.losses(batch())
            optimizer.zero_grad()
            sum(terms.values()).backward()
            optimizer.step()
        clean = made.space.encode(batch()["picture"])
        cosines.append(nn.functional.cosine_similarity(out.prediction, clean, dim=1).mean().item())
    assert cosines[1] > cosines[0] + 0.2


def test_alignment_by_hand():
    clean = torch.tensor([1.0, 0.0]).view(1, 2, 1, 1)
    latents = torch.tensor([[1.0, 0.0], [0.0, 3.0], [-1.0, 0.0]]).view(3, 2, 1, 1)
    assert distillation_loss(latents, clean.expand(3, -1, -1, -1)).item() == pytest.approx(
        (0 + 0.5 + 1.5) / 3
    )


def test_the_adversary_learns_and_is_answered(sana):
    made = module(sana, adversarial=True)
    terms, _ = made.losses(batch())
    assert {"adversarial", "discriminator"} <= terms.keys()
    assert terms["discriminator"].item() == pytest.approx(2, abs=0.5)
    terms["discriminator"].backward(retain_graph=True)
    assert all(p.grad is None for p in made.codec.parameters())
    assert all(p.grad is not None for p in made.discriminator.parameters())
    made.discriminator.zero_grad()
    terms["adversarial"].backward()
    assert made.codec.g_s.synthesis_transform[-1].weight.grad.abs().sum() > 0
    assert all(p.grad is None or not p.grad.any() for p in made.discriminator.parameters())


def test_adversarial_terms_pull_apart():
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(width=8)
    truth, answer = torch.randn(4, 3, 32, 32), torch.randn(4, 3, 32, 32) * 0.3
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
    for _ in range(15):
        _, loss = adversarial_terms(discriminator, answer, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.5
    assert discriminator(torch.zeros(1, 3, 70, 70)).shape == (1, 1, 6, 6)


def test_adaptive_weight_balances_gradients():
    last = nn.Parameter(torch.tensor([2.0, 1.0]))
    others, adversarial = (last * torch.tensor([3.0, 4.0])).sum(), (last * torch.tensor([0.0, 0.1])).sum()
    assert adaptive_weight(others, adversarial, last).item() == pytest.approx(0.5 * 5 / (0.1 + 1e-4))


def test_a_zero_residual_and_a_silent_transformer_leave_the_plain_latents(sana):
    made = module(sana, zero_residual=True)
    made.backbone.proj_out.base_layer.weight.data.zero_()
    made.backbone.proj_out.base_layer.bias.data.zero_()
    with torch.no_grad():
        clean = made.space.encode(batch()["picture"])
        coded = made.codec(clean, made.features(batch()["picture"]))
        assert torch.equal(made._whole[0].enhance(coded)[0], coded.mean)


def test_the_plain_decoder_can_be_trained_along(sana):
    assert "plain" not in module(sana).losses(batch())[0]
    terms, _ = module(sana, plain_weight=2.0).losses(batch())
    assert terms["plain"] > 0


def test_export_merges_both_adapters_and_the_next_stage_starts_there(sana, tmp_path):
    made = module(sana, rate_weight=0.1)
    optimizer = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        step(made, optimizer, batch())
    made.eval()
    pipeline = made.build_pipeline()
    assert not list(lora_layers(pipeline.vae))
    assert list(lora_layers(made.space.vae.decoder))  # training goes on
    with torch.no_grad():
        latents = torch.randn(1, 4, 8, 8)
        torch.testing.assert_close(
            pipeline.space.decode(latents), made.space.decode(latents), atol=1e-5, rtol=0
        )
    assert not list(lora_layers(pipeline.transformer))
    pipeline.save_pretrained(tmp_path / "pipeline")
    following = module(sana, adversarial=True, init_weights=str(tmp_path / "pipeline")).eval()
    assert torch.equal(
        following.codec.g_s.synthesis_transform[-1].weight, made.codec.g_s.synthesis_transform[-1].weight
    )
    base = following.backbone.transformer_blocks[0].attn1.to_q.base_layer.weight
    assert torch.equal(base, pipeline.transformer.transformer_blocks[0].attn1.to_q.weight)


def test_elic_features_are_read_and_frozen(sana, tmp_path):
    from safetensors.torch import save_file

    from polydit.core.backbones.elic import ElicAnalysis

    torch.manual_seed(9)
    elic = ElicAnalysis(8, 16)
    state = {f"g_a.{name}": value for name, value in elic.state_dict().items()} | {
        "g_s.other": torch.zeros(1)
    }
    save_file(state, tmp_path / "elic.safetensors")
    made = module(sana, elic=str(tmp_path / "elic.safetensors"))
    assert torch.equal(made.features.analysis_transform[0].weight, elic.analysis_transform[0].weight)
    assert not any(p.requires_grad for p in made.features.parameters())
    del state["g_a.analysis_transform.0.bias"]
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(PolyditError, match=r"less\.safetensors: lacks analysis_transform\.0\.bias"):
        module(sana, elic=str(tmp_path / "less.safetensors"))


def test_what_does_not_fit_is_named(sana, parts_with_seed, tmp_path):
    with pytest.raises(PolyditError, match=r"--model.lpips: give two files"):
        PerceptualLoss(None, None, 1.0, 0.0)
    with pytest.raises(PolyditError, match=r"--model.backbone: Linear is no SANA"):
        GenerativeCompression(nn.Linear(1, 1))
    alone = tmp_path / "alone"
    parts_with_seed(0)["transformer"].save_pretrained(alone / "transformer")
    with pytest.raises(PolyditError, match="holds no vae"):
        module(alone)
    with pytest.raises(PolyditError, match=r"--model\.adapter: would leave the codec behind"):
        module(sana, adapter=LoraOptions(rank=2))
    with pytest.raises(PolyditError, match=r"--data.crop: crops of 192x192 are no multiples of 256"):
        module(sana).losses({"picture": torch.zeros(1, 3, 192, 192)})


def test_published_adapters(root):
    """As many modules and weights as the released files hold."""
    import yaml
    from diffusers import AutoencoderDC, SanaTransformer2DModel

    from polydit.core.adapters import inject
    from polydit.core.backbones.dit_ic import DC_AE, SANA_600M

    settings = yaml.safe_load((root / "configs/compression/dit_ic.yaml").read_text())["model"]["init_args"]
    with torch.device("meta"):
        transformer, decoder = SanaTransformer2DModel(**SANA_600M), AutoencoderDC(**DC_AE).decoder
        for model, key, rank, modules, weights in (
            (transformer, "transformer_adapter", 128, 281, 105_435_136),
            (decoder, "decoder_adapter", 64, 64, 13_355_008),
        ):
            assert len(inject(model, LoraOptions(**{**settings[key], "rank": rank}))) == modules
            assert sum(p.numel() for n, p in model.named_parameters() if "lora_" in n) == weights

"""What memory is said to be needed, against what small models really take and against known sizes of large ones."""

from __future__ import annotations

import contextlib
import importlib.util

import pytest
import torch
from faulty import Flux
from torch._subclasses.fake_tensor import FakeTensor
from torch.profiler import ProfilerActivity, profile
from toy import Toy

from polydit.core.adapters import LoraOptions
from polydit.core.backbones import DiT
from polydit.core.training import OptimizerOptions
from polydit.core.training.memory import footprint, variants, weight_bytes
from polydit.core.training.optim import build_optimizer
from polydit.core.training.rehearsal import rehearse

BATCH = {"target": torch.zeros(8, 4, 16, 16)}
LORA = LoraOptions(rank=4, targets="linear")
needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason="needs polydit[quant]")
    for name in ("torchao", "bitsandbytes")
}


def module(device: str, depth: int = 3, **options) -> Toy:
    torch.manual_seed(0)
    with torch.device(device):
        backbone = DiT(input_size=16, patch_size=2, in_channels=4, hidden_size=128, depth=depth, num_heads=4)
    backbone.register_to_config(_name_or_path="trained")
    made = Toy(backbone, **options)
    with torch.device(device):
        made.prepare()
    return made.train()


def allocated(action) -> tuple[int, int]:
    """The most bytes that torch's allocator had given out during an action, and those left at its end."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        action()
    events = [e for e in record.profiler.kineto_results.events() if e.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return peak, now


OPTIONS = [
    pytest.param({}, "32-true", 1, id="full"),
    pytest.param({}, "bf16-mixed", 1, id="full-bf16"),
    pytest.param({"gradient_checkpointing": True}, "32-true", 1, id="checkpointing"),
    pytest.param({"gradient_checkpointing": True}, "32-true", 2, id="checkpointing-accumulated"),
    pytest.param({"adapter": LORA}, "32-true", 1, id="lora"),
    pytest.param({"adapter": LORA, "gradient_checkpointing": True}, "bf16-mixed", 1, id="lora-checkpointing-bf16"),
    pytest.param({"adapter": LORA, "offload": True}, "32-true", 1, id="lora-offload"),
    pytest.param({"adapter": LORA, "quantize": "int8"}, "32-true", 1, id="lora-int8", marks=needs["torchao"]),
    pytest.param({"adapter": LORA, "quantize": "nf4"}, "32-true", 1, id="lora-nf4", marks=needs["bitsandbytes"]),
    pytest.param(
        {"optimizer": OptimizerOptions(kind="adamw_8bit")}, "32-true", 1, id="8bit", marks=needs["bitsandbytes"]
    ),
]  # fmt: skip


@pytest.mark.parametrize(("options", "precision", "accumulate"), OPTIONS)
def test_a_step_takes_what_was_counted_without_values(options: dict, precision: str, accumulate: int):
    counted = footprint(module("meta", **options), BATCH, precision, accumulate)
    real = module("cpu", **options)
    trained = [p for p in real.parameters() if p.requires_grad]
    optimizer = build_optimizer(real, real.optimizer_options)

    def passes() -> None:
        with torch.autocast("cpu", torch.bfloat16) if "bf16" in precision else contextlib.nullcontext():
            terms, _ = real.losses(BATCH)
            loss = terms["objective"]
        loss.backward()

    passes()
    _, moments = allocated(optimizer.step)
    optimizer.zero_grad()
    gradients = 0
    for _ in range(accumulate - 1):
        passes()
        gradients = sum(p.grad.nbytes for p in trained)
    peak, _ = allocated(passes)
    assert counted.gradients == sum(p.grad.nbytes for p in trained)
    assert counted.gradients + counted.activations == pytest.approx(gradients + peak, rel=0.15)
    assert counted.optimizer == pytest.approx(moments, rel=0.15)
    assert counted.average == 4 * sum(p.numel() for p in trained)
    if options.get("quantize") is None:
        assert counted.weights == sum(p.nbytes for p in real.parameters())
        assert counted.offloaded == (4 * 3 * 18 * 128**2 if options.get("offload") else 0)


@pytest.mark.parametrize(
    "options", [{}, {"gradient_checkpointing": True, "adapter": LORA}], ids=["full", "lora"]
)
def test_counting_long_runs_of_blocks_by_their_first_ones_gives_the_same(options: dict):
    deep = module("meta", depth=13, **options)
    quick, whole = rehearse(deep, BATCH), rehearse(deep, BATCH, whole=True)
    assert (quick.gradients, quick.flops) == (whole.gradients, whole.flops)
    assert quick.peak == pytest.approx(whole.peak, rel=0.02)
    assert len(deep.backbone.blocks) == 13
    assert not any(isinstance(p, FakeTensor) for p in deep.parameters())


def test_counting_wide_blocks_by_their_first_ones_gives_the_same():
    """With an adapter, one block alone has another worst moment than two."""
    with torch.device("meta"):
        backbone = DiT(input_size=16, patch_size=2, in_channels=4, hidden_size=2048, depth=13, num_heads=4)
        backbone.register_to_config(_name_or_path="trained")
        made = Toy(backbone, adapter=LORA, gradient_checkpointing=True)
        made.prepare()
    batch = {"target": torch.zeros(1, 4, 16, 16)}
    quick, whole = (rehearse(made, batch, "bf16-mixed", whole=w).peak for w in (False, True))
    assert quick == pytest.approx(whole, rel=0.02)


@pytest.mark.parametrize("name", ["torchao", "bitsandbytes"])
def test_bytes_of_a_quantised_base(name: str):
    if importlib.util.find_spec(name) is None:
        pytest.skip("needs polydit[quant]")
    kind = {"torchao": "int8", "bitsandbytes": "nf4"}[name]
    layers = [m.backbone.blocks[0].mlp.fc1.base_layer for m in (
        module("cpu", adapter=LORA, quantize=kind), module("meta", adapter=LORA, quantize=kind)
    )]  # fmt: skip
    weight = layers[0].weight
    if kind == "int8":
        real = weight.qdata.nbytes + weight.scale.nbytes
    else:
        state = weight.quant_state
        real = weight.nbytes + state.absmax.nbytes + state.state2.absmax.nbytes
    assert layers[1].weight.nbytes == pytest.approx(real, rel=0.01)


def test_a_transformer_of_twelve_billion_weights():
    from diffusers import FluxTransformer2DModel

    from polydit.core.backbones.pretrained import adapt_transformer

    def flux(**options) -> Flux:
        with torch.device("meta"):
            transformer = FluxTransformer2DModel(guidance_embeds=True).to(torch.bfloat16)
            made = Flux(adapt_transformer(transformer), gradient_checkpointing=True, **options)
            made.prepare()
        return made

    batch = {
        "latents": torch.zeros(1, 16, 64, 64),
        "text": torch.zeros(1, 512, 4096),
        "pooled": torch.zeros(1, 768),
    }
    lora = LoraOptions(rank=16, targets="linear")
    count = 11_901_408_320
    assert weight_bytes(flux()) == (2 * count, 0)
    plain, int8, nf4 = (flux(adapter=lora, quantize=kind) for kind in (None, "int8", "nf4"))
    added = sum(4 * p.numel() for p in plain.parameters() if p.requires_grad)
    blocks = sum(p.numel() for n, p in plain.named_parameters() if "base_layer.weight" in n)
    assert weight_bytes(plain)[0] == 2 * count + added
    assert blocks > 0.97 * count
    assert weight_bytes(int8)[0] == pytest.approx(2 * (count - blocks) + blocks + added, rel=0.01)
    assert weight_bytes(flux(adapter=lora, offload=True)) == (2 * (count - blocks) + added, 2 * blocks)
    needs = footprint(nf4, batch, "bf16-mixed")
    assert needs.weights == pytest.approx(6.6e9, rel=0.02)
    assert needs.activations > 57 * 2 * 1536 * 3072  # the input of each block, in bfloat16
    assert needs.total < 9e9


def test_the_table_goes_from_dear_to_cheap_and_leaves_the_module_alone():
    with torch.device("meta"):
        made = Toy(DiT(input_size=16, patch_size=2, in_channels=4, hidden_size=128, depth=2, num_heads=4))
    table = list(variants(made, BATCH))
    assert [v.name for v in table] == [
        "full fine-tuning",
        "full fine-tuning, checkpointing",
        "full fine-tuning, checkpointing, 8-bit optimiser",
        "LoRA",
        "LoRA, checkpointing",
        "LoRA, checkpointing, base in int8",
        "LoRA, checkpointing, base in nf4",
        "LoRA, checkpointing, base offloaded",
    ]
    assert table[2].options == "--model.gradient_checkpointing true --model.optimizer.kind adamw_8bit"
    sizes = {v.name: v.footprint for v in table}
    for dear, cheap in (table[:2], table[1:3], table[3:5], table[4:6], table[5:7]):
        assert cheap.footprint.total < dear.footprint.total
    for small in ("base in int8", "base in nf4", "base offloaded"):
        # forward and backward pass hold one full weight more
        more = sizes[f"LoRA, checkpointing, {small}"].activations - sizes["LoRA, checkpointing"].activations
        assert 0 <= more <= 2 * 4 * 6 * 128**2
    assert made.adapter_options is None
    assert not made._prepared


class GroupLoras(Toy):
    """Its LoRAs are its own, as those of groups of tokens are."""

    def switch_adapters(self, on: bool) -> str:
        return "--model.adapters.person.rank 16" if on else ""


class NoLoras(Toy):
    """It takes none."""

    def switch_adapters(self, on: bool) -> str | None:
        return None if on else ""


@pytest.mark.parametrize(("kind", "lora"), [(GroupLoras, ["LoRA", "LoRA, checkpointing"]), (NoLoras, [])])
def test_the_table_has_what_a_module_with_other_adapters_accepts(kind, lora):
    with torch.device("meta"):
        made = kind(DiT(input_size=16, patch_size=2, in_channels=4, hidden_size=128, depth=2, num_heads=4))
    table = list(variants(made, BATCH))
    assert [v.name for v in table[3:]] == lora
    assert not any("--model.adapter.rank" in v.options for v in table)


def test_a_frozen_network_that_is_no_child_is_rehearsed_without_values():
    from diffusers import AutoencoderKL

    from polydit.tasks.layer_decomposition.transparency_model import LatentTransparency

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"):
        vae = AutoencoderKL(block_out_channels=(4, 4, 8, 8), norm_num_groups=2, **blocks)
        sizes = {"encoder_widths": [4, 4, 4, 8], "decoder_channels": [8, 8, 8, 8], "decoder_layers": 1}
        made = LatentTransparency(vae, **sizes, attention_levels=1, discriminator_width=4)
        made.prepare()
    assert footprint(made, {"rgba": torch.zeros(1, 4, 32, 32)}).activations > 0
    assert all(p.is_meta for p in vae.parameters())

"""Frozen weights that are quantised or kept in host memory: same numbers, same gradients, less memory."""

from __future__ import annotations

import importlib.metadata
import importlib.util

import pytest
import torch
from toy import Toy

from polydit.core.adapters import LoraOptions
from polydit.core.backbones import DiT
from polydit.core.errors import PolyditError
from polydit.core.training import OptimizerOptions
from polydit.core.training.extras import require
from polydit.core.training.frozen import FrozenLinear
from polydit.core.training.optim import build_optimizer

HAVE = {name: importlib.util.find_spec(name) is not None for name in ("torchao", "bitsandbytes")}
needs_torchao = pytest.mark.skipif(not HAVE["torchao"], reason="needs polydit[quant]")
needs_bitsandbytes = pytest.mark.skipif(not HAVE["bitsandbytes"], reason="needs polydit[quant]")
KINDS = [
    pytest.param({"offload": True}, 0.0, id="offload"),
    pytest.param({"quantize": "int8"}, 0.02, id="int8", marks=needs_torchao),
    pytest.param({"quantize": "int8", "offload": True}, 0.02, id="int8-offload", marks=needs_torchao),
    pytest.param({"quantize": "nf4"}, 0.3, id="nf4", marks=needs_bitsandbytes),
]


def toy(**options) -> Toy:
    """A module whose base and adapter both matter to the output."""
    torch.manual_seed(0)
    backbone = DiT(
        input_size=8, patch_size=2, in_channels=1, hidden_size=64, depth=2, num_heads=2, gate_init=0.5
    )
    torch.nn.init.normal_(backbone.final_layer.linear.weight)
    backbone.register_to_config(_name_or_path="trained")
    options.setdefault("adapter", LoraOptions(rank=2, targets="attention"))
    module = Toy(backbone, **options)
    module.prepare()
    torch.manual_seed(1)
    for name, parameter in module.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return module.train()


def step(module: Toy) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss and all gradients of one fixed batch."""
    torch.manual_seed(2)
    module.zero_grad()
    terms, _ = module.losses({"target": torch.rand(3, 1, 8, 8)})
    terms["objective"].backward()
    gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
    return terms["objective"].detach(), torch.cat(gradients)


@pytest.mark.parametrize(("options", "bound"), KINDS)
def test_the_adapter_learns_what_it_would_on_plain_weights(options: dict, bound: float):
    loss, gradients = step(toy())
    module = toy(**options)
    replaced = [part for part in module.modules() if isinstance(part, FrozenLinear)]
    assert len(replaced) == 2 * 5  # qkv, proj, fc1, fc2 and modulation of two blocks
    small_loss, small_gradients = step(module)
    assert torch.all(small_gradients.isfinite())
    assert abs(small_loss - loss) <= bound * loss
    assert (small_gradients - gradients).norm() <= bound * gradients.norm()
    again_loss, again = step(toy(**options, gradient_checkpointing=True))
    torch.testing.assert_close(again_loss, small_loss, rtol=0, atol=0)
    torch.testing.assert_close(again, small_gradients, rtol=0, atol=0)


@pytest.mark.parametrize(("options", "bound"), KINDS)
def test_autocast_computes_in_its_dtype(options: dict, bound: float):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradients = step(toy(**options))
    plain, _ = step(toy())
    assert gradients.dtype == torch.float32
    assert abs(loss - plain) <= (bound + 0.02) * plain


def test_offloaded_weights_stay_where_they_are():
    module = toy(offload=True)
    offloaded = [part for part in module.modules() if isinstance(part, FrozenLinear)]
    module.to("meta")
    assert all(part.dense(torch.device("cpu"), torch.float32).device.type == "cpu" for part in offloaded)
    assert {p.device.type for p in module.parameters()} == {"meta"}
    assert not any("blocks.0.attn.proj.weight" in name for name in module.state_dict())


@needs_torchao
def test_int8_keeps_a_quarter_of_float32():
    held = {}
    for kind in (None, "int8"):
        weight = toy(quantize=kind).backbone.blocks[0].mlp.fc1.weight
        held[kind] = weight.qdata.nbytes if kind else weight.nbytes
    assert held["int8"] * 4 == held[None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantize": "int8", "adapter": None}, "--model.quantize int8: is for frozen weights"),
        ({"offload": True, "adapter": None}, "--model.offload: is for frozen weights"),
        ({"offload": True, "compile": True}, "--model.offload: does not go with --model.compile"),
        ({"offload": True, "quantize": "nf4"}, "--model.offload does not go with --model.quantize nf4"),
        ({"quantize": "int3"}, "--model.quantize int3: is unknown; choose from int8, nf4"),
        (
            {"offload": True, "adapter": LoraOptions(rank=2, use_dora=True)},
            "--model.adapter.use_dora: needs the norms",
        ),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict, message: str):
    with pytest.raises(PolyditError, match=message):
        toy(**options)


def test_a_missing_library_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(
        PolyditError, match=r"--x: no_such_thing is not installed; pip install 'polydit\[quant\]'"
    ):
        require("no_such_thing", "--x")

    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    module = toy()
    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(PolyditError, match="torchao is not installed"):
        toy(quantize="int8")
    with pytest.raises(PolyditError, match=r"--model\.optimizer\.kind adamw_8bit: bitsandbytes is not"):
        build_optimizer(module, OptimizerOptions(kind="adamw_8bit"))

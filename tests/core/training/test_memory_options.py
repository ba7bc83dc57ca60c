"""Options that save memory through whole runs: trained, resumed, exported."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from toy import CONFIG, TOY

from polydit.core.adapters import apply_lora
from polydit.core.backbones import DiT
from polydit.core.errors import PolyditError
from polydit.core.training.checkpoints import read_checkpoint
from polydit.core.training.cli import run
from polydit.core.training.export import export

LORA = ["--model.adapter.rank=2", "--model.adapter.targets=linear", "--model.init_weights=base"]
needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason="needs polydit[quant]")
    for name in ("torchao", "bitsandbytes")
}


@pytest.fixture
def fit(tmp_path, monkeypatch):
    """Runs ``fit`` in a folder where the weights ``base`` lie; returns the folder of the run."""
    monkeypatch.chdir(tmp_path)
    # 8-bit moments are for tensors of 4096 values and more
    (tmp_path / "toy.yaml").write_text(CONFIG.replace("hidden_size: 16", "hidden_size: 32, gate_init: 0.5"))
    torch.manual_seed(0)
    base = DiT(input_size=4, patch_size=2, in_channels=1, hidden_size=32, depth=2, num_heads=2, gate_init=0.5)
    torch.nn.init.normal_(base.final_layer.linear.weight, std=0.2)
    base.save_pretrained(tmp_path / "base")

    def go(*words: str, name: str = "run", steps: int = 6) -> Path:
        words = (
            f"--trainer.max_steps={steps}",
            "--model.optimizer.schedule=constant",
            "--data.resumable=true",
            *words,
        )
        run(TOY, "fit", ["--config", "toy.yaml", "--name", name, *words])
        return tmp_path / "runs/toy" / name

    return go


def state(folder: Path, key: str = "current_model_state") -> dict[str, torch.Tensor]:
    return read_checkpoint(folder / "checkpoints/last.ckpt")[key]


OPTIONS = [
    pytest.param(["--model.gradient_checkpointing=true", *LORA], id="checkpointing"),
    pytest.param(["--model.quantize=int8", *LORA], id="int8", marks=needs["torchao"]),
    pytest.param(["--model.quantize=nf4", *LORA], id="nf4", marks=needs["bitsandbytes"]),
    pytest.param(["--model.optimizer.kind=adamw_8bit"], id="8bit", marks=needs["bitsandbytes"]),
    pytest.param(["--model.optimizer.fused=false", "--model.gradient_checkpointing=true"], id="unfused"),
]


@pytest.mark.parametrize("words", OPTIONS)
def test_a_run_that_saves_memory_learns_and_goes_on_bit_for_bit(fit, words):
    whole = state(fit(*words, name="whole"))
    fit(*words, name="halves", steps=3)
    halves = state(fit(*words, "--ckpt_path=last", name="halves"))
    assert whole.keys() == halves.keys()
    assert all(torch.equal(value, halves[name]) for name, value in whole.items())
    assert all(value.isfinite().all() for value in whole.values())
    if "--model.init_weights=base" in words:
        assert any(value.abs().max() > 0 for name, value in whole.items() if "lora_B" in name)


@pytest.mark.parametrize(
    "words", [[], pytest.param(["--model.quantize=int8"], id="int8", marks=needs["torchao"])]
)
def test_what_is_exported_is_for_the_plain_base(fit, tmp_path, words):
    folder = fit(*LORA, *words, steps=3)
    checkpoint = folder / "checkpoints/last.ckpt"
    merged = DiT.from_pretrained(export(TOY, checkpoint, "merged", "pipeline") / "transformer")
    plain = DiT.from_pretrained(tmp_path / "base")
    assert str(apply_lora(plain, folder / "lora.safetensors")).endswith("scale 1")
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(value, merged.state_dict()[name], atol=1e-6, rtol=1e-5)
    # the file of the adapter needs nothing of the base
    shutil.rmtree(tmp_path / "base")
    again = load_file(export(TOY, checkpoint, "again.safetensors"))
    first = load_file(folder / "lora.safetensors")
    assert again.keys() == first.keys()
    assert all(torch.equal(value, first[name]) for name, value in again.items())


def test_offloading_on_a_cpu_is_refused(fit):
    with pytest.raises(
        PolyditError, match=r"--model\.offload: the CPU has no memory but the host's; leave it out"
    ):
        fit(*LORA, "--model.offload=true")


@needs["bitsandbytes"]
def test_8bit_moments_take_a_quarter(fit):
    sizes = {}
    for kind in ("adamw", "adamw_8bit"):
        (optimizer,) = state(fit(f"--model.optimizer.kind={kind}", steps=1, name=kind), "optimizer_states")
        moments = [value.get("__bnb_optimizer_quant_state__", value) for value in optimizer["state"].values()]
        kept = ("exp_avg", "exp_avg_sq", "state1", "state2", "absmax1", "absmax2")
        large = [m for m in moments if any(k in m and m[k].numel() >= 4096 for k in ("exp_avg", "state1"))]
        assert len(large) == 7
        sizes[kind] = sum(m[k].nbytes for m in large for k in kept if k in m)
    assert sizes["adamw_8bit"] == pytest.approx(sizes["adamw"] / 4, rel=0.03)

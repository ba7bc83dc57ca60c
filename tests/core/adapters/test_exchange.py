"""LoRA files of each layout, read back by every loader that is installed, on tiny transformers of each family."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import DiTTransformer2DModel, FluxPipeline
from safetensors.torch import load_file

from polydit.core.adapters import LoraOptions, inject, load_lora, save_lora
from polydit.core.adapters.families import FAMILIES
from polydit.core.adapters.lora import lora_layers
from polydit.core.errors import PolyditError

NAMED = ("flux", "sd3", "pixart", "wan", "ltx-video", "qwen-image")
"""Families that other tools have their own names for."""
LOADED = ("flux", "sd3", "wan", "ltx-video", "qwen-image", "sana", "cogvideox")
"""Families that diffusers has a LoRA loader for."""
LAYOUTS = ("diffusers", "kohya", "comfyui")


def close(a, b):
    return torch.allclose(a, b, atol=2e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def published(root) -> dict[str, dict[str, list[int]]]:
    """Names and shapes of the linear layers, read off ComfyUI's model classes in the sizes of ``tiny``."""
    return json.loads((root / "tests/data/golden/lora/published_names.json").read_text())


@pytest.mark.parametrize("name", NAMED)
def test_names_and_shapes_are_those_that_were_published(name, tiny, published, tmp_path):
    model = tiny.adapted(name)
    comfy = load_file(save_lora(model, tmp_path / "c.safetensors", layout="comfyui"))
    kohya = load_file(save_lora(model, tmp_path / "k.safetensors", layout="kohya"))
    up = FAMILIES[name].factors[1]
    shapes = {
        key.removeprefix("diffusion_model.").removesuffix(f".{up}.weight"): [len(value), a.shape[1]]
        for key, value in comfy.items()
        if key.endswith(f".{up}.weight")
        for a in [comfy[key.replace(up, FAMILIES[name].factors[0])]]
    }
    assert shapes == published[name], "each published linear layer is reached, and no other"
    flat = {f"lora_unet_{layer.replace('.', '_')}" for layer in published[name]}
    assert kohya.keys() == {
        f"{n}.{end}" for n in flat for end in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    for key, value in kohya.items():
        if key.endswith(".alpha"):
            assert value == len(kohya[key.replace(".alpha", ".lora_down.weight")]), "the scale is baked"


@pytest.mark.parametrize("name", NAMED)
def test_fused_layers_change_as_their_parts_do(name, tiny, published, tmp_path):
    """By ComfyUI's rule, up @ down * alpha / rank, each weight changes by the deltas of its parts, stacked."""
    qkv, added = ("to_q", "to_k", "to_v"), ("add_q_proj", "add_k_proj", "add_v_proj")
    order = {
        "attn.qkv": qkv,
        "attn2.qkv": qkv,
        "txt_attn.qkv": added,
        "context_block.attn.qkv": added,
        "kv_linear": ("to_k", "to_v"),
        "linear1": (*qkv, "proj_mlp"),
    }
    model = tiny.adapted(name)
    tensors = load_file(save_lora(model, tmp_path / "k.safetensors", layout="kohya"))
    deltas = {
        key: 2.0 * layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        for key, layer in lora_layers(model)
    }
    fused = 0
    for layer in published[name]:
        ending = max((end for end in order if layer.endswith(end)), key=len, default=None)
        if ending is None:
            continue
        fused += 1
        down, up, alpha = (
            tensors[f"lora_unet_{layer.replace('.', '_')}.{end}"]
            for end in ("lora_down.weight", "lora_up.weight", "alpha")
        )
        number, second = layer.split(".")[1], "attn2" in layer or "cross_attn" in layer
        parts = [
            value
            for part in order[ending]
            for key, value in deltas.items()
            if f"blocks.{number}." in key
            and key.endswith(f".{part}")
            and ("attn2" in key) == second
            and key.startswith("single") == layer.startswith("single")
        ]
        assert len(parts) == len(order[ending])
        torch.testing.assert_close(
            up @ down * (alpha / len(down)), torch.cat(parts).detach(), atol=1e-6, rtol=1e-5
        )
    assert fused == {"flux": 6, "sd3": 5, "pixart": 4}.get(name, 0)


@pytest.mark.parametrize("which", ["all", "attention"])
@pytest.mark.parametrize("name", [*NAMED, "sana", "cogvideox"])
def test_our_loader_gives_the_same_output_from_each_layout(name, which, tiny, tmp_path):
    model = tiny.adapted(name, which)
    expected = tiny.call(name, model)
    assert not close(expected, tiny.call(name, tiny.make(name))), "the adapter must do something"
    for layout in LAYOUTS if name in NAMED else ["diffusers"]:
        path = save_lora(model, tmp_path / f"{layout}.safetensors", layout=layout)
        other = tiny.make(name)
        report = load_lora(other, path)
        assert close(tiny.call(name, other), expected), layout
        assert len(report.matched) == len(load_file(path))
        assert not report.unexpected
        assert not report.missing


def diffusers_output(name, path, tiny):
    """What diffusers' own loader makes of a file; None if it refuses it."""
    model = tiny.make(name)
    try:
        tiny.pipeline(name, model).load_lora_weights(str(path))
    except Exception:
        return None
    return tiny.call(name, model)


@pytest.mark.parametrize("name", LOADED)
def test_diffusers_reads_what_the_table_says(name, tiny, tmp_path):
    # The converter of FLUX has the published widths written into it: its single blocks are tested below.
    layers = [k for k in tiny.targets(name, tiny.make(name), "blocks") if not k.startswith("single")]
    model = tiny.adapted(name, layers)
    expected = tiny.call(name, model)
    for layout in LAYOUTS if name in NAMED else ["diffusers"]:
        path = save_lora(model, tmp_path / f"{layout}.safetensors", layout=layout)
        output = diffusers_output(name, path, tiny)
        reads = output is not None and close(output, expected)
        claims = any(reader.startswith("diffusers") for reader in FAMILIES[name].readers[layout])
        assert reads == claims, layout


@pytest.mark.parametrize(
    ("name", "layout", "which"),
    [
        ("wan", "kohya", "attention"),
        ("ltx-video", "comfyui", ["proj_in"]),
        ("flux", "kohya", ["norm_out.linear"]),
        ("flux", "comfyui", ["norm_out.linear"]),
    ],
)
def test_the_conditions_in_the_table_are_needed(name, layout, which, tiny, tmp_path):
    model = tiny.adapted(name, which)
    path = save_lora(model, tmp_path / "lora.safetensors", layout=layout)
    output = diffusers_output(name, path, tiny)
    assert output is None or not close(output, tiny.call(name, model))


@pytest.mark.parametrize("name", ["flux", "sd3", "wan"])
def test_diffusers_reads_dora_in_its_own_layout(name, tiny, tmp_path):
    model = tiny.adapted(name, "blocks", use_dora=True)
    path = save_lora(model, tmp_path / "lora.safetensors")
    assert close(diffusers_output(name, path, tiny), tiny.call(name, model))


@pytest.mark.parametrize("layout", ["kohya", "comfyui"])
def test_diffusers_converts_flux_single_blocks_of_the_published_width(layout, tmp_path):
    torch.manual_seed(0)
    block = torch.nn.ModuleDict(
        {
            "attn": torch.nn.ModuleDict({f"to_{x}": torch.nn.Linear(3072, 3072) for x in "qkv"}),
            "proj_mlp": torch.nn.Linear(3072, 12288),
            "proj_out": torch.nn.Linear(15360, 3072),
        }
    )
    model = type("FluxTransformer2DModel", (torch.nn.Module,), {})()
    model.single_transformer_blocks = torch.nn.ModuleList([block])
    inject(model, LoraOptions(rank=2, alpha=4.0, targets="linear"))
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B["default"].weight)
    path = save_lora(model, tmp_path / "lora.safetensors", layout=layout)
    state = FluxPipeline.lora_state_dict(str(path))
    assert len(state) == 10
    for key, layer in lora_layers(model):
        a, b = (state[f"transformer.{key}.lora_{x}.weight"] for x in "AB")
        torch.testing.assert_close(a, layer.lora_A["default"].weight.detach(), atol=0, rtol=0)
        torch.testing.assert_close(b, 2.0 * layer.lora_B["default"].weight.detach(), atol=0, rtol=0)


def make_diffusers_dit() -> DiTTransformer2DModel:
    torch.manual_seed(0)
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=3, out_channels=3, num_layers=1, sample_size=4,
        num_embeds_ada_norm=5, norm_num_groups=1,
    ).eval()  # fmt: skip


@pytest.mark.parametrize("name", ["pixart", "dit", "flux"])
def test_peft_reads_the_diffusers_layout(name, tiny, tmp_path):
    from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict

    def call(model):
        if name != "dit":
            return tiny.call(name, model)
        with torch.no_grad():
            x = torch.linspace(-1, 1, 48).view(1, 3, 4, 4)
            return model(x, timestep=torch.tensor([3]), class_labels=torch.tensor([1])).sample

    make = make_diffusers_dit if name == "dit" else lambda: tiny.make(name)
    model = make()
    names = inject(model, LoraOptions(rank=4, alpha=8.0))
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    state = load_file(save_lora(model, tmp_path / "lora.safetensors"))
    other = make()
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=4, target_modules=names), other)
    result = set_peft_model_state_dict(other, {k.removeprefix("transformer."): v for k, v in state.items()})
    assert not result.unexpected_keys
    assert close(call(other), call(model))
    assert not close(call(other), call(make()))


@pytest.mark.parametrize("name", LOADED)
def test_files_that_diffusers_writes_load_at_their_strength(name, tiny, tmp_path):
    """With alpha in its header entry, as diffusers writes it since it knows metadata."""
    from peft import LoraConfig

    model = tiny.make(name)
    model.add_adapter(LoraConfig(r=4, lora_alpha=12, target_modules=tiny.targets(name, model, "attention")))
    for _, layer in lora_layers(model):
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)
    model.save_lora_adapter(tmp_path)
    other = tiny.make(name)
    report = load_lora(other, next(tmp_path.glob("*.safetensors")))
    assert "alpha/rank 3 from its header" in str(report)
    assert close(tiny.call(name, other), tiny.call(name, model))


@pytest.mark.parametrize("name", ["sana", "cogvideox"])
def test_families_without_other_names_say_so(name, tiny, tmp_path):
    model = tiny.adapted(name, "attention")
    with pytest.raises(
        PolyditError, match=f"--layout kohya: {name} has no published name for .*--layout diffusers"
    ):
        save_lora(model, tmp_path / "lora.safetensors", layout="kohya")


def test_readme_shows_the_table_of_readers(root):
    text = Path(root / "core/adapters/README.md").read_text()
    for family in FAMILIES.values():
        if family.readers:
            cells = ["; ".join(family.readers.get(layout, ())) or "-" for layout in LAYOUTS]
            assert f"| {family.name} | {' | '.join(cells)} |" in text

"""Layouts of LoRA files: alpha wherever it stands, fused layers, conversion there and back, what is refused."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from polydit.core.adapters import (
    LoraOptions,
    apply_lora,
    convert_lora,
    inject,
    inspect_lora,
    load_lora,
    save_lora,
)
from polydit.core.adapters.families import FAMILIES
from polydit.core.adapters.formats import LAYOUTS, bake_scale
from polydit.core.adapters.lora import lora_layers
from polydit.core.adapters.lora_file import LoraModule
from polydit.core.backbones import DiT
from polydit.core.cli import main
from polydit.core.commands import lora as lora_command
from polydit.core.errors import PolyditError

NAMED = ("flux", "sd3", "pixart", "wan", "ltx-video", "qwen-image")
LAYER = "blocks.0.attn1.to_q"  # of Wan
PEFT, KOHYA, COMFY = (
    f"transformer.{LAYER}",
    "lora_unet_blocks_0_self_attn_q",
    "diffusion_model.blocks.0.self_attn.q",
)


def same(first, second) -> bool:
    a, b = load_file(first), load_file(second)
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a
    )


def header(path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return file.metadata()


# -- where the scale stands ----------------------------------------------------------------------------------


def factors(rank: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rank, 24, generator=generator), torch.randn(24, rank, generator=generator)


def pair(
    name: str, first: str = "lora_A", second: str = "lora_B", end: str = ".weight"
) -> dict[str, torch.Tensor]:
    a, b = factors()
    return {f"{name}.{first}{end}": a, f"{name}.{second}{end}": b}


def config(prefix: str = "", **values) -> dict[str, str]:
    values = {"r": 4, "lora_alpha": 4, "alpha_pattern": {}, "rank_pattern": {}, "use_rslora": False, **values}
    return {"lora_adapter_metadata": json.dumps({f"{prefix}{key}": value for key, value in values.items()})}


ALPHA = torch.tensor(12.0)
# Tensors, header, scale, where from.
FILES = {
    "peft": (pair(PEFT), {}, 1.0, "none"),
    "kohya, no alpha": (pair(KOHYA, "lora_down", "lora_up"), {}, 1.0, "none"),
    "comfyui, no alpha": (pair(COMFY), {}, 1.0, "none"),
    "kohya": ({**pair(KOHYA, "lora_down", "lora_up"), f"{KOHYA}.alpha": ALPHA}, {}, 3.0, ".alpha tensors"),
    "alpha in a vector": (
        {**pair(KOHYA, "lora_down", "lora_up"), f"{KOHYA}.alpha": ALPHA.view(1)}, {}, 3.0, ".alpha tensors",
    ),
    "comfyui": ({**pair(COMFY), f"{COMFY}.alpha": ALPHA}, {}, 3.0, ".alpha tensors"),
    "comfyui, down and up": (
        {**pair(COMFY, "lora_down", "lora_up"), f"{COMFY}.alpha": ALPHA.bfloat16()}, {}, 3.0, ".alpha tensors",
    ),
    "alpha beside lora_A": ({**pair(PEFT), f"{PEFT}.alpha": ALPHA}, {}, 3.0, ".alpha tensors"),
    "no prefix": ({**pair(LAYER), f"{LAYER}.alpha": ALPHA}, {}, 3.0, ".alpha tensors"),
    "header of a pipeline": (pair(PEFT), config("transformer.", lora_alpha=12), 3.0, "header"),
    "header of a model": (pair(LAYER), config(lora_alpha=12), 3.0, "header"),
    "rslora": (pair(PEFT), config("transformer.", lora_alpha=6, use_rslora=True), 3.0, "header"),
    "pattern": (pair(PEFT), config("transformer.", alpha_pattern={"attn1.to_q": 12}), 3.0, "header"),
    "pattern of another layer": (pair(PEFT), config("transformer.", alpha_pattern={"to_k": 12}), 1.0, "header"),
    "tensor and header": (
        {**pair(PEFT), f"{PEFT}.alpha": ALPHA}, config("transformer.", lora_alpha=400), 3.0, ".alpha tensors",
    ),
    "header of a text encoder": (pair(PEFT), config("text_encoder.", lora_alpha=12), 1.0, "none"),
    "ours": (pair(PEFT), {"polydit": json.dumps({"scale": "baked", "training_alpha": [12.0]})}, 1.0, "baked"),
    "kohya's header is for people": (
        {**pair(KOHYA, "lora_down", "lora_up"), f"{KOHYA}.alpha": ALPHA}, {"ss_network_alpha": "99"}, 3.0,
        ".alpha tensors",
    ),
    "onetrainer": (
        {**pair("lora_transformer_blocks_0_attn1_to_q", "lora_down", "lora_up"),
         "lora_transformer_blocks_0_attn1_to_q.alpha": ALPHA}, {}, 3.0, ".alpha tensors",
    ),
    "lycoris": (
        {**pair("lycoris_blocks_0_attn1_to_q", "lora_down", "lora_up"),
         "lycoris_blocks_0_attn1_to_q.alpha": ALPHA}, {}, 3.0, ".alpha tensors",
    ),
    "named default": (pair(f"base_model.model.{LAYER}", end=".default.weight"), {}, 1.0, "none"),
}  # fmt: skip


@pytest.fixture(scope="module")
def wan(tiny):
    """A model that knows the layer; its weights may change."""
    return tiny.make("wan")


@pytest.mark.parametrize("name", list(FILES))
def test_alpha_is_found_wherever_it_stands(name, wan, tmp_path):
    tensors, metadata, scale, source = FILES[name]
    path = tmp_path / "lora.safetensors"
    save_file(tensors, path, metadata)
    found = inspect_lora(path)
    assert (found["scale"], found["alpha"]) == ([scale, scale], source)
    a, b = factors()
    before = wan.get_submodule(LAYER).weight.detach().clone()
    report = apply_lora(wan, path)
    change = wan.get_submodule(LAYER).weight.detach() - before
    torch.testing.assert_close(change, scale * b @ a, atol=1e-5, rtol=1e-5)
    assert (f"alpha/rank {scale:g} from its {source}" in str(report)) == (scale != 1.0)
    assert len(report.matched) == len(tensors)


def test_alpha_of_peft_beside_the_file(tmp_path):
    path = tmp_path / "adapter_model.safetensors"
    save_file(pair(f"base_model.model.{LAYER}"), path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "lora_alpha": 12}))
    found = inspect_lora(path)
    assert (found["scale"], found["alpha"]) == ([3.0, 3.0], "adapter_config.json")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", [name for name, file in FILES.items() if file[2] != 1.0])
def test_conversion_bakes_the_scale(name, layout, tmp_path):
    tensors, metadata, scale, _ = FILES[name]
    save_file(tensors, tmp_path / "in.safetensors", metadata)
    line = convert_lora(tmp_path / "in.safetensors", tmp_path / "out.safetensors", layout, base="wan")
    assert line.startswith("1 layers of wan, ")
    assert f"scale {scale:g} " in line
    assert inspect_lora(tmp_path / "out.safetensors")["scale"] == [1.0, 1.0]
    written = load_file(tmp_path / "out.safetensors")
    a, b = factors()
    names = {"diffusers": (PEFT, "lora_A", "lora_B"), "comfyui": (COMFY, "lora_A", "lora_B"),
             "kohya": (KOHYA, "lora_down", "lora_up")}  # fmt: skip
    layer, down, up = names[layout]
    assert torch.equal(written.pop(f"{layer}.{down}.weight"), a)
    torch.testing.assert_close(written.pop(f"{layer}.{up}.weight"), scale * b)
    assert list(written) == ([f"{layer}.alpha"] if layout == "kohya" else [])
    assert all(value == 4.0 for value in written.values())
    assert "lora_adapter_metadata" not in header(tmp_path / "out.safetensors"), "or it would be applied twice"


@pytest.mark.parametrize("name", ["flux", "sd3", "wan", "qwen-image", "ltx-video"])
def test_what_inspect_warns_of_happens_and_conversion_helps(name, tiny, tmp_path):
    """``.alpha`` beside lora_A: diffusers 0.42 honours it for FLUX only."""
    model = tiny.adapted(name, "attention", alpha=16.0)
    save_lora(model, tmp_path / "baked.safetensors")
    tensors = load_file(tmp_path / "baked.safetensors")
    for key in [key for key in tensors if key.endswith(".lora_B.weight")]:
        tensors[key] /= 4.0
        tensors[key.replace(".lora_B.weight", ".alpha")] = torch.tensor(16.0)
    path = tmp_path / "trap.safetensors"
    save_file(tensors, path)

    def by_diffusers(file):
        other = tiny.make(name)
        tiny.pipeline(name, other).load_lora_weights(str(file))
        return tiny.call(name, other)

    def close(output):
        return torch.allclose(output, tiny.call(name, model), atol=2e-5, rtol=1e-4)

    mine = tiny.make(name)
    load_lora(mine, path)
    assert close(tiny.call(name, mine))
    try:
        honoured = close(by_diffusers(path))
    except (ValueError, KeyError):
        honoured = False
    assert honoured == (name == "flux")
    warned = any("honours them for flux only" in line for line in inspect_lora(path)["warnings"])
    assert warned == (name != "flux")
    convert_lora(path, tmp_path / "cured.safetensors", "diffusers", base=name)
    assert close(by_diffusers(tmp_path / "cured.safetensors"))


@pytest.mark.parametrize(
    ("name", "warning"),
    [
        ("header of a pipeline", "ComfyUI and kohya's tools run it at 1"),
        ("peft", "no alpha anywhere"),
        ("named default", "base_model.model.: ComfyUI"),
        ("kohya", None),
        ("ours", None),
    ],
)
def test_warnings_of_inspect(name, warning, tmp_path):
    save_file(FILES[name][0], tmp_path / "lora.safetensors", FILES[name][1])
    warnings = inspect_lora(tmp_path / "lora.safetensors")["warnings"]
    assert any(warning in line for line in warnings) if warning else not warnings


# -- there and back ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMED)
def test_conversions_in_any_order_give_the_tensors_back(name, tiny, tmp_path):
    model = tiny.adapted(name, rank_pattern={r".*1\.attn1?\.to_v": 2})
    for layout in LAYOUTS:
        save_lora(model, tmp_path / f"{layout}.safetensors", layout=layout)
    for source, layout in itertools.product(LAYOUTS, LAYOUTS):
        path = tmp_path / f"{source}_{layout}.safetensors"
        convert_lora(tmp_path / f"{source}.safetensors", path, layout)
        assert same(path, tmp_path / f"{layout}.safetensors"), (source, layout)
        back = tmp_path / "back.safetensors"
        convert_lora(path, back, source, overwrite=True)
        assert same(back, tmp_path / f"{source}.safetensors"), (layout, source)


def test_files_of_our_own_backbones_convert_too(tmp_path):
    """kohya's underscores hide the dots of names that no table has; our header entry keeps them."""

    class Variant(DiT):
        pass

    torch.manual_seed(0)
    model = Variant(input_size=4, patch_size=2, in_channels=3, hidden_size=24, depth=2, num_heads=2)
    inject(model, LoraOptions(rank=2, targets="linear"))
    for layout in LAYOUTS:
        save_lora(model, tmp_path / f"{layout}.safetensors", layout=layout)
    for source, layout in itertools.product(LAYOUTS, LAYOUTS):
        path = tmp_path / "out.safetensors"
        convert_lora(tmp_path / f"{source}.safetensors", path, layout, overwrite=True)
        assert same(path, tmp_path / f"{layout}.safetensors")
        entries = [json.loads(header(file)["polydit"]) for file in (path, tmp_path / f"{layout}.safetensors")]
        assert entries[0] == entries[1]
    assert inspect_lora(path)["family"] == ["native"]
    assert inspect_lora(path)["loads_in"] == ["polydit"]


@pytest.mark.parametrize("name", NAMED)
def test_dora_survives_conversion(name, tiny, tmp_path):
    model = tiny.adapted(name, "attention" if name != "flux" else "blocks", use_dora=True)
    expected = tiny.call(name, model)
    for layout in LAYOUTS:
        path = save_lora(model, tmp_path / f"{layout}.safetensors", layout=layout)
        other = tiny.make(name)
        load_lora(other, path)
        torch.testing.assert_close(tiny.call(name, other), expected, atol=5e-5, rtol=1e-3)
        other_tool = "ComfyUI does not know" if layout == "diffusers" else "diffusers leaves dora_scale out"
        assert any(other_tool in line for line in inspect_lora(path)["warnings"])
        convert_lora(path, tmp_path / "back.safetensors", "diffusers", overwrite=True)
        assert same(tmp_path / "back.safetensors", tmp_path / "diffusers.safetensors")


def test_dora_on_a_part_of_a_fused_layer_is_refused(tiny, tmp_path):
    model = tiny.adapted("flux", ["transformer_blocks.0.attn.to_q"], use_dora=True)
    with pytest.raises(PolyditError, match=r"double_blocks\.0\.img_attn\.qkv is one layer there.*to_k"):
        save_lora(model, tmp_path / "lora.safetensors", layout="kohya")


def test_a_lora_trained_on_the_fused_layer_is_split_and_joined_again(tiny, tmp_path):
    generator = torch.Generator().manual_seed(0)
    name = "lora_unet_single_blocks_1_linear1"
    down, up = torch.randn(5, 16, generator=generator), torch.randn(112, 5, generator=generator)
    tensors = {
        f"{name}.lora_down.weight": down,
        f"{name}.lora_up.weight": up,
        f"{name}.alpha": torch.tensor(5.0),
    }
    save_file(tensors, tmp_path / "kohya.safetensors")
    model, base = tiny.make("flux"), tiny.make("flux")
    assert (
        str(load_lora(model, tmp_path / "kohya.safetensors")) == "3 of 3 keys matched, scale 1; kohya layout"
    )
    assert {len(layer.lora_A["default"].weight) for _, layer in lora_layers(model)} == {5}
    apply_lora(base, tmp_path / "kohya.safetensors")
    block, plain = base.single_transformer_blocks[1], tiny.make("flux").single_transformer_blocks[1]
    parts = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    change = torch.cat([block.get_submodule(p).weight - plain.get_submodule(p).weight for p in parts])
    torch.testing.assert_close(change.detach(), up @ down, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(tiny.call("flux", model), tiny.call("flux", base), atol=2e-5, rtol=1e-4)
    convert_lora(tmp_path / "kohya.safetensors", tmp_path / "d.safetensors", "diffusers", base="flux")
    assert len(load_file(tmp_path / "d.safetensors")) == 8
    convert_lora(tmp_path / "d.safetensors", tmp_path / "back.safetensors", "kohya", base="flux")
    assert same(tmp_path / "back.safetensors", tmp_path / "kohya.safetensors")


def test_parts_of_a_fused_layer_that_have_no_lora_stay_without(tiny, tmp_path):
    names = ["transformer_blocks.0.attn.to_q", "transformer_blocks.0.attn.to_v"]
    path = save_lora(tiny.adapted("flux", names), tmp_path / "lora.safetensors", layout="kohya")
    up = load_file(path)["lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight"]
    assert up.shape == (48, 12)
    assert not up[16:32].any()
    model = tiny.make("flux")
    load_lora(model, path)
    assert [name for name, _ in lora_layers(model)] == names


def test_bfloat16_stays_and_powers_of_two_are_exact(tmp_path):
    a, b = (value.bfloat16() for value in factors())
    tensors = {f"{COMFY}.lora_A.weight": a, f"{COMFY}.lora_B.weight": b, f"{COMFY}.alpha": torch.tensor(8.0)}
    save_file(tensors, tmp_path / "in.safetensors")
    convert_lora(tmp_path / "in.safetensors", tmp_path / "out.safetensors", "kohya")
    out = load_file(tmp_path / "out.safetensors")
    assert torch.equal(out[f"{KOHYA}.lora_down.weight"], a)
    assert torch.equal(out[f"{KOHYA}.lora_up.weight"], 2 * b)


@pytest.mark.parametrize("scale", [1 / 128, 1 / 3, 4.0])
def test_small_values_of_float16_keep_their_bits(scale):
    generator = torch.Generator().manual_seed(0)
    a = (0.02 * torch.randn(8, 64, generator=generator)).half()
    b = (2e-4 * torch.randn(32, 8, generator=generator)).half()
    baked = bake_scale(LoraModule(a, b, None, scale, []))
    assert (baked.scale, baked.a.dtype, baked.b.dtype) == (1, a.dtype, b.dtype)
    expected = scale * (b.double() @ a.double())
    error = (baked.b.double() @ baked.a.double() - expected).norm() / expected.norm()
    plain = ((scale * b.double()).half().double() @ a.double() - expected).norm() / expected.norm()
    assert error < 5e-4
    assert scale > 0.1 or plain > 3 * error
    zero = bake_scale(LoraModule(torch.zeros_like(a), b, None, scale, []))
    assert not zero.a.any()


def test_headers_of_others_are_kept_but_for_scale_and_checksums(tmp_path):
    metadata = {
        "ss_tag_frequency": "{}", "modelspec.trigger_phrase": "sks", "sshs_model_hash": "1", "ss_network_dim": "64",
        **config("transformer.", lora_alpha=12),
    }  # fmt: skip
    save_file(pair(PEFT), tmp_path / "in.safetensors", metadata)
    convert_lora(tmp_path / "in.safetensors", tmp_path / "out.safetensors", "kohya", base="wan")
    found = header(tmp_path / "out.safetensors")
    entry = json.loads(found.pop("polydit"))
    assert (entry["layout"], entry["scale"]) == ("kohya", "baked")
    assert found == {
        "format": "pt", "ss_tag_frequency": "{}", "modelspec.trigger_phrase": "sks",
        "ss_network_module": "networks.lora", "ss_network_dim": "4", "ss_network_alpha": "4",
    }  # fmt: skip


def test_alpha_keys_for_comfyui(tmp_path):
    save_file(pair(PEFT), tmp_path / "in.safetensors")
    convert_lora(
        tmp_path / "in.safetensors", tmp_path / "c.safetensors", "comfyui", base="wan", alpha_keys=True
    )
    assert load_file(tmp_path / "c.safetensors")[f"{COMFY}.alpha"] == 4.0
    with pytest.raises(PolyditError, match="--alpha-keys: the diffusers layout has none"):
        convert_lora(tmp_path / "c.safetensors", tmp_path / "d.safetensors", "diffusers", alpha_keys=True)


# -- what is not of the model, or not a LoRA -----------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_lora_of_another_family_is_refused_by_name(layout, tiny, tmp_path):
    """Files of other tools: no entry of ours tells what they were trained on."""
    path = save_lora(tiny.adapted("flux", "blocks"), tmp_path / "ours.safetensors", layout=layout)
    save_file(load_file(path), tmp_path / "lora.safetensors")
    before = tiny.call("sd3", model := tiny.make("sd3"))
    with pytest.raises(PolyditError) as caught:
        load_lora(model, tmp_path / "lora.safetensors")
    text = str(caught.value)
    assert " modules are not in SD3Transformer2DModel (its names are those of flux): " in text
    assert text.count(", ") == 2, "three names"
    assert text.endswith("; use the weights it was trained on")
    assert torch.equal(tiny.call("sd3", model), before), "and nothing was changed"


def test_like_names_of_another_width_are_refused(tiny, tmp_path):
    path = save_lora(tiny.adapted("ltx-video", "attention"), tmp_path / "ltx.safetensors")
    model = tiny.make("sana")
    model.transformer_blocks[0].attn1.to_q = torch.nn.Linear(20, 20)
    with pytest.raises(PolyditError, match=r"it was trained on LTXVideoTransformer3DModel.*the model has"):
        load_lora(model, path)


def test_text_encoders_and_other_changes_are_left_out_and_counted(tiny, tmp_path):
    tensors = {
        **pair(KOHYA, "lora_down", "lora_up"),
        **pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", "lora_down", "lora_up"),
        "lora_te1_text_model_encoder_layers_0_mlp_fc1.alpha": torch.tensor(4.0),
        "lora_unet_blocks_0_self_attn_q.diff_b": torch.zeros(24),
    }
    save_file(tensors, tmp_path / "lora.safetensors")
    report = load_lora(tiny.make("wan"), tmp_path / "lora.safetensors")
    assert str(report) == (
        "2 of 6 keys matched, scale 1; kohya layout; 3 keys of text encoders left out; "
        "1 changes of biases or whole weights left out"
    )
    found = inspect_lora(tmp_path / "lora.safetensors")
    assert (found["text_encoder_keys"], found["other_changes"], found["unknown_keys"]) == (3, 1, 0)
    line = convert_lora(tmp_path / "lora.safetensors", tmp_path / "out.safetensors", "diffusers")
    assert line.endswith("4 keys left out")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({f"{KOHYA}.lora_mid.weight": torch.zeros(1)}, "is a lora_mid adapter"),
        ({"lycoris_blocks_0_attn1_to_k.lokr_w1": torch.zeros(1)}, "is a lokr adapter"),
        ({"lycoris_blocks_0_attn1_to_k.hada_w1_a": torch.zeros(1)}, "is a hada adapter"),
        ({f"{KOHYA}.dora_scale": torch.zeros(1, 24)}, "magnitude per input"),
        ({"x": torch.tensor([1.0, float("nan")])}, "x holds NaN"),
    ],
)
def test_what_is_no_plain_lora_is_refused(extra, message, tmp_path):
    save_file({**pair(KOHYA, "lora_down", "lora_up"), **extra}, tmp_path / "lora.safetensors")
    with pytest.raises(PolyditError, match=message):
        inspect_lora(tmp_path / "lora.safetensors")


def test_a_damaged_header_is_named(tmp_path):
    save_file(pair(PEFT), tmp_path / "lora.safetensors", {"lora_adapter_metadata": "{"})
    with pytest.raises(PolyditError, match="header entry lora_adapter_metadata is damaged"):
        inspect_lora(tmp_path / "lora.safetensors")


@pytest.mark.parametrize(
    ("layer", "layout", "message"),
    [
        (
            "transformer.transformer_blocks.0.attn.to_q",
            "kohya",
            "those of flux and sd3 and qwen-image; say which with --base",
        ),
        (
            "transformer.encoder.3.query",
            "comfyui",
            "no table of published names for this model; use --layout diffusers",
        ),
        (
            "lora_unet_encoder_3_query",
            "diffusers",
            r"1 names are in no table of layers \(lora_unet_encoder_3_query\)",
        ),
    ],
)
def test_conversion_that_needs_to_be_told_more(layer, layout, message, tmp_path):
    save_file(pair(layer), tmp_path / "in.safetensors")
    with pytest.raises(PolyditError, match=message):
        convert_lora(tmp_path / "in.safetensors", tmp_path / "out.safetensors", layout)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("name", NAMED)
def test_the_family_is_told_from_the_names_alone(name, tiny, tmp_path):
    for layout in LAYOUTS if name != "pixart" else LAYOUTS[1:]:
        path = save_lora(tiny.adapted(name), tmp_path / "ours.safetensors", layout=layout, overwrite=True)
        save_file(load_file(path), tmp_path / "lora.safetensors")
        assert inspect_lora(tmp_path / "lora.safetensors")["family"] == [name]


@pytest.mark.parametrize(("width", "family"), [(1152, "pixart"), (2048, "ltx-video"), (4096, "ltx-video")])
def test_families_with_the_same_names_are_told_by_their_width(width, family, tmp_path):
    layer = "transformer.transformer_blocks.0.attn1.to_q"
    save_file(
        {f"{layer}.lora_A.weight": torch.zeros(1, width), f"{layer}.lora_B.weight": torch.zeros(width, 1)},
        tmp_path / "lora.safetensors",
    )
    assert inspect_lora(tmp_path / "lora.safetensors")["family"] == [family]


# -- the command ---------------------------------------------------------------------------------------------


def test_command(tiny, tmp_path, capsys):
    first, second = str(tmp_path / "a.safetensors"), str(tmp_path / "b.safetensors")
    save_lora(tiny.adapted("flux", "blocks"), first, layout="comfyui")
    assert main(["lora", "inspect", first]) == 0
    assert capsys.readouterr().out == (
        "layout:     comfyui\n"
        "family:     flux, trained on FluxTransformer2DModel\n"
        "layers:     26, rank 4 to 16, float32\n"
        "scale:      1 (alpha/rank; from: baked)\n"
        "left out:   nothing\n"
        "loads in:   polydit, diffusers (blocks), ComfyUI\n"
    )
    assert main(["lora", "inspect", first, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["training"]["training_alpha"] == [8.0]
    assert main(["lora", "convert", first, second, "--layout", "diffusers"]) == 0
    assert (
        capsys.readouterr().out
        == f"40 layers of flux, comfyui to diffusers, scale 1 (baked) baked\n{second}\n"
    )
    assert main(["lora", "convert", first, second, "--layout", "kohya"]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["lora", "inspect", str(tmp_path / "none.safetensors")]) == 2


def test_words_of_the_command_are_those_of_the_library():
    assert lora_command.LAYOUTS == LAYOUTS
    named = [family.name for family in FAMILIES.values() if family.names is None or family.names.rules]
    assert list(lora_command.FAMILIES) == named

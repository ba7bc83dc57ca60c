"""DiffDIS and DiffewS on Stable Diffusion's UNet: reference vectors, published sizes, starts, files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention_processor import Attention
from safetensors.torch import load_file

from polydit.core.backbones import load_official, save_official
from polydit.core.backbones.diffdis_unet import DBIABlock, DiffdisUNet, half_labels
from polydit.core.backbones.diffews_unet import DiffewsUNet
from polydit.core.conditioning import KeyValueBank
from polydit.core.errors import PolyditError

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
TINY = {
    "sample_size": 8,
    "block_out_channels": (8, 16, 16, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "attention_head_dim": (1, 2, 2, 2),
    "cross_attention_dim": 12,
    "use_linear_projection": True,
}


def read(system: str, part: str):
    meta = json.loads((GOLDEN / system / f"{part}.meta.json").read_text())
    files = [
        load_file(GOLDEN / system / f"{part}.{kind}.safetensors") for kind in ("weights", "inputs", "outputs")
    ]
    return meta["config"], {"rtol": meta["recommended_rtol"], "atol": meta["recommended_atol"]}, *files


def test_diffews_reference_vectors():
    config, close, weights, given, expected = read("diffews", "unet")
    model = load_official("diffews", weights, **config)
    text, t = given["text"], torch.tensor(1)

    def call(x):
        return model(x, t, text.expand(len(x), -1, -1)).sample

    bank = KeyValueBank(model)
    with torch.no_grad():
        with bank.reading():
            torch.testing.assert_close(call(given["query"]), expected["query_alone.sample"], **close)
        with bank.writing(3):
            torch.testing.assert_close(call(given["support"]), expected["support_pass.sample"], **close)
        with bank.reading():
            torch.testing.assert_close(call(given["query"]), expected["query_pass.sample"], **close)
        bank.clear()
        with bank.writing():
            call(given["support"][::3])
        with bank.reading():
            torch.testing.assert_close(
                call(given["query"]), expected["query_pass_first_shot_only.sample"], **close
            )
    again = save_official("diffews", model)
    assert {name: value.shape for name, value in again.items()} == {n: v.shape for n, v in weights.items()}
    assert all(torch.equal(again[name], value.float()) for name, value in weights.items())


def test_diffews_answers_the_released_calls():
    config, close, weights, given, expected = read("diffews", "unet")
    model = load_official("diffews", weights, **config)
    t, text = torch.tensor(1), given["text"]

    def check(x, name, **options):
        with torch.no_grad():
            found = model(x, t, text.repeat(len(x), 1, 1), **options).sample
        torch.testing.assert_close(found, expected[f"{name}.sample"], **close)

    check(given["query"], "query_alone")
    check(given["support"], "support_pass", is_target=False)
    check(given["query"], "query_pass")
    check(given["query"], "query_pass", is_target=True)
    model.clear_attn_bank()
    check(given["query"], "query_alone")
    model(given["support"][::3], t, text.repeat(2, 1, 1), is_target=False)
    check(given["query"], "query_pass_first_shot_only")
    with pytest.raises(PolyditError, match="2 supports, which is not as many for each of 3 queries"):
        model(given["query"][:1].repeat(3, 1, 1, 1), t, text.repeat(3, 1, 1))


def test_the_bank_of_the_released_calls_passes_gradients_and_refuses_checkpointing():
    torch.manual_seed(0)
    model = DiffewsUNet(**TINY)
    support = torch.randn(1, 8, 8, 8, requires_grad=True)
    text = torch.randn(1, 2, 12)
    model(support, 1, text, is_target=False)
    model(torch.randn(1, 4, 8, 8), 1, text).sample.sum().backward()
    assert support.grad.abs().max() > 0
    model.enable_gradient_checkpointing()
    with pytest.raises(PolyditError, match=r"train with polydit\.core\.conditioning\.KeyValueBank"):
        model(torch.randn(1, 4, 8, 8), 1, text)
    model.clear_attn_bank()
    model(torch.randn(1, 4, 8, 8), 1, text)


def test_an_attention_of_diffews_answers_the_released_calls():
    config, close, weights, given, expected = read("diffews", "kv_fusion_attention")
    attention = load_official("diffews", weights, **config)
    with torch.no_grad():
        for name in ("one_shot", "n_shot"):
            support = attention(given[f"support_{name}"], is_target=False)
            torch.testing.assert_close(support, expected[f"{name}.support"], **close)
            torch.testing.assert_close(attention(given["query"]), expected[f"{name}.query"], **close)
            attention.clear_bank()
        torch.testing.assert_close(attention(given["query"]), expected["no_support.query"], **close)
    assert save_official("diffews", attention).keys() == weights.keys()


def test_parts_of_official_networks_name_what_is_wrong():
    with pytest.raises(
        PolyditError, match="diffdis has no argument 'width' beside 'dim'; it takes dim, heads"
    ):
        load_official("diffdis", {}, dim=8, heads=2, head_dim=4, width=3)
    with pytest.raises(PolyditError, match="diffews with 'query_dim' also needs 'dim_head'"):
        load_official("diffews", {}, query_dim=8, heads=2)
    with pytest.raises(PolyditError, match="does not fit its configuration: missing"):
        load_official("diffews", {}, query_dim=8, heads=2, dim_head=4)
    with pytest.raises(PolyditError, match="mode 'swap': DiffDIS was published with 'DBIA'"):
        load_official("diffdis", {}, mode="swap")


def test_key_value_fusion_reference_vectors():
    config, close, weights, given, expected = read("diffews", "kv_fusion_attention")

    class Holder(torch.nn.Module):
        """What the bank looks for, around one attention."""

        def __init__(self) -> None:
            super().__init__()
            from diffusers.models.attention import BasicTransformerBlock

            self.block = BasicTransformerBlock(config["query_dim"], config["heads"], config["dim_head"])
            self.block.attn1 = Attention(
                query_dim=config["query_dim"], heads=config["heads"], dim_head=config["dim_head"]
            )
            self.block.attn1.load_state_dict({name: value.float() for name, value in weights.items()})

    model = Holder().eval()
    attention = model.block.attn1
    bank = KeyValueBank(model)
    with torch.no_grad():
        for name, shots in (("one_shot", 1), ("n_shot", config["shots"])):
            bank.clear()
            with bank.writing(shots):
                support = attention(given[f"support_{name}"])
            with bank.reading():
                query = attention(given["query"])
            torch.testing.assert_close(support, expected[f"{name}.support"], **close)
            torch.testing.assert_close(query, expected[f"{name}.query"], **close)
        bank.clear()
        with bank.reading():
            torch.testing.assert_close(attention(given["query"]), expected["no_support.query"], **close)


def test_diffdis_reference_vectors():
    config, close, weights, given, expected = read("diffdis", "unet")
    model = load_official("diffdis", weights, **config)
    names = ("rgb_latent", "rgb_latent_div2", "rgb_latent_div4", "rgb_latent_div8")
    scales = [given[name].expand(2, -1, -1, -1) for name in names]
    sample = torch.cat([scales[0], given["noisy_latents"]], dim=1)
    labels = half_labels(1)
    torch.testing.assert_close(labels, given["batch_discriminative_embedding"])
    middle = []
    model.mid_block.register_forward_hook(lambda module, args, output: middle.append(output))

    def call(labels, **injected):
        with torch.no_grad():
            text = given["text"].expand(2, -1, -1)
            return model(sample, given["timestep"], text, class_labels=labels, **injected).sample

    noise = call(labels, rgb_token=scales)
    torch.testing.assert_close(noise, expected["noise_pred"], **close)
    torch.testing.assert_close(middle[0], expected["mid_block"], **close)
    swapped = call(labels.flip(0), rgb_token=scales)
    torch.testing.assert_close(swapped, expected["noise_pred_labels_swapped"], **close)
    assert (call(labels) - noise).abs().max() > 1e-3, "the smaller pictures matter"
    again = save_official("diffdis", model)
    assert set(again) - set(weights) == {f"rgb_conv.{i}.1.num_batches_tracked" for i in range(3)}
    assert all(torch.equal(again[name], value.float()) for name, value in weights.items())


def test_interactive_attention_reference_vectors():
    config, close, weights, given, expected = read("diffdis", "dbia_block")
    block = load_official("diffdis", weights, **config)
    assert isinstance(block, DBIABlock)
    with torch.no_grad():
        torch.testing.assert_close(block.attn3(given["x"]), expected["attn3_dbia"], **close)
        torch.testing.assert_close(
            block(given["x"], encoder_hidden_states=given["text"]), expected["block"], **close
        )
    assert save_official("diffdis", block).keys() == weights.keys()


def test_published_sizes():
    with torch.device("meta"):
        diffdis, diffews = DiffdisUNet.from_folder(), DiffewsUNet.from_folder()
    assert sum(p.numel() for p in diffdis.parameters()) == 912_924_804
    assert sum(p.numel() for p in diffews.parameters()) == 865_934_084
    assert tuple(diffdis.conv_in.weight.shape) == (320, 8, 3, 3)
    assert tuple(diffews.conv_in_ref.weight.shape) == (320, 8, 3, 3)
    assert len(KeyValueBank(diffews)._attentions) == 16


@pytest.fixture
def folder(tmp_path):
    torch.manual_seed(0)
    UNet2DConditionModel(**TINY).save_pretrained(tmp_path / "unet")
    return tmp_path / "unet"


def test_diffews_starts_as_the_plain_unet(folder):
    plain = UNet2DConditionModel.from_pretrained(folder)
    model = DiffewsUNet.from_folder(str(folder)).eval()
    x, text = torch.randn(2, 4, 8, 8), torch.randn(2, 3, 12)
    with torch.no_grad():
        expected = plain.eval()(x, 1, text).sample
        torch.testing.assert_close(model(x, 1, text).sample, expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(model(torch.cat([x, x], dim=1), 1, text).sample, expected)
    model.save_pretrained(folder.parent / "saved")
    back = DiffewsUNet.from_pretrained(folder.parent / "saved")
    assert back.config.in_channels == 4
    assert torch.equal(back.conv_in_ref.weight, model.conv_in_ref.weight)


def test_diffdis_starts_with_copies_and_an_injection_that_changes_nothing(folder):
    plain = UNet2DConditionModel.from_pretrained(folder)
    model = DiffdisUNet.from_folder(str(folder)).eval()
    torch.testing.assert_close(model.conv_in.weight[:, :4] * 2, plain.conv_in.weight)
    block = model.mid_block.attentions[0].transformer_blocks[0]
    assert torch.equal(block.attn3.to_q.weight, block.attn1.to_q.weight)
    assert torch.equal(block.norm2_.weight, block.norm1.weight)
    sample, text, labels = torch.randn(2, 8, 8, 8), torch.randn(2, 3, 12), half_labels(1)
    scales = [torch.randn(2, 4, side, side) for side in (8, 4, 2, 1)]
    with torch.no_grad():
        without = model(sample, 999, text, class_labels=labels).sample
        assert torch.equal(model(sample, 999, text, class_labels=labels, rgb_token=scales).sample, without)
    model.save_pretrained(folder.parent / "saved")
    back = DiffdisUNet.from_pretrained(folder.parent / "saved").eval()
    with torch.no_grad():
        found = back(sample, 999, text, class_labels=labels).sample
    torch.testing.assert_close(found, without, rtol=0, atol=1e-6)


def test_diffdis_halves_reach_each_other_only_through_the_exchange():
    for exchange in (True, False):
        torch.manual_seed(0)
        model = DiffdisUNet(**TINY, mid_extra_cross=exchange).eval()
        sample = torch.randn(2, 8, 8, 8, requires_grad=True)
        out = model(sample, 999, torch.randn(1, 3, 12).expand(2, -1, -1), class_labels=half_labels(1)).sample
        (from_mask,) = torch.autograd.grad(out[0].square().sum(), sample)
        assert bool(from_mask[1].abs().max() > 0) is exchange


def test_swapping_diffdis_halves_and_labels_swaps_the_answers():
    torch.manual_seed(0)
    model = DiffdisUNet(**TINY).eval()
    sample, text = torch.randn(2, 8, 8, 8), torch.randn(1, 3, 12).expand(2, -1, -1)
    with torch.no_grad():
        one = model(sample, 999, text, class_labels=half_labels(1)).sample
        other = model(sample.flip(0), 999, text, class_labels=half_labels(1).flip(0)).sample
        equal = sample[:1].expand(2, -1, -1, -1)
        same = model(equal, 999, text, class_labels=half_labels(1)[:1].expand(2, -1)).sample
        told = model(equal, 999, text, class_labels=half_labels(1)).sample
    torch.testing.assert_close(other.flip(0), one, rtol=0, atol=1e-5)
    torch.testing.assert_close(same[0], same[1], rtol=0, atol=1e-6)
    assert (told[0] - told[1]).abs().max() > 1e-3, "the labels are what separates the halves"


def test_what_does_not_fit_is_one_line(folder, tmp_path):
    _, _, weights, *_ = read("diffews", "unet")
    with pytest.raises(PolyditError, match="diffews has no argument 'widths'"):
        load_official("diffews", weights, widths=3)
    with pytest.raises(PolyditError, match="does not fit its configuration: "):
        load_official("diffews", weights, **TINY)
    with pytest.raises(PolyditError, match=r"no UNet of Stable Diffusion in diffusers format"):
        DiffewsUNet.from_folder(str(tmp_path / "nothing"))
    with pytest.raises(PolyditError, match="source: the folder of Stable Diffusion"):
        DiffdisUNet.from_folder()
    (folder / "diffusion_pytorch_model.safetensors").write_bytes(b"broken")
    with pytest.raises(PolyditError, match="no UNet of Stable Diffusion"):
        DiffewsUNet.from_folder(str(folder))

"""The native DiT and diffusers' compute the same and convert into each other without loss."""

import pytest
import torch
from diffusers import DiTTransformer2DModel

from polydit.core.backbones import DiT, load_official, make_dit, save_official
from polydit.core.backbones.diffusers_dit import dit_from_diffusers, dit_to_diffusers
from polydit.core.errors import PolyditError

CONFIG = {
    "input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 64, "depth": 3, "num_heads": 4,
    "num_classes": 10,
}  # fmt: skip


def build(**options):
    torch.manual_seed(0)
    model = DiT(**{**CONFIG, "learn_sigma": True, **options})
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture
def call():
    return torch.randn(3, 4, 8, 8), torch.tensor([0, 17, 999]), torch.tensor([0, 9, 10])


@pytest.mark.parametrize("learn_sigma", [True, False])
@torch.no_grad()
def test_outputs_agree(call, learn_sigma):
    model = build(learn_sigma=learn_sigma)
    ours, theirs = model(*call).sample, dit_to_diffusers(model)(*call).sample
    assert ours.abs().max() > 1
    assert (ours - theirs).abs().max() < 2e-6


@torch.no_grad()
def test_both_settings_are_needed(call):
    model = build()
    ours, twin = model(*call).sample, dit_to_diffusers(model)
    for block in twin.transformer_blocks:
        block.norm3.eps = 1e-5
    assert (twin(*call).sample - ours).abs().max() > 2e-6
    twin = dit_to_diffusers(model)
    for block in twin.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 1
    assert (twin(*call).sample - ours).abs().max() > 1e-2


def test_round_trip_is_bit_exact_from_the_official_layout():
    official = save_official("dit", build())
    native = load_official("dit", official, **CONFIG)
    back = save_official("dit", dit_from_diffusers(dit_to_diffusers(native)))
    assert back.keys() == official.keys()
    assert all(torch.equal(back[k], official[k]) for k in official)


def test_saved_by_diffusers_and_read_again(tmp_path, call):
    model = build()
    dit_to_diffusers(model).save_pretrained(tmp_path)
    native = dit_from_diffusers(DiTTransformer2DModel.from_pretrained(tmp_path))
    assert not native.training
    assert not native.pos_embed.requires_grad
    with torch.no_grad():
        assert torch.equal(native(*call).sample, model(*call).sample)


def test_weights_are_copies():
    model = build()
    twin = dit_to_diffusers(model)
    tables = [block.norm1.emb.class_embedder.embedding_table.weight for block in twin.transformer_blocks]
    assert len({t.data_ptr() for t in (*tables, model.label_embed.table.weight)}) == 4
    assert {p.data_ptr() for p in twin.parameters()}.isdisjoint(p.data_ptr() for p in model.parameters())


def test_diffusers_counts_every_copy():
    with torch.device("meta"):
        model = make_dit("DiT-XL/2")
    twin = dit_to_diffusers(model)
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert sum(p.numel() for p in twin.parameters()) == 749_826_464 == trainable + 27 * 2_777_472
    assert len(twin.state_dict()) == 538


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"norm": "rms"}, "norm='rms'"),
        ({"mlp": "swiglu"}, "mlp='swiglu'"),
        ({"position": "rope"}, "position='rope'"),
        ({"qk_norm": "rms"}, "qk_norm='rms'"),
        ({"modulation": "adaln_single"}, "modulation='adaln_single'"),
        ({"context_dim": 8}, "context_dim=8"),
        ({"keep_sigma": False}, "keep_sigma=False"),
        ({"window_size": 2}, "window_size=2"),
        ({"num_classes": None}, "num_classes"),
        ({"class_dropout_prob": 0.0}, "num_classes"),
        ({"input_size": [8, 16]}, r"input_size=\[8, 16\]"),
    ],
)
def test_what_diffusers_does_not_have_is_named(options, named):
    with pytest.raises(PolyditError, match=named):
        dit_to_diffusers(build(**options))


def test_copies_that_went_apart_are_refused():
    twin = dit_to_diffusers(build())
    with torch.no_grad():
        twin.transformer_blocks[2].norm1.emb.timestep_embedder.linear_1.bias[0] += 1
    with pytest.raises(
        PolyditError, match=r"transformer_blocks.2.norm1.emb.timestep_embedder.linear_1 differs"
    ):
        dit_from_diffusers(twin)

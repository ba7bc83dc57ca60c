"""What the DiT promises about its start, its inputs, its conditions and its labels."""

import math

import pytest
import torch

from polydit.core.backbones import DiT
from polydit.core.backbones.embedding import sincos_table, sinusoid, unpatchify

TINY = {"input_size": 8, "patch_size": 2, "in_channels": 4, "hidden_size": 48, "depth": 2, "num_heads": 4}


def build(randomize=True, **options):
    torch.manual_seed(0)
    model = DiT(**{**TINY, **options})
    if randomize:
        for parameter in model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


def noise(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


T = torch.tensor([3.0, 700.0])


# -- the start --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options", [{}, {"modulation": "adaln_single", "context_dim": 12}, {"conv_kernel": 3}]
)
def test_fresh_model_predicts_zero_and_learns_in_the_last_layer_first(options):
    model = build(randomize=False, **options)
    context = {"encoder_hidden_states": noise(2, 5, 12)} if "context_dim" in options else {}
    sample = model(noise(2, 4, 8, 8), T, **context).sample
    assert torch.equal(sample, torch.zeros(2, 4, 8, 8))
    (sample - noise(2, 4, 8, 8, seed=2)).square().mean().backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert moved == {"final_layer.linear.weight", "final_layer.linear.bias"}


@pytest.mark.parametrize(
    "options",
    [{}, {"modulation": "adaln_single"}, {"context_dim": 12}, {"conv_kernel": 3, "conv_dense": True}],
)
def test_every_fresh_block_is_the_identity(options):
    model = build(randomize=False, **options)
    tokens, c = noise(2, 16, 48), noise(2, 48)
    context = noise(2, 5, 48) if "context_dim" in options else None
    out = model.run_blocks(tokens, model.block_conditioning(c), context, grids=((4, 4),))
    assert torch.equal(out, tokens)


@pytest.mark.parametrize("modulation", ["adaln_zero", "adaln_single"])
@pytest.mark.parametrize("shift", [True, False])
def test_gate_init_opens_the_gates_only(modulation, shift):
    block = build(False, modulation=modulation, modulation_shift=shift, gate_init=0.5).blocks[0]
    c = torch.zeros(1, 48 * (6 if shift else 4)) if modulation == "adaln_single" else torch.zeros(1, 48)
    shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation_vectors(c)
    assert gate1.unique().tolist() == gate2.unique().tolist() == [0.5]
    closed = [v for v in (shift1, scale1, shift2, scale2) if v is not None]
    assert len(closed) == (4 if shift else 2)
    assert all(v.abs().max() == 0 for v in closed)


# -- inputs -----------------------------------------------------------------------------------------------------


def test_first_half_of_the_positions_is_the_column():
    table = sincos_table((3, 5), 16)[0].reshape(3, 5, 16)
    assert torch.equal(table[0, :, :8], table[2, :, :8])  # same in every row
    assert torch.equal(table[:, 0, 8:], table[:, 4, 8:])
    assert torch.allclose(table[1, 2, 0], torch.tensor(2.0).sin())
    assert torch.allclose(table[1, 2, 12], torch.tensor(1.0).cos())


def test_sinusoid_has_cosines_first_and_period_one_at_the_first_frequency():
    features = sinusoid(torch.tensor([0.0, 1.0]))
    assert features.shape == (2, 256)
    assert features[0].tolist() == [1.0] * 128 + [0.0] * 128
    assert features[1, [0, 128]].tolist() == pytest.approx([math.cos(1), math.sin(1)])


@pytest.mark.parametrize("grid", [(3, 5), (2, 3, 4)])
def test_unpatchify_inverts_patches(grid):
    patch = (2, 2) if len(grid) == 2 else (1, 2, 3)
    picture = noise(2, 3, *(g * p for g, p in zip(grid, patch, strict=True)))
    for axis, size in enumerate(patch):  # cut every axis into (grid, patch) and gather
        picture = picture.unflatten(2 + 2 * axis, (-1, size))
    axes = len(grid)
    order = [0, *range(2, 2 + 2 * axes, 2), *range(3, 3 + 2 * axes, 2), 1]
    tokens = picture.permute(order).reshape(2, *grid, -1).flatten(1, axes)
    whole = picture.reshape(2, 3, *(g * p for g, p in zip(grid, patch, strict=True)))
    assert torch.equal(unpatchify(tokens, grid, patch), whole)


@pytest.mark.parametrize("position", ["sincos", "rope", "sincos+rope", "none"])
def test_rectangles_of_any_size(position):
    model = build(position=position)
    with torch.no_grad():
        wide = model(noise(2, 4, 8, 20), T).sample
        assert wide.shape == (2, 4, 8, 20)
        assert torch.equal(model(noise(2, 4, 8, 20), T).sample, wide)  # also from the kept table
        assert model(noise(2, 4, 6, 4), T).sample.shape == (2, 4, 6, 4)
    if position == "none":  # without positions the tokens are a set
        x = noise(2, 4, 8, 8)
        with torch.no_grad():
            swapped = model(torch.cat([x[..., 4:], x[..., :4]], dim=-1), T).sample
            torch.testing.assert_close(
                torch.cat([swapped[..., 4:], swapped[..., :4]], dim=-1), model(x, T).sample
            )


def test_positions_of_another_grid_are_those_of_a_model_built_for_it():
    model, other = build(), build(input_size=[12, 6])
    other.load_state_dict({**model.state_dict(), "pos_embed": other.pos_embed.data})
    with torch.no_grad():
        x = noise(2, 4, 12, 6)
        assert torch.equal(model(x, T).sample, other(x, T).sample)
        assert torch.equal(model(noise(2, 4, 6, 12), T).sample, other(noise(2, 4, 6, 12), T).sample)


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((4, 6, 8), [1, 2, 2]), ((4, 4, 4), 2), ((3, 8, 8), [1, 2, 2])],
    ids=["video", "voxels", "triplane"],
)
@pytest.mark.parametrize("position", ["sincos", "rope"])
def test_three_axes(shape, patch, position):
    mixing = {"conv_kernel": 3, "window_size": 2, "global_every": 2}
    model = build(input_size=list(shape), patch_size=patch, position=position, **mixing)
    with torch.no_grad():
        assert model(noise(2, 4, *shape), T).sample.shape == (2, 4, *shape)
        longer = (shape[0] * 2, *shape[1:])
        assert model(noise(2, 4, *longer), T).sample.shape == (2, 4, *longer)


@pytest.mark.parametrize("shape", [(2, 4, 8, 7), (2, 4, 8), (2, 4, 2, 8, 8)])
def test_input_that_does_not_divide_is_named(shape):
    with pytest.raises(ValueError, match=r"input of size .* does not divide by patch_size \[2, 2\]"):
        build()(noise(*shape), T)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"position": "learned"}, "position is 'learned'; choose"),
        ({"modulation": "film"}, "modulation is 'film'; choose"),
        ({"norm": "batch"}, "norm is 'batch'; choose"),
        ({"mlp": "relu"}, "mlp is 'relu'; choose"),
        ({"qk_norm": "l2"}, "qk_norm is 'l2'; choose"),
        ({"patch_size": 3}, "does not divide by patch_size"),
        ({"patch_size": [1, 2, 2]}, "same 2 or 3 axes"),
        ({"num_heads": 5}, "does not divide by num_heads 5"),
        ({"hidden_size": 42, "num_heads": 2}, "width that divides by 4"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


# -- conditions -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("modulation", ["adaln_zero", "adaln_single"])
@torch.no_grad()
def test_padded_text_changes_nothing(modulation):
    model = build(context_dim=12, modulation=modulation)
    x, text = noise(2, 4, 8, 8), noise(2, 5, 12)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]).bool()
    plain = model(x, T, encoder_hidden_states=text, encoder_attention_mask=mask).sample
    other = text.clone()
    other[1, 2:] = 100 * noise(3, 12, seed=5)
    assert torch.equal(model(x, T, encoder_hidden_states=other, encoder_attention_mask=mask).sample, plain)
    short = model(x[1:], T[1:], encoder_hidden_states=text[1:, :2]).sample
    torch.testing.assert_close(plain[1:], short)
    assert not torch.allclose(model(x, T, encoder_hidden_states=other).sample, plain, atol=1e-3)


@torch.no_grad()
def test_pooled_vector_joins_the_timestep():
    model = build(pooled_projection_dim=6)
    x, pooled = noise(2, 4, 8, 8), noise(2, 6)
    c = model.embed_condition(T, pooled_projections=pooled)
    torch.testing.assert_close(c, model.time_embed(T) + model.pooled_embed(pooled))
    assert not torch.allclose(model(x, T, pooled_projections=pooled).sample, model(x, T).sample, atol=1e-3)


@torch.no_grad()
def test_adaln_single_equals_adaln_zero_with_the_shared_map():
    single = build(modulation="adaln_single")
    for block in single.blocks:
        block.table.zero_()
    zero = build()
    shared = {k: v for k, v in single.state_dict().items() if k in zero.state_dict()}
    for i in range(2):
        shared[f"blocks.{i}.modulation.weight"] = single.shared_modulation.weight
        shared[f"blocks.{i}.modulation.bias"] = single.shared_modulation.bias
    zero.load_state_dict(shared)
    x = noise(2, 4, 8, 8)
    torch.testing.assert_close(single(x, T).sample, zero(x, T).sample)
    single.blocks[1].table[2] += 1.0  # a block's own table is its own
    assert not torch.allclose(single(x, T).sample, zero(x, T).sample, atol=1e-3)


def test_adaln_single_saves_the_maps_of_all_blocks_but_one():
    zero, single = (
        sum(p.numel() for p in build(False, depth=4, modulation=kind).parameters())
        for kind in ("adaln_zero", "adaln_single")
    )
    assert zero - single == 3 * (48 + 1) * 6 * 48 - 4 * 6 * 48


@torch.no_grad()
def test_learned_variance_is_a_second_half_that_can_be_dropped():
    both, first = build(learn_sigma=True), build(learn_sigma=True, keep_sigma=False)
    x = noise(2, 4, 8, 8)
    assert both(x, T).sample.shape == (2, 8, 8, 8)
    assert torch.equal(both(x, T).sample[:, :4], first(x, T).sample)
    assert build(out_channels=3)(x, T).sample.shape == (2, 3, 8, 8)


@torch.no_grad()
def test_attention_mask_closes_a_path():
    model, x = build(depth=1), noise(2, 4, 8, 8)
    mask = torch.eye(16).bool()
    alone = model(x, T, attention_mask=mask).sample
    changed = x.clone()
    changed[..., 4:, 4:] += 1
    moved = (model(changed, T, attention_mask=mask).sample - alone).abs().amax((0, 1)) > 0
    assert moved[4:, 4:].all()
    assert moved.sum() == 16


@torch.no_grad()
def test_tuple_and_object():
    model, x = build(), noise(2, 4, 8, 8)
    assert torch.equal(model(x, T, return_dict=False)[0], model(x, T).sample)


# -- labels -----------------------------------------------------------------------------------------------------


def test_labels_drop_to_the_null_class_in_training_only():
    model = build(num_classes=10, class_dropout_prob=0.1)
    table = model.label_embed.table.weight
    labels = torch.randint(0, 10, (20_000,), generator=torch.Generator().manual_seed(0))
    assert torch.equal(model.label_embed(labels), table[labels])
    torch.manual_seed(0)
    model.train()
    out = model.label_embed(labels)
    dropped = (out == table[10]).all(-1)
    assert abs(dropped.float().mean().item() - 0.1) < 0.01  # nearly five standard deviations
    assert torch.equal(out[~dropped], table[labels[~dropped]])


def test_null_class_exists_only_with_dropout():
    assert build(num_classes=10).label_embed.table.num_embeddings == 11
    plain = build(num_classes=10, class_dropout_prob=0.0).train()
    assert plain.label_embed.table.num_embeddings == 10
    labels = torch.arange(10)
    assert torch.equal(plain.label_embed(labels), plain.label_embed.table.weight)
    with torch.no_grad():
        model = build(num_classes=10)
        x = noise(2, 4, 8, 8)
        null = model(x, T, torch.tensor([10, 10])).sample
        assert not torch.allclose(null, model(x, T, torch.tensor([1, 1])).sample, atol=1e-3)


def test_missing_labels_are_named():
    with pytest.raises(ValueError, match="pass class_labels"):
        build(num_classes=10)(noise(2, 4, 8, 8), T)

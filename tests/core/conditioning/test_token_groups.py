"""Token groups on the native DiT: positions, the table of who sees whom, timesteps, outputs."""

from __future__ import annotations

import pytest
import torch

from polydit.core.backbones import DiT
from polydit.core.backbones.embedding import sincos_positions, sincos_table
from polydit.core.conditioning import (
    Position,
    SideBranch,
    TokenGroup,
    forward_groups,
    label_collisions,
    only_itself,
    separate,
)
from polydit.core.conditioning.token_groups import allowed_table

MODELS = {
    "sincos": {},
    "rope": {"position": "rope", "qk_norm": "rms", "norm": "rms", "mlp": "swiglu"},
    "both": {"position": "sincos+rope"},
    "group axis": {"position": "rope", "rope_axes_dim": [4, 4, 4]},
    "single": {"modulation": "adaln_single", "position": "rope"},
    "no shift": {"modulation_shift": False},
    "convolution": {"conv_kernel": 3},
    "labels": {"num_classes": 3},
    "text": {"context_dim": 5, "pooled_projection_dim": 4},
    "variance": {"learn_sigma": True},
    "window": {"window_size": 2},
    "video": {"input_size": [2, 4, 4], "patch_size": [1, 2, 2], "position": "rope"},
}
T = torch.tensor([0.2, 0.7])


def extra(options, noise):
    """The further inputs that a model of these options takes."""
    given = {}
    if "num_classes" in options:
        given["class_labels"] = torch.tensor([0, 3])
    if "context_dim" in options:
        given["encoder_hidden_states"] = noise(2, 4, 5, seed=8)
        given["encoder_attention_mask"] = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool()
        given["pooled_projections"] = noise(2, 4, seed=9)
    return given


def picture(options, noise, seed=0):
    return noise(2, 3, *options.get("input_size", [8, 12]), seed=seed)


@pytest.mark.parametrize("name", list(MODELS))
def test_one_group_is_the_plain_model_bit_for_bit(name, make_dit, noise):
    model, x, more = make_dit(**MODELS[name]), picture(MODELS[name], noise), extra(MODELS[name], noise)
    out = forward_groups(model, [TokenGroup("target", x, timestep=T)], **more)["target"]
    assert torch.equal(out, model(x, T, **more).sample)


@pytest.mark.parametrize("name", [n for n in MODELS if n != "window"])
def test_groups_that_do_not_see_each_other_are_separate_runs(name, make_dit, noise):
    model, more = make_dit(dtype=torch.float64, **MODELS[name]), extra(MODELS[name], noise)
    more = {k: v.double() if v.is_floating_point() else v for k, v in more.items()}
    a, b = (picture(MODELS[name], noise, seed).double() for seed in (0, 1))
    groups = [TokenGroup("a", a, timestep=T), TokenGroup("b", b, timestep=0.5)]
    out = forward_groups(model, groups, only_itself("a", "b"), ("b", "a"), **more)
    assert list(out) == ["b", "a"]
    torch.testing.assert_close(out["a"], model(a, T, **more).sample, atol=1e-12, rtol=0)
    torch.testing.assert_close(
        out["b"], model(b, torch.tensor([0.5, 0.5]), **more).sample, atol=1e-12, rtol=0
    )


def test_equal_groups_at_one_place_double_every_key_and_change_nothing(make_dit, noise):
    model, x = make_dit(dtype=torch.float64, position="rope"), noise(2, 3, 8, 8).double()
    out = forward_groups(model, [TokenGroup("target", x, timestep=T), TokenGroup("copy", x, timestep=T)])[
        "target"
    ]
    torch.testing.assert_close(out, model(x, T).sample, atol=1e-12, rtol=0)


def test_windows_see_the_group_at_the_same_place(make_dit, noise):
    """With windows the dense reference is a mask that repeats the window mask per pair of groups."""
    windowed, dense = make_dit(window_size=2), make_dit()
    a, b = noise(2, 3, 8, 8, seed=0), noise(2, 3, 8, 8, seed=1)
    groups = [TokenGroup("target", a, timestep=T), TokenGroup("b", b, timestep=0.0)]
    out = forward_groups(windowed, groups)["target"]
    assert (out - forward_groups(dense, groups)["target"]).abs().max() > 1e-3
    far = b.clone()
    far[..., 4:, 4:] += 1  # another window
    groups[1] = TokenGroup("b", far, timestep=0.0)
    changed = (forward_groups(windowed, groups)["target"] - out).abs().amax((0, 1))
    assert changed[4:, 4:].max() > 1e-3
    assert changed[:4].max() == 0
    with pytest.raises(ValueError, match="window attention"):
        forward_groups(windowed, groups, only_itself("b"))
    with pytest.raises(ValueError, match="window attention"):
        forward_groups(windowed, [groups[0], TokenGroup("b", noise(2, 3, 4, 8))])


def test_each_group_has_its_own_timestep(make_dit, noise):
    model, a, b = make_dit(), noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)

    def run(t):
        groups = [TokenGroup("target", a, timestep=T), TokenGroup("b", b, timestep=t)]
        return forward_groups(model, groups, separate(["target", "b"], ["b"]) | {"target": ["target"]})[
            "target"
        ]

    assert torch.equal(run(0.0), run(1.0)), "nobody looks at b"
    groups = [TokenGroup("target", a, timestep=T), TokenGroup("b", b, timestep=0.0)]
    one = forward_groups(model, groups)["target"]
    groups[1].timestep = 1.0
    assert (forward_groups(model, groups)["target"] - one).abs().max() > 1e-3


def test_type_embedding_is_added_to_the_tokens_of_its_group(make_dit, noise):
    model, a, b = make_dit(), noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
    kind = noise(24, seed=3)
    by_type = [TokenGroup("target", a, timestep=T), TokenGroup("b", b, type_embedding=kind)]
    by_hand = [by_type[0], TokenGroup("b", tokens=model.embed_tokens(b) + kind)]
    torch.testing.assert_close(
        forward_groups(model, by_type)["target"],
        forward_groups(model, by_hand)["target"],
        atol=1e-6,
        rtol=1e-5,
    )
    per_sample = [by_type[0], TokenGroup("b", b, type_embedding=kind.expand(2, -1))]
    assert torch.equal(forward_groups(model, by_type)["target"], forward_groups(model, per_sample)["target"])


def test_label_dropout_is_drawn_once_for_all_groups(make_dit, noise):
    """One label of a batch must not be dropped for one of its groups and kept for another."""
    model = make_dit(num_classes=3, class_dropout_prob=0.5).train()
    x, y = noise(1, 3, 8, 8).expand(64, -1, -1, -1), torch.zeros(64, dtype=torch.long)
    groups = [TokenGroup("a", x, timestep=0.3), TokenGroup("b", x, timestep=0.3)]
    out = forward_groups(model, groups, only_itself("a", "b"), ("a", "b"), class_labels=y)
    torch.testing.assert_close(out["a"], out["b"], atol=1e-6, rtol=1e-5)
    assert len(out["a"].flatten(1).round(decimals=4).unique(dim=0)) == 2


def test_gradient_checkpointing_changes_nothing(make_dit, noise):
    a, b = noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
    grads = []
    for checkpointing in (False, True):
        model = make_dit(position="rope")
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.train()
        groups = [TokenGroup("target", a, timestep=T), TokenGroup("b", b)]
        forward_groups(model, groups, only_itself("b"))["target"].square().mean().backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == len(grads[1]) > 10
    assert all(torch.equal(g, h) for g, h in zip(*grads, strict=True))


def test_text_tokens_are_a_group_without_a_place(make_dit, noise):
    model, x, text = (
        make_dit(position="sincos+rope", conv_kernel=3),
        noise(2, 3, 8, 8),
        noise(2, 5, 24, seed=4),
    )
    groups = [TokenGroup("text", tokens=text, timestep=T), TokenGroup("target", x, timestep=T)]
    out = forward_groups(model, groups)["target"]
    order = torch.randperm(5, generator=torch.Generator().manual_seed(0))
    groups[0].tokens = text[:, order]
    torch.testing.assert_close(forward_groups(model, groups)["target"], out, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="'text' has no grid"):
        forward_groups(model, groups, outputs=("text",))


# -- who may look at whom ------------------------------------------------------------------------------------


def test_tables():
    names = ["target", "person", "garment"]
    assert allowed_table(names).all()
    independent = allowed_table(names, only_itself("person", "garment"))
    assert independent.tolist() == [[True, True, True], [False, True, False], [False, False, True]]
    apart = allowed_table(names, separate(names, ["person", "garment"]))
    assert apart.tolist() == [[True, True, True], [True, True, False], [True, False, True]]
    with pytest.raises(ValueError, match="shoes; the groups are target"):
        allowed_table(names, {"shoes": ["target"]})
    with pytest.raises(ValueError, match="person may look at nothing"):
        allowed_table(names, {"person": []})


def test_independent_conditions_do_not_depend_on_the_rest(make_dit, noise):
    model = make_dit(position="rope")
    a, b, c = (noise(2, 3, 8, 8, seed=s) for s in range(3))

    def features(target, person, looks):
        seen = []
        hook = model.blocks[-1].register_forward_hook(lambda m, i, out: seen.append(out[:, -16:]))
        forward_groups(
            model,
            [TokenGroup("t", target, timestep=T), TokenGroup("p", person), TokenGroup("g", c)],
            looks,
            ("t",),
        )
        hook.remove()
        return seen[0]

    alone = only_itself("p", "g")
    assert torch.equal(features(a, b, alone), features(b, a, alone))
    assert (features(a, b, None) - features(b, a, None)).abs().max() > 1e-3


def test_order_of_conditions_does_not_matter(make_dit, noise):
    model = make_dit(position="rope", dtype=torch.float64)
    x, p, g = (noise(2, 3, 8, 8, seed=s).double() for s in range(3))
    groups = [
        TokenGroup("target", x, timestep=T),
        TokenGroup("p", p),
        TokenGroup("g", g, position=Position.beside((4, 4))),
    ]
    looks = only_itself("p", "g")
    out = forward_groups(model, groups, looks)["target"]
    swapped = forward_groups(model, [groups[2], groups[0], groups[1]], looks)["target"]
    torch.testing.assert_close(swapped, out, atol=1e-12, rtol=0)


# -- positions -----------------------------------------------------------------------------------------------


def test_position_ids():
    assert Position().ids((2, 3)).tolist() == [[0, i, j] for i in range(2) for j in range(3)]
    assert Position.beside((2, 3)).ids((2, 3)).tolist() == [[0, i, j + 3] for i in range(2) for j in range(3)]
    assert Position.beside((2, 3), -2, group=-1).ids((1, 2)).tolist() == [[-1, 2, 0], [-1, 2, 1]]
    assert Position(offset=(0.0, -3.0)).ids((1, 2)).tolist() == [[0, 0, -3], [0, 0, -2]]
    assert Position.interpolated((2, 2), (4, 6)).ids((2, 2))[:, 1:].tolist() == [
        [0, 0],
        [0, 3],
        [2, 0],
        [2, 3],
    ]
    centred = Position.interpolated((2, 2), (4, 6), centred=True).ids((2, 2))[:, 1:]
    assert centred.tolist() == [[0.5, 1], [0.5, 4], [2.5, 1], [2.5, 4]]
    same = Position.interpolated((3, 5), (3, 5), centred=True)
    assert torch.equal(same.ids((3, 5)), Position().ids((3, 5)))
    with pytest.raises(ValueError, match="one per axis"):
        Position(offset=(1.0, 2.0, 3.0)).ids((2, 3))


def test_additive_positions_of_a_grid_are_those_of_its_coordinates():
    ids = Position.beside((2, 3)).ids((2, 3))[:, 1:]
    wide = sincos_table((2, 6), 24).reshape(2, 6, 24)
    assert torch.equal(sincos_positions(ids, 24).reshape(2, 3, 24), wide[:, 3:])


@pytest.mark.parametrize("position", ["sincos", "rope"])
def test_a_group_beside_is_the_right_half_of_a_wide_picture(position, make_dit, noise):
    """Two groups that see each other, one shifted by the width of the other, are one picture in two pieces."""
    model, wide = make_dit(position=position, dtype=torch.float64), noise(2, 3, 8, 16).double()
    left, right = wide.chunk(2, dim=-1)
    groups = [
        TokenGroup("left", left, timestep=T),
        TokenGroup("right", right, timestep=T, position=Position.beside((4, 4))),
    ]
    out = forward_groups(model, groups, outputs=("left", "right"))
    # The stored table of positions is float32 computed by double; both ways take it from the same formula.
    torch.testing.assert_close(torch.cat(list(out.values()), -1), model(wide, T).sample, atol=1e-6, rtol=0)


def test_kept_tokens_with_explicit_ids(make_dit, noise):
    """A sparse condition: dropping tokens and giving the ids of the rest is the same as hiding the dropped ones."""
    model, x, c = make_dit(position="rope"), noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
    keep = torch.tensor([1, 4, 6, 11, 15])
    tokens, ids = model.embed_tokens(c), Position().ids((4, 4))
    pieces = [
        TokenGroup(f"k{i}", tokens=tokens[:, i : i + 1], position_ids=ids[i : i + 1]) for i in keep.tolist()
    ]
    target = TokenGroup("target", x, timestep=T)
    names = [p.name for p in pieces]
    one_by_one = forward_groups(model, [target, *pieces], dict.fromkeys(names, names))["target"]
    compact = TokenGroup("c", tokens=tokens[:, keep], position_ids=ids[keep])
    together = forward_groups(model, [target, compact], only_itself("c"))["target"]
    torch.testing.assert_close(together, one_by_one, atol=1e-5, rtol=1e-4)
    compact.position_ids = ids
    with pytest.raises(ValueError, match="16 position ids for 5 tokens"):
        forward_groups(model, [target, compact])


def test_label_collisions(make_dit, noise):
    plain, layered = make_dit(), make_dit(position="rope", rope_axes_dim=[4, 4, 4])
    x, small, text = noise(1, 3, 8, 8), noise(1, 3, 4, 4), noise(1, 3, 24)
    groups = [
        TokenGroup("target", x),
        TokenGroup("person", x),
        TokenGroup("garment", x, position=Position.beside((4, 4))),
        TokenGroup("above", x, position=Position(offset=(-4.0, 0.0))),
        TokenGroup("depth", small, position=Position.interpolated((2, 2), (4, 4))),
        TokenGroup("text", tokens=text),
    ]
    assert label_collisions(plain, groups) == {
        ("target", "person"): 16,
        ("target", "depth"): 4,
        ("person", "depth"): 4,
    }
    layers = [TokenGroup(f"layer{k}", x, position=Position(group=k)) for k in range(3)]
    layers.append(TokenGroup("condition", x, position=Position(group=-1)))
    assert label_collisions(layered, layers) == {}


def test_layers_are_told_apart_by_their_index_only(make_dit, noise):
    """Permuting layers together with their group coordinate permutes the outputs; without the coordinate they mix."""
    model = make_dit(position="rope", rope_axes_dim=[4, 4, 4], dtype=torch.float64)
    pictures = [noise(2, 3, 8, 8, seed=s).double() for s in range(3)]

    def run(order, indices):
        groups = [
            TokenGroup(f"layer{i}", pictures[i], timestep=T, position=Position(group=k))
            for i, k in zip(order, indices, strict=True)
        ]
        return forward_groups(model, groups, outputs=[f"layer{i}" for i in range(3)])

    first, second, other = run([0, 1, 2], [0, 1, 2]), run([2, 0, 1], [2, 0, 1]), run([0, 1, 2], [1, 0, 2])
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=1e-12, rtol=0)
    assert (other["layer0"] - first["layer0"]).abs().max() > 1e-3


def test_the_group_axis_does_not_change_the_plain_model(make_dit, noise):
    """At group 0 the extra rotary channels are not rotated: the axis adds no position of its own."""
    x = noise(2, 3, 8, 8)
    with_axis, without = (make_dit(position="rope", rope_axes_dim=d) for d in ([4, 4, 4], [0, 4, 4]))
    assert with_axis.position_ids((2, 2)).tolist() == [[0, 0, 0], [0, 0, 1], [0, 1, 0], [0, 1, 1]]
    assert with_axis(x, T).sample.isfinite().all()
    assert with_axis.rotary.axes_dim != without.rotary.axes_dim


# -- side branches and misuse --------------------------------------------------------------------------------


def test_residuals_reach_one_group(make_dit, noise):
    model, x, c = make_dit(), noise(2, 3, 8, 8), noise(2, 3, 8, 8, seed=1)
    branch = SideBranch.from_base(model, 2, 3)
    torch.nn.init.normal_(branch.outputs[0].weight)
    hints = branch(torch.cat([x, c], 1), T)
    alone = [TokenGroup("target", x, timestep=T)]
    assert torch.equal(
        forward_groups(model, alone, residuals={"target": hints})["target"],
        model(x, T, block_controlnet_hidden_states=hints).sample,
    )
    groups = [*alone, TokenGroup("b", c)]
    out = forward_groups(model, groups, only_itself("b"), ("target", "b"), residuals={"target": hints})
    without = forward_groups(model, groups, only_itself("b"), ("target", "b"))
    assert torch.equal(out["b"], without["b"])
    assert (out["target"] - without["target"]).abs().max() > 1e-3


@pytest.mark.parametrize(
    ("groups", "options", "message"),
    [
        ([("a", {}), ("a", {})], {}, "same name"),
        ([("a", {})], {"outputs": ("b",)}, "outputs names b; the groups are a"),
        ([("a", {})], {"outputs": ("a",), "residuals": {"b": []}}, "residuals names b"),
        ([("a", {})], {"outputs": ("a",), "residuals": {"a": [None]}}, "1 for 3 blocks"),
        ([("a", {"position": Position(group=1)})], {"outputs": ("a",)}, "no group axis"),
        ([("a", {"tokens": torch.zeros(1, 2, 24)})], {}, "either a picture or tokens"),
    ],
)
def test_misuse(groups, options, message, make_dit, noise):
    with pytest.raises(ValueError, match=message):
        forward_groups(
            make_dit(), [TokenGroup(n, noise(1, 3, 8, 8), **more) for n, more in groups], **options
        )


def test_a_model_without_positions_cannot_move_a_group(make_dit, noise):
    with pytest.raises(ValueError, match="no positions to move"):
        forward_groups(
            make_dit(position="none"),
            [TokenGroup("target", noise(1, 3, 8, 8), position=Position(offset=2.0))],
        )


def test_shapes_are_enough_to_run_groups():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        model = DiT(input_size=8, patch_size=2, in_channels=3, hidden_size=24, depth=1, num_heads=2)
        groups = [TokenGroup(name, torch.empty(2, 3, 8, 8), timestep=torch.empty(2)) for name in ("t", "p")]
        samples = forward_groups(model, groups, only_itself("p"), ("t",))
    assert samples["t"].shape == (2, 3, 8, 8)

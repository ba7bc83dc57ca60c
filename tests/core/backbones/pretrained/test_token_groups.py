"""Token groups on every family: exact where it can be said what exact is, refused where it cannot be done."""

from __future__ import annotations

from contextlib import contextmanager
from unittest import mock

import pytest
import torch
import torch.nn.functional as F

from polydit.core.adapters import LoraOptions, count_trainable, inject_group, load_group_lora, save_lora
from polydit.core.backbones.pretrained import adapt_transformer
from polydit.core.backbones.pretrained.hooks import answering
from polydit.core.conditioning import (
    KeyValueCache,
    Position,
    TokenGroup,
    forward_groups,
    only_itself,
    pretrained_groups,
    separate,
)
from polydit.core.conditioning.token_groups import allowed_table

HIDDEN = {"target": ("target", "text"), "garment": ("garment",)}


def stage(family):
    adapter = adapt_transformer(family.build())
    x, t, condition = family.inputs()
    return adapter, x, t, condition, torch.randn(x.shape, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def scene(family):
    """Adapter, latents, times, conditions, and the latents of a garment."""
    return stage(family)


@pytest.fixture
def exchanging(softmax_family):
    """The same, of families that can show keys and values."""
    return stage(softmax_family)


def test_one_group_is_the_plain_model_bit_for_bit(scene):
    adapter, x, t, condition, _ = scene
    with torch.no_grad():
        found = forward_groups(adapter, [TokenGroup("target", x, timestep=t)], **condition)["target"]
        assert torch.equal(found, adapter(x, t, **condition).sample)


def test_a_group_that_nobody_sees_changes_nothing_and_is_not_run(scene):
    adapter, x, t, condition, garment = scene
    groups = [TokenGroup("target", x, timestep=t), TokenGroup("garment", garment)]
    with (
        torch.no_grad(),
        mock.patch.object(type(adapter), "forward", autospec=True, side_effect=type(adapter).forward) as run,
    ):
        found = forward_groups(adapter, groups, HIDDEN, **condition)["target"]
        assert run.call_count == 1
    with torch.no_grad():
        assert torch.equal(found, adapter(x, t, **condition).sample)


def look_at_garment(model, x, t, condition, garment, **options):
    groups = [TokenGroup("target", x, timestep=t), TokenGroup("garment", garment, **options)]
    return forward_groups(model, groups, only_itself("garment"), **condition)["target"]


@contextmanager
def masked(*masks):
    """Torch's attention with the mask of the length that both sides have."""
    by_length = {len(mask): mask for mask in masks}
    original = F.scaled_dot_product_attention

    def attention(query, key, value, attn_mask=None, **kwargs):
        if query.shape[2] == key.shape[2] in by_length:
            allowed = by_length[key.shape[2]]
            attn_mask = allowed if attn_mask is None else allowed & attn_mask
        return original(query, key, value, attn_mask=attn_mask, **kwargs)

    with mock.patch.object(F, "scaled_dot_product_attention", attention):
        yield


@pytest.mark.parametrize(
    "name", ["sd3", "pixart", "flux", "ltx", "wan", "cogvideox", "cogvideox-1.5", "qwen-image-edit"]
)
def test_runs_in_turn_are_one_masked_sequence(families, name):
    """At one timestep, a condition that sees itself only is a block of zeros in the mask of the whole sequence."""
    family = families[name]
    adapter = adapt_transformer(family.build(**({"zero_cond_t": False} if "qwen" in name else {})))
    x, t, condition = family.inputs()
    garment = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    count = Position().ids(adapter.grid_of(x)).shape[0]
    text = {None: 0, "before": 6, "after": 6}[adapter.text_order]
    allowed = torch.ones(2 * count + text, 2 * count + text, dtype=torch.bool)
    start = text if adapter.text_order == "before" else 0
    allowed[start + count : start + 2 * count] = False
    allowed[start + count : start + 2 * count, start + count : start + 2 * count] = True
    given = {}
    with torch.no_grad():
        found = look_at_garment(adapter, x, t, condition, garment, timestep=t)
        if adapter.takes_position_ids:
            given["position_ids"] = Position().ids(adapter.grid_of(x)).repeat(2, 1)
            tokens = None
        else:
            embed = adapter.transformer.pos_embed
            both = torch.cat([embed(x), embed(garment)], dim=1)
            tokens = lambda _: both  # noqa: E731
        latents = allowed[start : start + 2 * count, start : start + 2 * count]  # SD3.5 also has these alone
        with masked(allowed, latents), answering(getattr(adapter.transformer, "pos_embed", adapter), tokens):
            whole = adapter(torch.cat([x, garment], dim=2), t, **condition, **given).sample
    torch.testing.assert_close(found, whole[:, :, : x.shape[2]], rtol=1e-4, atol=1e-5)
    assert not torch.allclose(found, adapter(x, t, **condition).sample, atol=1e-3)


@pytest.mark.parametrize("softmax_family", ["dit", "pixart", "ltx", "wan"], indirect=True)
def test_a_copy_of_the_target_adds_nothing_where_text_is_apart(exchanging):
    """Each key twice: the softmax halves every weight and sums them again."""
    adapter, x, t, condition, _ = exchanging
    with torch.no_grad():
        found = look_at_garment(adapter, x, t, condition, x, timestep=t)
        torch.testing.assert_close(found, adapter(x, t, **condition).sample, rtol=1e-4, atol=1e-5)


def test_groups_have_their_own_size_and_time(exchanging):
    adapter, x, t, condition, garment = exchanging
    smaller = garment[..., : x.shape[-2] // 2, : x.shape[-1] // 2] if x.shape[-1] > 2 else garment[:, :, :1]
    with torch.no_grad():
        found = [
            look_at_garment(adapter, x, t, condition, smaller, timestep=time)
            for time in (t * 0, t * 0 + 500, t * 0)
        ]
        assert found[0].shape == (len(x), adapter.latent_channels, *x.shape[2:])
        assert torch.equal(found[0], found[2])
        assert not torch.allclose(found[0], found[1], atol=1e-5)


def test_a_chain_of_conditions(exchanging):
    """The second condition sees the first: the order of the list does not matter."""
    adapter, x, t, condition, garment = exchanging
    target = TokenGroup("target", x, timestep=t)
    first, second = (
        TokenGroup("first", garment, timestep=t),
        TokenGroup("second", garment.flip(0), timestep=t),
    )
    looks = {"first": ("first",), "second": ("second", "first", "text")}
    with torch.no_grad():
        found = forward_groups(adapter, [target, first, second], looks, ("target", "second"), **condition)
        again = forward_groups(adapter, [second, target, first], looks, ("second", "target"), **condition)
        alone = forward_groups(adapter, [first, second], looks, ("second",), **condition)
    assert list(again) == ["second", "target"]
    torch.testing.assert_close(found["target"], again["target"])
    assert torch.equal(found["second"], again["second"])
    assert torch.equal(found["second"], alone["second"])


def test_a_constant_condition_is_run_once(exchanging):
    adapter, x, t, condition, garment = exchanging
    cache = KeyValueCache()
    groups = [TokenGroup("target", x, timestep=t), TokenGroup("garment", garment, timestep=t * 0)]
    with torch.no_grad():
        for step in range(3):
            groups[0].picture, groups[0].timestep = x + step, t - step
            found = forward_groups(adapter, groups, only_itself("garment"), cache=cache, **condition)[
                "target"
            ]
            fresh = forward_groups(adapter, groups, only_itself("garment"), **condition)["target"]
            assert torch.equal(found, fresh)
        assert cache.runs == 1
        name = next(iter(condition))
        changed = {**condition, name: condition[name].flip(0)}
        forward_groups(adapter, groups, only_itself("garment"), cache=cache, **changed)
        assert cache.runs == 2
        next(iter(adapter.parameters())).mul_(1.01)
        forward_groups(adapter, groups, only_itself("garment"), cache=cache, **changed)
        assert cache.runs == 3
    with pytest.raises(ValueError, match="for sampling"):
        forward_groups(adapter, groups, only_itself("garment"), cache=cache, **condition)


def test_an_adapter_of_the_garment_starts_as_nothing_and_then_matters(exchanging, tmp_path):
    adapter, x, t, condition, garment = exchanging
    transformer = adapter.transformer.requires_grad_(False)

    def answer(picture=garment):
        return look_at_garment(adapter, x, t, condition, picture, timestep=t * 0, adapter="garment")

    def plain():
        return adapter(x, t, **condition).sample

    with torch.no_grad():
        before, alone = answer(), plain()
    torch.manual_seed(0)
    inject_group(transformer, LoraOptions(rank=4), "garment")
    with torch.no_grad():
        assert torch.equal(answer(), before)
    optimizer = torch.optim.Adam([p for p in transformer.parameters() if p.requires_grad], lr=0.05)
    assert count_trainable(transformer) == sum(p.numel() for p in optimizer.param_groups[0]["params"]) > 0
    loss = answer().square().mean()
    loss.backward()
    optimizer.step()
    with torch.no_grad():
        after = answer()
        assert (after - before).abs().max() > 1e-3  # another look at the same garment
        assert (after - answer(garment.flip(-1))).abs().max() > 1e-3
        assert torch.equal(plain(), alone)  # the target's own tokens never saw the adapter
        save_lora(transformer, tmp_path / "garment.safetensors", "garment")
        other = adapt_transformer(type(transformer).from_config(dict(transformer.config)).eval())
        state = {name.replace(".base_layer", ""): value for name, value in transformer.state_dict().items()}
        other.transformer.load_state_dict({k: v for k, v in state.items() if "lora_" not in k})
        load_group_lora(other.transformer, tmp_path / "garment.safetensors", "garment")
        again = look_at_garment(other, x, t, condition, garment, timestep=t * 0, adapter="garment")
        torch.testing.assert_close(again, after)


def test_gradients_survive_checkpointing(exchanging):
    """The backward pass runs blocks again: with the garment's keys, with its adapter, on its own tokens."""
    adapter, x, t, condition, garment = exchanging
    inject_group(adapter.transformer, LoraOptions(rank=2), "garment")
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "lora_B" in name:
                parameter.normal_(generator=torch.Generator().manual_seed(1))

    def gradients():
        adapter.zero_grad()
        look_at_garment(
            adapter, x, t, condition, garment, timestep=t, adapter="garment"
        ).square().mean().backward()
        return {name: p.grad.clone() for name, p in adapter.named_parameters() if p.grad is not None}

    expected = gradients()
    assert any("lora_A" in name for name in expected)
    adapter.enable_gradient_checkpointing()
    found = gradients()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


# -- groups that look at each other ------------------------------------------------------------------------------


def together(adapter, x, other, position, t, condition, time=None):
    groups = [
        TokenGroup("target", x, timestep=t),
        TokenGroup("other", other, timestep=t if time is None else time, position=position),
    ]
    return forward_groups(adapter, groups, None, ("target", "other"), **condition)


@pytest.mark.parametrize(
    "name", ["pixart", "sd3", "sana", "flux", "ltx", "wan", "cogvideox", "cogvideox-2b", "qwen"]
)
def test_all_to_all_is_one_longer_sequence(families, name):
    family = families[name]
    adapter = adapt_transformer(family.build())
    x, t, condition = family.inputs()
    if adapter.video and x.ndim == 4:
        x = x[:, :, None]
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    axis = {"cogvideox-2b": -1}.get(name, -len(adapter.grid_of(x)))
    position = Position.beside(adapter.grid_of(x), axis)
    with torch.no_grad():
        found = together(adapter, x, other, position, t, condition)
        whole = adapter(torch.cat([x, other], dim=axis), t, **condition).sample
    first, second = whole.split(x.shape[axis], dim=axis)
    torch.testing.assert_close(found["target"], first, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found["other"], second, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["flux", "ltx", "wan", "cogvideox", "qwen"])
def test_groups_may_share_their_places(families, name):
    """On the same places, with one timestep and no text order between them, two groups can change roles."""
    family = families[name]
    adapter = adapt_transformer(family.build())
    x, t, condition = family.inputs()
    if adapter.video and x.ndim == 4:
        x = x[:, :, None]
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        one = together(adapter, x, other, Position(), t, condition)
        two = together(adapter, other, x, Position(), t, condition)
    torch.testing.assert_close(one["target"], two["other"], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one["other"], two["target"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["ltx", "wan"])
def test_times_of_their_own_in_one_sequence(families, name):
    adapter = adapt_transformer(families[name].build())
    x, t, condition = families[name].inputs()
    tokens = Position().ids(adapter.grid_of(x)).shape[0]
    position = Position.beside(adapter.grid_of(x), -3)
    per_token = torch.cat([t[:, None].expand(-1, tokens), torch.zeros(2, tokens)], dim=1)
    with torch.no_grad():
        found = together(adapter, x, x, position, t, condition, time=0.0)["target"]
        whole = adapter(torch.cat([x, x], dim=2), per_token, **condition).sample
        assert torch.equal(found, whole[:, :, : x.shape[2]])
        assert not torch.allclose(found, together(adapter, x, x, position, t, condition)["target"], atol=1e-4)


# -- ... each with its own time, guidance and adapter: FLUX ------------------------------------------------------


@pytest.fixture
def joint(families):
    """FLUX with guidance and random adapters everywhere; a target, a person and a garment that differ in all."""
    family = families["flux"]
    adapter = adapt_transformer(family.build(guidance_embeds=True))
    x, t, condition = family.inputs()
    adapter.transformer.requires_grad_(False)
    layers = [
        r"(?!pos_embed).*(to_[qkv]|to_out\.0|linear|net\.2|proj_mlp|proj_out|context_embedder|add_[qkv]_proj)"
    ]
    for name in ("target", "person", "garment"):
        inject_group(adapter.transformer, LoraOptions(rank=2, targets=layers), name)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3, generator=generator)
    person, garment = (torch.randn(x.shape, generator=generator) for _ in range(2))
    groups = [
        TokenGroup("target", x, timestep=t, adapter="target", guidance=3.5),
        TokenGroup("person", person, adapter="person", guidance=1.0),
        TokenGroup("garment", garment, timestep=t * 0 + 100, position=Position.beside(adapter.grid_of(x)),
                   adapter="garment", guidance=2.0, type_embedding=torch.randn(32, generator=generator)),
    ]  # fmt: skip
    return adapter, groups, condition


def test_one_sequence_where_conditions_see_themselves_only_is_the_runs_in_turn(joint):
    adapter, groups, condition = joint
    looks = only_itself("person", "garment")
    table = allowed_table(["target", "person", "garment", "text"], looks)
    with torch.no_grad():
        expected = forward_groups(adapter, groups, looks, **condition)["target"]
        found = pretrained_groups._jointly(adapter, groups, table, 0, condition)["target"]
        free = forward_groups(adapter, groups, None, **condition)["target"]
        apart = forward_groups(
            adapter,
            groups,
            separate(["target", "person", "garment", "text"], ["person", "garment"]),
            **condition,
        )["target"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    for one, other in ((free, expected), (apart, expected), (apart, free)):
        assert not torch.allclose(one, other, atol=1e-3)


def test_one_sequence_of_groups_that_share_all_is_the_plain_model(joint):
    adapter, groups, condition = joint
    with torch.no_grad():
        for group in groups:
            group.adapter, group.guidance, group.timestep = None, None, groups[0].timestep
            group.type_embedding = torch.zeros(32)  # keeps it from being run as the plain model
        names = [group.name for group in groups]
        found = forward_groups(adapter, groups, None, names, **condition)
        latents = torch.cat([group.picture for group in groups], dim=2)
        ids = torch.cat([group.position.ids(adapter.grid_of(group.picture)) for group in groups])
        whole = adapter(latents, groups[0].timestep, **condition, position_ids=ids).sample
    torch.testing.assert_close(torch.cat([found[name] for name in names], dim=2), whole, rtol=1e-4, atol=1e-5)


def test_each_group_of_one_sequence_has_its_own_adapter_time_and_guidance(joint):
    adapter, groups, condition = joint

    def answer():
        with torch.no_grad():
            return forward_groups(adapter, groups, None, **condition)["target"]

    before = answer()
    for group in groups:
        for attribute, other in (("adapter", None), ("guidance", 30.0), ("timestep", 900.0)):
            kept = getattr(group, attribute)
            setattr(group, attribute, other)
            assert not torch.allclose(answer(), before, atol=1e-5), (group.name, attribute)
            setattr(group, attribute, kept)
    assert torch.equal(answer(), before)
    assert not any("forward" in vars(module) for module in adapter.transformer.modules())


def test_gradients_of_one_sequence_survive_checkpointing(joint):
    adapter, groups, condition = joint

    def gradients():
        adapter.zero_grad()
        forward_groups(adapter, groups, None, **condition)["target"].square().mean().backward()
        return {name: p.grad.clone() for name, p in adapter.named_parameters() if p.grad is not None}

    expected = gradients()
    for name in ("target", "person", "garment"):
        assert any(f"lora_A.{name}" in key for key in expected)
    adapter.enable_gradient_checkpointing()
    found = gradients()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_a_group_reads_its_own_guidance(joint):
    """The scales that the network embeds when the groups are run in turn."""
    adapter, groups, condition = joint
    seen = []
    inner = adapter.transformer.time_text_embed
    with torch.no_grad():
        handle = inner.register_forward_pre_hook(lambda _, args: seen.append(args[1].tolist()))
        forward_groups(adapter, groups, only_itself("person", "garment"), **condition)
        handle.remove()
    assert seen == [[1000, 1000], [2000, 2000], [3500, 3500]]


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("sana", {"looks": only_itself("other")}, "no attention whose keys and values another group"),
        ("sd3", {"looks": only_itself("other"), "position": Position(offset=1.0)}, "has a table of positions"),
        ("pixart", {}, "place each group beside the one before"),
        ("dit", {"position": Position.beside((4, 4))}, "takes square latents"),
        ("wan", {"position": Position(group=1.0)}, "has no group axis"),
        ("cogvideox", {"time": 3}, "one timestep for all tokens of a sequence"),
        ("ltx", {"adapter": "other"}, "no adapter or type embedding of its own"),
        ("flux", {"time": 3, "residuals": {"other": [None] * 4}}, "all must look at all, without residuals"),
        ("flux", {"looks": {"third": ()}}, "the groups are target, other, text"),
        ("ltx", {"looks": {"other": ("target",)}}, "all must look at all, without residuals"),
        ("flux", {"narrow": True}, "along height, all else the same"),
        ("flux", {"names": ("target", "text")}, "or one is called 'text'"),
        ("sd3", {"tokens": True}, "embeds its tokens itself; give a picture"),
        ("wan", {"outputs": ("layer",)}, "outputs names layer; the groups are target, other"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said(families, name, changes, message):
    adapter = adapt_transformer(families[name].build())
    x, t, condition = families[name].inputs()
    changes = dict(changes)
    first, second = changes.pop("names", ("target", "other"))
    picture = x[..., :-2] if changes.pop("narrow", False) else x
    rest = {"tokens": torch.zeros(2, 4, 16)} if changes.pop("tokens", False) else {"picture": picture}
    groups = [
        TokenGroup(first, x, timestep=t),
        TokenGroup(second, timestep=changes.pop("time", t), position=changes.pop("position", Position()),
                   adapter=changes.pop("adapter", None), **rest),
    ]  # fmt: skip
    with pytest.raises(ValueError, match=message):
        forward_groups(adapter, groups, **changes, **condition)


def test_a_type_embedding_is_added_to_the_tokens(scene):
    adapter, x, t, condition, _ = scene
    width = adapter.transformer.proj_out.in_features if hasattr(adapter.transformer, "proj_out") else 16
    kind = torch.randn(width, generator=torch.Generator().manual_seed(2))

    def answer(value):
        group = TokenGroup("target", x, timestep=t, type_embedding=value)
        return forward_groups(adapter, [group], **condition)["target"]

    with torch.no_grad():
        plain = adapter(x, t, **condition).sample
        assert torch.equal(answer(kind * 0), plain)
        assert not torch.allclose(answer(kind), plain, atol=1e-4)
        assert torch.equal(answer(kind), answer(kind.expand(2, -1)))
        assert torch.equal(adapter(x, t, **condition).sample, plain)

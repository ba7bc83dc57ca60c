"""Reference attention: what the bank is equal to, on every kind of network."""

from __future__ import annotations

import pytest
import torch
from diffusers import PixArtTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel

from polydit.core.attention.masks import group_mask
from polydit.core.backbones.pretrained import adapt_transformer
from polydit.core.conditioning import KeyValueBank, ReferenceDiT, swap_halves
from polydit.core.conditioning.key_value_bank import reference_attentions


def tiny_unet():
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=12,
    ).eval()


def tiny_pixart():
    torch.manual_seed(0)
    return adapt_transformer(
        PixArtTransformer2DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            in_channels=4,
            out_channels=4,
            num_layers=2,
            cross_attention_dim=16,
            caption_channels=12,
            sample_size=8,
            norm_num_groups=4,
        )
    ).eval()


@pytest.fixture(params=["dit", "unet", "pixart"])
def network(request, make_dit):
    """A network and its call on latents (B, C, 8, 8)."""
    text = torch.randn(1, 3, 12, generator=torch.Generator().manual_seed(5))
    if request.param == "dit":
        model = make_dit(in_channels=4, position="rope")
        return model, lambda x: model(x, torch.full((len(x),), 3.0)).sample
    model = tiny_unet() if request.param == "unet" else tiny_pixart()
    return (
        model,
        lambda x: (
            model(x, torch.full((len(x),), 3), encoder_hidden_states=text.expand(len(x), -1, -1)).sample
        ),
    )


def test_an_empty_bank_is_the_plain_network_bit_for_bit(network, noise):
    model, call = network
    x, bank = noise(2, 4, 8, 8), KeyValueBank(model)
    with torch.no_grad():
        plain = call(x)
        with bank.reading():
            assert torch.equal(call(x), plain)
        with bank.writing():
            assert torch.equal(call(x), plain), "writing changes nothing either"
        assert len(bank) > 0
        with bank.reading():  # the same keys twice have the same weights
            torch.testing.assert_close(call(x), plain, rtol=0, atol=1e-5)
        bank.clear()
        with bank.writing():
            call(noise(2, 4, 8, 8, seed=1))
        with bank.reading():
            assert (call(x) - plain).abs().max() > 1e-3
        assert torch.equal(call(x), plain), "outside, the network is its own"
        bank.clear()
        assert len(bank) == 0
        with bank.reading():
            assert torch.equal(call(x), plain)


def test_the_query_of_a_joint_sequence_is_what_reading_gives(make_dit, noise):
    """[query; support] in one sequence, in which supports do not look at the query."""
    model = make_dit(dtype=torch.float64, depth=1)
    query, support = noise(2, 16, 24, dtype=torch.float64), noise(2, 16, 24, seed=1, dtype=torch.float64)
    attention = model.blocks[0].attn
    bank = KeyValueBank(model)
    with bank.writing():
        alone = attention(support)
    with bank.reading():
        seen = attention(query)
    mask = group_mask([16, 16], torch.tensor([[True, True], [False, True]]))
    joint = attention(torch.cat([query, support], dim=1), mask=mask)
    torch.testing.assert_close(torch.cat([seen, alone], dim=1), joint, rtol=0, atol=1e-12)


def test_shots_are_one_sequence_whose_order_does_not_matter(network, noise):
    model, call = network
    query, supports, bank = noise(2, 4, 8, 8), noise(6, 4, 8, 8, seed=1), KeyValueBank(model)

    def ask(*pictures, shots):
        bank.clear()
        with torch.no_grad():
            for part in pictures:
                with bank.writing(shots):
                    call(part)
            with bank.reading():
                return call(query)

    together = ask(supports, shots=3)
    one_by_one = ask(supports[0::3], supports[1::3], supports[2::3], shots=1)
    shuffled = ask(supports.unflatten(0, (2, 3))[:, [2, 0, 1]].flatten(0, 1), shots=3)
    torch.testing.assert_close(one_by_one, together, rtol=0, atol=2e-5)
    torch.testing.assert_close(shuffled, together, rtol=0, atol=2e-5)
    twice = ask(supports.unflatten(0, (2, 3))[:, [0, 0, 1, 2]].flatten(0, 1), shots=4)
    assert (twice - together).abs().max() > 1e-4, "a support shown twice has twice the weight"
    assert (ask(supports[0::3], shots=1) - together).abs().max() > 1e-4


def test_one_set_of_references_serves_a_whole_batch(network, noise):
    model, call = network
    query, support, bank = noise(3, 4, 8, 8), noise(1, 4, 8, 8, seed=1), KeyValueBank(model)
    with torch.no_grad():
        with bank.writing():
            call(support)
        with bank.reading():
            batch = call(query)
            one = call(query[1:2])
    torch.testing.assert_close(batch[1:2], one, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="2 references is not 3 for each picture"), bank.writing(3):
        call(query[:2])
    bank.clear()
    with torch.no_grad(), bank.writing():
        call(query[:2])
    with pytest.raises(ValueError, match="for 2 pictures, and the batch has 3"), bank.reading():
        call(query)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_the_references(network, noise, checkpointing):
    model, call = network
    inner = getattr(model, "transformer", model)
    if checkpointing:
        inner.train()
        inner.enable_gradient_checkpointing()
    support, bank = noise(4, 4, 8, 8, seed=1).requires_grad_(), KeyValueBank(model)
    with bank.writing(2):
        call(support)
    with bank.reading():
        out = call(noise(2, 4, 8, 8))
    bank.clear()  # the graph keeps what it needs
    out.square().sum().backward()
    found = support.grad.clone()
    assert found.abs().amin(dim=(0, 2, 3)).max() > 0
    inner.eval()
    inner.disable_gradient_checkpointing()
    support.grad = None
    with bank.writing(2):
        call(support)
    with bank.reading():
        call(noise(2, 4, 8, 8)).square().sum().backward()
    torch.testing.assert_close(found, support.grad, rtol=1e-4, atol=1e-6)


def test_halves_that_swap_see_each_other_and_not_themselves(make_dit, noise):
    model = make_dit(dtype=torch.float64, depth=1)
    x = noise(4, 16, 24, dtype=torch.float64)
    attention = model.blocks[0].attn
    query, key, value = attention.project(x)
    expected = attention.proj(attention.attend(query, key[[2, 3, 0, 1]], value[[2, 3, 0, 1]]))
    with KeyValueBank(model).swapping():
        torch.testing.assert_close(attention(x), expected, rtol=0, atol=0)
    assert torch.equal(attention(x, key_value_hook=swap_halves), expected)


def test_some_layers_only(make_dit, noise):
    model = make_dit()
    bank = KeyValueBank(model, layers=[2])
    x = noise(1, 3, 8, 8)
    with torch.no_grad():
        with bank.writing():
            model(noise(1, 3, 8, 8, seed=1), torch.ones(1))
        inputs = []
        model.blocks[2].register_forward_pre_hook(lambda module, args: inputs.append(args[0].clone()))
        plain = model(x, torch.ones(1)).sample
        with bank.reading():
            seen = model(x, torch.ones(1)).sample
    assert torch.equal(*inputs), "nothing before that layer changes"
    assert not torch.allclose(seen, plain)


def test_networks_without_such_attention_are_refused(make_dit):
    assert len(reference_attentions(make_dit(depth=4, window_size=2, global_every=2))) == 2
    with pytest.raises(ValueError, match="no self-attention over the whole picture"):
        KeyValueBank(make_dit(window_size=2))
    with pytest.raises(ValueError, match="no self-attention"):
        KeyValueBank(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="layer 3: the network has 3 attentions"):
        KeyValueBank(make_dit(), layers=[3])
    joint = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=8,
        out_channels=4,
        pos_embed_max_size=8,
    )
    with pytest.raises(ValueError, match="forward_groups"):
        KeyValueBank(adapt_transformer(joint))


def test_references_enter_by_an_embedding_of_their_own(make_dit, noise):
    torch.manual_seed(0)
    model = ReferenceDiT(
        reference_channels=6, input_size=8, patch_size=2, in_channels=3, hidden_size=24, depth=2, num_heads=2
    )
    picture = noise(2, 3, 8, 8)
    same = torch.cat([picture, picture], dim=1)
    torch.testing.assert_close(model.embed_tokens(same), model.embed_tokens(picture))
    model.reference_offset.data.fill_(1.0)
    torch.testing.assert_close(model.embed_tokens(same), model.embed_tokens(picture) + 1)
    added = 24 * 6 * 4 + 24 + 24
    plain = sum(p.numel() for p in make_dit(depth=2).parameters())
    assert sum(p.numel() for p in model.parameters()) == plain + added
    with pytest.raises(ValueError, match="must differ"):
        ReferenceDiT(reference_channels=4, in_channels=4, input_size=8)
    with pytest.raises(ValueError, match="no multiple"):
        ReferenceDiT(reference_channels=5, in_channels=4, input_size=8)

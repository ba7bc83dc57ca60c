"""Re-ttention and AdaSpa: reference vectors, the sheet's identities, and runs on the native DiT and diffusers'."""

from __future__ import annotations

import pytest
import torch
from diffusers import SD3Transformer2DModel
from safetensors.torch import load_file
from torch import nn

from polydit.core.acceleration import AdaSpa, Rettention, accelerate
from polydit.core.acceleration.adaspa import choose_blocks, head_sparsity, recall
from polydit.core.acceleration.rettention import repaired_attention, softmax_ratio
from polydit.core.attention import band_mask
from polydit.core.attention.sparse import attend_with_lse, block_mass, expand_blocks, row_lse
from polydit.core.diffusion import Guidance, Parameterization, TimeConvention, ddim
from polydit.core.errors import PolyditError

STEPS = 12


def error(value, reference):
    return float((value - reference).norm() / reference.norm())


@pytest.fixture
def scene(make_dit):
    """256 tokens that look mostly at their neighbours, as trained models do; a run over even steps."""

    def build(steps=STEPS, **options):
        model = make_dit(depth=3, input_size=32, std=0.12, **options)
        labels = torch.tensor([0, 3])
        flow = Parameterization(time=TimeConvention(scale=10.0))
        coarse = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        noise = nn.functional.interpolate(coarse, (32, 32), mode="bilinear")

        @torch.no_grad()
        def run():
            times = [1 - i / steps for i in range(steps + 1)]
            return ddim(lambda x, t: model(x, t, labels).sample, noise, flow, times)

        return model, run

    return build


def test_released_functions(golden):
    data = load_file(golden / "re_ttention" / "functions.safetensors")
    query, key, value = (data[f"fn.{name}"][None] for name in "qkv")
    mask = band_mask(20, int(20 * 0.4) // 2)
    assert torch.equal(mask, data["fn.mask"].bool())
    assert torch.equal(Rettention(0.25).mask(36), data["pixart.mask"].bool())
    full, full_lse = attend_with_lse(query, key, value)
    _, sparse_lse = attend_with_lse(query, key, value, mask)
    ratio = softmax_ratio(full_lse, sparse_lse)
    tolerance = {"atol": 2e-5, "rtol": 1e-4}
    torch.testing.assert_close(full[0], data["fn.full_out"], **tolerance)
    torch.testing.assert_close(ratio[0, ..., None], data["fn.ratio"], **tolerance)
    later = (data[f"fn.{name}2"][None] for name in "qkv")
    masked, _ = attend_with_lse(*later, mask)
    torch.testing.assert_close(masked[0], data["fn.masked_out"], **tolerance)
    torch.testing.assert_close(repaired_attention(masked, ratio)[0], data["fn.ratio_out"], **tolerance)


def test_repaired_rows_are_those_of_the_full_softmax():
    generator = torch.Generator().manual_seed(0)
    query, key = (torch.randn(1, 2, 30, 8, generator=generator) for _ in range(2))
    ones = torch.ones(1, 2, 30, 1)
    mask = band_mask(30, 3)
    masked, lse = attend_with_lse(query, key, ones, mask)
    ratio = softmax_ratio(row_lse(query, key), lse)
    kept = ((query @ key.mT * 8**-0.5).softmax(-1) * mask).sum(-1)
    torch.testing.assert_close(repaired_attention(masked, ratio)[..., 0], kept)


def test_published_steps():
    def full(policy, total):
        site = policy.site("x", nn.Identity())
        return [step for step in range(total) if policy.computes(_moment(step, total), site)]

    assert len(full(Rettention(warmup=5, interval=5), 20)) == 8
    assert len(full(Rettention(warmup=15, interval=5), 50)) == 22
    assert len(full(Rettention(warmup=10, interval=5), 50)) == 18


def _moment(step, total):
    from polydit.core.acceleration.clock import Moment

    return Moment(step, total, 0, step == 0)


def test_a_band_over_all_is_dense(scene):
    model, run = scene()
    plain = run()
    with accelerate(model, Rettention(sparsity=2.0, warmup=2, interval=4, raise_by=0.0)) as handle:
        torch.testing.assert_close(run(), plain, atol=1e-4, rtol=1e-4)
        assert handle.report().plan.full_steps == [0, 1, 2, 4, 8]
    assert torch.equal(run(), plain)


def test_full_steps_are_exact_and_repair_helps(scene, monkeypatch):
    model, run = scene()
    plain = run()
    with accelerate(model, Rettention(sparsity=1 / 16, warmup=2, interval=1)):
        assert torch.equal(run(), plain)
    policy = {"sparsity": 1 / 16, "warmup": 2, "interval": 4, "raise_by": 0.0}
    with accelerate(model, Rettention(**policy)) as handle:
        first = run()
        assert torch.equal(run(), first)
        repaired = error(first, plain)
        assert handle.report().bytes == 0 or handle.report().plan.reused > 0
    from polydit.core.acceleration.rettention import _BandSite

    product = _BandSite.product

    def without_rest(self, query, key, value, scale, fused):
        if not self.compute:
            self.missed[self._branch] = torch.zeros_like(self.missed[self._branch])
        return product(self, query, key, value, scale, fused)

    def plain_mask(self, query, key, value, scale, fused):
        return fused() if self.compute else self.attend(query, key, value, scale)[0]

    errors = []
    for other in (without_rest, plain_mask):
        monkeypatch.setattr(_BandSite, "product", other)
        with accelerate(model, Rettention(**policy)):
            errors.append(error(run(), plain))
    assert repaired < 0.5 * min(errors)


def test_video_and_text_masks():
    policy = Rettention(0.5, frame_tokens=8, text_tokens=3)
    mask = policy.mask(3 + 3 * 8)
    assert mask[:3].all()
    assert mask[:, :3].all()
    frame = band_mask(8, 2)
    for i in range(3):
        for j in range(3):
            assert torch.equal(mask[3 + 8 * i : 11 + 8 * i, 3 + 8 * j : 11 + 8 * j], frame)
    with pytest.raises(PolyditError, match="no whole frames"):
        policy.mask(3 + 20)


def test_chosen_blocks():
    generator = torch.Generator().manual_seed(0)
    mass = torch.rand(1, 4, 10, 10, generator=generator)
    everything = choose_blocks(mass, 0.0)
    assert everything.all()
    assert torch.equal(recall(mass, everything), torch.ones(1, 4))
    before = torch.zeros(1, 4)
    for sparsity in (0.9, 0.5, 0.2):
        blocks = choose_blocks(mass, sparsity)
        assert (blocks.sum(-1) == round(10 * (1 - sparsity))).all()
        now = recall(mass, blocks)
        assert (now > before).all()
        before = now
    text = torch.zeros(10, 10, dtype=torch.bool)
    text[:2] = True
    text[:, :2] = True
    assert (choose_blocks(mass, 0.8, text) & text).sum() == 4 * text.sum()


def test_heads_differ_and_the_mean_stays():
    recalls = torch.tensor([[0.95, 0.5, 0.85, 0.3, 0.81, 0.2], [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]])
    found = head_sparsity(recalls, 0.8)
    torch.testing.assert_close(found.mean(-1), torch.tensor([0.8, 0.8]))
    torch.testing.assert_close(found[0], torch.tensor([0.9, 0.7, 0.9, 0.7, 0.9, 0.7]))
    assert (found[1] == 0.8).all()  # no head is good enough to give
    with pytest.raises(PolyditError, match="from a third"):
        head_sparsity(recalls, 0.2)


def test_adaspa_runs(scene):
    model, run = scene()
    plain = run()
    with accelerate(model, AdaSpa(0.0, searches=(2,), block=16)):
        torch.testing.assert_close(run(), plain, atol=1e-4, rtol=1e-4)
    with accelerate(model, AdaSpa(0.5, searches=(2, 6), block=16)) as handle:
        first = run()
        assert torch.equal(run(), first)
        assert handle.report().plan.full_steps == [0, 1, 2]
    assert 0 < error(first, plain) < 0.05
    assert torch.equal(run(), plain)


def test_a_search_beats_a_fixed_window():
    """Two frames whose tokens look at themselves and at the same place of the other frame."""
    generator = torch.Generator().manual_seed(0)
    place = 10 * nn.functional.normalize(torch.randn(1, 2, 64, 8, generator=generator), dim=-1)
    query, key = (
        place.repeat(1, 1, 2, 1) + 0.3 * torch.randn(1, 2, 128, 8, generator=generator) for _ in "qk"
    )
    value = torch.randn(1, 2, 128, 8, generator=generator)
    full, lse = attend_with_lse(query, key, value)
    blocks = choose_blocks(block_mass(query, key, lse, 16), 0.75)
    searched, _ = attend_with_lse(query, key, value, expand_blocks(blocks, 128, 128, 16))
    window = band_mask(8, 0).repeat_interleave(16, 0).repeat_interleave(16, 1)
    window = window | torch.roll(window, 16, 1)  # as many blocks: the own one and its neighbour
    fixed, _ = attend_with_lse(query, key, value, window)
    assert error(searched, full) < 0.3 * error(fixed, full)


@pytest.mark.parametrize(
    "policy",
    [Rettention(0.5, 2, 4, text_tokens=5, text_first=False), AdaSpa(0.5, (2,), 8, text_tokens=5, text_first=False)],
    ids=str,
)  # fmt: skip
def test_joint_attention(policy):
    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=16,
        num_attention_heads=2, joint_attention_dim=8, caption_projection_dim=32, pooled_projection_dim=8,
        pos_embed_max_size=8,
    ).eval()  # fmt: skip
    noise, text, pooled = torch.randn(1, 4, 8, 8), torch.randn(1, 5, 8), torch.randn(1, 8)
    flow = Parameterization(time=TimeConvention(scale=10.0))

    @torch.no_grad()
    def run():
        times = [1 - i / 8 for i in range(9)]
        return ddim(lambda x, t: model(x, text, pooled, t).sample, noise, flow, times)

    plain = run()
    with accelerate(model, policy) as handle:
        sparse = run()
        assert 0 < handle.report().plan.reused < 1
    assert 0 < error(sparse, plain) < 0.2
    assert torch.equal(run(), plain)


@pytest.mark.parametrize("policy", [Rettention(0.25, warmup=3, interval=6), AdaSpa(0.5, (2,), 4)], ids=str)
def test_guidance_that_begins_in_the_middle_of_a_run(make_dit, policy):
    model = make_dit()
    flow, guidance = (
        Parameterization(time=TimeConvention(scale=10.0)),
        Guidance(scale=2.0, interval=(0.2, 0.6)),
    )
    labels, null = torch.tensor([0, 3]), torch.full((2,), 5)

    @torch.no_grad()
    def sampled():
        noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(3))
        denoise = guidance.separate(
            lambda x, t: model(x, t, labels).sample, lambda x, t: model(x, t, null).sample, flow.time
        )
        return ddim(denoise, noise, flow, [1 - i / 20 for i in range(21)])

    plain = sampled()
    with accelerate(model, policy):
        assert 0 < error(sampled(), plain) < 0.3


def test_what_is_refused(make_dit, run):
    for make, said in [
        (lambda: Rettention(0.0), "sparsity 0"),
        (lambda: Rettention(interval=0), "interval 0"),
        (lambda: AdaSpa(1.0), "sparsity 1"),
        (lambda: AdaSpa(0.2), "at least a third"),
        (lambda: AdaSpa(searches=()), "searches"),
    ]:
        with pytest.raises(PolyditError, match=said):
            make()
    windowed = make_dit(window_size=3)
    with accelerate(windowed, Rettention()), pytest.raises(PolyditError, match="mask of its own"):
        run(windowed)

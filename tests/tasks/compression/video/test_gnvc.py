"""GNVC-VD on tiny networks: identities of the flow, exactness of the loop, counts, training, files."""

import contextlib
import io

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLWan, WanTransformer3DModel, WanVACETransformer3DModel

from polydit.core.autoencoders import as_autoencoder
from polydit.core.backbones import DiT
from polydit.core.backbones.pretrained import adapt_transformer
from polydit.core.cli import main
from polydit.core.data.video import VideoReader
from polydit.core.entropy import UNIT
from polydit.core.errors import PolyditError
from polydit.tasks.compression.video.gnvc.adapter import ContextAdapter
from polydit.tasks.compression.video.gnvc.coding import ContextualCoder
from polydit.tasks.compression.video.gnvc.contextual import ContextualCodec, Loop, two_pass_masks
from polydit.tasks.compression.video.gnvc.model import GNVCVD, GenerativeVideoCompression
from polydit.tasks.compression.video.gnvc.pipeline import GNVCPipeline
from polydit.tasks.compression.video.gnvc.refinement import (
    FLOW,
    denoiser,
    fixed_noise,
    path_point,
    refine_latents,
    true_velocity,
)
from polydit.tasks.compression.video.groups import Group

from .conftest import drift, write_clip

WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 12,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 4,
    "rope_max_seq_len": 32,
}


def latents(*size, seed=0, dtype=torch.float32):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture(scope="module")
def codec():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ContextualCodec(latent_channels=4, width=12, channels=8, recon_width=12).count().eval()


@pytest.fixture(scope="module")
def coder(codec):
    return ContextualCoder(codec)


@pytest.fixture(scope="module")
def wan():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return adapt_transformer(WanTransformer3DModel(**WAN).eval())


@pytest.fixture(scope="module")
def vae():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return AutoencoderKLWan(
            base_dim=8, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4, latents_std=[1.0] * 4,
        ).eval()  # fmt: skip


def adapter_for(depth=4, prompt=3):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return ContextAdapter(12, 24, depth, width=8, prompt_tokens=prompt, prompt_width=12)


# -- the flow ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 5, 13])
def test_the_true_velocity_ends_at_the_clean_latents(steps):
    clean, coded, noise = (latents(2, 4, 3, 4, 4, seed=s, dtype=torch.float64) for s in range(3))
    velocity = true_velocity(clean, coded, noise)
    found = refine_latents(lambda x, t: velocity, coded, noise, steps=steps)
    assert torch.allclose(found, clean, atol=1e-12)


def test_without_the_correction_seventy_percent_of_the_error_stay():
    clean, coded, noise = (latents(2, 4, 3, 4, 4, seed=s, dtype=torch.float64) for s in range(3))
    found = refine_latents(lambda x, t: noise - clean, coded, noise)
    assert torch.allclose(found - clean, 0.7 * (coded - clean), atol=1e-12)
    # And without an error there is nothing to correct.
    assert torch.equal(true_velocity(clean, clean, noise), noise - clean)


def test_the_path_is_what_the_velocity_says():
    clean, coded, noise = (latents(3, 2, 2, 2, 2, seed=s, dtype=torch.float64) for s in range(3))
    t = torch.tensor([0.0, 0.1, 0.3], dtype=torch.float64)
    point = path_point(clean, coded, noise, t)
    assert torch.equal(point[0], clean[0])
    assert torch.allclose(point[2], 0.7 * coded[2] + 0.3 * noise[2])
    assert torch.allclose(
        point, clean + t.view(-1, 1, 1, 1, 1) * true_velocity(clean, coded, noise), atol=1e-12
    )
    assert torch.allclose(FLOW.x0(true_velocity(clean, coded, noise), point, t), clean, atol=1e-12)


def test_both_conventions_of_time_agree_on_gaussian_data():
    """The paper has x_t = t data + (1 - t) noise and velocity data - noise; ours runs the other way."""
    mean, deviation = 0.7, 0.5
    asked = []

    def ours(x, timestep):
        asked.append(float(timestep[0]))
        t = timestep.double().view(-1, 1, 1, 1, 1) / 1000
        variance = (1 - t) ** 2 * deviation**2 + t**2
        rest = x - (1 - t) * mean
        return (t * rest - (1 - t) * deviation**2 * rest) / variance - mean

    coded, noise = (latents(1, 1, 2, 4, 4, seed=s, dtype=torch.float64) for s in range(2))
    x, time = 0.7 * coded + 0.3 * noise, 0.7
    for _ in range(5):
        theirs = -ours(x, torch.tensor([1000 * (1 - time)], dtype=torch.float64))
        x, time = x + theirs * 0.06, time + 0.06
    asked.clear()
    assert torch.allclose(refine_latents(ours, coded, noise), x, atol=1e-12)
    assert np.allclose(asked, [300, 240, 180, 120, 60])


def test_the_noise_is_the_formats_own():
    noise = fixed_noise((2, 3, 50, 50), 7)
    assert torch.equal(noise, fixed_noise((2, 3, 50, 50), 7))
    assert not torch.equal(noise, fixed_noise((2, 3, 50, 50), 8))
    assert abs(float(noise.mean())) < 0.03
    assert abs(float(noise.std()) - 1) < 0.02
    # These numbers are in the format: a library that changes them breaks old files.
    assert np.allclose(fixed_noise((3,), 0).numpy(), GOLDEN_NOISE, atol=1e-6)


GOLDEN_NOISE = [0.15853384, 2.98287940, -1.92569196]


# -- the contextual codec ----------------------------------------------------------------------------------


def test_two_passes_cover_every_place_once():
    masks = two_pass_masks(6, 5, 7)
    assert (masks.sum(0) == 1).all()
    assert masks[0, 0, 0, 0, 0]
    assert not masks[0, 0, 3, 0, 0]
    assert abs(int(masks[0].sum()) - int(masks[1].sum())) <= 3


def test_what_is_decoded_is_what_the_encoder_had(coder):
    clip = latents(1, 4, 5, 16, 24)
    group, sent, sent_features = coder.encode(clip, 5)
    found, features = coder.decode(group, 5, (16, 24), 5)
    assert torch.equal(found, sent)
    assert torch.equal(features, sent_features)


def test_exact_arithmetic_is_near_the_networks(codec, coder):
    clip = latents(1, 4, 4, 16, 24)
    with torch.no_grad():
        plain = codec(clip, 9)
    _, found, features = coder.encode(clip, 9)
    # A symbol that is rounded the other way here and there shows in the largest difference, not in the mean.
    assert (found - plain.latents).abs().mean() < 2e-3
    assert (features - plain.features).abs().mean() < 2e-3


def test_the_file_is_as_long_as_the_estimate(codec, coder):
    """On latents whose priors fit: deviations above the least of the ladder."""
    broad = ContextualCodec(4, 12, 8, 12)
    broad.load_state_dict(codec.state_dict())
    with torch.no_grad():
        for part in (broad.first, broad.next):
            last = part.loop.fusion[2].ffn[2]
            last.bias[8:16] += 3.0  # scales
            part.loop.spatial_prior[2].bias[:8] += 3.0
    clip = latents(1, 4, 4, 32, 32)
    with torch.no_grad():
        estimate = float(broad.eval()(clip, 0).bits.sum())
    group, _, _ = ContextualCoder(broad).encode(clip, 0)
    assert abs(8 * len(group.data) - estimate) < 0.03 * estimate + 64


def test_later_frames_change_nothing_before_them(coder):
    clip = latents(1, 4, 4, 16, 16)
    other = clip.clone()
    other[:, :, 3] += 1
    _, one, _ = coder.encode(clip, 3)
    _, two, _ = coder.encode(other, 3)
    assert torch.equal(one[:, :, :3], two[:, :, :3])
    assert not torch.equal(one[:, :, 3], two[:, :, 3])


def test_gains_and_hierarchy_reach_the_quality(codec, coder):
    assert [codec.part_of(n, 10)[1] for n in range(5)] == [10, 18, 14, 10, 18]
    assert codec.part_of(0, 10)[0] is codec.first
    other = ContextualCodec(4, 12, 8, 12)
    other.load_state_dict(codec.state_dict())
    with torch.no_grad():
        other.first.q_encoder[40] *= 4
    clip = latents(1, 4, 1, 16, 16)
    with torch.no_grad():
        few, many = (float(other.eval()(clip, quality).bits.sum()) for quality in (0, 40))
    assert many > few
    assert all((value == 1).all() for value in codec.next.loop.gains.values())


def test_whole_numbers_come_out_of_the_exact_loop(codec):
    exact: Loop = codec.next.loop.exact_copy()
    side = torch.randint(-3, 4, (1, 8, 2, 2)).double() * UNIT
    feature = torch.round(latents(1, 12, 16, 16).double() * UNIT)
    near, _ = exact.context(feature, False, 0)
    told = exact.prior(side, near)
    assert torch.equal(told, told.round())
    assert torch.equal(exact.prior(side, near), told)


def test_damage_and_other_symbols_are_refused(coder):
    group, _, _ = coder.encode(latents(1, 4, 3, 16, 16), 5)
    wrong = bytearray(group.data)
    wrong[len(wrong) // 2] ^= 255
    with pytest.raises(PolyditError, match=r"x\.pdc: "):
        coder.decode(Group(bytes(wrong), group.symbols), 3, (16, 16), 5, "x.pdc")


def test_a_codec_without_counts_is_refused():
    with pytest.raises(PolyditError, match="counts of its side information are missing"):
        ContextualCoder(ContextualCodec(4, 12, 8, 12))


# -- the adapter -------------------------------------------------------------------------------------------


def test_a_fresh_adapter_changes_nothing(wan):
    features, x, t = latents(1, 12, 3, 8, 8), latents(1, 4, 3, 8, 8), torch.tensor([200.0])
    adapter = adapter_for()
    with torch.no_grad():
        plain = wan(x, t, encoder_hidden_states=adapter.prompt).sample
        assert torch.equal(denoiser(wan, adapter, features)(x, t), plain)
        for layer in adapter.outputs:
            torch.nn.init.normal_(layer.weight)
        changed = denoiser(wan, adapter, features)(x, t)
        assert not torch.allclose(changed, plain)
        assert not torch.allclose(denoiser(wan, adapter, features + 1)(x, t), changed)


def test_it_serves_the_native_dit_and_vace():
    features, x, t = latents(1, 12, 3, 8, 8), latents(1, 4, 3, 8, 8), torch.tensor([200.0])
    torch.manual_seed(0)
    dit = DiT((3, 8, 8), (1, 2, 2), 4, hidden_size=24, depth=4, num_heads=2).eval()
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
        adapter = adapter_for(prompt=0)
        plain = dit(x, t).sample
        assert torch.equal(denoiser(dit, adapter, features)(x, t), plain)
        torch.nn.init.normal_(adapter.outputs[1].weight)
        assert not torch.allclose(denoiser(dit, adapter, features)(x, t), plain)
        vace = WanVACETransformer3DModel(**WAN, vace_layers=[0, 2], vace_in_channels=12).eval()
        torch.nn.init.normal_(vace.vace_blocks[0].proj_out.weight)
        answer = denoiser(vace, None, features)(x, t)
        assert answer.shape == x.shape
        assert not torch.allclose(denoiser(vace, None, features + 1)(x, t), answer)


def test_counts_of_the_published_sizes():
    """Wan 2.1 1.3B, its autoencoder, VACE's 15 blocks."""
    with torch.device("meta"):
        size = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30}
        wan = WanTransformer3DModel(**size, qk_norm="rms_norm_across_heads", cross_attn_norm=True)
        vace = WanVACETransformer3DModel(
            **size, qk_norm="rms_norm_across_heads", cross_attn_norm=True, vace_layers=list(range(0, 30, 2))
        )
        vae = AutoencoderKLWan()
        adapter, codec = ContextAdapter(), ContextualCodec()

    def count(model):
        return sum(p.numel() for p in model.parameters())

    assert count(wan) == 1_418_996_800
    assert count(vae) == 126_892_531
    assert count(vace.vace_blocks) == 734_383_872
    assert adapter.layers == list(range(0, 30, 2))
    assert count(adapter) == 262_400 + 15 * (256 * 1536 + 1536)
    assert codec.next.loop.adaptor_features.weight.shape[:2] == (256, 256)


# -- training ----------------------------------------------------------------------------------------------


class Identity(torch.nn.Module):
    """An autoencoder that is none: pixels are latents."""

    spatial_factor, temporal_factor = 1, 1

    def encode(self, pixels):
        return pixels

    def decode(self, values):
        return values


@pytest.mark.parametrize("stage", ["latent", "pixel"])
def test_a_stage_trains_codec_and_adapter_and_leaves_the_transformer(stage):
    torch.manual_seed(0)
    dit = DiT((3, 16, 16), (1, 2, 2), 3, hidden_size=24, depth=2, num_heads=2)
    with torch.no_grad():
        for parameter in dit.parameters():  # a fresh one answers zero, whatever it is told
            parameter.add_(0.1 * torch.randn_like(parameter))
    model = GNVCVD(ContextualCodec(3, 12, 8, 12), dit, ContextAdapter(12, 24, 2, width=8))
    task = GenerativeVideoCompression(model, autoencoder=Identity(), stage=stage, quality=3, steps=2)
    frames = torch.from_numpy(drift(3, 16, 16)[None]).permute(0, 1, 4, 2, 3)
    terms, output = task.losses({"frames": frames})
    output.loss.backward()
    assert {"rate", "refined"} <= set(terms)
    assert ("flow" in terms) == (stage == "latent")
    assert ("video" in terms) == (stage == "pixel")
    assert all(p.grad is None for p in dit.parameters())
    assert model.codec.next.enter.weight.grad.abs().sum() > 0
    assert model.adapter.outputs[0].weight.grad.abs().sum() > 0


@pytest.mark.slow
def test_a_trained_adapter_beats_what_the_flow_alone_leaves():
    """The transformer knows clean clips, the features show what coding did: less than 0.7 of the error must stay."""
    torch.manual_seed(0)
    dit = DiT((3, 8, 8), (1, 2, 2), 2, hidden_size=36, depth=2, num_heads=2)

    def draw(count, seed):
        generator = torch.Generator().manual_seed(seed)
        phase = torch.rand(count, 1, 1, 1, 1, generator=generator) * 6.28
        y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
        time = torch.arange(3.0).view(1, 1, 3, 1, 1)
        clean = torch.cat(
            [torch.sin(x * 0.8 + time * 0.5 + phase), torch.cos(y * 0.7 - time * 0.4 + phase)], 1
        )
        error = torch.randn(clean.shape, generator=generator) * 0.5
        return clean, clean + error, torch.randn(clean.shape, generator=generator)

    optimizer = torch.optim.Adam(dit.parameters(), 3e-3)
    for step in range(300):
        clean, _, noise = draw(16, step)
        t = torch.rand(16) * 0.5
        point = path_point(clean, clean, noise, t, 1.0)
        loss = (dit(point, 1000 * t).sample - (noise - clean)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    adapter = ContextAdapter(2, 36, 2, layers=[0, 1], width=32)

    def left():
        clean, coded, noise = draw(64, 9999)
        with torch.no_grad():
            found = refine_latents(denoiser(dit, adapter, coded), coded, noise)
        return float((found - clean).square().mean() / (coded - clean).square().mean()) ** 0.5

    before = left()
    optimizer = torch.optim.Adam(adapter.parameters(), 3e-3)
    for step in range(300):
        clean, coded, noise = draw(16, 500 + step)
        t = torch.rand(16) * 0.3
        velocity = denoiser(dit, adapter, coded)(path_point(clean, coded, noise, t), 1000 * t)
        loss = (velocity - true_velocity(clean, coded, noise)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert left() < 0.7
    assert left() < before


# -- the pipeline and files --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe(wan, codec, vae):
    return GNVCPipeline(wan, codec, vae, adapter_for(), steps=2)


def test_a_group_of_frames_goes_through(pipe):
    frames = drift(6, 48, 56)
    output = pipe(frames, quality=20, group=5, fidelity=0.0)
    assert output.frames.shape == frames.shape
    assert len(output.groups) == 2
    assert output.bits_per_pixel > 0
    size = (48, 56)
    plain, half, full = (pipe.decode(output.groups[0], 5, size, 20, f) for f in (1.0, 0.5, 0.0))
    assert np.array_equal(full, output.frames[:5])
    assert not np.array_equal(plain, full)
    assert not np.array_equal(half, full)
    with pytest.raises(PolyditError, match="--fidelity 2: give a number from 0"):
        pipe.decode(output.groups[0], 5, size, 20, 2.0)


def test_plain_decoding_is_the_autoencoder_on_coded_latents(pipe):
    frames = drift(5, 64, 64)
    group = pipe.encode(frames, 20)
    clip = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float() / 127.5 - 1
    space = as_autoencoder(pipe.vae)
    with torch.no_grad():
        _, coded, _ = pipe.coder.encode(space.encode(clip).float(), 20)
        pixels = space.decode(coded)[0].clamp(-1, 1)
    wanted = ((pixels + 1) * 127.5).round().byte().permute(1, 2, 3, 0).numpy()
    assert np.array_equal(pipe.decode(group, 5, (64, 64), 20, 1.0), wanted)


def test_published_groups_of_96_frames(pipe):
    groups = [25, 25, 25, 21]
    assert [pipe.latent_frames(count) for count in groups] == [7, 7, 7, 6]
    assert pipe.padded((1080, 1920)) == (1088, 1920)


def test_files_by_the_command(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "weights")
    clip = write_clip(tmp_path / "clip.mp4", drift(6, 32, 40))

    def run(*words):
        said = io.StringIO()
        with contextlib.redirect_stderr(said):
            code = main(["compression", *map(str, words), "--weights", str(tmp_path / "weights")])
        assert code == 0, said.getvalue()

    run("encode", clip, tmp_path / "a.pdc", "--system", "GNVC-VD", "--quality", "3")
    run("decode", tmp_path / "a.pdc", tmp_path / "b.mp4")
    run("decode", tmp_path / "a.pdc", tmp_path / "c.mp4", "--fidelity", "1")
    clips = []
    for name in ("b", "c"):
        with VideoReader(tmp_path / f"{name}.mp4") as reader:
            clips.append(np.stack([f.pixels for f in reader]))
    assert clips[0].shape == (6, 32, 40, 3)
    assert not np.array_equal(*clips)

"""EraserDiT: released weights, its schedule, masks, losses, and windows over time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from clips_of_tests import pipeline_of, scene, tiny_dit
from diffusers import AutoencoderKLLTXVideo, FlowMatchEulerDiscreteScheduler, LTXVideoTransformer3DModel
from safetensors.torch import load_file

from polydit.core.backbones import load_official, save_official
from polydit.core.backbones.pretrained import adapt_transformer, load_transformer
from polydit.core.conditioning import widen_input
from polydit.core.diffusion import Objective
from polydit.core.errors import PolyditError
from polydit.core.load import load
from polydit.core.time_windows import stream_windows
from polydit.tasks.video_inpainting.formulation import Formulation, Known, latent_mask
from polydit.tasks.video_inpainting.losses import focal_weight, hole_psnr_loss
from polydit.tasks.video_inpainting.model import EraserDiT
from polydit.tasks.video_inpainting.pipeline import adain_clip

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "eraserdit"
META = json.loads((GOLDEN / "meta.json").read_text())


@pytest.fixture(scope="module")
def stream():
    return load_file(GOLDEN / "stream.safetensors")


# -- the released system -------------------------------------------------------------------------------------


def test_released_weights_give_the_reference_output():
    weights, vectors = (load_file(GOLDEN / f"{name}.safetensors") for name in ("weights", "vectors"))
    given = {name.removeprefix("in."): value for name, value in vectors.items() if name.startswith("in.")}
    model = load_official("eraserdit", weights, **META["config"])
    with torch.no_grad():
        out = model(
            given["noisy"], given["text"], given["timestep"].float(), given["text_mask"], *given["noisy"].shape[2:],
            META["rope_interpolation_scale"], cond_latents=given["cond_latents"], mask_values=given["mask"],
        ).sample  # fmt: skip
    assert (out - vectors["out"]).abs().max() < META["recommended_atol"]
    back = save_official("eraserdit", model)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name].float()) for name in weights)
    with pytest.raises(PolyditError, match=r"it takes 2 C \+ 1"):
        load_official("eraserdit", weights, **{**META["config"], "in_channels": 8})


def test_published_size():
    with torch.device("meta"):
        backbone = adapt_transformer(LTXVideoTransformer3DModel())
        assert sum(p.numel() for p in backbone.parameters()) == 1_923_385_472
        widen_input(backbone, Formulation().extra_channels(backbone.latent_channels))
    assert backbone.in_channels == 257
    assert sum(p.numel() for p in backbone.parameters()) == 1_923_649_664


def test_the_schedule_of_the_release(stream):
    form = Formulation()
    for steps in (50, 20):
        assert torch.allclose(
            torch.tensor(form.times(steps)[:-1]) * 1000, stream[f"timesteps.{steps}.strength0.8"], atol=1e-3
        )
        whole = Formulation(strength=1.0).times(steps)
        assert torch.allclose(torch.tensor(whole[:-1]), stream[f"sigmas.{steps}"], atol=1e-6)
        assert whole[-1] == 0
    assert form.times(50)[0] == pytest.approx(0.99)


@pytest.mark.parametrize("frames", [1, 9, 17, 121, 122, 233, 300])
def test_streaming_reads_the_frames_of_the_release(stream, frames: int):
    windows = list(stream_windows(range(frames), 121, 9, lambda n: 1 + -(-(n - 1) // 8) * 8))
    fresh = [[w.start + w.known, w.start + len(w.frames) - w.padding] for w in windows]
    expected = stream.get(f"stream_121_9.frames{frames}.ranges")
    assert fresh == (expected.tolist() if expected is not None else [[0, frames]])
    assert all((len(w.frames) - 1) % 8 == 0 for w in windows)


def test_a_mask_in_the_time_of_latents_is_a_union():
    mask = torch.zeros(1, 1, 121, 8, 8)
    mask[:, :, 5, 0, 0] = mask[:, :, 120, 7, 7] = 1
    small = latent_mask(mask, (16, 8, 8), 8)
    assert small.shape == (1, 1, 16, 8, 8)
    assert small.sum() == 2
    assert small[0, 0, 1, 0, 0] == small[0, 0, 15, 7, 7] == 1
    for value in (0.0, 1.0):
        assert (latent_mask(torch.full_like(mask, value), (16, 4, 4), 8) == value).all()
    # Nine frames handed over are two latents that are known.
    mask[:, :, 9:] = 1
    mask[:, :, :9] = 0
    assert latent_mask(mask, (16, 8, 8), 8)[0, 0, :, 0, 0].tolist() == [0.0, 0.0, *[1.0] * 14]


# -- losses and colours --------------------------------------------------------------------------------------


def test_focal_weight_is_one_plus_the_dilated_mask():
    mask = torch.zeros(1, 1, 2, 7, 7)
    mask[0, 0, 0, 3, 3] = 1
    weight = focal_weight(mask)
    assert set(weight.unique().tolist()) == {1.0, 2.0}
    assert (weight[0, 0, 0] == 2).sum() == 5
    assert (weight[0, 0, 1] == 1).all(), "not into other frames"


def test_hole_psnr_loss_is_of_the_hole():
    truth = torch.rand(2, 3, 2, 8, 8)
    hole = torch.zeros(2, 1, 2, 8, 8)
    hole[0, :, :, :4] = 1
    made = truth.clone()
    made[:, :, :, 4:] = 0.0  # outside
    assert hole_psnr_loss(made, truth, hole) == pytest.approx(-4.0, abs=1e-4)
    made[0, :, :, :4] += 0.1
    assert hole_psnr_loss(made, truth, hole) == pytest.approx(np.log10(0.01 + 1e-4), abs=1e-3)


def test_adain_takes_colours_from_outside_of_the_hole():
    torch.manual_seed(0)
    given = 0.5 + 0.05 * torch.randn(1, 3, 3, 16, 16)
    hole = torch.zeros(1, 1, 3, 16, 16)
    hole[..., 4:8, 4:8] = 1
    spoilt = given.clone()
    spoilt[:, :, :, 4:8, 4:8] = 1.0  # what is hidden must not count
    made = adain_clip(given * 0.5 + 0.3, spoilt, hole)
    seen = hole.expand_as(made) == 0
    assert (made - given)[seen].abs().max() < 0.02


# -- the pipeline --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 8, 9, 23])
@pytest.mark.parametrize("windows", ["hand-over", "circular", "averaged"])
def test_every_length_comes_back_and_nothing_outside_changes(pipe, count: int, windows: str):
    given, masks, _ = scene(frames=count, height=33, width=45, pan=0.5)
    made = pipe(given, masks, generator=torch.Generator().manual_seed(0), windows=windows, clip=12)
    assert made.shape == given.shape
    assert (made[~masks] == given[~masks]).all()
    assert (made[masks] != given[masks]).any()


def test_a_network_that_answers_zero_leaves_the_fill(moving):
    given, masks, truth = moving
    made = pipeline_of(tiny_dit(), frames=12)(given, masks)  # a fresh DiT's answer is zero
    assert np.abs(made[masks].astype(int) - truth[masks]).mean() < 6


class Pointwise(torch.nn.Module):
    """Answers from each pixel alone."""

    def __init__(self) -> None:
        super().__init__()
        self.config = type("Config", (), {"patch_size": [1, 4, 4], "in_channels": 7})()
        self.device, self.dtype = torch.device("cpu"), torch.float32
        self.sizes: list[int] = []

    def forward(self, x, timestep):
        self.sizes.append(x.shape[2])
        return type(
            "Out",
            (),
            {"sample": 0.5 * x[:, :3] - x[:, 3:6] * x[:, 6:7] + 0.001 * timestep.view(-1, 1, 1, 1, 1)},
        )()


@pytest.mark.parametrize("windows", ["circular", "averaged"])
def test_windows_at_every_step_equal_the_whole_clip_for_a_pointwise_network(
    windows: str, monkeypatch: pytest.MonkeyPatch
):
    torch.manual_seed(1)
    hole = (torch.rand(1, 1, 19, 8, 8) > 0.5).float()
    known = Known(torch.rand(1, 3, 19, 8, 8), hole, torch.zeros_like(hole))
    network, noise = Pointwise(), torch.randn(1, 3, 64, 8, 8)
    # The ring is longer than the clip: its own frames must get the same noise.
    monkeypatch.setattr(
        "polydit.tasks.video_inpainting.pipeline.randn_tensor", lambda shape, **_: noise[:, :, : shape[2]]
    )

    def run(frames: int, how: str) -> torch.Tensor:
        made = pipeline_of(
            tiny_dit(), fill="black", residual_scale=None, signal_gain=False, frames=frames, known=0
        )
        made.transformer = network
        return made.make(known, 5, windows=how)

    whole = run(64, "hand-over")
    network.sizes.clear()
    cut = run(6, windows)
    assert max(network.sizes) == 6
    assert torch.allclose(whole, cut, atol=1e-5)


def test_large_frames_are_cut_around_the_hole_or_reduced():
    given, masks, _ = scene(frames=4, height=120, width=160, pan=0.0)
    made = pipeline_of(tiny_dit(), max_pixels=3000)
    box = made.region(torch.from_numpy(masks)[None, None])
    assert (box.height, box.width) < (120, 160)
    out = made(given, masks)
    assert (out[~masks] == given[~masks]).all()


# -- on LTX-Video ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ltx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pretrained LTX-Video: transformer and autoencoder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("ltx")
    LTXVideoTransformer3DModel(
        in_channels=8, out_channels=8, num_attention_heads=2, attention_head_dim=12, cross_attention_dim=24,
        num_layers=2, caption_channels=16,
    ).save_pretrained(folder / "transformer")  # fmt: skip
    AutoencoderKLLTXVideo(
        latent_channels=8, block_out_channels=(8, 8, 8, 8), decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1), decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, True, False),
        decoder_spatio_temporal_scaling=(True, True, True, False),
    ).save_pretrained(folder / "vae")  # fmt: skip
    FlowMatchEulerDiscreteScheduler().save_pretrained(folder / "scheduler")
    return folder


def module_on(ltx: Path, **options) -> EraserDiT:
    from polydit.core.autoencoders import DiffusersAutoencoder

    return EraserDiT(
        load_transformer(str(ltx)),
        Objective(),
        DiffusersAutoencoder.from_pretrained(ltx, "vae"),
        Formulation(frames=17, known=9, guidance=1.0),
        negative_prompt="",
        **options,
    )


def test_a_pretrained_transformer_is_widened_and_begins_as_it_was(ltx: Path):
    module = module_on(ltx, focal=(2.0, 1.0))
    plain = load_transformer(str(ltx))
    torch.manual_seed(0)
    batch = {
        "video": torch.rand(1, 3, 9, 64, 64) * 2 - 1, "clean": torch.rand(1, 3, 9, 64, 64) * 2 - 1,
        "mask": (torch.rand(1, 1, 9, 64, 64) > 0.9).float(),
    }  # fmt: skip
    x0 = module.target(batch)
    x_t, t, given = torch.randn_like(x0), torch.tensor([500.0]), module.condition(batch)
    assert given["given"].shape[1] == 9
    own = module.denoise(x_t, t, given)
    text = module.text(["prompt"])
    assert torch.allclose(own, plain(x_t, t, **text).sample, atol=1e-6)
    terms, _ = module.losses(batch)
    terms["objective"].backward()
    gradient = module.backbone.proj_in.weight.grad
    assert gradient[:, 8:].abs().max() > 0, "the new columns learn"
    weight = module.element_weight(batch)
    assert weight.shape == (1, 1, *x0.shape[2:])
    # What has been widened loads as it is.
    assert EraserDiT(
        module.backbone, Objective(), module.autoencoder, module.formulation, negative_prompt=""
    ).backbone is (module.backbone)


def test_clips_through_latents(ltx: Path, tmp_path: Path):
    pipe = module_on(ltx).build_pipeline()
    pipe.save_pretrained(tmp_path / "saved")
    pipe = load(tmp_path / "saved")
    given, masks, _ = scene(frames=20, height=40, width=70)
    made = pipe(given, masks, num_inference_steps=3, generator=torch.Generator().manual_seed(0), adain=True)
    assert made.shape == given.shape
    assert (made[~masks] == given[~masks]).all()
    assert (made[masks] != given[masks]).mean() > 0.5
    ring = pipe(
        given,
        masks,
        num_inference_steps=2,
        generator=torch.Generator().manual_seed(0),
        windows="circular",
        clip=20,
    )
    assert (ring[~masks] == given[~masks]).all()


def test_wrong_channels_are_told():
    with pytest.raises(PolyditError, match="takes 7 channels; with this formulation it takes 8"):
        EraserDiT(tiny_dit(7), formulation=Formulation(fill="propagated", residual_scale=0.2))
    with pytest.raises(PolyditError, match="above 0, and for fill propagated"):
        Formulation(residual_scale=0.2)
    with pytest.raises(PolyditError, match="fewer frames than the 8"):
        Formulation(frames=8, known=8)


# -- what the mechanisms are for ---------------------------------------------------------------------------------


def test_borders_of_windows_show_less_when_they_move():
    """A network that answers by the place in its window leaves steps at fixed borders, and few at moving ones."""
    from polydit.core.diffusion import sample
    from polydit.core.time_windows import CircularShift, from_ring, to_ring

    def biased(x, timestep):
        place = torch.linspace(-1, 1, x.shape[2]).view(1, 1, -1, 1, 1)
        return x - 0.3 - 0.2 * place  # clean data plus what does not belong there

    torch.manual_seed(0)
    noise = to_ring(torch.randn(1, 1, 25, 4, 4))
    jumps = {}
    for shift in (0, 4):
        made = from_ring(
            sample(CircularShift(biased, 12, shift), noise.clone(), Objective(prediction="x0"), 12), 25
        )
        steps = (
            (made[:, :, 1:] - made[:, :, :-1] - (noise[:, :, 1:25] - noise[:, :, :24]))
            .abs()
            .mean((0, 1, 3, 4))
        )
        borders = torch.tensor([11, 23])
        inside = torch.ones(24, dtype=torch.bool)
        inside[borders] = False
        jumps[shift] = float(steps[borders].mean() / steps[inside].mean())
    assert jumps[0] > 5
    assert jumps[4] < 0.5 * jumps[0]


def test_a_focal_weight_learns_the_hole_first():
    """Equal steps on equal data: the error inside of the mask falls further when it counts more."""
    errors = {}
    for focal in (None, (6.0, 1.0)):
        torch.manual_seed(0)
        model = tiny_dit(7, hidden_size=32)
        form = Formulation(fill="black", frames=4, known=0, strength=1.0)
        module = EraserDiT(model, Objective(prediction="x0"), None, form, focal=focal, focal_grow=0)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.15)
        for step in range(60):
            generator = torch.Generator().manual_seed(step)
            colour = torch.rand(4, 3, 1, 1, 1, generator=generator) * 2 - 1
            clean = colour.expand(4, 3, 2, 16, 16).clone()
            mask = torch.zeros(4, 1, 2, 16, 16)
            mask[..., 4:8, 4:8] = 1
            batch = {"video": clean, "clean": clean, "mask": mask}
            x0, condition = module.target(batch), module.condition(batch)
            raw = module.denoise(
                torch.randn(x0.shape, generator=generator), torch.full((4,), 1000.0), condition
            )
            error = (raw - x0) ** 2
            weight = module.element_weight(batch)
            loss = (error if weight is None else error * weight).mean()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
        errors[focal] = float((error.detach() * mask).sum() / mask.sum() / 3)
    assert errors[6.0, 1.0] < 0.9 * errors[None]

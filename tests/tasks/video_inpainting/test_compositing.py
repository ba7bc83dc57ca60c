"""GenCompositor: released weights, places of the streams, the background branch, masks, and the small one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from clips_of_tests import write_video
from diffusers import CogVideoXTransformer3DModel
from safetensors.torch import load_file

from polydit.core.backbones import load_official, save_official
from polydit.core.backbones.compositing import CompositingTransformer
from polydit.core.backbones.pretrained import adapt_transformer
from polydit.core.backbones.pretrained.compositing import stream_labels
from polydit.core.cli import main
from polydit.core.conditioning import SideBranch, TokenGroupDiT
from polydit.core.diffusion import Objective
from polydit.core.errors import PolyditError
from polydit.core.load import load
from polydit.tasks.video_inpainting.compositing import (
    CompositingFormulation,
    centred,
    cleaned,
    gamma_adjusted,
    inflated,
    keyed,
    parse_path,
    placed,
)
from polydit.tasks.video_inpainting.compositing_model import GenCompositor, background_branch

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "gencompositor"
META = json.loads((GOLDEN / "meta.json").read_text())
TINY = {**META["config"], "max_text_seq_length": 5}


@pytest.fixture(scope="module")
def vectors():
    return load_file(GOLDEN / "vectors.safetensors")


# -- the released system -------------------------------------------------------------------------------------


def test_released_weights_give_the_reference_output(vectors):
    weights = load_file(GOLDEN / "weights.safetensors")
    model = load_official("gencompositor", weights, branch_config=META["branch_config"], **META["config"])
    noisy, masked, fg, mask, text, t = (
        vectors[f"in.{name}"] for name in ("noisy", "masked", "foreground", "mask", "text", "timestep")
    )
    x = torch.cat([noisy, masked, fg], 2)
    with torch.no_grad():
        hints = model.hints(noisy, text, torch.cat([masked, mask], 2), t)
        out = model(x, text, t, branch_block_samples=hints, branch_block_masks=mask).sample
        plain = model(x, text, t).sample
    atol = META["recommended_atol"]
    for number, hint in enumerate(hints):
        assert (hint - vectors[f"branch.{number}"]).abs().max() < atol
    assert (out - vectors["out"]).abs().max() < atol
    assert (plain - vectors["out_without_branch"]).abs().max() < atol
    back = save_official("gencompositor", model)
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name].float()) for name in weights)
    cosines, _ = model.backbone.joint_rotary((3, 2, 3), torch.device("cpu"))
    assert torch.equal(cosines, vectors["rope.joint.cos"])


def test_published_sizes():
    with torch.device("meta"):
        base = CogVideoXTransformer3DModel(
            num_attention_heads=48, in_channels=32, num_layers=42, use_rotary_positional_embeddings=True,
            use_learned_positional_embeddings=True,
        )  # fmt: skip
        branch = SideBranch.from_base(adapt_transformer(base), 2, 1)
        two = CompositingTransformer.from_base(base)
    count = sum(p.numel() for p in branch.parameters())
    d, t = 3072, 512
    # The released branch keeps what nothing reads: norm_final, norm_out, proj_out, an embedding of 33 channels.
    unused = 2 * d + (t * 2 * d + 2 * d + 2 * d) + (d * 64 + 64) + 33 * d
    assert count + unused == 301_568_576
    assert (
        sum(p.numel() for p in two.parameters()) - sum(p.numel() for p in base.parameters()) == 16 * 4 * d + d
    )


# -- places --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["paper", "released"])
@pytest.mark.parametrize("grid", [(3, 2, 3), (4, 5, 2), (1, 1, 1)])
def test_no_two_tokens_share_a_place(layout: str, grid: tuple[int, int, int]):
    labels = stream_labels(grid, layout)
    t, h, w = grid
    assert len(labels.unique(dim=0)) == 2 * t * h * w
    first, second = labels.chunk(2)
    if layout == "paper":
        assert torch.equal(second, first + torch.tensor([0, h, 0]))
    else:
        frame = torch.arange(t).repeat_interleave(h * w)
        for stream, offset in ((first, 0), (second, t)):
            assert torch.equal(stream[:, 0], (frame + offset) // 2)
            assert torch.equal(stream[:, 1] // h, (frame + offset) % 2)


def test_released_labels_are_the_reference(vectors):
    assert torch.equal(stream_labels((3, 2, 3), "released"), vectors["rope.joint.label_thw"])
    with pytest.raises(ValueError, match="choose paper or released"):
        stream_labels((1, 1, 1), "other")


# -- two streams on CogVideoX ----------------------------------------------------------------------------------


def cogvideox() -> CogVideoXTransformer3DModel:
    torch.manual_seed(0)
    return CogVideoXTransformer3DModel(**TINY).eval()


def test_the_background_sees_what_it_saw_under_the_papers_places():
    """With the second stream's attention cut off, two streams are the base, as rotations are relative."""
    base = cogvideox()
    base.patch_embed.pos_embedding.zero_()
    two = adapt_transformer(CompositingTransformer.from_base(base))
    plain = adapt_transformer(base)
    x, text = torch.randn(1, 32, 3, 4, 6), torch.randn(1, 5, 12)
    t = torch.tensor([300])
    size = 3 * 2 * 3

    def cut(module, args, kwargs):
        n = kwargs["hidden_states"].shape[1] + kwargs["encoder_hidden_states"].shape[1]
        mask = torch.zeros(n, n)
        mask[: n - size, n - size :] = -torch.inf
        kwargs["attention_mask"] = mask[None, None]
        return args, kwargs

    handles = [b.attn1.register_forward_pre_hook(cut, with_kwargs=True) for b in two.blocks]
    with torch.no_grad():
        alone = plain(x, t, encoder_hidden_states=text).sample
        outs = [
            two(x, t, encoder_hidden_states=text, foreground=torch.randn(1, 16, 3, 4, 6)).sample
            for _ in range(2)
        ]
    assert torch.allclose(outs[0], outs[1], atol=1e-6), "without a look at it the foreground does nothing"
    # Text has no place, so only what is relative stays: equal up to where the grid begins.
    assert (outs[0] - alone).abs().max() < 0.05 * alone.abs().max()
    for handle in handles:
        handle.remove()
    with torch.no_grad():
        seen = [
            two(x, t, encoder_hidden_states=text, foreground=torch.randn(1, 16, 3, 4, 6)).sample
            for _ in range(2)
        ]
    assert (seen[0] - seen[1]).abs().max() > 1e-4


def test_a_fresh_branch_adds_nothing_and_a_trained_one_nothing_at_masked_tokens():
    network = adapt_transformer(CompositingTransformer.from_base(cogvideox()))
    branch = background_branch(network, 2)
    weight = branch.branch.transformer.patch_embed.proj.weight
    assert torch.equal(weight[:, 16:32], weight[:, :16])
    assert not weight[:, 32].any()
    x, text, t = torch.randn(2, 32, 3, 4, 6), torch.randn(2, 5, 12), torch.tensor([10, 500])
    mask = torch.zeros(2, 1, 3, 4, 6)
    mask[:, :, 1, :2, :2] = 1
    fg = torch.randn(2, 16, 3, 4, 6)

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        with torch.no_grad():
            hints = branch(torch.cat([x, mask], 1), t, mask=mask, encoder_hidden_states=text)
            out = network(
                x, t, encoder_hidden_states=text, foreground=fg, block_controlnet_hidden_states=hints
            ).sample
        return out, hints[0]

    with torch.no_grad():
        plain = network(x, t, encoder_hidden_states=text, foreground=fg).sample
    assert torch.equal(both()[0], plain)
    torch.nn.init.normal_(branch.outputs[0].weight)
    out, hint = both()
    assert (out - plain).abs().max() > 1e-4
    masked = torch.nn.functional.max_pool3d(mask, (1, 2, 2)).flatten(2)[0, 0] > 0
    assert masked.sum() == 1
    assert (hint[:, masked] == 0).all()
    assert (hint[:, ~masked] != 0).any(-1).all()


def test_a_pretrained_compositor_trains_saves_and_loads(tmp_path: Path):
    class Latents(torch.nn.Module):
        """An autoencoder that only shrinks."""

        spatial_factor, temporal_factor, channels, component = 2, 1, 16, None
        scale, shift = 1.0, 0.0
        pixel_channels = 3

        def encode(self, pixels, sample=False, generator=None):
            small = torch.nn.functional.avg_pool3d(pixels, (1, 2, 2))
            return small.repeat(1, 6, 1, 1, 1)[:, :16]

        def decode(self, latents):
            return torch.nn.functional.interpolate(latents[:, :3], scale_factor=(1, 2, 2))

    module = GenCompositor(
        CompositingTransformer.from_base(cogvideox()), Objective(prediction="v", path=None), Latents(),
        CompositingFormulation(frames=3, known=0, inflate=1),
    )  # fmt: skip
    batch = {
        "clean": torch.rand(1, 3, 3, 8, 12) * 2 - 1, "foreground": torch.rand(1, 3, 3, 8, 12) * 2 - 1,
        "mask": (torch.rand(1, 1, 3, 8, 12) > 0.7).float(), "guess": torch.rand(1, 3, 3, 8, 12),
    }  # fmt: skip
    terms, _ = module.losses(batch)
    terms["objective"].backward()
    assert module.backbone.patch_embed.fg_proj.weight.grad.abs().max() > 0
    assert module.branch.outputs[0].weight.grad.abs().max() > 0
    module.build_pipeline().save_pretrained(tmp_path / "p")
    again = load(tmp_path / "p")
    assert type(again.transformer).__name__ == "CompositingTransformer"
    assert again.branch is not None


# -- masks, luminance, places of what is put in ----------------------------------------------------------------


def test_masks_and_luminance_are_the_released_ones():
    golden = np.load(GOLDEN / "mask.npz")
    assert (cleaned(golden["mask"]) == (golden["cleaned"] > 0)).all()
    assert (inflated(golden["mask"]) == (golden["inflated"] > 0)).all()
    for gamma in (0.5, 0.7, 1.9):
        assert (gamma_adjusted(golden["frames"], gamma) == golden[f"gamma_{gamma}"]).all()
    assert not inflated(np.zeros((20, 20), np.uint8)).any()


def test_size_and_path_are_the_users():
    assert parse_path(None, (20, 30), 2) == [(15.0, 10.0)] * 2
    assert parse_path("0,0@0 8,4@4", (20, 30), 6)[2] == (4.0, 2.0)
    assert parse_path("3,5", (20, 30), 3) == [(3.0, 5.0)] * 3
    for words in ("a", "1,2@0 3,4", ""):
        with pytest.raises(PolyditError, match="give points in pixels with their frames"):
            parse_path(words, (20, 30), 3)
    element = np.full((10, 20, 4), 255, np.uint8)
    canvas = placed(element, (30, 20), 6, (40, 60))
    rows, columns = np.nonzero(canvas[..., 3] > 127)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (17, 22, 24, 35)
    shown = centred([element], (40, 60))
    assert (shown[0][0, 0] == 255).all()
    assert shown.shape == (1, 40, 60, 3)


def test_an_element_is_keyed_from_its_border():
    frame = np.full((12, 12, 3), (0, 200, 0), np.uint8)
    frame[4:8, 4:8] = (200, 0, 0)
    alpha = keyed(frame)
    assert (alpha[4:8, 4:8] == 1).all()
    assert alpha.sum() == 16


# -- the small one ----------------------------------------------------------------------------------------------


def small_dit(**options) -> TokenGroupDiT:
    return TokenGroupDiT(
        **{
            "conditions": {"foreground": "below"}, "attention": "full", "input_size": [4, 16, 16],
            "patch_size": [1, 4, 4], "in_channels": 9, "out_channels": 3, "hidden_size": 48, "depth": 2,
            "num_heads": 2, "norm": "rms", "position": "rope", "qk_norm": "rms", "modulation": "adaln_single",
            "gate_init": 0.5, **options,
        }
    )  # fmt: skip


def small_module(**options) -> GenCompositor:
    form = CompositingFormulation(residual_scale=0.3, frames=4, known=1, inflate=2, side=64)
    return GenCompositor(small_dit(), Objective(prediction="x0"), formulation=form, branch_depth=1, **options)


@pytest.fixture(scope="module")
def composite_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    module = small_module()
    torch.nn.init.normal_(module.backbone.final_layer.linear.weight, std=0.05)
    folder = tmp_path_factory.mktemp("compositor") / "tiny"
    module.build_pipeline().save_pretrained(folder)
    return folder


def batch_of(seed: int, cut: bool = False) -> dict[str, torch.Tensor]:
    """A square of a random colour that the background's brightness tints; its colour is in the foreground only."""
    generator = torch.Generator().manual_seed(seed)
    b = 6
    clean = torch.rand(b, 3, 1, 1, 1, generator=generator).expand(b, 3, 4, 16, 16).clone() * 0.5
    colour = torch.rand(b, 3, 1, 1, 1, generator=generator)
    mask = torch.zeros(b, 1, 4, 16, 16)
    mask[:, :, :, 4:12, 4:12] = 1
    clean = torch.where(mask > 0, colour, clean)
    foreground = torch.ones(b, 3, 4, 16, 16)
    foreground[..., 2:14, 2:14] = colour
    if cut:
        foreground = foreground.flip(0)
    return {
        "clean": clean * 2 - 1, "foreground": foreground * 2 - 1, "mask": mask,
        "guess": torch.where(mask > 0, torch.full_like(clean, 0.5), clean),
    }  # fmt: skip


def test_the_foreground_reaches_the_picture():
    """Trained for seconds, the colour comes from the second stream; from another one it is another colour."""
    torch.manual_seed(0)
    module = small_module()
    optimizer = torch.optim.AdamW(module.parameters(), lr=8e-3)
    for step in range(60):
        batch = batch_of(step)
        x0, condition = module.target(batch), module.condition(batch)
        raw = module.denoise(torch.randn_like(x0), torch.full((6,), 1000.0), condition)
        loss = ((raw - x0) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    errors = []
    for cut in (False, True):
        batch = batch_of(1000, cut)
        with torch.no_grad():
            raw = module.denoise(
                torch.randn_like(batch["clean"]), torch.full((6,), 1000.0), module.condition(batch)
            )
        errors.append(float(((raw - module.target(batch)) ** 2).mean()))
    assert errors[0] < 0.3 * errors[1]


def test_predict_composites_and_keeps_the_rest(composite_weights: Path, files: Path, tmp_path: Path):
    square = np.full((5, 24, 24, 3), 255, np.uint8)
    square[:, 6:18, 6:18] = (10, 30, 200)
    element = write_video(tmp_path, "fg.mp4", square)
    words = [
        "video-inpainting", "predict", "--input", files / "clip.mp4", "--composite", element, "--weights",
        composite_weights, "--output", tmp_path / "out", "--path", "14,10@0 40,28@11", "--size-pixels", "10",
        "--format", "frames",
    ]  # fmt: skip
    assert main(list(map(str, words))) == 0
    record = json.loads((tmp_path / "out/results.json").read_text())["inputs"][0]
    assert record["frames"] == 12
    assert any("played back and forth" in note for note in record["notes"])
    from PIL import Image

    from polydit.core.data.video import VideoReader

    given = [frame.pixels for frame in VideoReader(files / "clip.mp4")]
    for number, middle in ((0, (14, 10)), (11, (40, 28))):
        made = np.asarray(Image.open(tmp_path / f"out/clip_composite/{number:05d}.png"))
        changed = (made != given[number]).any(-1)
        rows, columns = np.nonzero(changed)
        assert abs(rows.mean() - middle[1]) < 2.5
        assert abs(columns.mean() - middle[0]) < 2.5
        assert changed.sum() <= 16 * 16


def test_what_does_not_fit_is_told(
    composite_weights: Path, weights: Path, files: Path, tmp_path: Path, capsys
):
    base = ["video-inpainting", "predict", "--input", files / "clip.mp4", "--output", tmp_path / "out"]
    for more, line in (
        (["--weights", composite_weights], "needs the video of what is put in"),
        (["--weights", weights, "--composite", files / "clip.mp4"], "puts no video into another"),
        (["--weights", composite_weights, "--composite", tmp_path / "none.mp4"], "no such file"),
    ):
        assert main(list(map(str, [*base, *more]))) == 2
        assert line in capsys.readouterr().err
    plain = write_video(tmp_path, "plain.mp4", np.full((3, 24, 24, 3), 90, np.uint8))
    assert main(list(map(str, [*base, "--weights", composite_weights, "--composite", plain]))) == 2
    assert "shows nothing that stands out" in capsys.readouterr().err
    with pytest.raises(PolyditError, match="needs a condition called foreground"):
        GenCompositor(small_dit(conditions={}), formulation=CompositingFormulation(residual_scale=0.2))

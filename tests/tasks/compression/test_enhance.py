"""The generative decoder behind the small codec: where it starts, what steers it, and the file it leaves alone."""

from argparse import Namespace

import numpy as np
import pytest
import torch

import polydit
from polydit.core.backbones import DiT
from polydit.core.errors import PolyditError
from polydit.core.media.writer import OutputWriter
from polydit.tasks.compression.codec import step_of
from polydit.tasks.compression.coding import decode_picture, encode_picture
from polydit.tasks.compression.container import read_container
from polydit.tasks.compression.enhance import Enhancer, open_enhancer, reconstruct, velocity
from polydit.tasks.compression.enhance_model import PictureEnhancement
from polydit.tasks.compression.losses import texture_energy, texture_loss
from polydit.tasks.compression.picture_file import decode_still, encode_still, read_still
from polydit.tasks.compression.picture_system import decode_file
from polydit.tasks.compression.pipeline import CompressionPipeline
from polydit.tasks.compression.tables import index_of
from polydit.tasks.compression.uncertainty import Uncertainty


def small_dit(seed=0, answer=0.0):
    torch.manual_seed(seed)
    network = DiT(
        input_size=64, patch_size=8, in_channels=7, out_channels=3, hidden_size=32, depth=2, num_heads=2,
        norm="none", position="rope", modulation="adaln_single", window_size=4, gate_init=0.5,
    ).eval()  # fmt: skip
    torch.nn.init.normal_(network.final_layer.linear.weight, std=answer) if answer else None
    return network


@pytest.fixture(scope="module")
def enhanced(codec):
    return CompressionPipeline(codec, small_dit(answer=0.3)).to("cpu")


def scene(seed=0, height=128, width=192):
    """Grain of different strength on smooth ground, so that coarse quantisation takes some away."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    ground = 128 + 50 * np.sin(x / 23)[..., None] * np.cos(y / 31)[..., None] * np.array([1, 0.7, -0.4])
    grain = rng.normal(0, 1, (height, width, 1)) * np.where(x < width // 2, 22, 2)[..., None]
    return (ground + grain).clip(0, 255).astype(np.uint8)


def as_tensor(pixels):
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1


def test_a_new_network_changes_nothing(codec):
    pictures = torch.stack([as_tensor(scene())])
    decoded, deviation = reconstruct(codec, pictures, torch.tensor([30]))
    assert torch.equal(Enhancer(small_dit(), 0.0)(decoded, deviation, torch.tensor([30])), decoded)


def test_the_expected_deviation_follows_the_real_one(codec):
    pictures = torch.stack([as_tensor(scene(seed)) for seed in (0, 1)])
    means = []
    for index in (0, 90, 200):
        decoded, deviation = reconstruct(codec, pictures, torch.full((2,), index))
        assert deviation.shape == (2, 1, 16, 24)
        error = (decoded - pictures).square().mean(1, keepdim=True)
        real = torch.nn.functional.avg_pool2d(error, 8).sqrt()
        means.append(deviation.mean().item())
        assert 0.2 < deviation.mean() / real.mean() < 5
    assert means[0] > means[1] > means[2]


def test_what_to_expect_of_a_coefficient():
    """By hand: of a spread of nothing the spread, of a wide one a rounding error, nothing behind the mask."""
    silent = lambda channels, mask, mean, index: torch.zeros_like(index)  # noqa: E731
    for spread, expected in ((0.1, 0.1**2 / 1.12), (30.0, 1 / 12)):
        unsure = Uncertainty()
        index = torch.full((1, 6, 2, 2), float(index_of(torch.tensor(spread))))
        mask = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
        unsure.of(silent)(slice(0, 6), mask, index, index)
        unsure.of(silent)(slice(0, 6), None, index, index)
        squares = unsure.deviation(torch.tensor([127.5])).square() * 192 / 6
        torch.testing.assert_close(squares[0, 0], expected * (1 + mask), rtol=1e-3, atol=0)
    with pytest.raises(ValueError, match="no context model ran"):
        Uncertainty().deviation(torch.ones(1))


def test_a_decoder_expects_what_training_did(codec, weights):
    pixels = scene(3)
    stream = encode_picture(codec, weights.models, as_tensor(pixels), 40)
    seen = []

    def enhancer(pictures, deviation, quality):
        seen.append((pictures, deviation, quality))
        return pictures

    decode_picture(codec, weights.models, stream, 40, pixels.shape[:2], enhancer=enhancer)
    found, deviation, quality = seen[0]
    assert quality.tolist() == [40]
    padded = torch.nn.functional.pad(as_tensor(pixels)[None], (0, 0, 0, 0))
    expected, expected_deviation = reconstruct(codec, padded, torch.tensor([40]))
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
    torch.testing.assert_close(deviation, expected_deviation, atol=1e-4, rtol=1e-3)


def test_the_step_is_as_strong_as_the_deviation():
    network = small_dit(answer=0.5)
    pictures = torch.zeros(1, 3, 64, 64)
    sure = torch.full((1, 1, 8, 8), 1e-3)
    unsure = sure.clone()
    unsure[..., :4] = 0.2
    quality = torch.tensor([10])
    with torch.no_grad():
        moved = velocity(network, pictures, unsure, quality).abs()
        still = velocity(network, pictures, sure * 0, quality)
    assert moved[..., :24].mean() > 20 * moved[..., -24:].mean()
    assert not still.any()


def test_fidelity_mixes_and_the_file_stays(enhanced):
    pixels = scene(5)
    plain, half, full = (enhanced(pixels, quality=1.5, fidelity=f) for f in (1.0, 0.5, 0.0))
    assert plain.data == half.data == full.data
    moved, way = (np.abs(one.images[0].astype(int) - plain.images[0]).mean() for one in (full, half))
    assert moved > 0.5
    assert 0.3 < way / moved < 0.7


def test_saved_loaded_and_on_the_command_line(enhanced, codec, weights, tmp_path):
    from PIL import Image

    enhanced.save_pretrained(tmp_path / "weights")
    again = polydit.load(tmp_path / "weights")
    pixels = scene(6)
    assert np.array_equal(again(pixels, fidelity=0.2).images[0], enhanced(pixels, fidelity=0.2).images[0])
    Image.fromarray(pixels).save(tmp_path / "scene.png")
    file = encode_still(weights, read_still(tmp_path / "scene.png"), 60)
    content = read_container(file, "scene.pdc")
    enhancer = open_enhancer(tmp_path / "weights", 0.0)
    options = Namespace(
        weights=tmp_path / "weights", device="cpu", dtype="float32", fidelity=0.0, metadata=False
    )
    decode_file(tmp_path / "scene.pdc", content, OutputWriter(tmp_path), "full.png", options)
    options.fidelity = None
    decode_file(tmp_path / "scene.pdc", content, OutputWriter(tmp_path), "plain.png", options)
    shown = [np.asarray(Image.open(tmp_path / name)) for name in ("full.png", "plain.png")]
    expected = [decode_still(weights, content, "x", step).pixels for step in (enhancer, None)]
    assert np.array_equal(shown[0], expected[0])
    assert np.array_equal(shown[1], expected[1])
    assert not np.array_equal(*shown)


def test_without_an_enhancer_there_is_only_the_plain_decoder(codec, folder):
    with pytest.raises(PolyditError, match=r"--fidelity 0\.3: .* holds no enhancer"):
        open_enhancer(folder, 0.3)
    with pytest.raises(PolyditError, match=r"--fidelity 0\.3: these weights hold no enhancer"):
        CompressionPipeline(codec)(scene(), fidelity=0.3)
    with pytest.raises(PolyditError, match=r"--fidelity -1: give a number from 0"):
        Enhancer(small_dit(), -1)


def test_texture_is_seen_where_it_is_missing_and_not_where_it_moved():
    torch.manual_seed(0)
    truth = torch.randn(1, 3, 64, 64).mean(1, keepdim=True).expand(-1, 3, -1, -1) * 0.3
    blurred = torch.nn.functional.avg_pool2d(truth, 3, 1, 1)
    other = torch.randn(1, 3, 64, 64).mean(1, keepdim=True).expand(-1, 3, -1, -1) * 0.3
    assert texture_loss(truth, truth) == 0
    assert texture_loss(other, truth) < 0.5 * texture_loss(blurred, truth)
    assert (other - truth).square().mean() > 1.5 * (blurred - truth).square().mean()
    stripes = torch.zeros(1, 3, 64, 64)
    stripes[..., ::2] = 1
    energy = texture_energy(stripes)[0]
    assert energy[0, 0].mean() > 10 * energy[0, 1].mean()  # across, not along


@pytest.fixture(scope="module")
def run(folder):
    """A short run on grain that the codec loses."""
    torch.manual_seed(0)
    settings = {"adversarial": 0.0, "texture_weight": 3.0, "best_quality": 1.0, "ema": None}
    made = PictureEnhancement(small_dit(), codec=str(folder), **settings).train()
    batch = {"picture": torch.stack([as_tensor(scene(seed, 128, 128)) for seed in range(4)])}
    optimizer = torch.optim.Adam([p for p in made.parameters() if p.requires_grad], lr=1e-2)
    history = []
    for _ in range(25):
        terms, out = made.losses(batch)
        history.append({name: float(term.detach()) for name, term in terms.items()})
        optimizer.zero_grad()
        out.loss.backward()
        optimizer.step()
    return made, history


def test_training_brings_texture_back(run):
    _, history = run
    assert history[-1]["texture"] < 0.9 * history[0]["texture"]
    assert history[-1].keys() == {"error", "texture"}


def test_the_adversary_joins_and_the_codec_does_not_learn(folder):
    made = PictureEnhancement(
        small_dit(answer=0.1), codec=str(folder), adversarial=0.5, discriminator_width=8
    )
    made.train()
    terms, out = made.losses({"picture": torch.stack([as_tensor(scene(1, 64, 64))] * 2)})
    assert {"error", "texture", "adversarial", "discriminator"} == terms.keys()
    out.loss.backward()
    assert all(p.grad is not None for p in made.discriminator.parameters())
    assert made.backbone.final_layer.linear.weight.grad.abs().sum() > 0
    assert not any(p.requires_grad for p in made.codec.parameters())
    assert {name.split(".")[0] for name in made.saved_names()} == {"backbone", "discriminator"}


def test_the_pipeline_of_a_run_holds_codec_and_enhancer(run, weights):
    made, _ = run
    pipeline = made.eval().build_pipeline()
    assert pipeline.weights.identity == weights.identity
    images = [pipeline(scene(2), quality=1, fidelity=f).images[0] for f in (1.0, 0.0)]
    assert not np.array_equal(*images)


def test_what_does_not_fit_is_named(folder, tmp_path):
    with pytest.raises(PolyditError, match=r"--model\.backbone: must be a DiT with in_channels 7"):
        PictureEnhancement(DiT(input_size=8, patch_size=2, hidden_size=16, depth=1, num_heads=1), str(folder))
    with pytest.raises(PolyditError, match=r"--model\.codec .*: holds no codec"):
        PictureEnhancement(small_dit(), str(tmp_path))
    with pytest.raises(PolyditError, match=r"--model\.best_quality 12"):
        PictureEnhancement(small_dit(), str(folder), best_quality=12.0)
    assert step_of(torch.tensor([0])) > step_of(torch.tensor([100]))

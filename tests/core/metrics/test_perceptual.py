"""LPIPS and DISTS: the contract with fixed random backbones, the formulas by hand, and refusals.

A random backbone measures nothing that has a name; it serves to test the machinery.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from polydit.core.errors import PolyditError
from polydit.core.metrics import DISTS, LPIPS, MissingWeightsError
from polydit.core.metrics.features import ConvFeatures

CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}


@pytest.fixture(scope="module")
def backbones() -> dict[str, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    states = {}
    for network in ("alex", "vgg"):
        module = ConvFeatures(network)
        for name, parameter in module.named_parameters():
            if name.endswith("weight"):
                torch.nn.init.kaiming_normal_(parameter)
        # The published files carry a classifier, too: it must not matter.
        states[network] = {**module.state_dict(), "classifier.1.weight": torch.zeros(3)}
    return states


def lpips_heads(network: str) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        f"lin{i}.model.1.weight": torch.rand(1, c, 1, 1, generator=generator)
        for i, c in enumerate(CHANNELS[network])
    }


def dists_heads() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.rand(1, 1475, 1, 1, generator=generator) for name in ("alpha", "beta")}


@pytest.fixture(scope="module", params=["lpips-random alex", "lpips-random vgg", "dists-random"])
def metric(request, backbones) -> torch.nn.Module:
    if request.param == "dists-random":
        return DISTS(backbones["vgg"], dists_heads())
    network = request.param.split()[1]
    return LPIPS(backbones[network], lpips_heads(network), network)


def pictures() -> torch.Tensor:
    from skimage import data

    crops = [data.astronaut()[y : y + 48, 200:248] for y in (50, 120)]
    return torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1


def blurred(x: torch.Tensor, times: int) -> torch.Tensor:
    for _ in range(times):
        x = F.avg_pool2d(F.pad(x, [1] * 4, mode="replicate"), 3, stride=1)
    return x


def test_equal_pictures_are_at_zero(metric):
    x = pictures()
    assert metric(x, x).abs().max() < 1e-6
    assert metric(x, x).shape == (2,)


def test_symmetric(metric):
    x = pictures()
    y = blurred(x, 2)
    assert torch.allclose(metric(x, y), metric(y, x), rtol=1e-4, atol=1e-6)


def test_grows_with_blur_and_with_noise(metric):
    x = pictures()
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    for versions in ([blurred(x, n) for n in (1, 3, 9)], [x + s * noise for s in (0.02, 0.1, 0.4)]):
        distances = torch.stack([metric(version, x) for version in versions])
        assert (distances.diff(dim=0) > 0).all()
        assert (distances > 0).all()


def test_batch_of_pairs_is_each_pair(metric):
    x = pictures()
    y = blurred(x, 2)
    together = metric(x, y)
    for i in range(2):
        assert metric(x[i], y[i]).item() == pytest.approx(together[i].item(), rel=1e-4, abs=1e-6)


def test_gradients_reach_the_picture_even_where_it_is_black(metric):
    x = torch.full((1, 3, 48, 48), -1.0, requires_grad=True)
    metric(x, pictures()[:1]).sum().backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0
    assert not any(parameter.requires_grad for parameter in metric.parameters())


def test_grey_counts_as_rgb_and_other_shapes_are_refused(metric):
    x = pictures()
    grey, other = x[:, :1], blurred(x[:, :1], 1)
    assert torch.equal(metric(grey, other), metric(grey.expand(-1, 3, -1, -1), other.expand(-1, 3, -1, -1)))
    with pytest.raises(ValueError, match="takes two float"):
        metric(x, x[..., 1:])
    with pytest.raises(ValueError, match="takes two float"):
        metric(x.to(torch.uint8), x.to(torch.uint8))
    with pytest.raises(ValueError, match="pixels or more"):
        metric(x[..., :15], x[..., :15])


def test_lpips_formula_by_hand(backbones):
    """With torchvision's layer numbers written out, and the linear heads as plain sums."""
    state, heads = backbones["alex"], lpips_heads("alex")
    x, y = pictures(), blurred(pictures(), 2)

    def activations(image: torch.Tensor) -> list[torch.Tensor]:
        h = (image - torch.tensor([-0.030, -0.088, -0.188])[:, None, None]) / torch.tensor(
            [0.458, 0.448, 0.450]
        )[:, None, None]
        out = []
        for number, stride, padding, pool in [
            (0, 4, 2, 0),
            (3, 1, 2, 1),
            (6, 1, 1, 1),
            (8, 1, 1, 0),
            (10, 1, 1, 0),
        ]:
            h = F.max_pool2d(h, 3, 2) if pool else h
            weight, bias = state[f"features.{number}.weight"], state[f"features.{number}.bias"]
            h = F.conv2d(h, weight, bias, stride=stride, padding=padding).relu()
            out.append(h)
        return [h / h.square().sum(1, keepdim=True).sqrt().clamp(min=1e-10) for h in out]

    expected = sum(
        ((a - b) ** 2 * heads[f"lin{i}.model.1.weight"]).sum(1).mean((1, 2))
        for i, (a, b) in enumerate(zip(activations(x), activations(y), strict=True))
    )
    assert torch.allclose(LPIPS(state, heads)(x, y), expected, rtol=1e-4)


def test_dists_formula_by_hand(backbones):
    state, heads = backbones["vgg"], dists_heads()
    x, y = (pictures() + 1) / 2, (blurred(pictures(), 2) + 1) / 2
    window = np.hanning(5)[1:-1]
    kernel = torch.tensor(np.outer(window, window) / window.sum() ** 2, dtype=torch.float32)

    def activations(image: torch.Tensor) -> list[torch.Tensor]:
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        h, out = (image - mean[:, None, None]) / std[:, None, None], [image]
        for stage in ([0, 2], [5, 7], [10, 12, 14], [17, 19, 21], [24, 26, 28]):
            if stage[0]:
                pooled = F.conv2d((h**2).flatten(0, 1)[:, None], kernel[None, None], stride=2, padding=1)
                h = (pooled.reshape(*h.shape[:2], *pooled.shape[-2:]) + 1e-12).sqrt()
            for number in stage:
                weight, bias = state[f"features.{number}.weight"], state[f"features.{number}.bias"]
                h = F.conv2d(h, weight, bias, padding=1).relu()
            out.append(h)
        return out

    alpha, beta = heads["alpha"].ravel(), heads["beta"].ravel()
    total, start, similarity = (alpha.sum() + beta.sum()).double(), 0, 0.0
    for a, b in zip(activations(x), activations(y), strict=True):
        a, b = a.double(), b.double()
        m, n = a.mean((2, 3)), b.mean((2, 3))
        luminance = (2 * m * n + 1e-6) / (m**2 + n**2 + 1e-6)
        v, w = a.var((2, 3), unbiased=False), b.var((2, 3), unbiased=False)
        structure = (2 * ((a * b).mean((2, 3)) - m * n) + 1e-6) / (v + w + 1e-6)
        part = slice(start, start + a.shape[1])
        similarity = similarity + (alpha[part] * luminance + beta[part] * structure).sum(1) / total
        start = part.stop
    assert start == 1475
    assert torch.allclose(DISTS(state, heads)((x * 2 - 1), (y * 2 - 1)).double(), 1 - similarity, atol=1e-5)


def published(name: str) -> Path:
    spec = importlib.util.find_spec("torchmetrics")
    assert spec is not None
    assert spec.origin is not None
    path = Path(spec.origin).parent / "functional" / "image" / name
    if not path.exists():
        pytest.skip("this torchmetrics does not ship the file")
    return path


@pytest.mark.parametrize("network", ["alex", "vgg"])
def test_published_heads_of_lpips_load(backbones, network):
    metric = LPIPS(backbones[network], published(f"lpips_models/{network}.pth"), network)
    heads = [parameter for name, parameter in metric.named_parameters() if name.startswith("heads")]
    assert [head.shape[1] for head in heads] == list(CHANNELS[network])
    assert all((head >= 0).all() for head in heads), "the published heads are non-negative"


def test_published_weights_of_dists_load(backbones):
    metric = DISTS(backbones["vgg"], published("dists_models/weights.pt"))
    x = pictures()
    assert metric(x, x).abs().max() < 1e-5


def test_weights_from_files(tmp_path, backbones):
    save_file(backbones["alex"], tmp_path / "backbone.safetensors")
    torch.save(lpips_heads("alex"), tmp_path / "heads.pth")
    metric = LPIPS(tmp_path / "backbone.safetensors", str(tmp_path / "heads.pth"))
    x = pictures()
    assert torch.equal(metric(x, -x), LPIPS(backbones["alex"], lpips_heads("alex"))(x, -x))


def test_missing_weights_name_the_file_and_nothing_is_random(tmp_path, backbones):
    with pytest.raises(MissingWeightsError, match=r"LPIPS \(alex\) needs .*alexnet-owt-7be5be79\.pth"):
        LPIPS()
    with pytest.raises(MissingWeightsError, match=r"weights/v0\.1/vgg\.pth"):
        LPIPS(backbones["vgg"], network="vgg")
    with pytest.raises(
        MissingWeightsError, match=r"nowhere\.pth: no such file; DISTS needs .*vgg16-397923af"
    ):
        DISTS(tmp_path / "nowhere.pth", dists_heads())
    with pytest.raises(ValueError, match="'alex' or 'vgg'"):
        LPIPS(network="squeeze")


class Payload:
    def __reduce__(self):
        return (print, ("code ran",))


def test_other_files_are_refused_in_one_line(tmp_path, backbones, capsys):
    with pytest.raises(PolyditError, match=r"lacks 'features\.6\.bias'|is \(64, 3, 3, 3\), not"):
        LPIPS(backbones["vgg"], lpips_heads("alex"))
    with pytest.raises(
        PolyditError, match=r"'lin1\.model\.1\.weight' is \(1, 128, 1, 1\), not \(1, 192, 1, 1\)"
    ):
        LPIPS(backbones["alex"], lpips_heads("vgg"))
    for name, content in (("empty.pth", b""), ("text.safetensors", b"hello"), ("text.pth", b"hello")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(PolyditError, match="not a readable file of weights") as error:
            LPIPS(tmp_path / name, lpips_heads("alex"))
        assert "\n" not in str(error.value)
    torch.save({"a": Payload()}, tmp_path / "code.pth")
    with pytest.raises(PolyditError, match="not a readable file of weights"):
        LPIPS(tmp_path / "code.pth", lpips_heads("alex"))
    assert "code ran" not in capsys.readouterr().out
    torch.save({"state_dict": backbones["alex"]}, tmp_path / "wrapped.pth")
    with pytest.raises(PolyditError, match="holds no plain state dict"):
        LPIPS(tmp_path / "wrapped.pth", lpips_heads("alex"))

"""Metrics over a data set: FID and KID formulas, their accumulation, Inception's layout, averages."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm

from polydit.core.errors import PolyditError
from polydit.core.metrics import (
    FrechetDistance,
    InceptionFeatures,
    KernelDistance,
    MissingWeightsError,
    PictureMean,
    frechet_distance,
    kernel_distance,
    psnr,
)


def gaussian(count: int, size: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(size, size, generator=torch.Generator().manual_seed(99), dtype=torch.float64)
    return torch.randn(count, size, generator=generator, dtype=torch.float64) @ mixing + shift


def moments(features: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return features.mean(0), torch.cov(features.T)


def flat(pictures: torch.Tensor) -> torch.Tensor:
    return pictures.flatten(1)[:, :6]


def test_frechet_closed_forms():
    zero, eye = torch.zeros(3), torch.eye(3)
    assert frechet_distance(zero, eye, zero, eye).item() == pytest.approx(0, abs=1e-12)
    assert frechet_distance(torch.tensor([1.0, 2.0, 2.0]), eye, zero, eye).item() == pytest.approx(9)
    # diagonal covariances: the squared distance of means and of deviations
    a, b = torch.tensor([4.0, 9.0, 1.0]), torch.tensor([1.0, 4.0, 0.0])
    expected = ((a.sqrt() - b.sqrt()) ** 2).sum().item()
    assert frechet_distance(zero, a.diag(), zero, b.diag()).item() == pytest.approx(expected, abs=1e-10)


def test_frechet_equals_the_matrix_root_when_covariances_do_not_commute():
    a, b = moments(gaussian(50, 6, 0)), moments(gaussian(50, 6, 1, shift=0.3) * torch.linspace(0.5, 2, 6))
    root = np.real(sqrtm((a[1] @ b[1]).numpy()))
    expected = ((a[0] - b[0]) ** 2).sum() + torch.trace(a[1] + b[1]) - 2 * np.trace(root)
    assert frechet_distance(*a, *b).item() == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_with_fewer_pictures_than_features_is_finite_and_symmetric():
    a, b = moments(gaussian(5, 20, 0)), moments(gaussian(7, 20, 1))
    distance = frechet_distance(*a, *b)
    assert math.isfinite(distance)
    assert distance.item() == pytest.approx(frechet_distance(*b, *a).item(), rel=1e-6)
    assert frechet_distance(*a, *a).item() < 1e-5 * a[1].trace().item()


def test_frechet_accumulation_equals_all_at_once():
    real = (
        torch.rand(40, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 100
    )  # far from 0: cancellation
    fake = torch.rand(30, 3, 4, 4, generator=torch.Generator().manual_seed(1)) + 100.2
    metric = FrechetDistance(flat, 6)
    for part in real.split(7):
        metric.update(part, real=True)
    for part in fake.split(11):
        metric.update(part, real=False)
    expected = frechet_distance(*moments(flat(real).double()), *moments(flat(fake).double()))
    assert metric.compute().item() == pytest.approx(expected.item(), rel=1e-7)
    metric.reset()
    metric.update(real[:1], real=True)
    with pytest.raises(ValueError, match="at least 2 real pictures, has 1"):
        metric.compute()


def test_features_are_checked():
    metric = FrechetDistance(flat, 7)
    with pytest.raises(ValueError, match=r"must come as \(4, 7\), not \(4, 6\)"):
        metric.update(torch.zeros(4, 3, 4, 4), real=True)
    with pytest.raises(ValueError, match="NaN"):
        FrechetDistance(flat, 6).update(torch.full((4, 3, 4, 4), math.nan), real=True)


def test_kernel_distance_by_its_double_sum():
    x, y = gaussian(5, 3, 0), gaussian(4, 3, 1)

    def k(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a @ b / 3 + 1) ** 3)

    within_x = np.mean([k(x[i], x[j]) for i in range(5) for j in range(5) if i != j])
    within_y = np.mean([k(y[i], y[j]) for i in range(4) for j in range(4) if i != j])
    between = np.mean([k(a, b) for a in x for b in y])
    assert kernel_distance(x, y).item() == pytest.approx(within_x + within_y - 2 * between, rel=1e-9)
    with pytest.raises(ValueError, match="needs"):
        kernel_distance(x, y[:, :2])


def test_kernel_distance_is_unbiased():
    """Mean over many pairs of tiny samples: 0 for one distribution, and the same for any sample size."""
    generator = torch.Generator().manual_seed(0)

    def values(size: int, shift: float) -> torch.Tensor:
        x = torch.randn(2000, size, 4, generator=generator)
        y = torch.randn(2000, size, 4, generator=generator) + shift
        return torch.stack([kernel_distance(a, b) for a, b in zip(x, y, strict=True)])

    same = values(3, 0.0)
    assert abs(same.mean()) < 4 * same.std() / 2000**0.5
    assert (same < 0).any(), "an estimate that is never negative is biased"
    small, large = values(3, 0.5), values(12, 0.5)
    error = ((small.var() + large.var()) / 2000).sqrt()
    assert abs(small.mean() - large.mean()) < 4 * error
    assert small.mean() > 5 * error


def test_kernel_metric_draws_subsets_reproducibly():
    real = torch.rand(30, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    fake = torch.rand(25, 3, 4, 4, generator=torch.Generator().manual_seed(1)) + 0.3

    def computed(**settings: int) -> tuple[float, float]:
        metric = KernelDistance(flat, **settings)
        for part in real.split(8):
            metric.update(part, real=True)
        metric.update(fake, real=False)
        mean, std = metric.compute()
        return mean.item(), std.item()

    assert computed(subsets=5, subset_size=10) == computed(subsets=5, subset_size=10)
    assert computed(subsets=5, subset_size=10) != computed(subsets=5, subset_size=10, seed=1)
    exact = kernel_distance(flat(real[:25]), flat(fake)).item()
    metric = KernelDistance(flat, subsets=3, subset_size=25)
    metric.update(real[:25], real=True)
    metric.update(fake, real=False)
    mean, std = metric.compute()
    assert (mean.item(), std.item()) == pytest.approx((exact, 0), abs=1e-9)  # a subset of everything
    with pytest.raises(ValueError, match="25 fake pictures, a subset takes 26"):
        computed(subsets=1, subset_size=26)


def test_picture_mean_is_the_mean_of_decibels():
    target = torch.zeros(3, 3, 8, 8)
    prediction = target + torch.tensor([2.0, 8.0, 32.0])[:, None, None, None] / 127.5
    metric = PictureMean(psnr, channels="rgb", crop=1)
    metric.update(prediction[:2], target[:2])
    metric.update(prediction[2:], target[2:])
    assert metric.compute().item() == pytest.approx(psnr(prediction, target).mean().item(), abs=1e-12)
    assert metric.higher_is_better
    assert not PictureMean(psnr, higher_is_better=False).higher_is_better


def test_feature_networks_stay_out_of_checkpoints():
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 4))
    holder = torch.nn.Module()
    holder.fid = FrechetDistance(network, 4)
    holder.kid = KernelDistance(network, 1, 2)
    assert dict(holder.state_dict()) == {}
    assert list(holder.parameters()) == []


@pytest.fixture(scope="module")
def inception_state() -> dict[str, torch.Tensor]:
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr("polydit.core.metrics.inception.load_into", lambda *_: None)
        shapes = {key: value.shape for key, value in InceptionFeatures().state_dict().items()}
    generator = torch.Generator().manual_seed(0)
    state = {}
    for key, shape in shapes.items():
        if key.endswith("num_batches_tracked"):
            state[key] = torch.zeros(shape, dtype=torch.long)
        elif key.endswith("running_var") or key.endswith("bn.weight"):
            state[key] = torch.ones(shape)
        elif key.endswith(("running_mean", "bn.bias")):
            state[key] = torch.zeros(shape)
        else:
            fan_in = shape[1:].numel()
            state[key] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
    return state


def test_inception_layout(inception_state):
    """21,785,568 parameters are the published network's 23,850,960 less its 2048x1008 + 1008 classifier."""
    metric = InceptionFeatures({**inception_state, "fc.weight": torch.zeros(1008, 2048)})
    assert sum(parameter.numel() for parameter in metric.parameters()) == 21_785_568
    assert "Mixed_6b.branch7x7dbl_5.conv.weight" in inception_state
    x = torch.rand(2, 3, 32, 40, generator=torch.Generator().manual_seed(1)) * 2 - 1
    features = metric(x)
    assert features.shape == (2, 2048)
    assert torch.isfinite(features).all()
    assert (features[0] - features[1]).abs().max() > 0
    with pytest.raises(ValueError, match="takes float"):
        metric(x.to(torch.uint8))


def test_inception_without_weights_names_the_file(inception_state):
    with pytest.raises(MissingWeightsError, match=r"pt_inception-2015-12-05-6726825d\.pth"):
        InceptionFeatures()
    state = {
        key: value for key, value in inception_state.items() if key != "Mixed_7c.branch_pool.conv.weight"
    }
    with pytest.raises(PolyditError, match=r"lacks 'Mixed_7c\.branch_pool\.conv\.weight'"):
        InceptionFeatures(state)


def test_plain_metrics_do_not_import_torchmetrics():
    code = (
        "import sys; from polydit.core.metrics import psnr, ssim, LPIPS\n"
        "assert not {'torchmetrics', 'skimage', 'kornia', 'scipy'} & set(sys.modules)\n"
        "import polydit.core.metrics as m; assert all(hasattr(m, name) for name in m.__all__)\n"
        "assert not hasattr(m, 'fid')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

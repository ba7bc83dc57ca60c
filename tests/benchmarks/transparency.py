"""Does the identity loss keep latents usual? A small experiment on latent transparency (arXiv 2402.17113).

A toy autoencoder (factor 8, 4 channels) learns RGB pictures and is frozen. Then the offset encoder and the RGBA decoder
are trained on drawn discs and glass, once with the identity loss and once without. Measured on held-out pictures: how
good the RGBA reconstruction becomes, and how much worse the frozen decoder's RGB pictures become by the offset.

    python tests/benchmarks/transparency.py --steps 300
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from diffusers import AutoencoderKL

from polydit.tasks.layer_decomposition.stack_metrics import rgba_scores
from polydit.tasks.layer_decomposition.transparency_data import draw_transparent
from polydit.tasks.layer_decomposition.transparency_model import LatentTransparency

SIDE = 32


def pictures(count: int, seed: int) -> torch.Tensor:
    """Straight RGBA (B, 4, SIDE, SIDE) in [0, 1]."""
    drawn = [draw_transparent(np.random.default_rng((seed, number)), SIDE) for number in range(count)]
    return torch.from_numpy(np.stack(drawn)).permute(0, 3, 1, 2)


def toy_autoencoder(steps: int) -> AutoencoderKL:
    """Trained on the pictures as the frozen one will see them: colours times alpha."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(16, 24, 32, 48),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        norm_num_groups=8,
    )
    optimizer = torch.optim.AdamW(vae.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for step in range(steps):
        rgba = pictures(16, 1000 + step)
        feed = (2 * rgba[:, :3] - 1) * rgba[:, 3:]
        posterior = vae.encode(feed).latent_dist
        decoded = vae.decode(posterior.sample(torch.Generator().manual_seed(step))).sample
        loss = (decoded - feed).abs().mean() + 1e-5 * posterior.kl().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return vae.eval()


@torch.no_grad()
def figures(net: LatentTransparency, held: torch.Tensor) -> tuple[float, float]:
    """Mean RGBA PSNR of the reconstruction, and PSNR of the frozen decoder's RGB pictures."""
    model = net.model.eval()
    latents = model.encode_rgba(held)
    decoded = model.decode_rgba(latents, augment=False).clamp(0, 1)
    scores = [
        rgba_scores(a.permute(1, 2, 0).numpy(), b.permute(1, 2, 0).numpy())["psnr_rgba"]
        for a, b in zip(decoded, held, strict=True)
    ]
    error = (2 * model.decode_picture(latents) - 1 - model.picture_feed(held)).square().mean((1, 2, 3))
    return float(np.mean(scores)), float((10 * torch.log10(4 / error)).mean())


def main() -> None:
    """Train three times and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--autoencoder-steps", type=int, default=600)
    options = parser.parse_args()
    vae = toy_autoencoder(options.autoencoder_steps)
    held = pictures(64, 1)
    print("| identity loss | step | RGBA dB | frozen RGB decode dB |\n| --- | --- | --- | --- |", flush=True)
    for weight in (10.0, 0.0):
        torch.manual_seed(0)
        net = LatentTransparency(
            vae,
            encoder_widths=[16, 24, 32, 48],
            decoder_channels=[16, 16, 32, 48],
            decoder_layers=1,
            attention_levels=1,
            gain=10.0,
            identity_weight=weight,
            adversarial_weight=0.0,
        )
        optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 1.5e-3)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, options.steps)
        for step in range(options.steps + 1):
            if step in (0, options.steps // 4, options.steps):
                rgba, rgb = figures(net, held)
                print(f"| {weight:g} | {step} | {rgba:.2f} | {rgb:.2f} |", flush=True)
                net.train()
            terms, _ = net.losses({"rgba": pictures(12, 100_000 + step)})
            optimizer.zero_grad()
            sum(terms.values()).backward()
            optimizer.step()
            schedule.step()


if __name__ == "__main__":
    main()

"""Caches between steps, ours and diffusers', on the same weights at equal numbers of full steps.

    python tests/benchmarks/bench_acceleration.py [--quick] [--clock cpu] [--threads 1] [--rounds 3] [--compile]
        [--corpus DIR] [--output DIR]

A class-conditional DiT is trained once (minutes; its weights are kept beside the results) on thumbnails of the corpus,
whose classes are the packages they come from, or on drawn shapes where there is no corpus, and sampled with 50 guided
Euler steps, natively and as diffusers' class with the same weights. Every method runs in turn with the
uncached network in each round. ``ideal`` is steps over full steps, ``gain`` the uncached network's time over the
method's, ``of ideal`` their quotient; ``error`` is of the final sample, relative; ``PSNR`` of its pixels, both against
the uncached sample; ``kept`` is memory of the cache. The last tables have randomly initialised shapes of FLUX, Wan and
DiT for speed alone (1,024 and 768 tokens of 512), and what our hooks cost at interval 1, from many short pairs of runs.

cache-dit takes part where it is installed. ``--compile`` compiles the blocks of every network first; on a machine with
a GPU everything runs there. ``--clock cpu --threads 1`` counts the process's own seconds: the figures to trust on a
machine that others use too.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from polydit.core.acceleration import (
    RAS,
    BlockSpan,
    DeltaDiT,
    FirstBlock,
    MagCache,
    TaylorSeer,
    accelerate,
    magnitude_ratios,
)
from polydit.core.acceleration.plan import diffusers_steps
from polydit.core.backbones import DiT
from polydit.core.backbones.diffusers_dit import dit_to_diffusers
from polydit.core.diffusion import Guidance, Parameterization, ddim
from polydit.core.media.chart import line_chart
from polydit.core.media.table import ResultsTable

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLASSES, SIDE, STEPS, PAIRS = 8, 16, 50, 12
CONFIG = {
    "input_size": SIDE, "in_channels": 3, "hidden_size": 128, "depth": 6, "num_heads": 4, "num_classes": CLASSES,
}  # fmt: skip
Sampler = Callable[[], Tensor]
Draw = Callable[[Tensor, torch.Generator], Tensor]


def shapes(labels: Tensor, generator: torch.Generator) -> Tensor:
    """(B, 3, 16, 16) in [-1, 1]: disc, ring, square, frame, cross, stripes, half or corner, by label."""
    axis = torch.linspace(-1, 1, SIDE)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    pictures = []
    for label in labels.tolist():
        dx, dy, size = (torch.rand(3, generator=generator) * torch.tensor([0.5, 0.5, 0.3])).tolist()
        u, v, size = x - dx + 0.25, y - dy + 0.25, size + 0.4
        r, m = (u**2 + v**2).sqrt(), torch.maximum(u.abs(), v.abs())
        inside = [
            r < size,
            (r < size) & (r > size * 0.6),
            m < size,
            (m < size) & (m > size * 0.6),
            torch.minimum(u.abs(), v.abs()) < size * 0.3,
            (3 * u / size).sin() > 0,
            u > 0,
            (u > 0) & (v > 0),
        ][label]
        front, back = torch.rand(2, 3, 1, 1, generator=generator) * 2 - 1
        pictures.append(torch.where(inside, front, back).expand(3, SIDE, SIDE))
    return torch.stack(pictures)


def thumbnails(corpus: Path) -> Draw:
    """Draws of the corpus' training photographs and cut-outs on white, by the package that they come from."""
    from polydit.core.data.corpus.manifest import load_manifest
    from polydit.core.data.images import read_image, to_uint8

    files: dict[str, list[Path]] = {}
    for record in load_manifest(corpus):
        if record.kind in ("photos", "cutouts") and record.split == "train":
            files.setdefault(f"{record.kind} {record.package}", []).append(corpus / record.file)
    chosen = sorted(files.values(), key=len, reverse=True)[:CLASSES]
    held = []
    for group in chosen:
        pictures = [to_uint8(read_image(file, background=(255, 255, 255))[0]) for file in group[:150]]
        small = [Image.fromarray(one).resize((SIDE, SIDE), Image.Resampling.BOX) for one in pictures]
        held.append(
            torch.from_numpy(np.stack([np.asarray(one) for one in small])).permute(0, 3, 1, 2) / 127.5 - 1
        )

    def draw(labels: Tensor, generator: torch.Generator) -> Tensor:
        numbers = torch.rand(len(labels), generator=generator)
        return torch.stack(
            [held[k][int(n * len(held[k]))] for k, n in zip(labels.tolist(), numbers, strict=True)]
        )

    return draw


def trained(folder: Path, updates: int, corpus: Path) -> DiT:
    """The network, trained now if it was not before."""
    torch.manual_seed(0)
    model = DiT(**CONFIG)
    known = (corpus / "manifest.jsonl").is_file()
    path = folder / f"{'corpus' if known else 'shapes'}_dit_{updates}.safetensors"
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval()
    print(f"training on {corpus if known else 'drawn shapes'}, {updates} updates, once", file=sys.stderr)
    draw = thumbnails(corpus) if known else shapes
    generator, flow = torch.Generator().manual_seed(0), Parameterization()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    for update in range(updates):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1, update / 50, 3 * (1 - update / updates))
        labels = torch.randint(CLASSES, (32,), generator=generator)
        x0, noise = draw(labels, generator), torch.randn(32, 3, SIDE, SIDE, generator=generator)
        t = torch.rand(32, generator=generator)
        raw = model(flow.path.add_noise(x0, noise, t), flow.model_timestep(t), labels).sample
        loss = (raw - flow.target(x0, noise, t)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if update % 100 == 0:
            print(f"  {update}: {loss.item():.4f}", file=sys.stderr)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), path)
    return model.eval()


def sampler(model: nn.Module, steps: int, batch: int, wrap: Callable[[Any], Any] = lambda f: f) -> Sampler:
    """Guided Euler steps from fixed noise."""
    noise = torch.randn(batch, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    labels = (torch.arange(batch) % CLASSES).to(DEVICE)
    flow, guidance = Parameterization(), Guidance(scale=1.5)
    times = [1 - i / steps for i in range(steps + 1)]
    both = ({"class_labels": labels}, {"class_labels": torch.full_like(labels, CLASSES)})

    def ask(x: Tensor, timestep: Tensor, class_labels: Tensor) -> Tensor:
        return model(x, timestep=timestep, class_labels=class_labels).sample

    denoise = guidance.doubled(ask, *both, flow.time)

    @torch.no_grad()
    def run() -> Tensor:
        return ddim(wrap(denoise), noise, flow, times)

    return run


@contextmanager
def ours(model: nn.Module, policy: Any) -> Any:
    """A method of ours; yields (report or None, wrap)."""
    with accelerate(model, policy) as handle:
        yield handle


@contextmanager
def theirs(model: nn.Module, apply: Callable[[nn.Module], None]) -> Any:
    """A hook of diffusers, put on anew for each run: left on, its second run differs from the first."""
    from diffusers.hooks import HookRegistry
    from diffusers.models.cache_utils import CacheMixin

    apply(model)
    try:
        with CacheMixin.cache_context(model, "all"):
            yield None
    finally:
        for module in model.modules():
            if hasattr(module, "_diffusers_hook"):
                registry = HookRegistry.check_if_exists_or_initialize(module)
                for name in list(registry.hooks):
                    registry.remove_hook(name, recurse=False)
                del (
                    module._diffusers_hook
                )  # its list of children is kept, and misses the hooks of the next method


def seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Time of one call, the device's queue emptied before and after."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    call()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def count_blocks(model: nn.Module) -> list[int]:
    """Grows by one for each MLP that is computed."""
    calls: list[int] = []
    blocks: Any = model.blocks if isinstance(model, DiT) else model.transformer_blocks  # type: ignore[union-attr]
    for block in blocks:
        inner = block.mlp.fc1 if isinstance(model, DiT) else block.ff.net[0]
        inner.register_forward_hook(lambda *_: calls.append(1))
    return calls


class Bench:
    """Methods on two forms of one network, each against the uncached form in the same round."""

    def __init__(
        self,
        model: DiT,
        steps: int,
        batch: int,
        rounds: int,
        clock: Callable[[], float],
        compile_blocks: bool = False,
    ) -> None:
        diffusers = dit_to_diffusers(model).eval().to(DEVICE)
        self.models: dict[str, nn.Module] = {
            "native": compiled(model, compile_blocks),
            "diffusers": compiled(diffusers, compile_blocks),
        }
        self.compile_blocks = compile_blocks
        self.steps, self.batch, self.rounds, self.clock = steps, batch, rounds, clock
        self.counts = {form: count_blocks(each) for form, each in self.models.items()}
        self.depth = len(model.blocks)
        self.plain = {form: sampler(each, steps, batch)() for form, each in self.models.items()}
        self.rows: list[dict[str, Any]] = []

    def measure(self, name: str, form: str, opened: Callable[[nn.Module], Any]) -> None:
        """Add a row: ``opened(model)`` is a context with the method on."""
        model, gains = self.models[form], []
        wrap: Callable[[Any], Any] = lambda f: f  # noqa: E731
        sample, kept = torch.zeros(()), None
        if self.compile_blocks:
            with opened(model) as handle:  # compiles what the method puts in
                sampler(model, self.steps, self.batch, getattr(handle, "guide", wrap))()
        for _ in range(self.rounds):
            plain = seconds(sampler(model, self.steps, self.batch), self.clock)
            with opened(model) as handle:
                if hasattr(handle, "guide"):
                    wrap = handle.guide
                self.counts[form].clear()
                holder: list[Tensor] = []
                run = sampler(model, self.steps, self.batch, wrap)
                cached = seconds(lambda run=run, holder=holder: holder.append(run()), self.clock)
                sample = holder[0]
                computed = len(self.counts[form]) / self.depth
                if hasattr(handle, "report"):
                    kept = handle.report().bytes
            gains.append(plain / cached)
        error = float((sample - self.plain[form]).norm() / self.plain[form].norm())
        mse = float((sample.clamp(-1, 1) - self.plain[form].clamp(-1, 1)).square().mean())
        ideal = self.steps / computed
        self.rows.append(
            {
                "method": name,
                "network": form,
                "full": round(computed, 1),
                "ideal": ideal,
                "gain": statistics.median(gains),
                "of ideal": statistics.median(gains) / ideal,
                "error": error,
                "PSNR": 10 * math.log10(4 / mse) if mse else math.inf,
                "kept": kept,
            }
        )
        print(
            f"  {name} ({form}): {statistics.median(gains):.2f}x of {ideal:.2f}x, error {error:.4f}",
            file=sys.stderr,
        )


def compare(bench: Bench) -> None:
    """All methods; the full steps are those of TaylorSeer at interval 4 (14 of 50)."""
    from diffusers import FirstBlockCacheConfig, MagCacheConfig, TaylorSeerCacheConfig
    from diffusers.hooks.first_block_cache import apply_first_block_cache
    from diffusers.hooks.mag_cache import apply_mag_cache
    from diffusers.hooks.taylorseer_cache import apply_taylorseer_cache

    steps = bench.steps
    model = bench.models["native"]
    ratios = magnitude_ratios(model, sampler(model, steps, bench.batch))
    bench.measure("interval 1", "native", lambda m: ours(m, TaylorSeer(1)))
    for order in (0, 1, 2):
        bench.measure(f"TaylorSeer O={order}", "native", lambda m, order=order: ours(m, TaylorSeer(4, order)))
    bench.measure("Delta-DiT", "native", lambda m: ours(m, DeltaDiT(2)))
    bench.measure("BlockSpan", "native", lambda m: ours(m, BlockSpan(0, None, 4)))
    bench.measure("BlockSpan O=1", "native", lambda m: ours(m, BlockSpan(0, None, 4, order=1)))
    for threshold in (0.1, 0.2, 0.4):
        bench.measure(f"FirstBlock {threshold}", "native", lambda m, t=threshold: ours(m, FirstBlock(t)))
    bench.measure("MagCache", "native", lambda m: ours(m, MagCache(ratios)))
    bench.measure("RAS 50 %", "native", lambda m: ours(m, RAS(0.5, resets=(20, 35))))
    full = diffusers_steps(steps, 4, 2)
    for order in (0, 1, 2):
        settings = TaylorSeerCacheConfig(
            cache_interval=4,
            disable_cache_before_step=2,
            max_order=order,
            taylor_factors_dtype=torch.float32,
            cache_identifiers=[r".*attn1$", r".*\.ff$"],
        )
        name = f"TaylorSeer O={order}, its steps"
        policy = lambda m, order=order: ours(m, TaylorSeer(order=order, full_steps=full))  # noqa: E731
        bench.measure(name, "diffusers", policy)
        apply = lambda m, settings=settings: theirs(m, lambda m: apply_taylorseer_cache(m, settings))  # noqa: E731
        bench.measure(f"diffusers TaylorSeer O={order}", "diffusers", apply)
    for threshold in (0.1, 0.2):
        first = FirstBlockCacheConfig(threshold=threshold)
        bench.measure(f"FirstBlock {threshold}", "diffusers", lambda m, t=threshold: ours(m, FirstBlock(t)))
        bench.measure(
            f"diffusers FirstBlock {threshold}",
            "diffusers",
            lambda m, first=first: theirs(m, lambda m: apply_first_block_cache(m, first)),
        )
    mag = MagCacheConfig(num_inference_steps=steps, mag_ratios=ratios)
    bench.measure("MagCache", "diffusers", lambda m: ours(m, MagCache(ratios)))
    bench.measure("diffusers MagCache", "diffusers", lambda m: theirs(m, lambda m: apply_mag_cache(m, mag)))
    if not cache_dit_at_hand():
        print("cache-dit cannot be imported here; left out", file=sys.stderr)
        return
    try:
        for threshold in (0.1, 0.2):
            name = f"cache-dit F1B0 {threshold}"
            bench.measure(name, "diffusers", lambda m, t=threshold: cache_dit_on(m, t, steps))
    except (AttributeError, ValueError, AssertionError) as error:  # another version of it
        print(f"cache-dit does not run on this network: {error}", file=sys.stderr)


def cache_dit_at_hand() -> bool:
    """Whether the peer is installed."""
    os.environ.setdefault("CACHE_DIT_LOG_LEVEL", "error")  # it tells a line for everything it does
    try:
        import cache_dit  # noqa: F401
    except ImportError:
        return False
    return True


@contextmanager
def cache_dit_on(model: Any, threshold: float, steps: int) -> Any:
    """DBCache with one block in front; the fewest settings that make it run without a pipeline.

    It hides its blocks from diffusers' DiT, which asks the first for its modulation, so it brings a ``forward`` of its
    own for that network, and does not put the network's back.
    """
    import cache_dit
    from cache_dit import BlockAdapter, DBCacheConfig, ForwardPattern
    from cache_dit.caching.patch_functors import DiTPatchFunctor

    settings = DBCacheConfig(
        Fn_compute_blocks=1,
        Bn_compute_blocks=0,
        max_warmup_steps=0,
        residual_diff_threshold=threshold,
        num_inference_steps=steps,
    )
    blocks = model.transformer_blocks
    adapter = BlockAdapter(
        transformer=model,
        blocks=blocks,
        forward_pattern=ForwardPattern.Pattern_3,
        patch_functor=DiTPatchFunctor(),
        check_forward_pattern=False,
    )
    cache_dit.enable_cache(adapter, cache_config=settings)
    try:
        yield None
    finally:
        cache_dit.disable_cache(adapter)
        for name in ("forward", "_is_patched"):
            model.__dict__.pop(name, None)
        model._modules.pop("_norm1_emb", None)


def pure_speed(
    quick: bool, rounds: int, clock: Callable[[], float], compile_blocks: bool = False
) -> list[dict[str, Any]]:
    """Randomly initialised transformers of diffusers, one call per step: outputs of parts, the span of all blocks."""
    import diffusers

    width, tokens = (64, 8) if quick else (512, 64)
    heads = width // 64
    steps = 14 if quick else STEPS
    torch.manual_seed(0)
    cases: dict[str, tuple[nn.Module, dict[str, Any]]] = {
        "DiT": (
            diffusers.DiTTransformer2DModel(
                num_attention_heads=heads, attention_head_dim=64, in_channels=4, out_channels=4, num_layers=8,
                sample_size=tokens, num_embeds_ada_norm=10,
            ),
            {"hidden_states": torch.randn(1, 4, tokens, tokens), "class_labels": torch.tensor([1])},
        ),
        "FLUX": (
            diffusers.FluxTransformer2DModel(
                in_channels=64, num_layers=3, num_single_layers=6, attention_head_dim=64, num_attention_heads=heads,
                joint_attention_dim=64, pooled_projection_dim=64, axes_dims_rope=(16, 24, 24),
            ),
            {
                "hidden_states": torch.randn(1, tokens * tokens // 4, 64),
                "encoder_hidden_states": torch.randn(1, 32, 64),
                "pooled_projections": torch.randn(1, 64),
                "img_ids": torch.zeros(tokens * tokens // 4, 3),
                "txt_ids": torch.zeros(32, 3),
            },
        ),
        "Wan": (
            diffusers.WanTransformer3DModel(
                num_attention_heads=heads, attention_head_dim=64, in_channels=4, out_channels=4, text_dim=64,
                freq_dim=64, ffn_dim=4 * width, num_layers=6,
            ),
            {
                "hidden_states": torch.randn(1, 4, 3, tokens // 2, tokens // 2),
                "encoder_hidden_states": torch.randn(1, 16, 64),
            },
        ),
    }  # fmt: skip
    rows = []
    for name, (model, call) in cases.items():
        model = compiled(model.eval().to(DEVICE), compile_blocks)
        call = {key: value.to(DEVICE) for key, value in call.items()}
        run = caller(model, call, steps)
        run()  # the first is slower
        plain: list[float] = []
        cached: dict[str, list[float]] = {}
        full = {}
        for _ in range(rounds):
            plain.append(seconds(run, clock))
            for title, policy in (
                # As released, Wan's attention to the text is forecast too.
                ("TaylorSeer", TaylorSeer(4, 1, cross_attention=name == "Wan")),
                ("BlockSpan", BlockSpan(0, None, 4, order=1)),
            ):
                with accelerate(model, policy) as handle:
                    if compile_blocks:
                        run()
                    cached.setdefault(title, []).append(seconds(run, clock))
                    full[title] = len(handle.report().plan.full_steps)
        cost = cost_of_hooks(model, call, 1 if quick else PAIRS, clock)
        for title, times in cached.items():
            gain = statistics.median(without / taken for without, taken in zip(plain, times, strict=True))
            ideal = steps / full[title]
            rows.append(
                {"shape": name, "method": title, "full": full[title], "ideal": ideal, "gain": gain,
                 "of ideal": gain / ideal, "hooks": cost}
            )  # fmt: skip
            print(f"  {name}, {title}: {gain:.2f}x of {ideal:.2f}x", file=sys.stderr)
    return rows


def caller(model: nn.Module, call: dict[str, Any], steps: int) -> Callable[[], None]:
    """A run of so many calls with time going down."""

    @torch.no_grad()
    def run() -> None:
        for step in range(steps):
            model(timestep=torch.full((1,), 999 - 19 * step, device=DEVICE), **call)

    return run


def cost_of_hooks(model: nn.Module, call: dict[str, Any], pairs: int, clock: Callable[[], float]) -> float:
    """What a step takes longer with a cache that leaves out nothing, as a part of it; the median of short pairs."""
    run, costs = caller(model, call, 3), []
    for number in range(pairs + 1):
        taken = {}
        for hooks in (False, True) if number % 2 else (True, False):
            if hooks:
                with accelerate(model, TaylorSeer(1, 0)):
                    taken[hooks] = seconds(run, clock)
            else:
                taken[hooks] = seconds(run, clock)
        costs.append(taken[True] / taken[False] - 1)
    return statistics.median(costs[1:])  # the first compiles, where that is wanted


def compiled(model: nn.Module, wanted: bool) -> nn.Module:
    """The network, its blocks compiled in place where that is wanted."""
    if wanted:
        for module in model.modules():
            if isinstance(module, nn.ModuleList) and len(module) and hasattr(module[0], "forward"):
                for block in module:
                    block.compile()
    return model


def main() -> None:
    """Run everything and write table, picture and figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a network that was hardly trained, one round")
    parser.add_argument("--clock", choices=CLOCKS, default="wall")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--compile", action="store_true", help="compile the blocks of every network")
    parser.add_argument("--updates", type=int, default=300, help="of the training")
    parser.add_argument("--corpus", type=Path, default=Path("data/corpus"))
    parser.add_argument("--output", type=Path, default=Path("build/bench"))
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    rounds = 1 if options.quick else options.rounds
    clock = CLOCKS[options.clock]
    model = trained(options.output, 5 if options.quick else options.updates, options.corpus).to(DEVICE)
    steps, batch = (20, 2) if options.quick else (STEPS, 4)
    bench = Bench(model, steps, batch, rounds, clock, options.compile)
    compare(bench)
    speed = pure_speed(options.quick, rounds, clock, options.compile)

    table = ResultsTable(
        ["method", "network", "full", "ideal", "gain", "of ideal", "error", "PSNR", "kept MiB"]
    )
    for row in bench.rows:
        kept = None if row["kept"] is None else f"{row['kept'] / 2**20:.1f}"
        numbers = (f"{row['ideal']:.2f}x", f"{row['gain']:.2f}x", f"{row['of ideal']:.0%}")
        psnr = "exact" if math.isinf(row["PSNR"]) else f"{row['PSNR']:.1f}"
        table.add(row["method"], row["network"], row["full"], *numbers, f"{row['error']:.4f}", psnr, kept)
    print(table.markdown())
    shapes_table = ResultsTable(
        ["random shape", "method", "full", "ideal", "gain", "of ideal", "hooks at interval 1"]
    )
    for row in speed:
        numbers = (
            f"{row['ideal']:.2f}x",
            f"{row['gain']:.2f}x",
            f"{row['of ideal']:.0%}",
            f"{row['hooks']:+.1%}",
        )
        shapes_table.add(row["shape"], row["method"], row["full"], *numbers)
    print(shapes_table.markdown())
    options.output.mkdir(parents=True, exist_ok=True)
    points = {
        f"{row['method']}{' (d)' if row['network'] == 'diffusers' else ''}": [(row["gain"], row["PSNR"])]
        for row in bench.rows
    }
    line_chart(points, "gain and nearness to the uncached sample", "gain", "PSNR", lines=False).save(
        options.output / "acceleration.png"
    )
    content = {
        "methods": bench.rows,
        "shapes": speed,
        "cpu": os.cpu_count(),
        "device": str(DEVICE),
        "compiled": options.compile,
    }
    (options.output / "acceleration.json").write_text(json.dumps(content, indent=1))
    print(f"written: {options.output / 'acceleration.png'}, {options.output / 'acceleration.json'}")


if __name__ == "__main__":
    main()

"""The native DiT against diffusers': same weights, same dtype, same outputs, in turn in one run.

    python tests/benchmarks/bench_dit.py [--quick] [--models S/2 B/2] [--clock cpu] [--threads 1]

Every round runs each contestant and a matrix product once, there and back, so that a drifting machine hits all alike.
Times are medians; the ratios, diffusers' time over ours, are medians of the rounds' own ratios; ``best/best`` compares
the faster of eager and compiled on either side. ``of peak`` is the rate at which that faster one computes the model's
own matrix products, over the rate of the plain product beside it, the fastest size of three, in the same dtype.

``--clock cpu --threads 1`` counts the process's own processor seconds: the figures to trust on a machine that others
use too.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator

import diffusers
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from polydit.core.backbones import DiT, make_dit
from polydit.core.backbones.diffusers_dit import dit_to_diffusers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}
COLUMNS = ("native", "native compiled", "diffusers", "diffusers compiled")
Times = dict[str, list[float]]


def seconds(call: Callable[[], object], clock: Callable[[], float]) -> float:
    """Time of one call, the device's queue emptied before and after."""
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    start = clock()
    call()
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def race(calls: dict[str, Callable[[], object]], rounds: int, clock: Callable[[], float]) -> Times:
    """Seconds of each call in each round, after two uncounted rounds; every second round runs backwards."""
    times: Times = {name: [] for name in calls}
    for i in range(-2, rounds):
        for name in reversed(calls) if i % 2 else calls:
            spent = seconds(calls[name], clock)
            if i >= 0:
                times[name].append(spent)
    return times


def ratio(over: list[float], under: list[float]) -> float:
    """Median of the rounds' ratios."""
    return statistics.median(a / b for a, b in zip(over, under, strict=True))


def products(model: DiT, batch: int) -> float:
    """Floating-point operations of the matrix products of one forward pass."""
    width, tokens = model.config.hidden_size, model.pos_embed.shape[1]
    block = 12 * tokens * width**2 + 2 * tokens**2 * width + 6 * width**2
    return 2.0 * batch * model.config.depth * block


def matrix_product(dtype: torch.dtype) -> tuple[Callable[[], object], float]:
    """A tenth of a second of the fastest plain product here, and its floating-point operations."""
    fastest: tuple[float, int, Callable[[], object]] | None = None
    for side in (4096, 8192, 16384) if DEVICE.type == "cuda" else (512, 1024, 2048):
        a, b = (torch.randn(side, side, dtype=dtype, device=DEVICE) for _ in range(2))
        call = lambda a=a, b=b: a @ b  # noqa: E731
        call()
        rate = 2 * side**3 / min(seconds(call, time.perf_counter) for _ in range(5))
        if fastest is None or rate > fastest[0]:
            fastest = rate, side, call
    rate, side, call = fastest
    times = math.ceil(0.1 * rate / (2 * side**3))
    return lambda: [call() for _ in range(times)], times * 2.0 * side**3


def prepare(name: str, dtype: torch.dtype) -> DiT:
    """A model whose gates are open, so that nothing multiplies by zero."""
    torch.manual_seed(0)
    model = make_dit(f"DiT-{name}")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad and not parameter.any():
                nn.init.normal_(parameter, std=0.02)
    return model.eval().to(DEVICE, dtype)


def forward(model: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], Tensor]:
    """One pass without gradients."""

    def call() -> Tensor:
        with torch.no_grad():
            return model(*inputs).sample

    return call


def forward_backward(model: nn.Module, inputs: tuple[Tensor, ...]) -> Callable[[], None]:
    """One pass with gradients for every weight."""

    def call() -> None:
        model.zero_grad(set_to_none=True)
        model(*inputs).sample.square().mean().backward()

    return call


def compiled(model: nn.Module, native: bool) -> nn.Module:
    """Regional compilation; diffusers' DiT does not declare its repeated blocks, so they are named for it."""
    if not native:
        model._repeated_blocks = ["BasicTransformerBlock"]
    model.compile_repeated_blocks(fullgraph=native)
    return model


def rows(name: str, kind: str, batch: int, rounds: int, clock: str, compile_too: bool) -> Iterator[list[str]]:
    """Lines of the table for one model and dtype."""
    dtype = DTYPES[kind]
    native = prepare(name, dtype)
    models = {"native": native, "diffusers": dit_to_diffusers(native)}
    if compile_too:
        torch._dynamo.reset()
        models["native compiled"] = compiled(prepare(name, dtype), native=True)
        models["diffusers compiled"] = compiled(dit_to_diffusers(native), native=False)
    generator = torch.Generator().manual_seed(0)
    size = native.config.input_size
    x = torch.randn(batch, 4, size, size, generator=generator).to(DEVICE, dtype)
    t, y = (torch.randint(0, 1000, (batch,), generator=generator).to(DEVICE) for _ in range(2))
    product, work = matrix_product(dtype)
    expected = forward(native, (x, t, y))().float()
    for side, model in models.items():
        off = (forward(model, (x, t, y))().float() - expected).norm() / expected.norm()
        if not off < (1e-4 if dtype == torch.float32 else 3e-2):
            sys.exit(f"bench_dit: {side} {name} {kind} is off by {off:.1e}; times would mean nothing")
    for label, make, passes in (("forward", forward, 1), ("forward+backward", forward_backward, 3)):
        calls = {side: make(model, (x, t, y)) for side, model in models.items()}
        times = race({**calls, "product": product}, rounds, CLOCKS[clock])
        median = {side: statistics.median(values) for side, values in times.items()}
        ours, theirs = (
            min((k for k in calls if k.startswith(side)), key=median.__getitem__)
            for side in ("native", "diffusers")
        )
        share = passes * products(native, batch) / work
        yield [
            f"{name} {kind} {label}",
            *(f"{1e3 * median[k]:.0f}" if k in median else "-" for k in COLUMNS),
            f"{ratio(times['diffusers'], times['native']):.2f}",
            f"{ratio(times[theirs], times[ours]):.2f}",
            *(f"{share * ratio(times['product'], times[k]):.0%}" for k in (ours, theirs)),
            f"{work / min(times['product']) / 1e9:.0f}",
        ]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="S/2 without compilation, three rounds")
    parser.add_argument("--models", nargs="+", default=None, help="sizes, such as S/2 B/2 XL/2")
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="cpu: the process's own seconds")
    parser.add_argument("--threads", type=int, default=None, help="of a CPU; default: all cores")
    parser.add_argument("--rounds", type=int, default=None)
    parser.add_argument("--batch", type=int, default=None)
    options = parser.parse_args()
    on_gpu = DEVICE.type == "cuda"
    if options.threads:
        torch.set_num_threads(options.threads)
    models = options.models or (["S/2"] if options.quick else ["S/2", "B/2", *["XL/2"] * on_gpu])
    machine = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    table = Table(
        title=f"DiT, ms a pass ({options.clock} clock); torch {torch.__version__}, "
        f"diffusers {diffusers.__version__}, {machine}"
    )
    table.add_column("model, dtype, pass", no_wrap=True)
    for column in (
        *COLUMNS, "eager/eager", "best/best", "native of peak", "diffusers of peak", "peak GFLOP/s",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for name in models:
        batch = options.batch or (16 if on_gpu else 2 if name.startswith("S") else 1)
        for kind in DTYPES:
            rounds = options.rounds or (3 if options.quick else 7)
            for row in rows(name, kind, batch, rounds, options.clock, not options.quick):
                table.add_row(*row)
    Console(width=160).print(table)


if __name__ == "__main__":
    if DEVICE.type == "cpu" and "OMP_WAIT_POLICY" not in os.environ:
        # Threads that spin at barriers run ten times slower as soon as anybody else wants a core.
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "OMP_WAIT_POLICY": "passive"})
    warnings.simplefilter("ignore")  # the compiler's warnings are about itself
    diffusers.utils.logging.set_verbosity_error()
    main()

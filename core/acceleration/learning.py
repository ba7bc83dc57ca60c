"""Learning caches from the runs of a pipeline: no data, no loop of one's own, whatever the sampler and the guidance.

A pipeline samples as it always does. Each call of its network is answered twice, by the network and by the network with
the cache that learns; the difference teaches the cache.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from ..errors import PolyditError
from ..probing.calls import WATCHER
from .attached import ONE_STEP, refuse_second
from .blocks import find_blocks, unwrap
from .clock import Clock, Moment
from .handle import accelerate, frozen, network_of
from .inner_loop import Feedback, InnerLoop
from .policy import Policy
from .routers import Router, SoftRouting
from .sites import bind
from .taylorseer import FORA

__all__ = ["Last", "count_steps", "last_call", "learn_feedback", "learn_router"]

Run = Callable[[int], object]
"""Samples once; the number seeds the noise."""
Last = tuple[Tensor, ...]
"""What the network's last call of a run was given and answered: the sample follows from it."""
Told = Callable[[int, float], None]


def learn_router(
    target: Any,
    run: Run,
    passes: int = 100,
    share: float = 0.5,
    learning_rate: float = 0.1,
    threshold: float = 0.1,
    refresh: int = 50,
    seed: int = 0,
    told: Told | None = None,
) -> Router:
    """A router by HarmoniCa's step-wise denoising, on the runs of a pipeline ("HarmoniCa", arXiv 2410.01723).

    Each pass is a run that goes on from the routed answers, so that their errors add up as they will in use; each
    step's error counts by the part of the final error that its routing is responsible for, leaving one step out at a
    time. The final error is that of what the network's last call is given and answers. Unlike the paper, the scores of
    a pass are learned together, and the penalty is what the marginal site of that pass is worth, so that the share of
    the sites that are worth more goes up; what is left of the difference is made up by shifting all scores.

    Args:
        target: as of :func:`~polydit.core.acceleration.accelerate`.
        run: samples once.
        passes: runs to learn from.
        share: part of attention and MLP outputs, over all steps, that shall be computed; the first step is full.
        learning_rate: of AdamW, for scores between -5 and 5.
        threshold: from which score on a site is computed.
        refresh: passes after which the image errors are measured again, by as many runs as there are steps.
        seed: of the first scores; pass n runs with the number ``seed + n``.
        told: called with the number of passes done and the last mean error.

    Raises:
        PolyditError: the runs have one step, the share is out of reach, or the network cannot be asked twice.
    """
    steps = count_steps(target, partial(run, seed))
    if not 1 / steps <= share <= 1:
        raise PolyditError(
            f"share {share}: of {steps} steps the first is full; give {1 / steps:.2f} to 1 of what is computed"
        )
    router = Router.of(unwrap(network_of(target)[0]), steps, torch.Generator().manual_seed(seed))
    optimizer = torch.optim.AdamW([router.logits], lr=learning_rate, weight_decay=0.0)
    with _RouterLessons(target, router, threshold) as lessons:
        router.to(next(lessons.model.parameters()).device)
        for number in range(passes):
            if number % refresh == 0:
                lessons.weights = lessons.image_errors(partial(run, seed))
            lessons.learn(partial(run, seed + number))
            _add_penalty(router, (share * steps - 1) / (steps - 1))
            optimizer.step()
            optimizer.zero_grad()
            router.clamp_()
            if told is not None:
                told(number + 1, lessons.error)
    router.meet(share, threshold)
    return router.cpu()


def learn_feedback(
    target: Any,
    run: Run,
    passes: int = 100,
    loop: tuple[int, int] | None = None,
    interval: int = 2,
    learning_rate: float = 2e-3,
    seed: int = 0,
    told: Told | None = None,
) -> Feedback:
    """The feedback block of an inner loop, on the runs of a pipeline ("Inner Loop Feedback", arXiv 2501.13107).

    The network answers every step, so the states are those of a run without a cache; where the cache would run the
    loop alone, the block learns to have it answer likewise. The published training noises pictures instead.

    Args:
        target: as of :func:`~polydit.core.acceleration.accelerate`.
        run: samples once.
        passes: runs to learn from.
        loop: its first block, and the first one behind it; None is the middle half.
        interval: every how many steps all is computed.
        learning_rate: of AdamW, falling to nothing over the passes.
        seed: of the block's first weights; pass n runs with the number ``seed + n``.
        told: called with the number of passes done and the last mean error.

    Raises:
        PolyditError: the runs have one step, there are too few blocks, or the network cannot be asked twice.
    """
    model = unwrap(network_of(target)[0])
    count_steps(target, partial(run, seed))
    count = len(find_blocks(model))
    start, stop = loop or (max(1, count // 4), max(2, count - count // 4))
    feedback = Feedback(model, start, stop, seed)
    optimizer = torch.optim.AdamW(feedback.parameters(), lr=learning_rate, weight_decay=0.0)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, passes)
    with _FeedbackLessons(target, InnerLoop(feedback, interval), optimizer) as lessons:
        for number in range(passes):
            lessons.learn(partial(run, seed + number))
            falling.step()
            if told is not None:
                told(number + 1, lessons.error)
    return feedback.requires_grad_(False)


def _add_penalty(router: Router, share: float) -> None:
    """Add the gradient of a penalty on scores to that of the error: this share of the sites is worth more than it."""
    grad = router.logits.grad
    assert grad is not None
    scores = router.logits.detach().sigmoid()
    slopes = scores * (1 - scores)
    worth = -grad / slopes
    grad += torch.quantile(worth[1:], 1 - share) * slopes


def count_steps(target: Any, run: Callable[[], object]) -> int:
    """The steps of a run.

    Raises:
        PolyditError: there is one.
    """
    with accelerate(target, FORA(interval=1)) as handle:
        run()
        steps = len(handle.report().plan.computed)
    if steps < 2:
        raise PolyditError(ONE_STEP)
    return steps


def last_call(target: Any, run: Callable[[], object]) -> Last:
    """What the network's last call in a run was given and answered."""
    model = unwrap(network_of(target)[0])
    found: list[Last] = [()]

    def look(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        found[0] = _last(module, args, kwargs, output)

    hook = model.register_forward_hook(look, with_kwargs=True)
    try:
        run()
    finally:
        hook.remove()
    if not found[0]:
        raise PolyditError(_past_forward(model))
    return found[0]


def _past_forward(model: nn.Module) -> str:
    return (
        f"no call of {type(model).__name__} can be asked twice; its blocks are run past its forward, as for cached "
        "conditions; take a plan of `redundancy`, or a fixed cache"
    )


def _last(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Last:
    state = args[0] if args else next(iter(inspect.signature(module.forward).parameters))
    state = kwargs[state] if isinstance(state, str) else state
    return tuple(tensor.detach().float().clone() for tensor in (state, _tensors(output)[0]))


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _distance(a: Last, b: Last) -> float:
    return sum(float((x - y).square().mean()) for x, y in zip(a, b, strict=True))


class _Lessons:
    """A network whose calls are answered by :meth:`answer`, until the context ends.

    Attributes:
        model: it.
        error: mean over the calls of the last run that taught.
    """

    def __init__(self, target: Any, policy: Policy) -> None:
        outer, pipe = network_of(target)
        self.model, self.policy = unwrap(outer), policy
        refuse_second(self.model)
        if self.model.training:
            raise PolyditError("cache: the network must be frozen while its cache learns; call eval() first")
        self.sites = policy.sites(self.model)
        self.clock = Clock(pipe)
        self.error = 0.0
        self.last: Last = ()
        self._errors: list[float] = []

    def answer(self, moment: Moment, ask: Callable[..., Any]) -> Any:
        """The answer to one call of the network; ``ask(compute, learn, gradient)`` asks it."""
        raise NotImplementedError

    def learn(self, run: Callable[[], object]) -> None:
        """One run that teaches.

        Raises:
            PolyditError: no call of it did.
        """
        self._errors = []
        run()
        if not self._errors:
            raise PolyditError(_past_forward(self.model))
        self.error = sum(self._errors) / len(self._errors)

    def teach(self, student: Any, teacher: Any) -> Tensor:
        """Mean square difference of two answers of the network."""
        pairs = zip(_tensors(student), _tensors(teacher), strict=True)
        error = torch.stack([(a.float() - b.float()).square().mean() for a, b in pairs]).mean()
        self._errors.append(float(error.detach()))
        return error

    def __enter__(self) -> Self:
        with ExitStack() as undo:
            for site in self.sites:
                undo.callback(site.forget)
                for unbind in site.attach():
                    undo.callback(unbind)
            undo.callback(bind(self.model, "forward", self._wrap(self.model.forward)))
            object.__setattr__(self.model, WATCHER, self)
            undo.callback(object.__delattr__, self.model, WATCHER)
            undo.enter_context(frozen(self.model))
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._undo.close()

    @contextmanager
    def call(self, arguments: dict[str, Any]) -> Iterator[None]:
        """Blocks that are run past the model's ``forward`` are run as they are, and teach nothing."""
        yield

    def paused(self) -> AbstractContextManager[None]:
        """Likewise."""
        return nullcontext()

    def _wrap(self, inner: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(inner)

        def forward(*args: Any, **kwargs: Any) -> Any:
            call = signature.bind_partial(*args, **kwargs).arguments
            moment = self.clock.tick(call.get("timestep", call.get("t")))
            if moment.new_run:
                for site in self.sites:
                    site.forget()

            def ask(compute: bool, learn: bool, gradient: bool = False) -> Any:
                for site in self.sites:
                    site.enter(moment.step, moment.branch, compute, learn)
                try:
                    with torch.set_grad_enabled(gradient):
                        return inner(*args, **kwargs)
                finally:
                    for site in self.sites:
                        site.active = False

            with torch.inference_mode(False), torch.enable_grad():
                given = self.answer(moment, ask)
            self.last = _last(self.model, args, kwargs, given)
            return tree_map_only(Tensor, Tensor.detach, given)

        return forward


class _RouterLessons(_Lessons):
    def __init__(self, target: Any, router: Router, threshold: float) -> None:
        self.soft = SoftRouting(router, threshold)
        super().__init__(target, self.soft)
        self.router = router
        self.weights = torch.ones(router.steps)
        self.routed: set[int] | None = None  # steps; None is a lesson

    def answer(self, moment: Moment, ask: Callable[..., Any]) -> Any:
        if moment.step == 0 or (self.routed is not None and moment.step not in self.routed):
            return self._ask(moment, ask, "fill")
        if moment.step >= self.router.steps:
            raise PolyditError(
                f"router: it has {self.router.steps} steps, and a run has more; all must be alike"
            )
        if self.routed is not None:
            return self._ask(moment, ask, "mix")
        # The routed call comes first: it mixes with what the step before has kept.
        student = self._ask(moment, ask, "mix", gradient=True)
        teacher = self._ask(moment, ask, "plain")
        (self.teach(student, teacher) * self.weights[moment.step].item()).backward()
        return student

    def _ask(self, moment: Moment, ask: Callable[..., Any], mode: str, gradient: bool = False) -> Any:
        self.soft.set(mode, moment.step)
        self.soft.computes(moment, self.sites[0])
        return ask(True, mode == "fill", gradient)

    def image_errors(self, run: Callable[[], object]) -> Tensor:
        """(steps,): how much each step's routing changes the final state; their mean, without the first, is 1."""
        steps = self.router.steps
        every = set(range(1, steps))

        def final(routed: set[int]) -> Last:
            self.routed = routed
            run()
            if not self.last:
                raise PolyditError(_past_forward(self.model))
            return self.last

        try:
            whole = final(every)
            errors = torch.tensor([0.0] + [_distance(whole, final(every - {step})) for step in sorted(every)])
        finally:
            self.routed = None
        return errors / errors[1:].mean().clamp(min=1e-20)


class _FeedbackLessons(_Lessons):
    def __init__(self, target: Any, policy: InnerLoop, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(target, policy)
        self.optimizer = optimizer

    def answer(self, moment: Moment, ask: Callable[..., Any]) -> Any:
        if self.policy.computes(moment, self.sites[0]):
            return ask(True, True)
        student, teacher = ask(False, False, True), ask(True, False)
        self.teach(student, teacher).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return teacher

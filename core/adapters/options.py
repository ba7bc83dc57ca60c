"""What a LoRA is made of, as a config says it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import PolyditError

__all__ = ["LoraOptions"]


@dataclass
class LoraOptions:
    """A low-rank adapter (LoRA, arXiv 2106.09685): ``y = W x + s B A x`` with ``s = alpha / rank``.

    Attributes:
        rank: Rows of A, columns of B.
        alpha: Numerator of the scale; None is ``rank``, a scale of 1.
        targets: Which modules: ``attention`` (every projection of attention in the blocks, without the added text
            projections), ``linear`` (every linear layer in the blocks), a regular expression for whole module names,
            or a list of name endings and expressions.
        exclude: Name endings or expressions to leave out.
        dropout: On the input of A, in training.
        use_dora: Learn direction and magnitude apart (DoRA, arXiv 2402.09353).
        use_rslora: ``s = alpha / sqrt(rank)`` (rsLoRA, arXiv 2312.03732).
        init: ``default`` (Kaiming A, zero B), ``gaussian``, ``pissa`` (arXiv 2404.02948), ``pissa_niter_4`` (its
            fast form) or ``olora`` (arXiv 2406.01775). The last three start from the weights themselves; they are
            exported as a plain LoRA of twice the rank.
        rank_pattern: Rank of modules by name ending or expression.
        alpha_pattern: Alpha likewise.
        init_from: LoRA file to go on from, of this rank or less; what the file lacks starts fresh.
        lr_ratio: Learning rate of B over that of A (LoRA+, arXiv 2402.12354; 4 to 16 are usual).
    """

    rank: int = 16
    alpha: float | None = None
    targets: str | list[str] = "attention"
    exclude: list[str] = field(default_factory=list)
    dropout: float = 0.0
    use_dora: bool = False
    use_rslora: bool = False
    init: str = "default"
    rank_pattern: dict[str, int] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    init_from: str | None = None
    lr_ratio: float = 1.0

    def __post_init__(self) -> None:
        name, _, iterations = self.init.partition("_niter_")
        if self.init not in ("default", "gaussian", "pissa", "olora") and not (
            name == "pissa" and iterations.isdigit()
        ):
            raise PolyditError(
                f"model.adapter.init: unknown {self.init!r}; choose default, gaussian, pissa, pissa_niter_4 or olora"
            )
        if self.rank < 1 or any(r < 1 for r in self.rank_pattern.values()):
            raise PolyditError(
                "model.adapter.rank: a rank is at least 1; exclude modules with model.adapter.exclude"
            )
        if self.init_from and self.changes_base:
            raise PolyditError(f"model.adapter.init_from does not go with init {self.init}; use init default")
        if self.use_dora and self.changes_base:
            raise PolyditError(f"model.adapter: DoRA does not go with init {self.init}; use init default")

    @property
    def changes_base(self) -> bool:
        """Whether the initialisation moves a part of the base weight into the adapter."""
        return self.init.startswith(("pissa", "olora"))

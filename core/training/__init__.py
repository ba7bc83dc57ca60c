"""Training: the LightningModule that tasks subclass, its callbacks, and what ``fit``, ``validate`` and ``test`` run.

Importing this package imports Lightning (seconds); ``predict`` does not need it.
"""

from __future__ import annotations

from .ema import EMA, EmaOptions
from .module import DiffusionModule
from .optim import OptimizerOptions

__all__ = ["EMA", "DiffusionModule", "EmaOptions", "OptimizerOptions"]

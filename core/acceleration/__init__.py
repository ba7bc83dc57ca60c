"""Fewer steps: students that do in one step what their teacher does in several, and judges that keep them sharp."""

from __future__ import annotations

from .adversarial_distillation import AdversarialDistillation, FeatureDiscriminator
from .trajectory_distillation import TrajectoryDistillation

__all__ = ["AdversarialDistillation", "FeatureDiscriminator", "TrajectoryDistillation"]

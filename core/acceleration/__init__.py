"""Caches that leave parts of a network out between sampling steps, and students that need fewer steps.

``accelerate(pipe, TaylorSeer(interval=4))`` works on the native DiT and on diffusers transformers; a method says which
sites of the network it keeps and in which steps it computes them.
"""

from __future__ import annotations

from .adaspa import AdaSpa
from .adversarial_distillation import AdversarialDistillation, FeatureDiscriminator
from .cache_files import read_policy
from .classifier_guidance import ClassifierGuidance
from .classifier_samplers import guided_ancestral, guided_heun
from .deepcache import DeepCache
from .delta_dit import BlockSpan, DeltaDiT
from .first_block import FirstBlock
from .guided_distillation import GuidedDistillation
from .handle import Handle, accelerate
from .inner_loop import Feedback, InnerLoop, InnerLoopTraining
from .learning import learn_feedback, learn_router
from .mag_cache import MagCache, magnitude_ratios
from .mmd_finetuning import MMDFinetuning
from .mmd_objective import MMDObjective, RandomFeatures
from .plan import Plan
from .policy import Replay
from .redundancy import Redundancy, study
from .regions import RAS
from .report import Report
from .rettention import Rettention
from .router_training import RouterTraining
from .routers import Routed, Router
from .taylorseer import FORA, TaylorSeer
from .trajectory_distillation import TrajectoryDistillation

__all__ = [
    "FORA",
    "RAS",
    "AdaSpa",
    "AdversarialDistillation",
    "BlockSpan",
    "ClassifierGuidance",
    "DeepCache",
    "DeltaDiT",
    "FeatureDiscriminator",
    "Feedback",
    "FirstBlock",
    "GuidedDistillation",
    "Handle",
    "InnerLoop",
    "InnerLoopTraining",
    "MMDFinetuning",
    "MMDObjective",
    "MagCache",
    "Plan",
    "RandomFeatures",
    "Redundancy",
    "Replay",
    "Report",
    "Rettention",
    "Routed",
    "Router",
    "RouterTraining",
    "TaylorSeer",
    "TrajectoryDistillation",
    "accelerate",
    "guided_ancestral",
    "guided_heun",
    "learn_feedback",
    "learn_router",
    "magnitude_ratios",
    "read_policy",
    "study",
]

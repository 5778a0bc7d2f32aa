"""Erasure methods: a file is a method. A class of your own subclasses `GradientMethod` (one loss) or `Method`.

Every method's class is found here by its name, as in `erasure.methods.SalUn(alpha=0.5)`, and its module is imported
when the class is first used. A class has the name of its file without underscores, in any case: the static names below
are for type checkers and editors.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from erasure.core import registry

if TYPE_CHECKING:
    from erasure.methods.base import GradientMethod as GradientMethod
    from erasure.methods.base import Job as Job
    from erasure.methods.base import Method as Method
    from erasure.methods.base import Options as Options
    from erasure.methods.base import StepBatches as StepBatches
    from erasure.methods.base import TrainingSetup as TrainingSetup
    from erasure.methods.cross_attention.forget_me_not import ForgetMeNot as ForgetMeNot
    from erasure.methods.cross_attention.mace import MACE as MACE
    from erasure.methods.cross_attention.rece import RECE as RECE
    from erasure.methods.cross_attention.speed import SPEED as SPEED
    from erasure.methods.cross_attention.uce import UCE as UCE
    from erasure.methods.finetuning.concept_ablation import ConceptAblation as ConceptAblation
    from erasure.methods.finetuning.erasediff import EraseDiff as EraseDiff
    from erasure.methods.finetuning.finetune import Finetune as Finetune
    from erasure.methods.finetuning.gradient_ascent import GradientAscent as GradientAscent
    from erasure.methods.finetuning.l1_sparse import L1Sparse as L1Sparse
    from erasure.methods.finetuning.retrain import Retrain as Retrain
    from erasure.methods.finetuning.selective_amnesia import SelectiveAmnesia as SelectiveAmnesia
    from erasure.methods.guidance.advunlearn import AdvUnlearn as AdvUnlearn
    from erasure.methods.guidance.esd import ESD as ESD
    from erasure.methods.guidance.lora_esd import LoraESD as LoraESD
    from erasure.methods.guidance.negative_prompt import NegativePrompt as NegativePrompt
    from erasure.methods.guidance.sld import SLD as SLD
    from erasure.methods.relabeling.boundary_expand import BoundaryExpand as BoundaryExpand
    from erasure.methods.relabeling.boundary_shrink import BoundaryShrink as BoundaryShrink
    from erasure.methods.relabeling.random_label import RandomLabel as RandomLabel
    from erasure.methods.relabeling.salun import SalUn as SalUn
    from erasure.methods.relabeling.salun_distilled import SalUnDistilled as SalUnDistilled
    from erasure.methods.relabeling.salun_soft import SalUnSoft as SalUnSoft
    from erasure.methods.second_order.influence import Influence as Influence
    from erasure.methods.second_order.puma import Puma as Puma

BASES = ("GradientMethod", "Job", "Method", "Options", "StepBatches", "TrainingSetup")


def __getattr__(name: str) -> Any:
    if name in BASES:
        from erasure.methods import base

        return getattr(base, name)
    plugin = {plugin.replace("_", ""): plugin for plugin in registry.names("methods")}.get(name.lower())
    method = registry.load("methods", plugin) if plugin else None
    if method is None or method.__name__ != name:
        raise AttributeError(f"module 'erasure.methods' has no attribute {name!r}")
    return method


def __dir__() -> list[str]:
    methods = (registry.load("methods", name).__name__ for name in registry.names("methods"))
    return sorted({*globals(), *BASES, *methods})

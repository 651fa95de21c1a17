"""What is known of every distillation loss without importing torch: its published setting, what it looks at, and what it goes with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from core.errors import UserError

if TYPE_CHECKING:
    from core.config import Config


@dataclass(frozen=True)
class Method:
    """The setting that is taken where a user states none, and the facts that decide what a loss can be combined with."""

    temperature: float = 4.0
    weight: float = 0.9
    """On the distillation loss."""
    ce_weight: float = 0.1
    """On the cross-entropy with the labels."""
    labels: bool = False
    """Looks at labels also where ce_weight is 0."""
    regions: bool = False
    """Compares the logits of every region of the feature map."""
    maps: bool = False
    """Compares feature maps, so the teacher runs in every step."""
    decoupled: bool = False
    """Has alpha and beta, and is warmed up (DKD)."""
    standardised: bool = False
    """z-scores the logits, so mixed probabilities mean nothing to it."""


METHODS: dict[str, Method] = {
    "ce": Method(temperature=1.0, weight=0.0, ce_weight=1.0, labels=True),
    "kd": Method(),
    "dkd": Method(weight=1.0, ce_weight=1.0, labels=True, decoupled=True),
    "lskd": Method(temperature=2.0, weight=9.0, standardised=True),
    "dkd_lskd": Method(temperature=2.0, weight=9.0, ce_weight=1.0, labels=True, decoupled=True, standardised=True),
    "sdd": Method(labels=True, regions=True),
    "sdd_dkd": Method(weight=1.0, ce_weight=1.0, labels=True, regions=True, decoupled=True),
    "sdd_lskd": Method(temperature=2.0, weight=9.0, labels=True, regions=True, standardised=True),
    "sdd_dkd_lskd": Method(temperature=2.0, weight=9.0, ce_weight=1.0, labels=True, regions=True, decoupled=True, standardised=True),
    "apprentice": Method(temperature=1.0, weight=0.5, ce_weight=0.5),
    "hint": Method(temperature=1.0, weight=100.0, ce_weight=1.0, maps=True),
    "at": Method(temperature=1.0, weight=1000.0, ce_weight=1.0, maps=True),
}
"""One entry per entry of DISTIL_LOSSES (core/losses.py). References:
mdistiller a08d46f, `engine/cfg.py` (kd, dkd, hint, at); LSKD f6e5aa5, its README's commands (lskd, dkd_lskd); SDD e412036 (sdd, sdd_dkd);
Mishra and Marr 2018, arXiv 1711.05852 (apprentice). The mixtures of SDD and LSKD take LSKD's weights; no published run has them right."""

REGION_LOSSES = tuple(name for name, method in METHODS.items() if method.regions)
"""Losses on the logits of every region of the feature map."""
FEATURE_LOSSES = tuple(name for name, method in METHODS.items() if method.maps)
"""Losses on feature maps."""


def method_of(loss: str) -> Method:
    """The facts of a loss; one of a plugin may look at labels and is else like `kd`."""
    return METHODS.get(loss, Method(labels=True))


def needs_labels(loss: str, ce_weight: float) -> bool:
    """Whether a training with this loss looks at labels at all."""
    return ce_weight > 0 or method_of(loss).labels


def check_classes(loss: str, classes: int, teachers: int, rule: str, said: str) -> None:
    """Raises UserError where logits of two classes are to be standardised: they are then +-1/sqrt(2), and no gradient passes them.

    `teachers` are mixed by `rule`; `said` names the loss.
    """
    if classes != 2:
        return
    law = "standardised logits of two classes only say which one is larger, and teach nothing more"
    if method_of(loss).standardised:
        raise UserError(f"{law}, but {said}; take kd, dkd or sdd")
    if teachers > 1 and rule == "logits":
        raise UserError(f"{law}, but teacher_mix.rule is logits; take probabilities")


def check_method(loss: str, config: Config, said: str) -> None:
    """Raises UserError for a loss that does not go with the teachers or views of `config`; `said` names it, as in "loss is hint"."""
    method, several = method_of(loss), len(config.teachers) > 1
    if config.views.average and config.views.cache == "off":
        raise UserError("views.average needs kept logits, but views.cache is off; set it to on, or leave average out")
    if several and method.standardised and config.teacher_mix.rule == "probabilities":
        law = "teacher_mix.rule probabilities goes with losses that do not standardise logits"
        raise UserError(f"{law}, but {said}; take the rule logits or another loss")
    if several and method.maps:
        law = "hint and at learn from the feature map of one teacher"
        raise UserError(f"{law}, but there are {len(config.teachers)} and {said}; take one teacher, or a loss on logits")
    if config.views.average and (method.regions or method.maps):
        what = "regions" if method.regions else "maps"
        law = f"views.average goes with losses on logits of whole images, as {what} of shifted and mirrored views do not match"
        raise UserError(f"{law}, but {said}; leave average out")

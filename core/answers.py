"""What a loss is told, whoever tells it: one teacher (core/teacher_logits.py), or several as one."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from core.candidate import fingerprint
from core.errors import UserError
from core.losses import standardize_logits


class Answers(Protocol):
    """What `distil` asks. Indices (B,) are into the training split; `images` (B, C, H, W) is that batch, where it is at hand."""

    @property
    def digest(self) -> str:
        """Names who answers."""

    @property
    def forward_images(self) -> int:
        """Images that teachers really saw."""

    def __call__(self, indices: Tensor, view: int, images: Tensor | None = None) -> Tensor:
        """Logits float32 (B, K)."""

    def regions(self, indices: Tensor, view: int, grid: int, images: Tensor | None = None) -> Tensor:
        """Logits float32 (B, K, N) for the scales up to `grid`: global, then each grid row-major, as `region_logits`."""

    def maps(self, images: Tensor) -> Tensor:
        """The last feature map float32 (B, C, h, w)."""

    def softened(self, temperature: float) -> Answers:
        """The same answers, as a loss at this temperature reads them."""


@dataclass(frozen=True)
class MixedLogits:
    """Several teachers as one. `weights` sum to 1.

    `logits`: the weighted mean of every teacher's z-scored logits, so that the most confident one does not dominate.
    `probabilities`: the logits T log q of q = sum of w softmax(v / T), so that a loss which softens them by T again learns from q itself
    (Hinton et al. 2015 for ensembles). It has no meaning for a loss that z-scores them.
    """

    parts: tuple[Answers, ...]
    weights: tuple[float, ...]
    rule: Literal["logits", "probabilities"] = "logits"
    temperature: float = 1.0

    @property
    def digest(self) -> str:
        """Of teachers, weights and rule."""
        return fingerprint([part.digest for part in self.parts], self.weights, self.rule)

    @property
    def forward_images(self) -> int:
        """Images that the teachers saw, summed."""
        return sum(part.forward_images for part in self.parts)

    def __call__(self, indices: Tensor, view: int, images: Tensor | None = None) -> Tensor:
        """float32 (B, K)"""
        return self._mix([part(indices, view, images) for part in self.parts])

    def regions(self, indices: Tensor, view: int, grid: int, images: Tensor | None = None) -> Tensor:
        """float32 (B, K, N), mixed region by region."""
        return self._mix([part.regions(indices, view, grid, images) for part in self.parts])

    def maps(self, images: Tensor) -> Tensor:
        """Raises UserError: maps of different networks have no mean."""
        raise UserError(f"hint and at learn from the feature map of one teacher, but there are {len(self.parts)}; leave more_teachers out")

    def softened(self, temperature: float) -> MixedLogits:
        """Mixed at this temperature; `logits` are the same at every one."""
        return replace(self, temperature=temperature)

    def _mix(self, logits: list[Tensor]) -> Tensor:
        if self.rule == "logits":
            return sum(weight * standardize_logits(each) for weight, each in zip(self.weights, logits, strict=True))  # type: ignore[return-value]
        shares = torch.stack([F.log_softmax(each / self.temperature, 1) for each in logits])
        weights = torch.tensor(self.weights, device=shares.device).log().view(-1, *[1] * logits[0].ndim)
        return self.temperature * (shares + weights).logsumexp(0)

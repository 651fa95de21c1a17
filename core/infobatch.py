"""InfoBatch: an epoch leaves out a share of the images that are learned already, and those of them that stay weigh more.

An image counts as learned while its last loss is below the mean over all images. Its gradient is scaled by 1 / (1 - share), so that in
expectation the sum over an epoch's images stays what it was. The first epochs and the last ones see every image.

References: Qin et al. 2024, "InfoBatch: Lossless Training Speed Up by Unbiased Dynamic Data Pruning", arXiv 2303.04947. Differences: two
whole epochs at the start, as views alternate between an image and its mirror image; an epoch keeps its number of steps, each the mean over
a smaller batch, so that where N' of N images stay a step has N / N' times the gradient (in the paper there are fewer steps).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

WHOLE_EPOCHS = 2
WHOLE_SHARE = 0.125
"""Of the run, at its end."""


class InfoBatch:
    """The last losses of `count` images, and who sits out an epoch. `share` in [0, 1): of the learned ones; 0 leaves nobody out."""

    def __init__(self, count: int, share: float, epochs: float, seed: int, device: torch.device) -> None:
        self.share, self.epochs = share, epochs
        self.losses = torch.zeros(count, device=device)
        self._random = torch.Generator().manual_seed(seed)
        self._weights = torch.ones(count, device=device)

    def stay(self, order: Tensor, epoch: int) -> Tensor:
        """Of the indices `order` (N,) those that epoch `epoch` sees, in their order."""
        self._weights.fill_(1.0)
        if not self.share or not WHOLE_EPOCHS <= epoch < (1.0 - WHOLE_SHARE) * self.epochs:
            return order
        learned = self.losses < self.losses.mean()
        self._weights[learned] = 1.0 / (1.0 - self.share)
        out = learned.cpu() & (torch.rand(len(learned), generator=self._random) < self.share)
        return order[~out[order]]

    def mean(self, losses: Tensor, indices: Tensor) -> Tensor:
        """Remember `losses` (B,) of the images `indices` (B,), and weigh them: a scalar."""
        self.losses[indices] = losses.detach()
        return (losses * self._weights[indices]).mean()

    def state_dict(self) -> dict[str, Tensor]:
        """What the next epoch is chosen by, for a checkpoint."""
        return {"losses": self.losses, "random": self._random.get_state()}

    def load_state_dict(self, state_dict: Mapping[str, Tensor], /) -> None:
        """Go on where `state_dict` was taken."""
        self.losses.copy_(state_dict["losses"])
        self._random.set_state(state_dict["random"])

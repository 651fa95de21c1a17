"""scikit-learn's digits: 1,797 handwritten 8 x 8 grey images of the NIST forms, shipped inside the package; no network.

References: E. Alpaydin and C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository, 1998.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from core.config import DataConfig
from core.data.images import adapt
from core.data.types import ImageSet, RawData


def load_digits(config: DataConfig, cache_dir: Path) -> RawData:
    """All digits, without a test split of their own. With `config.dir` that image folder is read instead."""
    if config.dir is not None:
        from core.data.folder import load_folder

        return load_folder(config, cache_dir)
    from sklearn.datasets import load_digits as sklearn_digits

    pixels, labels = sklearn_digits(return_X_y=True)
    # The forms count the ink of 4 x 4 cells: 0..16.
    images = np.rint(pixels * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
    images = adapt(images, config.image_size, config.channels)
    return RawData(ImageSet(torch.from_numpy(images), torch.from_numpy(labels.astype(np.int64))), None, tuple("0123456789"))

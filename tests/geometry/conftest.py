"""What torchvision answered (tests/reference), and the change of its coordinate order into ours."""

from pathlib import Path

import numpy as np
import pytest


@pytest.fixture(scope="session")
def recorded():
    path = Path(__file__).resolve().parents[1] / "reference" / "torchvision_ops.npz"
    with np.load(path) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.fixture(scope="session")
def yx():
    """[x1, y1, x2, y2] or (dx, dy, dw, dh) -> [y1, x1, y2, x2] or (dy, dx, dh, dw), and back."""
    return lambda values: np.ascontiguousarray(values[..., [1, 0, 3, 2]])

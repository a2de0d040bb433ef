"""Fixtures that all tests share."""

import os
from pathlib import Path

import numpy as np
import pytest


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def shared_data():
    """Folder with real images, which are not part of the repository."""
    default = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("IAUNET_TEST_DATA", default))
    if not folder.is_dir():
        pytest.skip("no folder of real images (IAUNET_TEST_DATA)")
    return folder

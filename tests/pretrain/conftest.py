from __future__ import annotations

import pytest

from tests.pretrain.world import SMALL, World
from tests.world import draw


@pytest.fixture(scope="session")
def drawn(tmp_path_factory):
    return draw(tmp_path_factory.mktemp("drawn") / "toy", SMALL)


@pytest.fixture
def world(drawn, tmp_path):
    return World(drawn, tmp_path)

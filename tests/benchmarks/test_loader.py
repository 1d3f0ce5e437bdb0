from pathlib import Path

import pytest

from benchmarks import loader
from scripts.make_toy_data import ToyWorld, make_toy_data

pytestmark = pytest.mark.integration


def test_loader_measures_throughput(tmp_path):
    make_toy_data(tmp_path / "toy", ToyWorld(tasks=("vcr",), train=12, val=1, test=1))
    overrides = [
        f"DATASET.DATASET_PATH={tmp_path}/toy/vcr",
        f"NETWORK.BERT_MODEL_NAME={tmp_path}/toy/bert",
        "TRAIN.BATCH_IMAGES=4",
    ]
    cfg = Path(__file__).parents[2] / "cfgs/vcr/toy_q2a.yaml"
    row = loader.measure(str(cfg), overrides, workers=0, num_batches=100)
    assert row["samples"] == 8  # all but the first batch
    assert row["samples/s"] * row["ms/sample"] == pytest.approx(1000)

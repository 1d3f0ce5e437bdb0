import pytest

YAML = """
MODULE: ResNetVLBERT
RNG_SEED: 3
OUTPUT_PATH: out
MODEL_PREFIX: net
GPUS: ""
LOG_FREQUENT: 2
NUM_WORKERS_PER_GPU: 0
SCALES: [1, 2]
DATASET: {DATASET: toy, TRAIN_IMAGE_SET: toytrain, TEST_IMAGE_SET: toytest}
NETWORK: {IMAGE_FEAT_PRECOMPUTED: true}
VAL: {BATCH_IMAGES: 5}
TRAIN:
  BATCH_IMAGES: 4
  END_EPOCH: 2
  LR: 0.01
  ASPECT_GROUPING: false
  LOSS_LOGGERS: ["loss,ToyLoss"]
"""


@pytest.fixture
def cfg(tmp_path):
    path = tmp_path / "toy.cfg.yaml"
    path.write_text(YAML)
    return path

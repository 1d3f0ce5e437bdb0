import pytest
import torch

from common.errors import CheckpointError
from common.evaluation.checkpoints import load_model
from tests.common.training.toy import ToyModel, ToyTask, toy_config

CPU = torch.device("cpu")


def test_load_model_reads_a_checkpoint_of_ddp(tmp_path):
    model = ToyModel()
    torch.nn.init.constant_(model.linear.bias, 9)
    state = {f"module.{name}": value for name, value in model.state_dict().items()}
    torch.save({"state_dict": state}, tmp_path / "m")
    loaded = load_model(ToyTask(toy_config()), tmp_path / "m", CPU)
    assert loaded.linear.bias.item() == 9
    assert not loaded.training


@pytest.mark.parametrize("dataset", ["{DATASET: toy, TASK: other}", "[{DATASET: toy, TASK: other}]"])
def test_load_model_rejects_a_checkpoint_of_another_task(dataset):
    class Distinguished(ToyTask):
        checkpoint_identity_keys = ("TASK",)

    content = {"state_dict": ToyModel().state_dict(), "config": f"DATASET: {dataset}"}
    with pytest.raises(
        CheckpointError, match=r"x\.model: was trained with DATASET\.TASK: other, which is another task"
    ):
        load_model(Distinguished(toy_config()), "x.model", CPU, content)
    load_model(ToyTask(toy_config()), "x.model", CPU, content)

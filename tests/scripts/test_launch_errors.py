"""What a user sees of an error when there are several processes: the first one, once."""

from __future__ import annotations

import pytest

from tests.scripts.launching import Launch
from tests.world import ROOT

pytestmark = pytest.mark.dist

FALL = """
import os, time
from common.cli.run import run

def main():
    if os.environ["RANK"] == "0":
        time.sleep(0.5)
        raise RuntimeError("connection closed by peer")
    raise ZeroDivisionError("the cause")

raise SystemExit(run(main))
"""


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (("--do-tset",), 2, "error: unrecognized arguments: --do-tset; see train_end2end.py --help\n"),
        (("--set", "TRAIN.LRR=1"), 2, "error: --set TRAIN.LRR=1: TRAIN.LRR: unknown key; did you mean LR?\n"),
        (
            ("--set", "NETWORK.BERT_MODEL_NAME=lost"),
            1,
            "error: lost: no such directory; NETWORK.BERT_MODEL_NAME",
        ),
    ],
)
def test_a_mistake_of_all_processes_is_said_once(tmp_path, arguments, status, message):
    launch = Launch(tmp_path)
    train = (2, "vqa/train_end2end.py", ROOT / "cfgs/vqa/toy.yaml", launch.out, *arguments)
    code, _, errors = launch.run("dist_run_single.sh", *train)
    assert code == status
    assert errors.startswith(message)
    assert len(errors.splitlines()) == 1


def test_the_first_traceback_is_shown(tmp_path):
    launch = Launch(tmp_path)
    launch.program.write_text(FALL)
    code, _, errors = launch.run("dist_run_single.sh", 2, *launch.arguments)
    assert code == 1
    assert errors.startswith("Traceback (most recent call last):\n")
    assert errors.endswith("\nZeroDivisionError: the cause\n")
    assert "peer" not in errors

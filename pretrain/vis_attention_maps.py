"""Writes what every head of a pre-trained model attends to, for each picture of the validation split (spec 8.1)."""

from __future__ import annotations

import sys

from common.cli.attention import attention_main, attention_parser
from common.cli.run import run
from pretrain.config import ATTENTION
from pretrain.task import PretrainTask

UNMASKED = (
    f"MODULE={ATTENTION}",
    "TRAIN.END_EPOCH=0",
    *(f"NETWORK.WITH_{loss}_LOSS=false" for loss in ("REL", "MLM", "MVRC")),
)
"""Any yaml file of pre-training serves: nothing is hidden, and captions are the pictures' own."""


def main() -> None:
    """Reads the command line, and writes a file for each picture."""
    attention_main(attention_parser().parse_args(), PretrainTask, UNMASKED)


if __name__ == "__main__":
    sys.exit(run(main))

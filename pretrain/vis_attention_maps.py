"""Writes the attention maps of a pre-trained model for every image of the validation split."""

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
"""Turns off masking and random captions, so that any pre-training yaml file can be used."""


def main() -> None:
    """Runs the command line."""
    attention_main(attention_parser().parse_args(), PretrainTask, UNMASKED)


if __name__ == "__main__":
    sys.exit(run(main))

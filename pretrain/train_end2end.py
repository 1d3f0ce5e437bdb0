"""Pre-trains VL-BERT: `python pretrain/train_end2end.py --cfg cfgs/pretrain/base_prec_4x16G_fp32.yaml`."""

from __future__ import annotations

from common.cli.train import train_main
from pretrain.task import PretrainTask

if __name__ == "__main__":
    train_main(PretrainTask, partial_pretrain=False)

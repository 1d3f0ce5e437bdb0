"""Trains a VCR model: `python vcr/train_end2end.py --cfg cfgs/vcr/base_q2a_4x16G_fp32.yaml --model-dir ./`."""

from __future__ import annotations

from common.cli.train import train_main
from vcr.task import VCRTask

if __name__ == "__main__":
    train_main(VCRTask)

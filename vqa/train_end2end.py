"""Trains a VQA model: `python vqa/train_end2end.py --cfg cfgs/vqa/base_4x16G_fp32.yaml --model-dir ./`."""

from __future__ import annotations

from common.cli.train import train_main
from vqa.task import VQATask

if __name__ == "__main__":
    train_main(VQATask)

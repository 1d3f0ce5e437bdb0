"""Trains on referring expressions: `python refcoco/train_end2end.py --cfg cfgs/refcoco/toy.yaml --model-dir ./`."""

from __future__ import annotations

from common.cli.train import train_main
from refcoco.task import RefCOCOTask

if __name__ == "__main__":
    train_main(RefCOCOTask)

"""Processes of a run: launching, process group and collectives, signals, stall detection.

Gradients and checkpoints belong to `common/training`, the sharding of data to `common/data`.
"""

"""Evaluation of checkpoints: metrics and predictions over a split, and result files.

The metrics of a task and the format of its predictions belong to the task.
"""

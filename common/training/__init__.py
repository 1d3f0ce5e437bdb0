"""Training: the loop, optimizers, schedules, precision, metrics, checkpoints and callbacks.

Knows a task only through the `Task` contract, and nothing about evaluation commands or predictions.
"""

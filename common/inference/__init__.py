"""Trained models on the user's own images: predictions, encodings, attention maps and drawings.

Training and evaluation on data sets are in `common.training` and `common.evaluation`; command lines in `common.cli`.
"""

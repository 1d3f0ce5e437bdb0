"""Network modules, losses and weight files.

Knows nothing about datasets.
"""

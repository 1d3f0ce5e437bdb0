"""Network modules, losses, weight files. Knows nothing of datasets."""

"""From files on disk to batches. Knows nothing of models."""

"""Pre-training on image captions and text corpora."""

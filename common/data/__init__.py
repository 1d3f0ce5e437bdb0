"""The data pipeline: datasets, images, tokenizer, masks, samplers, collation and loaders.

Knows nothing about models.
"""

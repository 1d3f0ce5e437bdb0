"""Synthetic attention maps with the patterns of trained models."""

from __future__ import annotations

import numpy as np

from common.inference.attention import AttentionMaps, SequenceTokens


def example(layers: int = 12, heads: int = 12, words: int = 12, regions: int = 10) -> AttentionMaps:
    """Maps of [CLS], `words`, [SEP], the whole image, `regions` and [END]; word k attends to region k."""
    generator = np.random.default_rng(0)
    boxes = [(0.0, 0.0, 639.0, 479.0)]
    for _ in range(regions):
        x, y = generator.uniform(0, 500), generator.uniform(0, 340)
        boxes.append((x, y, x + generator.uniform(30, 139), y + generator.uniform(30, 139)))
    sequence = SequenceTokens(
        image_id="example",
        image="",
        size=(640, 480),
        tokens=("[CLS]", *(f"word{index}" for index in range(words)), "[SEP]"),
        boxes=tuple(boxes),
        labels=("image", *(f"{number} thing" for number in range(1, regions + 1))),
    )
    pairs = {k + 1: words + 3 + k for k in range(regions)}
    return AttentionMaps(sequence, _maps(layers, heads, sequence, pairs))


def _maps(layers: int, heads: int, sequence: SequenceTokens, pairs: dict[int, int]) -> np.ndarray:
    """(layers, heads, S, S) softmax of five patterns with random mixture weights per head."""
    generator = np.random.default_rng(1)
    length, text = len(sequence.names), len(sequence.tokens)
    patterns = np.zeros((5, length, length))
    patterns[0] = 7 * np.eye(length, k=1)  # next position
    patterns[1] = 7 * np.eye(length, k=-1)  # previous position
    patterns[2][:, text - 1] = 6  # [SEP] as an attention sink
    patterns[3][:text, :text] = patterns[3][text:, text:] = 2  # within one modality
    for word, region in pairs.items():
        patterns[4][word, region] = patterns[4][region, word] = 6
        patterns[4][word - 1, region] = 4  # the adjective before a noun
    mix = generator.dirichlet(np.full(5, 0.35), (layers, heads))
    scores = np.einsum("lhp,pij->lhij", mix, patterns)
    scores += generator.normal(0, 0.5, (layers, heads, length, length))
    weights = np.exp(scores)
    return (weights / weights.sum(-1, keepdims=True)).astype(np.float32)

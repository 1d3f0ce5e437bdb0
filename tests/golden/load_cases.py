"""Golden checkpoint loading: language, image and pre-training files into freshly seeded modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.config.sections import VLBertConfig
from common.errors import CheckpointError
from common.models.fast_rcnn import FastRCNN
from common.models.official_names import OfficialNames
from common.models.pretrained import load_image_backbone, load_language_model, load_matching
from common.models.visual_linguistic_bert import VisualLinguisticBert, VisualLinguisticBertForPretraining
from tests.golden.adapter import AnyTask
from tests.golden.adapters import build_task
from tests.golden.harness import Case, Report, statistics, unwrapped, weight
from tests.golden.unit_cases import seed_module
from vcr.task import RELATIONSHIP, SEGMENTS
from vqa.answers import AnswerVocabulary

RULE_SPECIAL = "special words start as copies of the word table"
RULE_TIED = "the decoder of the word head is the word table, a file need not repeat it"
RULE_PLAIN = "names of a file need no prefix"
RULE_ROWS = "the single segment row of a file fills all rows, in the pre-training class too"
RULE_TABLES = "a table of another size than the configured one is refused"
RULE_REL_HEAD = "the relationship head is found with or without 'module.', and used by 1fc alone"
RULE_SEGMENTS = "the segment table is found with or without 'module.'"

SPECIAL = "special_word_embeddings.weight"
TYPES = "token_type_embeddings.weight"
ENCODERS = {
    "VisualLinguisticBert": VisualLinguisticBert,
    "VisualLinguisticBertForPretraining": VisualLinguisticBertForPretraining,
}


def checkpoint(case: Case) -> dict[str, Tensor]:
    """The file of a case: `{key: [shape, kind(, dtype)]}` filled by the weight rule."""
    entries, salt = case.document["checkpoint"], case.document["checkpoint_salt"]
    norms, biases = (frozenset(k for k, e in entries.items() if e[1] == kind) for kind in ("norm", "bias"))
    weights = {}
    for key, (shape, kind, *dtype) in entries.items():
        source = kind.removeprefix("tied:")
        name = source if kind.startswith("tied:") else key
        value = torch.from_numpy(np.array(weight(name, tuple(shape), salt, norms, biases)))
        weights[key] = value.to(getattr(torch, dtype[0])) if dtype else value
    return weights


def norm_weights(model: nn.Module, names: OfficialNames) -> list[str]:
    """Official names of the weights of normalisations, for cases that do not list them."""
    return [
        names.official(f"{name}.weight")
        for name, module in model.named_modules()
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d)
    ]


def seed(case: Case, model: nn.Module, names: OfficialNames) -> dict[str, np.ndarray]:
    """Fills a model by the rule and returns its values under the official names."""
    seed_module(model, names, case.document["model_salt"], norm_weights(model, names))
    return values_of(model, names)


def values_of(model: nn.Module, names: OfficialNames) -> dict[str, np.ndarray]:
    return {name: value.numpy().copy() for name, value in names.to_official(model.state_dict()).items()}


def compare_state(
    case: Case,
    report: Report,
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    without: Mapping[str, str],
) -> None:
    """Compares every entry with what the reference holds; `without` maps names left out to the rule."""
    document = case.document
    for name, (shape, *expected) in document["after"].items():
        if name in without:
            report.skip(name, without[name])
        elif name not in after:
            report.failures.append(f"{name}: not in our model")
        else:
            report.equal(f"{name} shape", list(after[name].shape), shape)
            actual = statistics(name, after[name], document["model_salt"])
            for what, a, e in zip(("norm", "mean", "probe"), actual, expected, strict=True):
                report.close(f"{name} {what}", a, e, 1e-5 * max(expected[0], 1e-6))
    for name in document["unchanged"]:
        if name in without:
            report.skip(name, without[name])
        else:
            report.equal(f"{name} unchanged", after[name], before[name])


def refused(report: Report, what: str, load: Any) -> None:
    try:
        load()
    except CheckpointError:
        report.equal(what, "refused", "refused")
    else:
        report.equal(what, "loaded", "refused")


# --- Language and image files -------------------------------------------------------------------------------


def run_language(case: Case, report: Report) -> None:
    known = {k: v for k, v in case.document["vlbert_config"].items() if k in VLBertConfig.model_fields}
    config = VLBertConfig.model_validate(known)
    model, names = ENCODERS[case.document["module"]](config), OfficialNames()
    before, weights = seed(case, model, names), checkpoint(case)
    rule = fixed_language_rule(model, weights)
    if "raises" in case.document and rule is None:
        refused(report, "file", lambda: load_language_model(model, weights, case.name))
        return
    if other_tables(case, before, weights):
        report.skip("tables of another size", RULE_TABLES)
        refused(report, "other table size", lambda: load_language_model(model, weights, case.name))
        return
    load_language_model(model, weights, case.name)
    after = values_of(model, names)
    if "raises" in case.document and rule is not None:
        report.skip("the reference's error", rule)
        compare_language(report, after, weights)
        return
    if SPECIAL in after:
        report.skip(SPECIAL, RULE_SPECIAL)
        report.equal(SPECIAL, after[SPECIAL], after["word_embeddings.weight"][: len(after[SPECIAL])])
    rows = next((len(value) for key, value in weights.items() if key.endswith(TYPES)), 0)
    if rows == 1 and isinstance(model, VisualLinguisticBertForPretraining):
        report.equal("rows of segments", after[TYPES], np.repeat(after[TYPES][:1], len(after[TYPES]), 0))
        report.skip(f"{TYPES} beyond row 1", RULE_ROWS)
        after[TYPES][2:] = before[TYPES][2:]
    compare_state(case, report, before, after, {SPECIAL: RULE_SPECIAL})


def fixed_language_rule(model: nn.Module, weights: Mapping[str, Tensor]) -> str | None:
    """Why a file that the reference cannot read can be read here."""
    if not any(key.startswith(("bert.", "roberta.")) for key in weights):
        return RULE_PLAIN
    heads = isinstance(model, VisualLinguisticBertForPretraining)
    return RULE_TIED if heads and not any(key.endswith("decoder.weight") for key in weights) else None


def compare_language(report: Report, after: Mapping[str, np.ndarray], weights: Mapping[str, Tensor]) -> None:
    """Entries that are called alike on both sides, tables of segments aside, are those of the file."""
    for name, value in after.items():
        given = [w for key, w in weights.items() if key == name or key.endswith(f".{name}")]
        if given and name != TYPES:
            report.equal(f"{name} of the file", value, given[0].float().numpy())


def other_tables(case: Case, model: Mapping[str, np.ndarray], weights: Mapping[str, Tensor]) -> bool:
    """Whether the reference replaced a table by one of another size."""
    tables = ("word_embeddings.weight", "position_embeddings.weight")
    return any(
        key.endswith(f"embeddings.{table}") and value.shape != model[table].shape
        for key, value in weights.items()
        for table in tables
    )


def run_image(case: Case, report: Report) -> None:
    model = FastRCNN(final_dim=1, depth=case.document["IMAGE_NUM_LAYERS"])
    before, weights = seed(case, model, OfficialNames()), checkpoint(case)
    if "raises" in case.document:
        refused(report, "file", lambda: load_image_backbone(model, weights, case.name))
        return
    load_image_backbone(model, weights, case.name)
    compare_state(case, report, before, values_of(model, OfficialNames()), {})


# --- Pre-training checkpoints -------------------------------------------------------------------------------


def uses_relationship(network: Any) -> bool:
    """Whether the answer head starts from the relationship head of a file."""
    return getattr(network, "LOAD_REL_HEAD", False) and network.CLASSIFIER_TYPE == "1fc"


def copies_segment(network: Any) -> bool:
    """Whether the second segment starts from the first."""
    return bool(getattr(network, "PARTIAL_PRETRAIN_SEGMB_INIT", False))


def run_task(case: Case, report: Report) -> None:
    task = build_task(case, report)
    names = task.state_dict_names
    model, weights = task.build_model(), checkpoint(case)
    before, network = seed(case, model, names), task.config.NETWORK

    def load() -> None:
        load_matching(model, task.adapt_pretrained(weights, case.name), names, case.name)

    heads = {key for key in weights if RELATIONSHIP in key}
    plain = {key for key in heads if key == unwrapped(key)}
    if "raises" in case.document:
        loads = getattr(network, "LOAD_REL_HEAD", False)
        fixed = bool(heads - plain) and loads and network.CLASSIFIER_TYPE != "1fc"
        found = any(key == unwrapped(key) and key.endswith(TYPES) for key in weights)
        if not (fixed or (found and copies_segment(network))):
            refused(report, "file", load)
            return
        report.skip("the reference's error", RULE_REL_HEAD if fixed else RULE_SEGMENTS)
        load()
    else:
        load()
        other = [name for name in before if name.startswith("final_mlp.1.")]
        rules = dict.fromkeys(other, RULE_REL_HEAD) if plain and uses_relationship(network) else {}
        compare_state(case, report, before, values_of(model, names), rules)
    compare_expected(report, task, before, weights, values_of(model, names))


def compare_expected(
    report: Report,
    task: AnyTask,
    before: Mapping[str, np.ndarray],
    weights: Mapping[str, Tensor],
    after: Mapping[str, np.ndarray],
) -> None:
    """Every entry is what the prefix rules bring from the file, or else untouched."""
    network, brought = task.config.NETWORK, {}
    for key, value in weights.items():
        target = key
        for rule in network.PARTIAL_PRETRAIN_PREFIX_CHANGES:
            old, new = rule.split("->")
            if key.startswith(old):
                target = new + key[len(old) :]
                break
        brought[unwrapped(target)] = value.float().numpy()
    if copies_segment(network):
        brought[SEGMENTS] = brought[SEGMENTS][[0, 0, *range(2, len(brought[SEGMENTS]))]]
    for name, value in after.items():
        expected = brought.get(name, before[name])
        if name.startswith("final_mlp.1.") and uses_relationship(network):
            tail = name.rpartition(".")[2]
            rows = next(
                (v.float().numpy() for k, v in weights.items() if f"{RELATIONSHIP}.{tail}" in k), None
            )
            expected = expected if rows is None else rows[1:2] - rows[:1]
        report.equal(f"{name} as the rules say", value, expected)


def run_answers(case: Case, report: Report) -> None:
    """The last layer of the answer head says the mean word of each answer."""
    document, task = case.document, build_task(case, report)
    vocabulary = task.tokenizer.vocab
    for answer in document["answers"]:
        report.equal(f"pieces of {answer}", task.tokenizer.tokenize(answer), document["pieces"][answer])
        ids = [vocabulary[piece] for piece in document["pieces"][answer]]
        report.equal(f"ids of {answer}", ids, document["piece_ids"][answer])
    # The case's answers lack <unk>, which a vocabulary file must have.
    task.vocabulary = AnswerVocabulary(tuple(document["answers"]))
    model = task.build_model()
    before = seed(case, model, task.state_dict_names)
    task.load_pretrained(model)
    after = values_of(model, task.state_dict_names)
    compare_state(case, report, before, after, {})
    (name,), (values,) = document["after"], document["values"].values()
    report.close("columns", after[name][:, : len(values[0])], values, 1e-6)


def _loads(case: Case, *keys: str) -> bool:
    return case.folder == ("train",) and {"model_salt", *keys} <= set(case.document)


RUNNERS = [
    (lambda c: _loads(c, "checkpoint", "vlbert_config"), run_language),
    (lambda c: _loads(c, "checkpoint", "IMAGE_NUM_LAYERS"), run_image),
    (lambda c: _loads(c, "checkpoint", "config"), run_task),
    (lambda c: _loads(c, "answers", "pieces"), run_answers),
]

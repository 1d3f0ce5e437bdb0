"""Golden units of the model area: sequence layout, encoder, region branch, geometry, losses, trunk, text layouts."""

from __future__ import annotations

import warnings
from types import SimpleNamespace

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import roi_align

from common.batch import Batch, Lengths, Text
from common.config.sections import VLBertConfig
from common.models.fast_rcnn import FastRCNN
from common.models.geometry import coordinate_embeddings, pairwise_iou
from common.models.losses import soft_cross_entropy
from common.models.official_names import OfficialNames
from common.models.packing import Packing, Padding
from common.models.resnet import ResNet
from common.models.visual_linguistic_bert import PackedInputs, VisualLinguisticBert
from tests.golden.adapters import tokens
from tests.golden.harness import Case, Report, layer_states, statistics, weight
from vcr.text import assemble_text
from vqa.dataset import assemble_question
from vqa.model import MASK_FROM_END

RULE_DEAD_HELPER = "the reference's unused helper is not part of this project"
RULE_EMPTY_LABELS = "without a valid row the loss stays a tensor of its own shape"


@torch.no_grad()
def seed_module(module: nn.Module, names: OfficialNames, salt: str, norm_weights: list[str]) -> None:
    """Fills a module by the weight rule; of two names for one tensor the first counts."""
    norms = frozenset(norm_weights)
    for name, value in module.state_dict().items():
        value.copy_(torch.from_numpy(weight(names.official(name), tuple(value.shape), salt, norms)))


def no_dropout(module: nn.Module) -> None:
    for child in module.modules():
        if isinstance(child, nn.Dropout):
            child.p = 0.0


def tolerance(case: Case, name: str, expected: np.ndarray) -> float:
    """Ten times the float32 error of the reference, at least 1e-6 of the scale (model README, section 4)."""
    scale = float(np.abs(expected).max(initial=0.0))
    recorded = case.document.get("float32_error", {}).get(name, ["0", "0"])
    return max(10 * float(recorded[0]), 1e-6 * max(scale, 1e-30))


def compare(case: Case, report: Report, name: str, actual: torch.Tensor, key: str | None = None) -> None:
    expected = case.arrays[f"output.{key or name}"]
    report.close(key or name, actual.detach().numpy(), expected, tolerance(case, name, expected))


def tensors(case: Case) -> dict[str, torch.Tensor]:
    return {
        k.removeprefix("input."): torch.from_numpy(v)
        for k, v in case.arrays.items()
        if k.startswith("input.")
    }


def _in_model(case: Case, *keys: str) -> bool:
    document = case.document
    return case.folder == ("model",) and "module" not in document and all(key in document for key in keys)


def _arrays(case: Case, *names: str) -> bool:
    return _in_model(case) and case.path.with_suffix(".npz").exists() and set(names) <= set(case.arrays)


def packed_inputs(
    vlbert: VisualLinguisticBert, inputs: dict[str, torch.Tensor], visual_size: int
) -> PackedInputs:
    text_mask, object_mask = inputs["text_mask"], inputs["object_mask"]
    text_visual = inputs["text_visual_embeddings"][text_mask]
    objects = inputs["object_vl_embeddings"][object_mask]
    visual = torch.cat([text_visual, objects[:, :visual_size]])
    return PackedInputs(
        text_lengths=Lengths.of(text_mask.sum(1).tolist()),
        text_ids=inputs["text_input_ids"][text_mask],
        text_types=inputs["text_token_type_ids"][text_mask],
        text_visual=torch.arange(len(text_visual)),
        region_lengths=Lengths.of(object_mask.sum(1).tolist()),
        region_visual=torch.arange(len(objects)) + len(text_visual),
        region_words=objects[:, visual_size:],
        visual=visual,
    )


def _vlbert(case: Case) -> tuple[VisualLinguisticBert, PackedInputs, dict[str, torch.Tensor]]:
    config = VLBertConfig.model_validate(
        {k: v for k, v in case.document["vlbert_config"].items() if k in VLBertConfig.model_fields}
    )
    vlbert = VisualLinguisticBert(config).eval()
    seed_module(vlbert, OfficialNames(), case.document["salt"], case.document["norm_weights"])
    inputs = tensors(case)
    return vlbert, packed_inputs(vlbert, inputs, config.visual_size), inputs


def run_layout(case: Case, report: Report) -> None:
    vlbert, packed, _ = _vlbert(case)
    packing = Packing.of(packed.text_lengths, packed.region_lengths, vlbert.first_position)
    embedded = vlbert.embed(packed, packing)
    real = torch.from_numpy(case.arrays["output.mask"])
    report.equal("lengths", list(packing.lengths.sizes), real.sum(1).tolist())
    expected = case.arrays["output.embeddings"][real.numpy()]
    report.close("embeddings", embedded.detach().numpy(), expected, tolerance(case, "embeddings", expected))
    for name, slots in (("text_mask_new", packing.text), ("object_mask_new", packing.regions)):
        marked = torch.zeros(packing.lengths.total, dtype=torch.bool).index_fill(0, slots, True)
        report.equal(name, Padding.of(packing.lengths).pad(marked).numpy(), case.arrays[f"output.{name}"])


def run_encoder(case: Case, report: Report) -> None:
    vlbert, packed, inputs = _vlbert(case)
    with layer_states(vlbert.encoder) as layers:
        encoded = vlbert(packed, kernel="explicit")
    lengths = encoded.packing.lengths
    real = Padding.of(lengths).mask()
    real = torch.ones(len(lengths), lengths.longest, dtype=torch.bool) if real is None else real
    for index, hidden in enumerate(layers):
        expected = case.arrays["output.encoded_layers"][index][real.numpy()]
        allowed = tolerance(case, "encoded_layers", case.arrays["output.encoded_layers"])
        report.close(f"encoded_layers[{index}]", hidden.detach().numpy(), expected, allowed)
        both = (
            (real[:, None, :, None] & real[:, None, None, :])
            .expand_as(encoded.output.attention[index])
            .numpy()
        )
        expected = case.arrays["output.attention_probs"][index][both]
        maps = encoded.output.attention[index].detach().numpy()[both]
        report.close(
            f"attention_probs[{index}]", maps, expected, tolerance(case, "attention_probs", expected)
        )
    compare(case, report, "pooled_output", vlbert.pool(encoded))
    for role, states, mask in (
        ("text", encoded.text(), inputs["text_mask"]),
        ("object", encoded.regions(), inputs["object_mask"]),
    ):
        # The reference's text slots beyond a row's text hold other states: compare real ones.
        expected = case.arrays[f"output.{role}"][mask[:, : case.arrays[f"output.{role}"].shape[1]].numpy()]
        report.close(role, states.detach().numpy(), expected, tolerance(case, role, expected))
    for kernel in ("padded", "jagged"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nested tensors announce themselves as a prototype
            hidden = vlbert(packed, kernel=kernel).output.hidden
        report.close(
            f"kernel {kernel}", hidden.detach().numpy(), encoded.output.hidden.detach().numpy(), 1e-5
        )


def run_fast_rcnn(case: Case, report: Report) -> None:
    network, inputs = case.document["config"]["NETWORK"], tensors(case)
    model = FastRCNN(
        final_dim=network["IMAGE_FINAL_DIM"],
        depth=None if network["IMAGE_FEAT_PRECOMPUTED"] else network["IMAGE_NUM_LAYERS"],
        dilated=network["IMAGE_C5_DILATED"],
        stride_in_1x1=network["IMAGE_STRIDE_IN_1x1"],
        semantic=network["IMAGE_SEMANTIC"],
        classify=case.document["enable_cnn_reg_loss"],
        frozen_stages=network["IMAGE_FROZEN_BACKBONE_STAGES"],
        frozen_bn=network["IMAGE_FROZEN_BN"],
    ).train()
    no_dropout(model)
    seed_module(model, OfficialNames(), case.document["salt"], case.document["norm_weights"])
    mask = inputs["box_mask"]
    masked = inputs["mvrc_ops"][mask] == 1 if "mvrc_ops" in inputs else None
    features = model(
        region_batch(inputs, mask), masked=masked, mask_embedding=inputs.get("mask_visual_embed")
    )

    def padded(values: torch.Tensor) -> torch.Tensor:
        out = values.new_zeros(*mask.shape, values.shape[1])
        out[mask] = values
        return out

    compare(case, report, "obj_reps", padded(features.embeddings))
    raw = features.raw
    if masked is not None and "mask_visual_embed" in inputs:
        # The reference overwrites its raw features in place; ours stay what the picture gave.
        raw = torch.where(masked[:, None], inputs["mask_visual_embed"], raw)
    compare(case, report, "obj_reps_raw", padded(raw)[:, :, ::16], "obj_reps_raw[:, :, ::16]")
    if features.class_logits is not None:
        compare(case, report, "obj_logits", features.class_logits)
        labels = inputs["classes"][mask].long()
        report.equal("obj_labels", labels.numpy(), case.arrays["output.obj_labels"])
        loss = F.cross_entropy(features.class_logits, labels)
        compare(case, report, "cnn_regularization_loss", loss[None])


def region_batch(inputs: dict[str, torch.Tensor], mask: torch.Tensor) -> Batch:
    """A batch of boxes alone, from the reference's padded arguments."""
    boxes, empty = inputs["boxes"][mask], torch.zeros(0, dtype=torch.int64)
    none = Lengths.of([0] * len(mask))
    return Batch(
        record_ids=tuple(str(i) for i in range(len(mask))),
        index=torch.arange(len(mask)),
        images=inputs.get("images"),
        num_boxes=Lengths.of(mask.sum(1).tolist()),
        text=Text(none, Lengths.of([]), empty, empty, empty),
        im_info=inputs["im_info"][:, :4],
        boxes=boxes[:, :4],
        box_classes=inputs["classes"][mask].long() if "classes" in inputs else None,
        box_masks=inputs["segms"][mask] if "segms" in inputs else None,
        box_features=boxes[:, 4:] if boxes.shape[1] > 4 else None,
    )


def run_coordinates(case: Case, report: Report) -> None:
    boxes = tensors(case)["boxes"]
    for key, expected in case.arrays.items():
        if not key.startswith("output.dim"):
            continue
        dim = int(key.removeprefix("output.dim"))
        embedded = coordinate_embeddings(boxes[:, :4], boxes[:, 4:], dim)
        step = embedded.shape[2] // expected.shape[2]
        compare(case, report, key.removeprefix("output."), embedded[:, :, ::step])


def run_roi_align(case: Case, report: Report) -> None:
    inputs, document = tensors(case), case.document
    features = inputs["features"].requires_grad_()
    pooled = roi_align(
        features,
        inputs["rois"],
        tuple(document["output_size"]),
        spatial_scale=document["spatial_scale"],
        sampling_ratio=document["sampling_ratio"],
        aligned=False,
    )
    (pooled * inputs["upstream"]).sum().backward()
    compare(case, report, "pooled", pooled)
    compare(case, report, "grad_features", features.grad)


def run_soft_cross_entropy(case: Case, report: Report) -> None:
    inputs = tensors(case)
    for reduction in ("mean", "sum", "none"):
        logits = inputs["input"].clone().requires_grad_()
        loss = soft_cross_entropy(logits, inputs["target"], reduction)
        compare(case, report, reduction, loss if reduction == "none" else loss[None])
        loss.sum().backward()
        report.close(f"grad.{reduction}", logits.grad.numpy(), case.arrays[f"grad.{reduction}"], 1e-6)
        empty = soft_cross_entropy(inputs["input"], inputs["target_none_valid"], reduction)
        report.close(
            f"none valid, {reduction}", empty.sum(), case.document[f"none_valid_{reduction}"]["value"], 0.0
        )
    report.skip("shape of 'none' without a valid row", RULE_EMPTY_LABELS)


def run_resnet(case: Case, report: Report) -> None:
    document = case.document
    model = ResNet(document["depth"], **document["kwargs"]).eval()
    seed_module(model, OfficialNames(), document["salt"], document["norm_weights"])
    with torch.no_grad():
        stages = list(model.stages(tensors(case)["image"]))
    for index, body in enumerate(stages, start=1):
        name = f"body{index}"
        report.equal(f"{name} shape", list(body.shape), document["shapes"][name])
        expected = document["statistics"][name]
        actual = statistics(name, body.numpy(), document["salt"])
        for what, a, e in zip(("norm", "mean", "probe"), actual, expected, strict=True):
            scale = abs(e) if what == "mean" else expected[0]
            report.close(f"{name} {what}", a, e, 1e-5 * scale)
        means = case.arrays[f"output.{name}.channel_mean"]
        report.close(f"{name} channel_mean", body.mean(dim=(2, 3)), means, tolerance(case, name, means))
    compare(case, report, "body4", stages[3][:, ::32], "body4[:, ::32]")


def _vcr_layouts(special: dict[str, int]) -> dict[str, dict[str, object]]:
    ids = {"cls_id": special["cls"], "sep_id": special["sep"]}
    return {
        "qa": {**ids, "answer_first": False, "one_sentence": False},
        "aq": {**ids, "answer_first": True, "one_sentence": False},
        "qa_onesent": {**ids, "answer_first": False, "one_sentence": True},
    }


def run_vcr_text(case: Case, report: Report) -> None:
    arrays = case.arrays
    for layout, options in _vcr_layouts(case.document["special"]).items():
        expected = {key: arrays[f"output.{layout}.{key}"] for key in ("input_ids", "token_type_ids", "tags")}
        mask = arrays[f"output.{layout}.mask"]
        for row, choice in np.ndindex(mask.shape[:2]):
            question = tokens(arrays["input.question"][row], arrays["input.question_tags"][row])
            answer = tokens(arrays["input.answers"][row, choice], arrays["input.answers_tags"][row, choice])
            sequence = assemble_text(question, answer, **options)
            where = mask[row, choice]
            for key, actual in (
                ("input_ids", sequence.ids),
                ("token_type_ids", sequence.types),
                ("tags", sequence.tags),
            ):
                # A word without a box carries the whole image: tag -1 is read as 0.
                report.equal(
                    f"{layout} {key}", np.maximum(actual, 0), np.maximum(expected[key][row, choice][where], 0)
                )


def run_vqa_text(case: Case, report: Report) -> None:
    arrays = case.arrays
    special = SimpleNamespace(**{f"{name}_id": number for name, number in case.document["special"].items()})
    for row, question in enumerate(arrays["input.question"]):
        sequence, where = (
            assemble_question(question[question > 0].tolist(), special),
            arrays["output.mask"][row],
        )
        for key, actual in (
            ("input_ids", sequence.ids),
            ("token_type_ids", sequence.types),
            ("tags", sequence.tags),
        ):
            report.equal(key, actual, arrays[f"output.{key}"][row][where])
        place = len(sequence) - MASK_FROM_END
        report.equal("answer position", place, int(arrays["output.answer_position"][row]))


def run_misc(case: Case, report: Report) -> None:
    arrays, inputs = case.arrays, tensors(case)
    iou = pairwise_iou(inputs["bbox.ex"], inputs["bbox.gt"][: arrays["output.bbox.iou"].shape[1]])
    report.close("bbox.iou", iou, arrays["output.bbox.iou"], 1e-6)
    (padded_key,) = (key for key in arrays if key.startswith("output.pad.lengths_"))
    sizes = [int(size) for size in padded_key.removeprefix("output.pad.lengths_").split("_")]
    padded = Padding.of(Lengths.of(sizes)).pad(inputs["pad.sequence"])
    report.close("pad", padded, arrays[padded_key], 0.0)
    reps, tags = inputs["collect.object_reps"], inputs["collect.span_tags"]
    rows = torch.arange(len(reps)).view(-1, 1, 1) * reps.shape[1] + tags.clamp(min=0)
    report.close("collect", F.embedding(rows, reps.flatten(0, 1)), arrays["output.collect"], 0.0)
    for helper in ("bbox.nonlinear_transform", "masked_softmax", "block_diagonal"):
        report.skip(helper, RULE_DEAD_HELPER)


RUNNERS = [
    (lambda c: _in_model(c, "vlbert_config", "outputs"), run_layout),
    (lambda c: _in_model(c, "vlbert_config") and "outputs" not in c.document, run_encoder),
    (lambda c: _in_model(c, "enable_cnn_reg_loss"), run_fast_rcnn),
    (lambda c: _arrays(c, "input.boxes") and "config" not in c.document, run_coordinates),
    (lambda c: _in_model(c, "spatial_scale"), run_roi_align),
    (lambda c: _in_model(c, "none_valid_mean"), run_soft_cross_entropy),
    (lambda c: _in_model(c, "depth", "shapes"), run_resnet),
    (lambda c: _in_model(c, "special") and _arrays(c, "input.answers"), run_vcr_text),
    (lambda c: _in_model(c, "special") and not _arrays(c, "input.answers"), run_vqa_text),
    (lambda c: _arrays(c, "input.collect.object_reps"), run_misc),
]

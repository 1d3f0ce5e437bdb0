import pytest
import torch

from benchmarks import cases, step

TINY = {
    "task": "vcr",
    "cfg": "vcr/toy_q2a.yaml",
    "images": [[160, 60], [128, 96]],
    "objects": [2, 1],
    "question_tokens": [3, 4],
    "answer_tokens": [[2, 3, 4, 5], [1, 1, 1, 1]],
    "reference": {"gflop_per_step": 1.0, "peak_rss_mb": 100},
}


def test_vcr_case_has_row_lengths_of_workload():
    batch = cases.vcr_case(TINY).batch
    assert batch.images.shape == (2, 3, 96, 160)
    assert batch.num_boxes.sizes == (3, 2)
    assert batch.text.lengths.sizes == (8, 9, 10, 11, 8, 8, 8, 8)
    assert batch.text.types[:8].tolist() == [0, 0, 0, 0, 0, 1, 1, 1]
    x1, y1, x2, y2 = batch.boxes.unbind(1)
    assert torch.all((x1 <= x2) & (y1 <= y2) & (x2 <= 159) & (y2 <= 95))


def test_vqa_and_refcoco_cases_have_row_lengths_of_workload():
    vqa = {"task": "vqa", "cfg": "vqa/toy.yaml", "question_tokens": [3, 5], "regions": [4, 2]}
    batch = cases.vqa_case(vqa).batch
    assert (batch.images, batch.num_boxes.sizes, batch.text.lengths.sizes) == (None, (5, 3), (7, 9))
    assert batch.box_features.shape == (8, 2048)
    refcoco = {**TINY, "cfg": "refcoco/toy.yaml", "regions": [3, 1], "expression_tokens": [2, 4]}
    batch = cases.refcoco_case(refcoco).batch
    assert (batch.num_boxes.sizes, batch.text.lengths.sizes) == ((4, 2), (4, 6))
    assert batch.label.shape == (6,)


@pytest.mark.parametrize("cfg", ["base_prec_4x16G_fp32", "base_e2e_16x16G_fp16"])
def test_pretrain_case_has_row_lengths_and_labels_of_workload(cfg, monkeypatch):
    workload = {
        "cfg": f"pretrain/{cfg}.yaml",
        "caption_tokens": [12, 10],
        "regions": [20, 60],
        "corpus_tokens": [64],
        "label_fraction": 0.15,
        **({"images": [[40, 30], [30, 40]]} if "e2e" in cfg else {}),
    }
    monkeypatch.setattr(cases.ResNetVLBERTForPretraining, "from_config", lambda config: None)
    batch = cases.pretrain_case(workload).batch
    assert (batch.num_boxes.sizes, batch.text.lengths.sizes) == ((21, 54, 0), (12, 10, 64))
    assert batch.masked_token_index.lengths.sizes == (2, 2, 10)
    assert batch.masked_region_index.lengths.sizes == (3, 8, 0)
    assert batch.region_labels.shape == (11, 1601)
    assert torch.equal(batch.masked_regions.nonzero()[:, 0], batch.masked_region_index.values)
    assert torch.equal(batch.word_labels, batch.text.ids[batch.masked_token_index.values])
    if "images" in workload:
        assert (batch.images.shape, batch.box_features) == ((2, 3, 40, 40), None)
        assert batch.masked_pixel_boxes.lengths.sizes == (3, 8, 0)
    else:
        assert (batch.images, batch.masked_pixel_boxes, batch.box_features.shape) == (None, None, (75, 2048))


def test_measure_reports_flops_speed_and_memory(monkeypatch):
    monkeypatch.setitem(step.WORKLOADS, "tiny", TINY)
    row = step.measure("tiny", "cpu", steps=1, fp16=False)
    assert row["GFLOP/step"] == row["of reference"] > 0.01
    assert row["samples/s"] * row["s/step"] == pytest.approx(2)
    assert row["regions/s"] * row["s/step"] == pytest.approx(5)
    assert row["peak MB"] == pytest.approx(100 * row["peak of reference"])
    assert row["peak MB"] >= row["MB before"]

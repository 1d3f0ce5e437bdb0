import pytest

from scripts import architecture, measure_code


@pytest.mark.integration
def test_trace_all_sees_the_functions_of_each_path(tmp_path):
    traces = measure_code.trace_all(tmp_path / "toy")
    names = {
        name: {function.rpartition(".")[2] for _, function in trace.functions}
        for name, trace in traces.items()
    }
    assert {"train_net", "load_config", "forward"} <= names["from the yaml to the first loss"]
    assert "backward" not in names["from the yaml to the first loss"]
    assert {"predict", "predict_batch", "forward"} <= names["one predict call"]
    assert {"__getitem__", "load"} <= names["one VCR sample"]
    assert "forward" not in names["one VCR sample"]
    for trace in traces.values():
        assert 5 < trace.num_files < len(trace.functions) < trace.file_changes + len(trace.functions)


@pytest.mark.parametrize(
    ("line", "is_citation"),
    [
        ("Source: train_eval spec, 3.2.", True),
        ("(spec model.md 7.1)", True),
        ("(spec section 2.4)", True),
        ("(spec: data 1.1)", True),
        ("see docs/model.md", False),
        ("an ExtractorSpec", False),
    ],
)
def test_absent_documents_matches_citations_only(line, is_citation):
    assert bool(measure_code.ABSENT_DOCUMENTS.search(line)) == is_citation


def test_function_lengths_and_code_lines(tmp_path):
    path = tmp_path / "a.py"
    path.write_text('"""Doc."""\nimport os\n\n@cache\ndef f(\n    x,\n):\n    # why\n    return x\n')
    assert measure_code.function_lengths(path) == [5]
    assert measure_code.num_code_lines(path) == 6


def test_tracing_counts_functions_of_the_repository():
    with measure_code.tracing() as trace:
        architecture.layer_of("vcr.task")
        len("not ours")
    assert {function.partition(".")[0] for _, function in trace.functions} == {"layer_of"}
    assert trace.file_changes == 1

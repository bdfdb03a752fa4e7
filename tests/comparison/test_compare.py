from __future__ import annotations

import html
import io
import json
import random

import pytest
from lm_eval_files import labelled, sample
from rich.console import Console

from harness_ext.comparison.compare import find_baseline
from harness_ext.errors import ComparisonError, ResultsError
from harness_ext.findings import Finding
from harness_ext.leaderboard import Leaderboard, compare_runs
from harness_ext.render.grid import escape_markdown
from harness_ext.results.load import load_runs


def coin(share: float, n: int, seed: int) -> list[float]:
    rng = random.Random(seed)
    return [float(rng.random() < share) for _ in range(n)]


def generated(parsed: list[bool], right: list[bool]) -> list[dict]:
    """SST-2 as `sst2_generate` logs it: 444 positive of 872, acc_parsed only where an output parsed."""
    rows = []
    for i, (readable, correct) in enumerate(zip(parsed, right, strict=True)):
        scores = {"acc": float(readable and correct), "parsed_rate": float(readable)}
        scores |= {"acc_parsed": float(correct)} if readable else {}
        rows.append(sample(i, {"idx": i}, scores, target=int(i < 444)))
    return rows


def squad(right: list[float], *, unanswerable: int, per_passage: int = 8) -> list[dict]:
    """SQuAD v2 as `squad_v2_generate` logs it: 0 or 100 per document, and what always abstaining scores."""
    return [
        sample(
            i,
            {"id": str(i), "context": f"passage {i // per_passage}"},
            {"exact": 100 * score, "abstain_baseline": 100.0 * (i < unanswerable)},
            target=i,
        )
        for i, score in enumerate(right)
    ]


def all_formats(comparison) -> dict[str, str]:
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(comparison)
    return {
        "table": " ".join(console.export_text().split()),
        "markdown": comparison.to_markdown(),
        "json": json.dumps(comparison.to_json(), ensure_ascii=False),
        "html": comparison._repr_html_(),
        "pandas": "\n".join(comparison.to_pandas().attrs["warnings"] + comparison.to_pandas().attrs["notes"]),
    }


def warnings_of(comparison: Leaderboard, id: str) -> list[Finding]:
    """Warnings with this id; asserts that each appears in every format."""
    findings = [finding for finding in comparison.findings if finding.id == id]
    texts = all_formats(comparison)
    for finding in findings:
        assert finding.level == "warning"
        escaped = {
            "markdown": escape_markdown(finding.text),
            "json": json.dumps(finding.text, ensure_ascii=False)[1:-1],
            "html": html.escape(finding.text),
        }
        for form, text in texts.items():
            assert escaped.get(form, finding.text) in text, form
    return findings


# The founding experiment: 13 % because outputs did not parse, 95 % after training.
def test_the_founding_case_is_better_and_says_why(write_pair):
    before = generated([i % 100 < 14 for i in range(872)], [i % 13 > 0 for i in range(872)])
    after = generated([True] * 872, [i % 20 > 0 for i in range(872)])
    comparison = compare_runs(load_runs(write_pair("sst2_generate", before, after)))
    (row,) = comparison.rows
    assert row.n == 872
    assert row.verdict == "better"
    assert row.baseline.value == pytest.approx(0.13, abs=0.005)
    assert row.score.value == pytest.approx(0.95, abs=0.001)
    assert row.paired.interval.low > 0.75
    assert row.baseline.parsed == pytest.approx(0.144, abs=0.001)
    assert row.score.parsed == 1
    assert (row.floor.kind, round(row.floor.value, 4)) == ("majority", 0.5092)
    (parsed,) = warnings_of(comparison, "R01")
    assert (parsed.where, parsed.numbers) == ("sst2_generate, tiny", {"parsed": row.baseline.parsed})
    (floor,) = warnings_of(comparison, "R02")
    assert floor.numbers == {"score": row.baseline.value, "floor": row.floor.value}
    for form, text in all_formats(comparison).items():
        assert "14.4 %" in text, form
        assert "50.9" in text, form
        assert "the method" in text, form
    assert "parsed 14.4%" in comparison.to_markdown()


# The other half of it: exact 26.27 -> 4.97 where always abstaining gives 50.07.
def test_worse_than_always_abstaining_is_said_of_both(write_pair):
    n = 1200
    path = write_pair("squad_v2", squad(coin(0.263, n, 1), unanswerable=601), squad(coin(0.05, n, 2), unanswerable=601))
    comparison = compare_runs(load_runs(path))
    (row,) = comparison.rows
    assert row.verdict == "worse"
    assert row.paired.units == 150
    assert "clustered by passage" in row.baseline.method
    assert row.paired.mcnemar_p < 1e-10
    findings = warnings_of(comparison, "R02")
    assert [finding.where for finding in findings] == ["squad_v2, tiny", "squad_v2, sst2"]
    assert [finding.numbers["floor"] for finding in findings] == [pytest.approx(601 / 1200)] * 2
    assert all("50.1" in finding.text for finding in findings)


def test_the_same_scores_twice_are_equivalent(write_pair):
    samples = labelled(coin(0.6, 872, 1))
    comparison = compare_runs(load_runs(write_pair("demo", samples, samples)))
    (row,) = comparison.rows
    assert (row.verdict, row.paired.difference, row.paired.p_value) == ("equivalent", 0, 1)
    assert comparison.warnings == []


def test_undecided_says_what_would_decide(write_pair):
    before = coin(0.6, 200, 1)
    after = [1 - score if i % 20 == 0 or i in (1, 2, 3, 4) else score for i, score in enumerate(before)]
    comparison = compare_runs(load_runs(write_pair("demo", labelled(before), labelled(after))))
    (row,) = comparison.rows
    assert row.verdict == "undecided"
    needed = row.decision.needed
    assert (needed.of, row.decision.lacking) == ("documents", None)
    assert row.n < needed.low <= needed.number <= needed.high
    assert row.decision.detectable > abs(row.paired.difference)
    text = comparison.to_markdown()
    assert "needs n≈" in text
    assert f"detects ≥ {100 * row.decision.detectable:.1f}" in text


def test_lower_can_be_better(write_pair):
    before, after = ([sample(i, {"idx": i}, {"brier": v}) for i in range(50)] for v in (0.4, 0.1))
    both = {"higher_is_better": {"demo": {"brier": False}}}
    (row,) = compare_runs(load_runs(write_pair("demo", before, after, both=both))).rows
    assert row.paired.difference == pytest.approx(-0.3)
    assert row.verdict == "better"


def test_margin_and_metric_can_be_chosen(write_pair):
    rng = random.Random(0)
    before, after = ([sample(i, {"idx": i}, {"acc": 1.0, "f1": rng.random()}) for i in range(300)] for _ in range(2))
    runs = load_runs(write_pair("demo", before, after))
    assert compare_runs(runs, metric="f1").rows[0].verdict == "undecided"
    assert compare_runs(runs, metric="f1", margin=20).rows[0].verdict == "equivalent"
    with pytest.raises(ComparisonError, match="did you mean 'f1'"):
        compare_runs(runs, metric="ff1")


def test_a_run_that_is_all_zero_is_read_on_the_scale_of_the_other(write_pair):
    path = write_pair("squad", squad([0.0] * 64, unanswerable=0), squad(coin(0.5, 64, 1), unanswerable=0))
    (row,) = compare_runs(load_runs(path)).rows
    assert row.baseline.value == 0
    assert 0.3 < row.score.value < 0.7
    assert row.baseline.method == "Clopper–Pearson"


def test_scores_as_fractions_under_a_metric_in_points(write_pair):
    samples = labelled(coin(0.5, 200, 1), "exact")
    in_points = {"metrics": {"demo": {"exact,none": 100 * sum(s["exact"] for s in samples) / 200}}}
    (row,) = compare_runs(load_runs(write_pair("demo", samples, samples, both=in_points))).rows
    assert row.baseline.value == pytest.approx(in_points["metrics"]["demo"]["exact,none"] / 100)
    assert (row.unit, row.paired.gained, row.paired.lost) == ("share", 0, 0)


@pytest.mark.parametrize(
    ("by_run", "reason"),
    [
        ({"base": {"log_samples": False}}, "no samples logged"),
        ({"sst2": {"log_samples": False}}, "no samples logged"),
        ({"sst2": {"metrics": {"demo": {"acc,none": 0.9}}}}, "not the mean of its documents"),
    ],
)
def test_what_cannot_be_tested_is_shown_and_says_so(write_pair, by_run, reason):
    samples = labelled(coin(0.5, 200, 1))
    by_run = {"base": {"metrics": {"demo": {"acc_stderr,none": 0.02}}}, **by_run}
    comparison = compare_runs(load_runs(write_pair("demo", samples, samples, **by_run)))
    (row,) = comparison.rows
    assert (row.verdict, row.paired, row.note) == (None, None, reason)
    (finding,) = warnings_of(comparison, "R09")
    assert reason in finding.text
    assert finding.next_step in finding.text
    assert len(comparison.to_pandas()) == 1


def test_a_corpus_metric_that_its_pairs_do_not_give_has_no_paired_test(write_pair):
    samples = [sample(i, {"idx": i}, {"mcc": [0, 1]}) for i in range(9)]
    values = {"metrics": {"demo": {"mcc,none": 0.3}}}
    with_number = [{**s, "mcc": 0.3} for s in samples]
    path = write_pair("demo", with_number, with_number, both=values)
    for file in path.rglob("samples_*.jsonl"):
        file.write_text(file.read_text().replace('"mcc": 0.3', '"mcc": [0, 1]'))
    (row,) = compare_runs(load_runs(path)).rows
    assert (row.verdict, row.note) == (None, "not the mcc of its documents")


def test_sample_data_is_marked_everywhere(write_pair):
    samples = [sample(i, {"idx": f"sample-{i}"}, {"acc": float(i % 3 > 0)}) for i in range(48)]
    comparison = compare_runs(load_runs(write_pair("demo", samples, samples)))
    assert comparison.rows[0].is_sample
    texts = all_formats(comparison)
    for form, text in texts.items():
        assert "bundled sample" in text, form
    assert "SAMPLE data" in texts["table"]


def test_another_limit_is_joined_and_said(write_pair):
    scores = coin(0.5, 200, 1)
    comparison = compare_runs(load_runs(write_pair("demo", labelled(scores), labelled(scores[:120]))))
    assert comparison.rows[0].n == 120
    (finding,) = warnings_of(comparison, "R06")
    assert finding.numbers == {"compared": 120, "left_out": 80}
    assert "120" in finding.text


def test_order_of_the_logged_samples_does_not_matter(write_pair, write_run):
    before, after = labelled(coin(0.5, 90, 1)), labelled(coin(0.6, 90, 2))
    plain = compare_runs(load_runs(write_pair("demo", before, after)))
    ranks = after[::2] + after[1::2]  # as two data-parallel processes log them
    assert compare_runs(load_runs(write_pair("demo", before, ranks))) == plain


@pytest.mark.parametrize(("per_passage", "units"), [(64, 1), (16, 4), (4, 16), (1, None)])
def test_few_passages_are_warned_about(write_pair, per_passage, units):
    sides = [squad(coin(0.5, 64, seed), unanswerable=0, per_passage=per_passage) for seed in (1, 2)]
    comparison = compare_runs(load_runs(write_pair("squad", *sides)))
    numbers = [finding.numbers for finding in warnings_of(comparison, "R07")]
    assert numbers == ([] if units is None else [{"units": units, "effective": pytest.approx(units)}])
    (row,) = comparison.rows
    assert (row.paired is None) == (units == 1)
    if units == 4:
        assert (row.verdict, row.decision.lacking) == ("undecided", "units")


def changed(samples: list[dict], **fields: str) -> list[dict]:
    return [{**s, **{key: value + str(s["doc_id"]) for key, value in fields.items()}} for s in samples]


ONE, OTHER = "1" * 64, "2" * 64
FIELDS = ({"stop": "a", "template": "t"}, {"stop": "b", "template": "t"})


@pytest.mark.parametrize(
    ("after", "options", "message"),
    [
        (
            {"prompt_hash": "x"},
            {},
            r"demo: base and sst2 saw different prompts on 40 of 40 documents \(first: doc_hash",
        ),
        ({"doc_hash": "x"}, {}, r"base and sst2 share 0 of 40 documents of 'demo'; evaluate both on the same split"),
        ({}, {"versions": {"demo": 2.0}}, r"demo: base and sst2 differ in version \(1.0, 2.0\); .* --allow version"),
        ({}, {"n-shot": {"demo": 5}}, r"demo: base and sst2 differ in num_fewshot \(0, 5\); .* --allow num_fewshot"),
        (
            {},
            {"configs": {"demo": {"generation_kwargs": {"until": ["\n"]}}}},
            r"base and sst2 differ in generation_kwargs",
        ),
    ],
)
def test_runs_that_do_not_compare_are_refused(write_pair, after, options, message):
    samples = labelled(coin(0.5, 40, 1))
    names = {"base": {"ours": {"variant": "base"}}, "sst2": {"ours": {"variant": "sst2"}, **options}}
    with pytest.raises(ComparisonError, match=message) as caught:
        compare_runs(load_runs(write_pair("demo", samples, changed(samples, **after), **names)))
    assert "\n" not in str(caught.value)


def test_other_fingerprints_are_refused_and_the_fields_named(write_pair):
    samples = labelled(coin(0.5, 40, 1))
    sides = {
        name: {"ours": {"variant": name, "fingerprints": {"demo": print_}, "fingerprint_fields": {"demo": fields}}}
        for name, print_, fields in zip(("base", "sst2"), (ONE, OTHER), FIELDS, strict=True)
    }
    with pytest.raises(ComparisonError, match=r"demo: base and sst2 differ in stop \(a, b\)"):
        compare_runs(load_runs(write_pair("demo", samples, samples, **sides)))


def test_functions_are_the_same_at_another_address(write_pair):
    samples = labelled(coin(0.5, 40, 1))
    sides = {
        name: {"configs": {"demo": {"process_results": f"<function score at {address}>"}}}
        for name, address in (("base", "0x7f01"), ("sst2", "0x7f02"))
    }
    assert compare_runs(load_runs(write_pair("demo", samples, samples, **sides))).rows


def test_the_baseline_finds_itself_or_is_named(write_pair, write_run, tmp_path):
    samples = {"demo": labelled(coin(0.5, 40, 1))}
    runs = load_runs(write_pair("demo", samples["demo"], samples["demo"]))
    assert find_baseline(runs).name == "tiny"
    assert find_baseline(runs, "sst2").name == "sst2"
    with pytest.raises(ComparisonError, match=r"no run is named 'tny'; did you mean 'tiny'\?; choose .* tiny, sst2"):
        find_baseline(runs, "tny")
    with pytest.raises(ComparisonError, match="needs two runs, got tiny"):
        find_baseline(runs[:1])
    with pytest.raises(ComparisonError, match=r"sst2, x.* --baseline"):
        find_baseline([runs[1], load_runs(write_run("x", samples, model_args="pretrained=org/tiny,peft=x"))[0]])
    other = load_runs(write_run("other", samples, model_args="pretrained=org/other"))[0]
    assert find_baseline([other, *runs]).name == "tiny"  # the one the adapter was trained on
    with pytest.raises(ComparisonError, match=r"any of tiny, other could be the baseline"):
        find_baseline([runs[0], other])
    with pytest.raises(ComparisonError, match="same name"):
        find_baseline([runs[0], runs[0]])


def test_an_adapter_of_another_base_is_warned_about(write_pair):
    samples = labelled(coin(0.5, 40, 1))
    path = write_pair("demo", samples, samples, sst2={"model_args": "pretrained=org/big,peft=adapters/sst2"})
    (finding,) = warnings_of(compare_runs(load_runs(path)), "R04")
    assert finding.where == "sst2"
    assert "org/big" in finding.text
    assert "org/tiny" in finding.text


def test_runs_without_a_shared_task_are_refused_and_single_tasks_reported(write_run, tmp_path):
    samples = labelled(coin(0.5, 40, 1))
    write_run("base", {"a": samples, "b": samples}, model_args="pretrained=org/tiny")
    write_run("sst2", {"c": samples}, model_args="pretrained=org/tiny,peft=sst2")
    with pytest.raises(ComparisonError, match="tiny shares no task with sst2"):
        compare_runs(load_runs(tmp_path))
    write_run("more", {"b": samples, "c": samples}, model_args="pretrained=org/tiny,peft=more")
    comparison = compare_runs(load_runs(tmp_path))
    assert [(row.task, row.run) for row in comparison.rows] == [("b", "more")]
    (finding,) = [finding for finding in warnings_of(comparison, "R11") if finding.where == "more"]
    assert " c," in finding.text


def test_a_metric_that_only_one_run_has_is_refused(write_pair):
    before, after = labelled([0.5] * 20, "acc"), labelled([0.5] * 20, "f1")
    with pytest.raises(ResultsError, match="no metric 'acc"):
        compare_runs(load_runs(write_pair("demo", before, after)))


def test_rows_are_ordered_and_output_has_the_same_bytes(write_run, tmp_path):
    for name in ("z", "a"):
        tasks = {task: squad(coin(0.5, 80, len(name + task)), unanswerable=40, per_passage=2) for task in ("y", "x")}
        write_run(name, tasks, model_args=f"pretrained=org/tiny,peft={name}")
    write_run(
        "base",
        {t: squad(coin(0.4, 80, 9), unanswerable=40, per_passage=2) for t in "yx"},
        model_args="pretrained=org/tiny",
    )
    first, second = (compare_runs(load_runs(tmp_path)) for _ in range(2))
    assert [(row.task, row.run) for row in first.rows] == [("x", "a"), ("x", "z"), ("y", "a"), ("y", "z")]
    assert all_formats(first) == all_formats(second)
    assert "Holm's correction over the 4 tests" in first.to_markdown()


def test_names_do_not_break_the_formats(write_pair):
    samples = labelled(coin(0.5, 40, 1))
    name = "a|b<i>*[red]"
    comparison = compare_runs(load_runs(write_pair("demo", samples, samples, sst2={"ours": {"variant": name}})))
    texts = all_formats(comparison)
    assert name in texts["table"]
    assert r"a\|b\<i>\*[red]" in texts["markdown"]
    assert "a|b&lt;i&gt;*[red]" in texts["html"]


def test_the_table_fits_100_columns(write_pair):
    path = write_pair(
        "squad_v2_generate", squad(coin(0.3, 1600, 1), unanswerable=800), squad(coin(0.5, 1600, 2), unanswerable=800)
    )
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(compare_runs(load_runs(path)))
    text = console.export_text()
    assert max(map(len, text.splitlines())) <= 100
    assert "squad_v2_generate" in text


# -- what may differ, and what it is called ----------------------------------------------------------------------


def dtype(name: str) -> dict:
    return {"config": {"model": "hf", "model_args": f"pretrained=org/tiny,peft={name}", "model_dtype": f"torch.{name}"}}


def test_a_field_that_differs_is_refused_or_allowed_and_marked(write_pair):
    samples = labelled(coin(0.5, 40, 1))
    base = {"config": {"model": "hf", "model_args": "pretrained=org/tiny", "model_dtype": "torch.float32"}}
    runs = load_runs(write_pair("demo", samples, samples, base=base, sst2=dtype("bfloat16")))
    with pytest.raises(ComparisonError, match=r"differ in dtype \(float32, bfloat16\); .* --allow dtype"):
        compare_runs(runs)
    comparison = compare_runs(runs, allow=["dtype"])
    assert comparison.rows[0].allowed == ("dtype",)
    (finding,) = warnings_of(comparison, "R05")
    assert (finding.where, finding.numbers) == ("demo, bfloat16", {"fields": ["dtype"]})
    assert "bfloat16† |" in comparison.to_markdown()
    with pytest.raises(ComparisonError, match=r"--allow 'dtyp'.*; did you mean 'dtype'\?"):
        compare_runs(runs, allow=["dtyp"])


def test_another_template_may_be_allowed_with_its_prompts(write_pair):
    samples = labelled(coin(0.5, 40, 1))
    side = {"configs": {"demo": {"description": "Otherwise."}}}
    runs = load_runs(write_pair("demo", samples, changed(samples, prompt_hash="x"), sst2=side))
    with pytest.raises(ComparisonError, match="differ in description"):
        compare_runs(runs)
    assert compare_runs(runs, allow=["description"]).rows[0].allowed == ("description",)


@pytest.mark.parametrize(("field", "allow"), [("prompt_hash", "prompts"), ("doc_hash", "documents")])
def test_other_prompts_and_documents_may_be_allowed(write_pair, field, allow):
    before = labelled(coin(0.5, 40, 1))
    after = [*before[:10], *changed(before[10:], **{field: "x"})]
    runs = load_runs(write_pair("demo", before, after))
    with pytest.raises(ComparisonError):
        compare_runs(runs)
    (row,) = compare_runs(runs, allow=[allow]).rows
    assert (row.allowed, row.n) == ((allow,), 40 if allow == "prompts" else 10)


def test_stock_results_and_ours_give_the_same_numbers(write_pair, write_run, tmp_path):
    before, after = (
        generated([True] * 90, [i % 3 > 0 for i in range(90)]),
        generated([True] * 90, [i % 9 > 0 for i in range(90)]),
    )
    stock = compare_runs(load_runs(write_pair("demo", before, after))).to_json()
    prints = {"fingerprints": {"demo": ONE}, "fingerprint_fields": {"demo": FIELDS[0]}}
    sides = {name: {"ours": {"variant": name, **prints}} for name in ("tiny", "sst2")}
    ours = compare_runs(load_runs(write_pair("demo", before, after, base=sides["tiny"], sst2=sides["sst2"]))).to_json()
    assert ours == stock


def test_a_base_in_several_folders_is_one_baseline(write_run, tmp_path):
    samples = labelled(coin(0.5, 40, 1))
    for task in ("a", "b"):
        write_run(f"{task}/base", {task: samples, "both": samples}, model_args="pretrained=org/tiny")
        write_run(f"{task}/mine", {task: samples}, model_args="pretrained=org/tiny,peft=adapters/mine")
    comparison = compare_runs(load_runs(tmp_path))
    assert [(row.task, row.run) for row in comparison.rows] == [("a", "mine"), ("b", "mine")]


# -- settings that change token ids ------------------------------------------------------------------------------


BASE, LORA = "pretrained=org/tiny", "pretrained=org/tiny,peft=adapters/sst2"


def with_arguments(arguments: str | dict) -> dict:
    return {"model_args": arguments}


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ("add_bos_token=False", r"add_bos_token \(default, False\)"),
        ("max_length=6", r"max_length \(default, 6\)"),
        ("tokenizer=org/other", r"tokenizer \(default, org/other\)"),
        ("revision=abc", r"revision \(default, abc\)"),
        ("think_end_token=</think>", r"think_end_token \(default, </think>\)"),
        ("enable_thinking=True", "enable_thinking"),
        ("load_in_4bit=True", "load_in_4bit"),
        ("load_in_8bit=True", "load_in_8bit"),
        ("gptqmodel=True", "gptqmodel"),
        ("autogptq=True", "autogptq"),
        ("gguf_file=m.gguf", "gguf_file"),
        ("bnb_4bit_quant_type=nf4", "bnb_4bit_quant_type"),
        ("truncation=True", "truncation"),
        ("prefix_token_id=0", "prefix_token_id"),
        ("softmax_dtype=float32", "softmax_dtype"),
    ],
)
def test_runs_with_other_token_settings_are_refused_or_marked(write_pair, setting, shown):
    samples = labelled(coin(0.5, 40, 1))
    other = with_arguments(f"{LORA},{setting}")
    runs = load_runs(write_pair("demo", samples, samples, sst2=other))
    field = setting.partition("=")[0]
    with pytest.raises(ComparisonError, match=rf"tiny and sst2 differ in {shown}.* --allow {field}$"):
        compare_runs(runs)
    assert compare_runs(runs, allow=[field]).rows[0].allowed == (field,)


@pytest.mark.parametrize(
    "same",
    [
        "revision=main,truncation=False,max_length=None,tokenizer=org/tiny",
        {"load_in_4bit": False, "add_bos_token": None, "chat_template_args": {}, "merge": True},
    ],
)
def test_defaults_that_are_written_out_do_not_differ(write_pair, same):
    samples = labelled(coin(0.5, 40, 1))
    other = f"{LORA},{same}" if isinstance(same, str) else {"pretrained": "org/tiny", "peft": "adapters/sst2", **same}
    compare_runs(load_runs(write_pair("demo", samples, samples, sst2=with_arguments(other))))


def test_prompts_may_differ_with_the_arguments_of_the_chat_template_only(write_pair):
    samples = labelled(coin(0.5, 40, 1))
    for setting, prompts_checked in (("enable_thinking=True", False), ("max_length=6", True)):
        other = with_arguments(f"{LORA},{setting}")
        runs = load_runs(write_pair("demo", samples, changed(samples, prompt_hash="x"), sst2=other))
        allow = [setting.partition("=")[0]]
        if prompts_checked:
            with pytest.raises(ComparisonError, match="saw different prompts"):
                compare_runs(runs, allow=allow)
        else:
            assert compare_runs(runs, allow=allow).rows[0].allowed == tuple(allow)


def with_token_settings(arguments: str, **settings: str) -> dict:
    return {"model_args": arguments, "ours": {"token_settings": settings}}


def test_resolved_settings_decide_where_both_runs_have_them(write_pair):
    """Ours beside ours: what was used. Ours beside stock or older results: what was asked, which both have."""
    samples = labelled(coin(0.5, 40, 1))
    differing = {"base": with_token_settings(BASE), "sst2": with_token_settings(LORA, tokenizer="sha256:1f")}
    with pytest.raises(ComparisonError, match=r"differ in tokenizer \(default, sha256:1f\)"):
        compare_runs(load_runs(write_pair("demo", samples, samples, **differing)))
    compare_runs(load_runs(write_pair("demo", samples, samples, base=with_arguments(BASE), sst2=differing["sst2"])))
    stock = with_arguments(f"{BASE},add_bos_token=True")
    with pytest.raises(ComparisonError, match="differ in add_bos_token"):
        compare_runs(load_runs(write_pair("demo", samples, samples, base=stock, sst2=with_token_settings(LORA))))


def test_nothing_is_known_of_a_model_that_was_passed_as_an_object(write_pair):
    samples = labelled(coin(0.5, 40, 1))
    unknown = {"config": {"model": "hf", "model_args": ""}, "ours": {"variant": "tiny"}}
    compare_runs(
        load_runs(write_pair("demo", samples, samples, base=unknown, sst2=with_arguments(f"{LORA},max_length=9")))
    )


def test_an_adapters_own_tokenizer_is_a_note(write_pair):
    samples = labelled(coin(0.5, 40, 1))
    reason = "its tokenizer adds <|user|>"
    sides = {"base": with_token_settings(BASE), "sst2": with_token_settings(LORA, tokenizer="adapter", reason=reason)}
    comparison = compare_runs(load_runs(write_pair("demo", samples, samples, **sides)))
    assert comparison.rows[0].allowed == ()
    (note,) = [note for note in comparison.notes if "tokenizer" in note]
    assert note.startswith("sst2: ")
    assert reason in note
    sides["sst2"]["ours"]["token_settings"]["max_length"] = "9"
    with pytest.raises(ComparisonError, match=r"differ in max_length"):
        compare_runs(load_runs(write_pair("demo", samples, samples, **sides)))


def test_an_adapters_own_chat_template_is_still_refused_as_such(write_pair):
    samples = labelled(coin(0.5, 40, 1))
    sides = {"base": with_token_settings(BASE), "sst2": with_token_settings(LORA, tokenizer="adapter")}
    sides["base"]["chat_template_sha"], sides["sst2"]["chat_template_sha"] = "a", "b"
    with pytest.raises(ComparisonError, match="differ in chat_template"):
        compare_runs(load_runs(write_pair("demo", samples, samples, **sides)))


# -- choices that tie --------------------------------------------------------------------------------------------


def forced_choice(scores: list[tuple[float, float]]) -> list[dict]:
    """A forced choice between two labels, with the log-probabilities of both; the first wins a tie."""
    rows = []
    for i, (first, second) in enumerate(scores):
        row = sample(i, {"idx": i}, {"acc": float((second > first) == i % 2)}, target=i % 2)
        row["arguments"] = {f"gen_args_{n}": {"arg_0": "Q", "arg_1": word} for n, word in enumerate((" a", " b"))}
        row["resps"] = [[[str(first), "False"]], [[str(second), "False"]]]
        rows.append(row)
    return rows


def test_choices_that_tie_in_most_documents_are_warned_about(write_pair):
    tied = forced_choice([(-1.5, -1.5)] * 30 + [(-1.0, -2.0)] * 10)
    clear = forced_choice([(-1.5, -1.5)] * 10 + [(-2.0, -1.0)] * 30)
    comparison = compare_runs(load_runs(write_pair("demo", tied, clear)))
    (finding,) = warnings_of(comparison, "R10")
    assert (finding.where, finding.numbers) == ("demo, tiny", {"share": 0.75})
    assert "75 %" in finding.text
    comparison = compare_runs(load_runs(write_pair("demo", clear, tied)))
    assert [finding.where for finding in warnings_of(comparison, "R10")] == ["demo, sst2"]


# -- metrics that are no means -----------------------------------------------------------------------------------


def test_macro_f1_is_tested_from_its_pairs(write_pair):
    def side(seed: int, share: float) -> list[dict]:
        guesses = coin(share, 200, seed)
        pairs = [(i % 2, i % 2 if right else 1 - i % 2) for i, right in enumerate(guesses)]
        return [sample(i, {"idx": i}, {"macro_f1": pair, "acc": 0.0}) for i, pair in enumerate(pairs)]

    from sklearn.metrics import f1_score

    sides, by_run = {"base": side(1, 0.6), "sst2": side(2, 0.9)}, {}
    for name, rows in sides.items():
        golds, predictions = zip(*(row["macro_f1"] for row in rows), strict=True)
        by_run[name] = {"metrics": {"demo": {"macro_f1,none": f1_score(golds, predictions, average="macro")}}}
        for row in rows:
            row["metrics"] = ["acc"]  # only what has a mean, for the writer
    comparison = compare_runs(load_runs(write_pair("demo", sides["base"], sides["sst2"], **by_run)), metric="macro_f1")
    (row,) = comparison.rows
    assert row.verdict == "better"
    assert row.paired.method == "approximate randomisation (R = 10,000), paired bootstrap of documents (R = 10,000)"
    assert row.score.value == pytest.approx(by_run["sst2"]["metrics"]["demo"]["macro_f1,none"])
    assert row.score.interval.low < row.score.value < row.score.interval.high


def test_own_units_are_no_points(write_pair):
    before, after = ([sample(i, {"idx": i}, {"log_loss": v + i % 5 / 10}) for i in range(60)] for v in (0.9, 0.4))
    both = {"higher_is_better": {"demo": {"log_loss": False}}}
    comparison = compare_runs(load_runs(write_pair("demo", before, after, both=both)))
    (row,) = comparison.rows
    assert (row.unit, row.margin, row.verdict) == ("nats", 0.01, "better")
    assert row.difference == pytest.approx(-0.5)
    assert row.paired.interval.low < -0.5 < row.paired.interval.high  # that all are alike is no certainty
    assert "| -0.500 [-0.5" in comparison.to_markdown()
    (note,) = [note for note in comparison.notes if "nats" in note]
    assert "log_loss" in note
    assert "margin 0.01" in note
    (written,) = comparison.to_json()["rows"]
    assert (written["unit"], written["difference"]) == ("nats", pytest.approx(-0.5))


def test_holm_takes_back_what_is_significant_alone(write_run, tmp_path):
    before = coin(0.5, 100, 1)
    after = [1.0 if i in range(0, 100, 9) else score for i, score in enumerate(before)]
    tasks = {f"t{n:02}": labelled(before) for n in range(12)}
    write_run("out/base", tasks, model_args="pretrained=org/tiny")
    write_run("out/a", {**tasks, "t00": labelled(after)}, model_args="pretrained=org/tiny,peft=a")
    (first, *_) = compare_runs(load_runs(tmp_path / "out")).rows
    chosen = compare_runs(load_runs(tmp_path / "out"), tasks=["t00"])
    (alone,) = chosen.rows
    assert (alone.verdict, first.verdict) == ("better", "undecided")
    assert first.decision.p_holm == pytest.approx(12 * first.paired.p_value)
    assert first.decision.lacking == "p"
    assert first.decision.needed.number > first.n
    (finding,) = [finding for finding in chosen.findings if finding.id == "R14"]  # chosen after looking?
    assert finding.text in chosen.notes
    assert finding.text not in chosen.warnings
    assert len(finding.numbers["rows"]) == 11

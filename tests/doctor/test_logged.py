"""Every finding from logged outputs, on outputs with one planted cause; and none on sound ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval_files import sample

from harness_ext import cli, hooks
from harness_ext.doctor.diagnose import diagnose
from harness_ext.doctor.diagnosis import Diagnosis
from harness_ext.doctor.evidence import gains
from harness_ext.errors import HarnessExtError
from harness_ext.findings import Finding
from harness_ext.protocol.tasks import load_task
from harness_ext.results.load import load_runs

SST2, SQUAD = "sst2_generate", "squad_v2_generate"
CONFIGS: dict[str, dict[str, Any]] = {
    SST2: {"output_type": "generate_until", "metadata": {"version": 1.0, "primary_metric": "acc"}},
    SQUAD: {
        "output_type": "generate_until",
        "metadata": {"version": 1.0, "primary_metric": "exact", "metric_scale": 100},
        "generation_kwargs": {"max_gen_toks": 32},
    },
}
FOUNDING_TASKS = Path(__file__).parents[2] / "benchmarks" / "founding" / "tasks"
Write = Callable[..., Path]
Doc = dict[str, Any]


@pytest.fixture(scope="module")
def documents() -> dict[str, list[Doc]]:
    """The documents of both tasks, from the bundled sample."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARNESS_EXT_DATA", "sample")
        return {name: [dict(doc) for doc in load_task(name).eval_docs] for name in (SST2, SQUAD)}


def logged(task: str, docs: Sequence[Doc], answer: Callable[[Doc, int], str], **records: Any) -> list[dict[str, Any]]:
    """Samples of a task whose model answers `answer(doc, number)`, scored by the task's own hook."""
    samples = []
    for number, doc in enumerate(docs):
        text = answer(doc, number)
        score = hooks.score_label if task == SST2 else hooks.score_squad_v2
        scores = {name: value for name, value in score(doc, [text]).items() if name not in ("bleu", "bleu_1")}
        target = doc["choices"][doc["label"]] if task == SST2 else (doc["answers"]["text"] or ["unanswerable"])[0]
        line = sample(number, doc, scores, prompt=records.get("prompt", f"{number}: "), target=target)
        line["resps"], line["filtered_resps"] = [[text]], [text]
        samples.append(line | {name: value for name, value in records.items() if name != "prompt"})
    return samples


@pytest.fixture
def examine(write_run: Write, documents: dict[str, list[Doc]]) -> Callable[..., Diagnosis]:
    """Write the samples of one run, and examine it."""

    def run(task: str, samples: list[dict[str, Any]], **how: Any) -> Diagnosis:
        scores = [line["abstain_baseline"] for line in samples if "abstain_baseline" in line]
        metrics = {f"{name}_baseline,none": float(np.mean(scores)) for name in ("abstain",) if scores}
        folder = write_run(
            "out/run", {task: samples}, configs=CONFIGS, metrics={task: {**metrics, **how.pop("metrics", {})}},
            model_args=how.pop("model_args", "pretrained=org/tiny"), **how,
        )  # fmt: skip
        (diagnosis,) = diagnose(load_runs(folder))
        return diagnosis

    return run


def label(doc: Doc, wrong: bool = False) -> str:
    return str(doc["choices"][doc["label"] ^ int(wrong)])


def gold(doc: Doc) -> str:
    return str((doc["answers"]["text"] or ["unanswerable"])[0])


def ids(diagnosis: Diagnosis) -> list[str]:
    return [finding.id for finding in diagnosis.findings]


def only(diagnosis: Diagnosis, id: str) -> Finding:
    (finding,) = [finding for finding in diagnosis.findings if finding.id == id]
    return finding


def test_nothing_is_found_in_sound_outputs(examine, documents):
    for task, right in ((SST2, label), (SQUAD, gold)):
        docs = documents[task]
        answers = [right(doc) if number % 5 else "not a word of it" for number, doc in enumerate(docs)]
        if task == SST2:
            answers = [label(doc, wrong=number % 5 == 0) for number, doc in enumerate(docs)]
        samples = logged(task, docs, lambda _, number: answers[number], finish_reason="stop")  # noqa: B023
        assert not ids(examine(task, samples)), task


def test_outputs_that_do_not_parse(examine, documents):
    samples = logged(SST2, documents[SST2], lambda doc, n: label(doc) if n % 5 == 0 else "I cannot say.")
    diagnosis = examine(SST2, samples)
    assert diagnosis.decomposition.parsed_rate == pytest.approx(0.2, abs=0.01)
    assert diagnosis.decomposition.score_parsed == 1.0
    finding = only(diagnosis, "D1")
    assert finding.level == "error"  # below chance, though all that parsed is right
    assert "below chance" in finding.text
    assert finding.numbers["examples"][0]["output"] == "I cannot say."


def test_another_reading_proves_that_the_answer_is_there(examine, documents):
    # "positive or negative? negative" names both labels, so it does not parse; the last one is meant
    samples = logged(SST2, documents[SST2], lambda doc, n: f"positive or negative? {label(doc, wrong=n % 10 == 0)}")
    finding = only(examine(SST2, samples), "D1")
    assert finding.numbers["proved"]
    assert finding.numbers["change"] == "if the last label in the text counts"
    assert (finding.numbers["before"], finding.numbers["after"]) == (0.0, pytest.approx(0.9, abs=0.01))
    assert finding.numbers["low"] > 0.8


def test_swapped_labels(examine, documents):
    samples = logged(SST2, documents[SST2], lambda doc, n: label(doc, wrong=n % 6 != 0))
    diagnosis = examine(SST2, samples)
    finding = only(diagnosis, "D2")
    assert (finding.level, ids(diagnosis)) == ("error", ["D2"])
    assert finding.numbers["swapped"] == pytest.approx(5 / 6, abs=0.01)


def test_one_label_for_everything(examine, documents):
    diagnosis = examine(SST2, logged(SST2, documents[SST2], lambda *_: "positive"))
    assert only(diagnosis, "D3").numbers["share"] == 1.0
    assert "D2" not in ids(diagnosis)


@pytest.mark.parametrize(
    ("behind", "change"),
    [
        ("\nQuestion: What else is there to know?\nAnswer: nothing", "if only the first line is scored"),
        ("<|im_end|> <|im_start|>assistant and so on", "if the text is cut at the first end token or turn marker"),
        (". The passage says so in its first line.", "if only the first sentence is scored"),
    ],
)
def test_text_after_the_answer(behind, change, examine, documents):
    samples = logged(SQUAD, documents[SQUAD], lambda doc, n: gold(doc) + behind if n % 4 else "something else")
    diagnosis = examine(SQUAD, samples)
    finding = diagnosis.findings[0]
    assert (finding.id, finding.level, finding.numbers["change"]) == ("D5", "error", change)
    assert finding.numbers["after"] > finding.numbers["before"] + 0.5


def test_outputs_at_the_token_limit(examine, documents):
    words = "and so it goes on and so it goes on and so it goes on and so it goes on"
    samples = logged(SQUAD, documents[SQUAD], lambda *_: words, finish_reason="length")
    finding = only(examine(SQUAD, samples), "D6")
    assert (finding.level, finding.numbers["share"]) == ("error", 1.0)
    assert finding.numbers["repeating"] == len(documents[SQUAD])


def test_prompts_that_leave_no_room(examine, documents):
    samples = logged(SQUAD, documents[SQUAD], lambda doc, _: gold(doc), input_tokens=490)
    diagnosis = examine(SQUAD, samples, model_args="pretrained=org/tiny,max_length=512")
    assert only(diagnosis, "D11").numbers["prompts"] == len(documents[SQUAD])
    shorter = logged(SQUAD, documents[SQUAD], lambda doc, _: gold(doc), input_tokens=479)
    assert "D11" not in ids(examine(SQUAD, shorter, model_args="pretrained=org/tiny,max_length=512"))


def test_abstentions_that_count_as_wrong(examine, documents):
    samples = logged(SQUAD, documents[SQUAD], lambda doc, _: gold(doc))
    for line in samples:  # as scored by a metric that compares the word with the empty answer
        if "NoAns_exact" in line:
            line["exact"] = line["NoAns_exact"] = 0.0
    assert only(examine(SQUAD, samples), "D12").level == "error"


def test_abstentions_are_proved_to_count_as_wrong(documents, write_run, tmp_path):
    # the task compares "unanswerable" with the empty reference letter by letter
    raw = tmp_path / "tasks"
    shutil.copytree(FOUNDING_TASKS, raw)
    samples = []
    for line, doc in zip(logged(SQUAD, documents[SQUAD], lambda doc, _: gold(doc)), documents[SQUAD], strict=True):
        exact = 100.0 * bool(doc["answers"]["text"])
        samples.append({**line, "exact": exact, "metrics": ["exact"]})
    config = {"founding_squad_raw": CONFIGS[SQUAD]}
    folder = write_run("out/raw", {"founding_squad_raw": samples}, configs=config, model_args="pretrained=org/tiny")
    (diagnosis,) = diagnose(load_runs(folder), include_path=[str(raw)])
    finding = only(diagnosis, "D12")
    assert diagnosis.findings[0] is finding
    assert (finding.numbers["after"], finding.level) == (1.0, "error")
    assert finding.numbers["change"] == "if abstentions count as the empty answer"


def test_answers_that_were_cut_in_training(examine, documents):
    samples = logged(SQUAD, documents[SQUAD], lambda doc, _: gold(doc)[:4], finish_reason="stop")
    finding = only(examine(SQUAD, samples), "D10")
    assert finding.level == "error"
    assert finding.numbers["cut"] > len(samples) / 2
    at_limit = logged(SQUAD, documents[SQUAD], lambda doc, _: gold(doc)[:4], finish_reason="length")
    assert "D10" not in ids(examine(SQUAD, at_limit))  # the token limit cut them
    first_words = logged(SQUAD, documents[SQUAD], lambda doc, _: gold(doc).split()[0], finish_reason="stop")
    assert "D10" not in ids(examine(SQUAD, first_words))  # shorter answers, but whole words


def test_text_after_one_of_several_references(examine, documents):
    samples = logged(SQUAD, documents[SQUAD], lambda doc, _: f"{gold(doc)}. That is what the passage says.")
    for line, doc in zip(samples, documents[SQUAD], strict=True):
        line["target"] = str(["an answer that nobody gives", gold(doc)])  # lm-eval logs a list as text
    finding = only(examine(SQUAD, samples), "D5")
    assert finding.numbers["contained"] >= sum(bool(doc["answers"]["text"]) for doc in documents[SQUAD]) - 1


def test_an_earlier_checkpoint_that_is_better(write_run, documents, tmp_path):
    def written(name: str, adapter: str, wrong_every: int) -> None:
        docs = documents[SST2]
        samples = logged(SST2, docs, lambda doc, n: label(doc, wrong=n % wrong_every == 0), finish_reason="stop")
        write_run(f"out/{name}", {SST2: samples}, configs=CONFIGS, model_args=f"pretrained=org/tiny,peft={adapter}")

    def found() -> dict[str, list[Finding]]:
        diagnoses = diagnose(load_runs(tmp_path / "out"))
        return {each.run: [finding for finding in each.findings if finding.id == "D28"] for each in diagnoses}

    write_run(
        "out/base", {SST2: logged(SST2, documents[SST2], lambda doc, n: label(doc, wrong=n % 2 == 0))},
        configs=CONFIGS, model_args="pretrained=org/tiny",
    )  # fmt: skip
    written("last", "out/mine", 3)
    written("first", "out/mine/checkpoint-10", 12)
    written("second", "out/mine/checkpoint-20", 4)
    by_run = found()
    (finding,) = by_run["mine"]
    assert finding.numbers["change"] == "checkpoint-10"
    assert finding.numbers["low"] > 0
    assert not by_run["checkpoint-10"]
    assert not by_run["checkpoint-20"]  # a later one is there
    written("last", "out/mine", 12)
    assert not found()["mine"]  # no better than the last one


def test_credit_from_empty_answers_only(examine, documents):
    diagnosis = examine(SQUAD, logged(SQUAD, documents[SQUAD], lambda *_: "unanswerable"))
    finding = only(diagnosis, "D13")
    assert finding.level == "error"
    assert (finding.numbers["has_answer"], finding.numbers["no_answer"]) == (0.0, 1.0)


def test_metrics_on_different_scales(examine, documents):
    samples = logged(SQUAD, documents[SQUAD], lambda doc, _: gold(doc))
    found = ids(examine(SQUAD, samples, metrics={"bleu,none": 0.018, "exact,none": 4.97}))
    assert "D14" in found
    assert "D14" not in ids(examine(SQUAD, samples, metrics={"bleu,none": 1.8, "exact,none": 4.97}))


def test_a_question_among_its_own_examples(examine, documents, write_run):
    docs = documents[SST2]
    samples = logged(SST2, docs, lambda doc, n: label(doc, wrong=n % 4 == 0))
    for number, line in enumerate(samples):
        text = docs[number]["sentence"]
        shown = f"Review: {text}\nSentiment: {label(docs[number])}\n\n" if number % 3 == 0 else ""
        line["arguments"] = {"gen_args_0": {"arg_0": f"{shown}Review: {text}\nSentiment:", "arg_1": {}}}
    diagnosis = examine(SST2, samples, **{"n-shot": {SST2: 1}})
    assert only(diagnosis, "D21").numbers["prompts"] == len(docs[::3])


def test_evaluated_documents_in_the_training_split(examine, documents, monkeypatch):
    docs = documents[SST2]
    training = [{"sentence": doc["sentence"].upper()} for doc in docs[:10]]
    monkeypatch.setattr("harness_ext.doctor.diagnose._training_documents", lambda _: training)
    samples = logged(SST2, docs, lambda doc, n: label(doc, wrong=n % 4 == 0))
    assert only(examine(SST2, samples), "D22").numbers["documents"] == 10


# -- beside the base -----------------------------------------------------------------------------------------------


def pair(write_pair: Write, before: list[dict[str, Any]], after: list[dict[str, Any]], **by_run: Any) -> Diagnosis:
    _, diagnosis = diagnose(load_runs(write_pair(SST2, before, after, both={"configs": CONFIGS}, **by_run)))
    return diagnosis


def test_an_adapter_that_answers_as_its_base(write_pair, documents):
    samples = logged(SST2, documents[SST2], lambda doc, n: label(doc, wrong=n % 4 == 0))
    diagnosis = pair(write_pair, samples, samples)
    assert diagnosis.run == "sst2"
    assert only(diagnosis, "D23").level == "error"


def test_runs_that_are_not_comparable(write_pair, documents):
    before = logged(SST2, documents[SST2], lambda doc, n: label(doc, wrong=n % 4 == 0))
    after = logged(SST2, documents[SST2], lambda doc, n: label(doc, wrong=n % 5 == 0))
    assert not ids(pair(write_pair, before, after))
    diagnosis = pair(write_pair, before, after, sst2={"n-shot": {SST2: 5}})
    assert only(diagnosis, "D19").numbers["fields"] == ["num_fewshot"]


def test_a_gain_in_form_only(write_pair, documents):
    before = logged(SST2, documents[SST2], lambda doc, n: label(doc, wrong=n % 4 == 0) if n % 3 else "no idea")
    after = logged(SST2, documents[SST2], lambda doc, n: label(doc, wrong=n % 4 == 0))
    finding = only(pair(write_pair, before, after), "D27")
    assert finding.numbers["skill"] == 0.0
    assert finding.numbers["parsing"] == pytest.approx(finding.numbers["total"])


# -- the rest ------------------------------------------------------------------------------------------------------


def test_gains_are_corrected_for_the_changes_tried():
    before = np.zeros(200)
    after = np.r_[np.ones(12), np.zeros(188)]
    (alone,) = gains(before, {"one": after})
    assert alone.is_proved
    for others, is_proved in ((5, True), (200, False)):
        best, *_ = gains(before, {"one": after, **{f"other {n}": before for n in range(others)}})
        assert (best.change, best.difference, best.is_proved) == ("one", alone.difference, is_proved)
        assert best.p_value == pytest.approx((1 + others) * alone.p_value)


def test_without_samples_or_an_installed_task(write_run, documents):
    samples = logged(SST2, documents[SST2], lambda doc, n: label(doc) if n % 2 else "?")
    (diagnosis,) = diagnose(load_runs(write_run("out/a", {SST2: samples}, configs=CONFIGS, log_samples=False)))
    assert (diagnosis.n, diagnosis.decomposition) == (0, None)
    assert "--log_samples" in diagnosis.notes[0]
    (diagnosis,) = diagnose(
        load_runs(write_run("out/b", {"never_heard_of": samples}, configs={"never_heard_of": CONFIGS[SST2]}))
    )
    assert "D1" in ids(diagnosis)
    assert "never_heard_of" in diagnosis.notes[0]
    with pytest.raises(HarnessExtError, match="no run has task 'nope'"):
        diagnose(load_runs(write_run("out/c", {SST2: samples}, configs=CONFIGS)), tasks=["nope"])


def test_the_command(write_run, documents, capsys):
    samples = logged(SST2, documents[SST2], lambda doc, n: label(doc) if n % 5 == 0 else "I cannot say.")
    folder = str(write_run("out/base", {SST2: samples}, configs=CONFIGS))
    assert cli.main(["doctor", folder]) == 1
    text = capsys.readouterr().out
    assert "D1" in text
    assert "next:" in text
    assert cli.main(["doctor", folder, "--format", "json"]) == 1
    (parsed,) = json.loads(capsys.readouterr().out)
    assert parsed["findings"][0]["numbers"]["examples"][0]["output"] == "I cannot say."
    sound = logged(SST2, documents[SST2], lambda doc, n: label(doc, wrong=n % 5 == 0))
    assert cli.main(["doctor", str(write_run("out/sound", {SST2: sound}, configs=CONFIGS))]) == 0
    assert cli.main(["doctor"]) == 2
    assert "doctor needs RESULTS" in capsys.readouterr().err
    assert cli.main(["doctor", "--explain", "d13"]) == 0
    assert "abstaining" in capsys.readouterr().out

"""An evaluation that stops when its verdicts are known: what is asked, what is written, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from harness_ext.cli import main
from harness_ext.engine.evaluate import evaluate
from harness_ext.engine.hosts import PeftHost
from harness_ext.engine.sequential import Row, UntilDecided, run_until_decided
from harness_ext.engine.session import Session, VariantResults
from harness_ext.engine.store import FILE
from harness_ext.errors import HarnessExtError
from harness_ext.protocol.lm_eval_api import EvaluatorConfig
from harness_ext.results.load import load_runs
from harness_ext.stats.sequential.record import read_record

WORDS = ("old", "mill", "river", "film", "green", "late", "bright", "slow", "wide", "loud")
N = 300
LOOKS = (0.2, 0.4, 0.6, 0.8, 1.0)


def write_task(folder: Path, name: str, labels: Sequence[int], *, unit: str = "", extra: str = "") -> Path:
    rows = [
        {
            "text": f"The {WORDS[n % 10]} {WORDS[n // 10 % 10]} was {WORDS[n // 100]} in year {n}.",
            "choices": [WORDS[n % 10], WORDS[(n * 7 + 3) % 10]] if n % 10 != (n * 7 + 3) % 10 else ["old", "new"],
            "label": label,
            **({unit: f"passage {n // 5} " + "and so on " * 10} if unit else {}),
        }
        for n, label in enumerate(labels)
    ]
    data = folder / f"{name}.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = folder / f"{name}.yaml"
    path.write_text(
        f"task: {name}\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {data}}}}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: '{{text}}'\ndoc_to_choice: choices\ndoc_to_target: label\n"
        f"metric_list: [{{metric: acc, higher_is_better: true, aggregation: mean}}]\n{extra}"
    )
    return path


def answers(done: VariantResults, task: str) -> list[int]:
    """Which choice a variant prefers, by document."""
    return [
        int(sample["filtered_resps"][1][0] > sample["filtered_resps"][0][0]) for sample in done.results["samples"][task]
    ]


@pytest.fixture(scope="module")
def adapters(make_adapter: Callable[..., Path]) -> dict[str, Path]:
    return {"good": make_adapter("good"), "other": make_adapter("other", seed=2)}


@pytest.fixture(scope="module")
def labels(tiny_model_folder: Path, adapters: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> list[int]:
    """What the good adapter answers."""
    task = write_task(tmp_path_factory.mktemp("labels"), "labelled", [0] * N)
    done = evaluate(
        str(tiny_model_folder), tasks=[str(task)], adapters=[adapters["good"]], log_samples=True, store=False,
        output_path=str(task.parent / "out"),
    )  # fmt: skip
    found = answers(done[1], "labelled")
    agreement = sum(map(int.__eq__, found, answers(done[0], "labelled"))) / N
    assert 0.2 < agreement < 0.8  # the base scores so, and the adapter 1
    return found


def decide(
    base: Path, tasks: Sequence[Path], adapters: Sequence[Path], output: Path | None, **rule: Any
) -> tuple[list[VariantResults], list[list[tuple[str, int, str | None]]]]:
    looks: list[list[tuple[str, int, str | None]]] = []

    def on_look(rows: Sequence[Row]) -> None:
        looks.append([(row.adapter, row.asked, row.outcome) for row in rows])

    config = EvaluatorConfig(
        model="hf-tree", model_args={"pretrained": str(base)}, tasks=[str(task) for task in tasks],
        output_path=None if output is None else str(output),
    )._configure()  # fmt: skip
    rule = {"looks": LOOKS, **rule}
    done = list(run_until_decided(config, adapters=adapters, rule=UntilDecided(**rule), on_look=on_look))
    return done, looks


def test_it_stops_when_every_row_is_decided(
    tiny_model_folder: Path, adapters: dict[str, Path], labels: list[int], tmp_path: Path
) -> None:
    """The documents that were asked have the scores that they have in a full evaluation."""
    task = write_task(tmp_path, "mine", labels)
    done, looks = decide(tiny_model_folder, [task], [adapters["good"]], tmp_path / "out")
    (verdict,) = looks[-1]
    assert verdict[2] == "better"
    assert verdict[1] < N
    assert [each.results["n-samples"]["mine"]["effective"] for each in done] == [verdict[1]] * 2
    full = evaluate(
        str(tiny_model_folder), tasks=[str(task)], adapters=[adapters["good"]], log_samples=True, store=False,
        output_path=str(tmp_path / "full"),
    )  # fmt: skip
    for stopped, whole in zip(done, full, strict=True):
        by_id = {sample["doc_id"]: sample for sample in whole.results["samples"]["mine"]}
        for sample in stopped.results["samples"]["mine"]:
            assert sample["doc"] == by_id[sample["doc_id"]]["doc"]
            assert sample["acc"] == by_id[sample["doc_id"]]["acc"]


def test_a_decided_adapter_drops_out(
    tiny_model_folder: Path, adapters: dict[str, Path], labels: list[int], tmp_path: Path
) -> None:
    """The base goes on as long as one row is open; results say what was asked and why."""
    task = write_task(tmp_path, "mine", labels)
    done, looks = decide(tiny_model_folder, [task], [*adapters.values()], tmp_path / "out", margin=0.1)
    asked = {name: count for name, count, _ in looks[-1]}
    assert asked["good"] < asked["other"]
    counts = {each.variant.name: each.results["n-samples"]["mine"]["effective"] for each in done}
    assert counts == {"base": asked["other"], **asked}
    for each in done:
        record = read_record(each.results["harness_ext"]["sequential"])["mine"]
        assert record.documents == counts[each.variant.name]
        stages = [stage for stage in (60, 120, 180, 240, 300) if stage <= record.documents]
        assert [look.documents for look in record.looks] == ([] if each.variant.adapter is None else stages)
    runs = {run.name: run for run in load_runs(str(tmp_path / "out"))}
    assert len(list(runs["good"].tasks["mine"].logged_samples())) == asked["good"]


def test_nothing_is_asked_twice(
    tiny_model_folder: Path,
    adapters: dict[str, Path],
    labels: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither by later looks, nor by the same command once more, nor by the whole evaluation afterwards."""
    from harness_ext.engine.hf_tree import TreeLM

    counted: list[int] = []
    original = TreeLM._loglikelihood_tokens

    def counting(self: TreeLM, requests: Any, *arguments: Any, known: Any = (), **options: Any) -> Any:
        counted.append(len(requests) - len(known))
        return original(self, requests, *arguments, **options, **({"known": known} if known else {}))

    monkeypatch.setattr(TreeLM, "_loglikelihood_tokens", counting)
    task = write_task(tmp_path, "mine", labels)
    done, looks = decide(tiny_model_folder, [task], [adapters["good"]], tmp_path / "out")
    asked = looks[-1][0][1]
    assert sum(counted) == 2 * 2 * asked
    counted.clear()
    again, _ = decide(tiny_model_folder, [task], [adapters["good"]], tmp_path / "out")
    assert sum(counted) == 0
    assert [each.results["results"] for each in again] == [each.results["results"] for each in done]
    whole = evaluate(
        str(tiny_model_folder), tasks=[str(task)], adapters=[adapters["good"]], output_path=str(tmp_path / "out")
    )
    assert sum(counted) == 2 * 2 * (N - asked)
    assert "sequential" not in whole[0].results["harness_ext"]


def test_finish_reasons_are_those_of_the_document(
    tiny_model_folder: Path, adapters: dict[str, Path], labels: list[int], tmp_path: Path
) -> None:
    """lm-eval numbers the chosen documents anew while it asks."""
    task = write_task(tmp_path, "spoken", labels)
    text = task.read_text().replace("output_type: multiple_choice", "output_type: generate_until")
    text = text.replace("doc_to_choice: choices", "generation_kwargs: {until: ['e', 'o', 't', ' '], max_gen_toks: 8}")
    text = text.replace("metric: acc,", "metric: exact_match,").replace(
        "doc_to_target: label", "doc_to_target: '{{label}}'"
    )
    task.write_text(text)
    done, _ = decide(tiny_model_folder, [task], [adapters["good"]], None, looks=(0.2, 1.0))
    full = evaluate(
        str(tiny_model_folder), tasks=[str(task)], adapters=[adapters["good"]], log_samples=True, store=False,
        output_path=str(tmp_path / "full"),
    )  # fmt: skip
    fields = ("resps", "finish_reason", "input_tokens", "output_tokens")
    for stopped, whole in zip(done, full, strict=True):
        by_id = {sample["doc_id"]: sample for sample in whole.results["samples"]["spoken"]}
        logged = stopped.results["samples"]["spoken"]
        assert len({sample["input_tokens"] for sample in by_id.values()}) > 1
        for sample in logged:
            assert [sample[name] for name in fields] == [by_id[sample["doc_id"]][name] for name in fields]


def test_without_a_folder_answers_are_kept_in_memory(
    tiny_model_folder: Path, adapters: dict[str, Path], labels: list[int], tmp_path: Path
) -> None:
    done, looks = decide(tiny_model_folder, [write_task(tmp_path, "mine", labels)], [adapters["good"]], None)
    assert looks[-1][0][2] == "better"
    assert done[1].results["harness_ext"]["answers_from_store"] == 2 * looks[-1][0][1]


def test_passages_stay_together(
    tiny_model_folder: Path, adapters: dict[str, Path], labels: list[int], tmp_path: Path
) -> None:
    task = write_task(tmp_path, "mine", labels, unit="passage", extra="metadata: {cluster: passage}\n")
    done, looks = decide(tiny_model_folder, [task], [adapters["good"]], tmp_path / "out")
    assert looks[0][0][1] >= 30 * 5
    for each in done:
        passages = [sample["doc"]["passage"] for sample in each.results["samples"]["mine"]]
        assert {passages.count(passage) for passage in passages} == {5}
        assert read_record(each.results["harness_ext"]["sequential"])["mine"].planned.cluster == "passage"


def test_the_order_is_drawn_from_the_seed(
    tiny_model_folder: Path, adapters: dict[str, Path], labels: list[int], tmp_path: Path
) -> None:
    task = write_task(tmp_path, "mine", labels)
    ids = [
        [
            sample["doc_id"]
            for sample in decide(tiny_model_folder, [task], [adapters["good"]], None, seed=seed)[0][0].results[
                "samples"
            ]["mine"]
        ]
        for seed in (0, 0, 1)
    ]
    assert ids[0] == ids[1] != ids[2]


def test_at_most_so_many(tiny_model_folder: Path, adapters: dict[str, Path], labels: list[int], tmp_path: Path) -> None:
    task = write_task(tmp_path, "mine", labels)
    done, _ = decide(tiny_model_folder, [task], [adapters["other"]], None, max_documents=40)
    assert done[0].results["n-samples"]["mine"]["effective"] <= 40


@pytest.mark.parametrize(
    ("extra", "unit", "count", "reason"),
    [
        ("", "passage", N, "metadata: cluster: passage"),
        ("", "", 20, "20 independent units"),
        ("metadata: {primary_metric: f1}\n", "", N, "which is not a score of a document"),
    ],
    ids=["passages that repeat", "few documents", "no score for each document"],
)
def test_a_task_that_cannot_be_decided_early_is_evaluated_on_all_documents(
    extra: str, unit: str, count: int, reason: str, tiny_model_folder: Path, adapters: dict[str, Path],
    labels: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("lm_eval.api.metrics.bootstrap_stderr", lambda *_, **__: 0.0)  # a minute
    good = write_task(tmp_path, "mine", labels)
    fixed = write_task(tmp_path, "fixed", labels[:count], unit=unit, extra=extra)
    if "f1" in extra:
        fixed.write_text(fixed.read_text().replace("[{metric: acc,", "[{metric: f1, aggregation: f1}, {metric: acc,"))
    done, _ = decide(tiny_model_folder, [good, fixed], [adapters["good"]], None)
    assert done[1].results["n-samples"]["fixed"]["effective"] == count
    assert done[1].results["n-samples"]["mine"]["effective"] < N
    assert "is evaluated on all its documents" in caplog.text
    assert reason in caplog.text
    assert "fixed" not in done[1].results["harness_ext"]["sequential"]["tasks"]


@pytest.mark.parametrize(
    ("unit", "extra", "asked"),
    [("passage", "", 42), ("passage", "metadata: {cluster: passage, primary_metric: f1}\n", 40)],
    ids=["passages that repeat", "whole passages"],
)
def test_a_task_that_cannot_be_decided_early_has_at_most_so_many(
    unit: str, extra: str, asked: int, tiny_model_folder: Path, adapters: dict[str, Path],
    labels: list[int], tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("lm_eval.api.metrics.bootstrap_stderr", lambda *_, **__: 0.0)  # a minute
    good = write_task(tmp_path, "mine", labels)
    fixed = write_task(tmp_path, "fixed", labels, unit=unit, extra=extra)
    if "f1" in extra:
        fixed.write_text(fixed.read_text().replace("[{metric: acc,", "[{metric: f1, aggregation: f1}, {metric: acc,"))
    done, _ = decide(tiny_model_folder, [good, fixed], [adapters["good"]], None, max_documents=42)
    asked_ids = [[sample["doc_id"] for sample in each.results["samples"]["fixed"]] for each in done]
    assert [len(ids) for ids in asked_ids] == [asked, asked]
    assert asked_ids[0] == asked_ids[1] != list(range(asked))
    assert f"fixed is evaluated on {asked} documents" in caplog.text
    assert "fixed" not in done[1].results["harness_ext"]["sequential"]["tasks"]


def test_no_task_can_be_decided_early(tiny_model_folder: Path, adapters: dict[str, Path], tmp_path: Path) -> None:
    fixed = write_task(tmp_path, "fixed", [0] * 20)
    with pytest.raises(HarnessExtError, match=r"no task can be decided early \(fixed: it has 20 independent units"):
        decide(tiny_model_folder, [fixed], [adapters["good"]], None)


def test_a_changed_design_is_refused_by_field(
    tiny_model_folder: Path, adapters: dict[str, Path], labels: list[int], tmp_path: Path
) -> None:
    task = write_task(tmp_path, "mine", labels)
    decide(tiny_model_folder, [task], [adapters["good"]], tmp_path / "out")
    with pytest.raises(HarnessExtError, match=r"looks, seed.*another --store"):
        decide(tiny_model_folder, [task], [adapters["good"]], tmp_path / "out", looks=(0.5, 1.0), seed=3)
    with pytest.raises(HarnessExtError, match=r"tasks\.mine\.margin"):
        decide(tiny_model_folder, [task], [adapters["good"]], tmp_path / "out", margin=2)
    decide(tiny_model_folder, [task], [adapters["other"]], tmp_path / "out", margin=2)  # is another evaluation


def test_an_adapter_that_fails_does_not_stop_the_others(
    tiny_model_folder: Path,
    adapters: dict[str, Path],
    labels: list[int],
    make_adapter: Callable[..., Path],
    tmp_path: Path,
) -> None:
    task = write_task(tmp_path, "mine", labels)
    idle = make_adapter("idle", zero=True)
    done, _ = decide(tiny_model_folder, [task], [idle, adapters["good"]], tmp_path / "out")
    by_name = {each.variant.name: each for each in done}
    assert "changes nothing" in str(by_name["idle"].error)
    assert by_name["good"].results["harness_ext"]["sequential"]["tasks"]["mine"]["looks"][-1]["outcome"] == "better"


def test_killed_in_the_middle(
    tiny_model_folder: Path,
    adapters: dict[str, Path],
    labels: list[int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C keeps every answer; the same command goes on and comes to the same results."""
    task = write_task(tmp_path, "mine", labels)
    fresh, _ = decide(tiny_model_folder, [task], [adapters["other"]], tmp_path / "fresh")
    original, calls = Session._evaluate_active, iter([None, None, None])

    def interrupted(self: Session, *arguments: Any) -> VariantResults:
        if next(calls, "stop") == "stop":
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(Session, "_evaluate_active", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decide(tiny_model_folder, [task], [adapters["other"]], tmp_path / "killed")
    monkeypatch.setattr(Session, "_evaluate_active", original)
    assert (tmp_path / "killed" / FILE).exists()
    done, _ = decide(tiny_model_folder, [task], [adapters["other"]], tmp_path / "killed")
    assert [each.results["results"] for each in done] == [each.results["results"] for each in fresh]
    records = [[each.results["harness_ext"]["sequential"] for each in results] for results in (done, fresh)]
    assert records[0] == records[1]


def test_a_variant_stays_on_the_model_between_two_looks(
    tiny_model_folder: Path, adapters: dict[str, Path], labels: list[int], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    task = write_task(tmp_path, "mine", labels)
    turns: list[str] = []
    original = PeftHost.active

    def counted(self: PeftHost, variant: Any) -> Any:
        turns.append(variant.name)
        return original(self, variant)

    monkeypatch.setattr(PeftHost, "active", counted)
    _, looks = decide(tiny_model_folder, [task], [adapters["other"]], tmp_path / "out")
    assert len(looks) == 4
    assert turns == ["base", "other", "base", "other", "base", "base", "other"]  # the last two write the results


COMMAND = ["eval", "--tasks", "sst2_choice", "--until-decided"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*COMMAND, "--limit", "5"], "leave out --limit"),
        ([*COMMAND, "--looks", "0.5", "0.2"], "--looks 0.5 0.2: give increasing shares"),
        ([*COMMAND, "--looks", "x"], "--looks x: give increasing shares"),
        ([*COMMAND, "--margin", "acc=x"], "--margin 'acc=x'"),
        ([*COMMAND, "--max-documents", "0"], "--max-documents must be at least 1"),
        ([*COMMAND, "--from-store"], "--from-store does not"),
        ([*COMMAND], "name them with --adapters"),
        (["eval", "--tasks", "sst2_choice", "--margin", "2"], "--margin needs --until-decided"),
    ],
)
def test_bad_flags(
    arguments: list[str], message: str, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--model_args", f"pretrained={tiny_model_folder}"]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert message in told


def test_the_command(
    tiny_model_folder: Path,
    adapters: dict[str, Path],
    labels: list[int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    task = write_task(tmp_path, "mine", labels)
    command = [
        "eval", "--model_args", f"pretrained={tiny_model_folder}", "--adapters", str(adapters["good"]), "--tasks",
        str(task), "--until-decided", "--looks", "5", "--output_path", str(tmp_path / "out"),
    ]  # fmt: skip
    assert main(command) == 0
    told = capsys.readouterr().out
    assert "look 1: mine, good: " in told
    assert "of 300 documents, better" in told
    assert "next: harness-ext compare" in told

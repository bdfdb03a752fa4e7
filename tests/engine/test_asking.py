"""Answers that are in the store are not computed again, and are those that the model would give."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval.models.dummy import DummyLM
from lm_eval.models.huggingface import HFLM
from results_content import content
from safetensors.torch import load_file, save_file
from tqdm import tqdm
from versions import request

from harness_ext.cli import main
from harness_ext.engine import asking
from harness_ext.engine.asking import Answering
from harness_ext.engine.evaluate import evaluate
from harness_ext.engine.hf_tree import TreeLM
from harness_ext.engine.session import VariantResults
from harness_ext.engine.store import FILE, ResponseStore
from harness_ext.errors import ModelError, StoreError
from harness_ext.trees import packs

TASKS = ["sst2_choice", "squad_v2_generate"]


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of every pass of a model that asks for answers; those of our checks of a model do not count."""
    counted: list[int] = []
    for name in ("_loglikelihood_tokens", "generate_until"):
        for kind in (HFLM, TreeLM):
            monkeypatch.setattr(kind, name, _counting(kind.__dict__[name], counted))
    return counted


def _counting(ask: Callable[..., Any], counted: list[int]) -> Callable[..., Any]:
    def wrapped(self: Any, requests: Any, *more: Any, **options: Any) -> Any:
        counted.append(len(requests))
        return ask(self, requests, *more, **options)

    return wrapped


def found(done: VariantResults) -> int:
    return int(done.results["harness_ext"]["answers_from_store"])


# -- nothing is computed twice -----------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["hf-tree", "hf"])
def test_a_second_run_computes_nothing(
    model: str, tiny_model_folder: Path, make_adapter: Callable[..., Path], passes: list[int], tmp_path: Path
) -> None:
    adapter = make_adapter("stored")
    settings: dict[str, Any] = {"tasks": TASKS, "model": model, "limit": 8, "log_samples": True, "batch_size": 3}
    run: dict[str, Any] = {**settings, "adapters": [adapter], "output_path": str(tmp_path / "out")}
    first = evaluate(str(tiny_model_folder), **run)
    fresh = content(tmp_path / "out")
    assert passes
    assert [found(done) for done in first] == [0, 0]
    passes.clear()
    second = evaluate(str(tiny_model_folder), **run)
    assert not passes
    assert [found(done) for done in second] == [8 * 2 + 8] * 2
    assert content(tmp_path / "out") == fresh  # also finish reasons and token counts
    plain = evaluate(str(tiny_model_folder), **{**run, "output_path": str(tmp_path / "plain")}, store=False)
    assert content(tmp_path / "plain") == fresh
    assert [found(done) for done in plain] == [0, 0]
    assert not (tmp_path / "plain" / FILE).exists()


def test_another_adapter_does_not_evaluate_the_base_again(
    tiny_model_folder: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    store, settings = tmp_path / "store", {"tasks": ["sst2_choice"], "limit": 6}
    evaluate(str(tiny_model_folder), adapters=[make_adapter("one", seed=1)], store=store, **settings)
    base, other = evaluate(str(tiny_model_folder), adapters=[make_adapter("two", seed=2)], store=store, **settings)
    assert (found(base), found(other)) == (12, 0)


def test_more_documents_ask_for_the_new_ones_only(tiny_model_folder: Path, passes: list[int], tmp_path: Path) -> None:
    def run(limit: int) -> VariantResults:
        return evaluate(str(tiny_model_folder), tasks=["sst2_choice"], limit=limit, store=tmp_path)[0]

    run(5)
    passes.clear()
    assert found(run(9)) == 10
    assert passes == [8]


# -- nothing is stale --------------------------------------------------------------------------------------------


def change_alpha(base: Path, adapter: Path) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**config, "lora_alpha": 32}))


def change_adapter(base: Path, adapter: Path) -> None:
    _scale(adapter / "adapter_model.safetensors")


def change_base(base: Path, adapter: Path) -> None:
    _scale(base / "model.safetensors")


def _scale(file: Path) -> None:
    """Replace weights by others of the same size, and set the old times, as `cp --preserve` does."""
    before = file.stat()
    tensors = {name: tensor * 1.5 for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert file.stat().st_size == before.st_size


def change_generation(base: Path, adapter: Path) -> None:
    config = json.loads((base / "generation_config.json").read_text())
    (base / "generation_config.json").write_text(json.dumps({**config, "repetition_penalty": 1.7}))


def change_tokenizer(base: Path, adapter: Path) -> None:
    content = json.loads((base / "tokenizer.json").read_text())
    content["post_processor"] = None  # no begin token any more
    (base / "tokenizer.json").write_text(json.dumps(content))


CHANGES: dict[str, tuple[Callable[[Path, Path], None], bool]] = {  # and whether the base gives other answers
    "lora_alpha": (change_alpha, False),
    "adapter weights": (change_adapter, False),
    "base weights": (change_base, True),
    "generation_config.json": (change_generation, True),
    "tokenizer": (change_tokenizer, True),
}


@pytest.mark.parametrize(("change", "of_base"), CHANGES.values(), ids=CHANGES)
def test_what_has_changed_is_computed_anew(
    change: Callable[[Path, Path], None], of_base: bool,
    tiny_model_folder: Path, make_adapter: Callable[..., Path], tmp_path: Path,
) -> None:  # fmt: skip
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(tiny_model_folder, base)
    shutil.copytree(make_adapter("to-change"), adapter)
    settings: dict[str, Any] = {"tasks": TASKS, "adapters": [adapter], "limit": 6, "log_samples": True}
    evaluate(str(base), output_path=str(tmp_path / "out"), **settings)
    change(base, adapter)
    of_both = evaluate(str(base), output_path=str(tmp_path / "out"), **settings)
    evaluate(str(base), output_path=str(tmp_path / "fresh"), store=False, **settings)
    assert content(tmp_path / "out") == content(tmp_path / "fresh")
    assert [found(done) for done in of_both] == [0 if of_base else 18, 0]


@pytest.mark.parametrize(
    "settings",
    [{"model_args": {"dtype": "bfloat16"}}, {"model": "hf"}, {"model_args": {"pack_tokens": 64}}, {"num_fewshot": 1}],
    ids=["dtype", "engine", "size of packs", "prompt"],
)
def test_other_settings_are_other_answers(settings: dict[str, Any], tiny_model_folder: Path, tmp_path: Path) -> None:
    run: dict[str, Any] = {"tasks": ["sst2_choice"], "limit": 4, "store": tmp_path}
    evaluate(str(tiny_model_folder), **run)
    assert found(evaluate(str(tiny_model_folder), **run)[0]) == 8
    assert found(evaluate(str(tiny_model_folder), **run, **settings)[0]) == 0


def test_weights_that_change_while_they_are_loaded(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model_folder, base)
    original = TreeLM._create_model

    def replaced(self: TreeLM, *arguments: Any, **options: Any) -> None:
        original(self, *arguments, **options)
        change_base(base, base)

    monkeypatch.setattr(TreeLM, "_create_model", replaced)
    with pytest.raises(ModelError, match="changed while they were read"):
        evaluate(str(base), tasks=["sst2_choice"], limit=4, store=tmp_path)


# -- sampled answers ---------------------------------------------------------------------------------------------


def test_sampled_answers_belong_to_their_repeat_and_seeds(tiny_model_folder: Path, tmp_path: Path) -> None:
    lm = TreeLM(str(tiny_model_folder), device="cpu", dtype="float32")
    how = {"until": ["\n"], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    requests = [
        request("generate_until", (f"The {word} was", how), number, task="t")
        for number, word in enumerate(("film", "play"))
        for _ in range(3)
    ]

    def ask(seed: int) -> tuple[list[str], list[Any]]:
        torch.manual_seed(seed)
        lm.generation_records.clear()
        with ResponseStore(tmp_path) as store, Answering(store, b"digest", lm, seeds=[seed]):
            return lm.generate_until(requests, disable_tqdm=True), [*lm.generation_records.values()]

    first = ask(1)
    assert len({*first[0]}) > 2
    assert [len(records) for records in first[1]] == [3, 3]
    assert ask(1) == first
    assert ask(2) != first


# -- a tree that turns out to be wrong ---------------------------------------------------------------------------


def test_answers_that_are_not_confirmed_leave_the_store(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later answer disagrees with a plain pass: those of an earlier, killed run go, too."""
    run: dict[str, Any] = {"tasks": ["squad_v2_generate"], "log_samples": True, "output_path": str(tmp_path / "out")}
    with monkeypatch.context() as patch:
        patch.setattr(TreeLM, "_text", lambda *_: "from a tree")
        evaluate(str(tiny_model_folder), limit=4, **run)
    monkeypatch.setattr(TreeLM, "_replay_gap", lambda *_: 1.0)
    done = evaluate(str(tiny_model_folder), limit=8, **run)[0]
    plain = evaluate(str(tiny_model_folder), limit=8, model="hf", **run)[0]
    answers = [[sample["resps"] for sample in each.results["samples"]["squad_v2_generate"]] for each in (done, plain)]
    assert answers[0] == answers[1]
    assert found(done) == 0


# -- other engines -----------------------------------------------------------------------------------------------


def test_a_model_that_is_elsewhere_is_stored_only_where_asked(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DummyLM, "tokenizer", None)  # it would ask the Hub for one
    settings: dict[str, Any] = {"tasks": ["sst2_choice"], "limit": 4, "model": "dummy"}
    evaluate(output_path=str(tmp_path / "out"), **settings)
    assert "are not stored: its weights are not on this machine" in caplog.text
    assert not (tmp_path / "out" / FILE).exists()
    first = evaluate(store=tmp_path / "store", **settings)[0]
    second = evaluate(store=tmp_path / "store", **settings)[0]
    assert (found(first), found(second)) == (0, 8)
    assert first.results["results"] == second.results["results"]  # it draws its answers at random


# -- from the store alone ----------------------------------------------------------------------------------------

TASK = """
    task: rescored
    dataset_path: json
    dataset_kwargs: {data_files: {test: FOLDER/docs.jsonl}}
    test_split: test
    output_type: generate_until
    doc_to_text: "{{text}} is"
    doc_to_target: "x"
    generation_kwargs: {until: ["."], max_gen_toks: 6, do_sample: false}
    process_results: !function scoring.score
    metric_list: [{metric: length, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture
def task(tmp_path: Path) -> str:
    rows = [{"text": f"The {word}"} for word in ("house", "river", "mill", "road")]
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "rescored.yaml").write_text(textwrap.dedent(TASK).replace("FOLDER", str(tmp_path)))
    write_metric(tmp_path, "len(results[0])")
    return str(tmp_path / "rescored.yaml")


def write_metric(folder: Path, value: str) -> None:
    (folder / "scoring.py").write_text(f"def score(doc, results):\n    return {{'length': {value}}}\n")


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """From now on, models cannot be loaded."""

    def forbid() -> None:
        monkeypatch.setattr(HFLM, "_create_model", lambda *_, **__: pytest.fail("weights are loaded"))

    return forbid


def test_a_changed_metric_is_scored_without_a_model(
    task: str, tiny_model_folder: Path, make_adapter: Callable[..., Path], tmp_path: Path, no_weights: Any
) -> None:
    adapters = [make_adapter("rescored")]
    settings: dict[str, Any] = {"tasks": [task, "sst2_choice"], "adapters": adapters, "limit": 4, "log_samples": True}
    before = evaluate(str(tiny_model_folder), output_path=str(tmp_path / "out"), **settings)
    first = content(tmp_path / "out")
    no_weights()
    evaluate(str(tiny_model_folder), output_path=str(tmp_path / "out"), from_store=True, **settings)
    assert content(tmp_path / "out") == first  # records and model information, too
    write_metric(tmp_path, "100 + len(results[0])")
    after = evaluate(
        str(tiny_model_folder), store=tmp_path / "out", output_path=str(tmp_path / "new"), from_store=True, **settings
    )
    for one, other in zip(before, after, strict=True):
        value, changed = (each.results["results"]["rescored"]["length,none"] for each in (one, other))
        assert changed == value + 100
        assert other.results["results"]["sst2_choice"] == one.results["results"]["sst2_choice"]
        assert other.results["samples"]["sst2_choice"] == one.results["samples"]["sst2_choice"]


def test_what_the_store_does_not_have_is_named(
    task: str, tiny_model_folder: Path, make_adapter: Callable[..., Path], tmp_path: Path, no_weights: Any
) -> None:
    settings: dict[str, Any] = {"output_path": str(tmp_path / "out"), "limit": 3}
    evaluate(str(tiny_model_folder), tasks=[task], **settings)
    no_weights()
    run: dict[str, Any] = {**settings, "limit": 4, "from_store": True}
    with pytest.raises(StoreError, match=r"1 of the 4 answers to rescored are not in .*out/responses.sqlite"):
        evaluate(str(tiny_model_folder), tasks=[task], **run)
    run["limit"] = 3
    done = evaluate(str(tiny_model_folder), tasks=[task, "sst2_choice"], **run)[0]
    assert done.failures.keys() == {"sst2_choice"}
    assert "6 of the 6 answers to sst2_choice are not in" in done.failures["sst2_choice"]
    assert "rescored" in done.results["results"]
    with pytest.raises(StoreError, match=r"no answers of base: those that come closest differ in model_args"):
        evaluate(str(tiny_model_folder), tasks=[task], model_args={"max_length": 512}, **run)
    with pytest.raises(StoreError, match="no answers of other: those that come closest differ in adapter"):
        evaluate(str(tiny_model_folder), model_args={"peft": str(make_adapter("other"))}, tasks=[task], **run)
    with pytest.raises(StoreError, match="there is no response store"):
        evaluate(str(tiny_model_folder), tasks=[task], **{**run, "output_path": str(tmp_path / "nowhere")})
    with pytest.raises(StoreError, match="--from-store needs a store"):
        evaluate(str(tiny_model_folder), tasks=[task], **{**run, "output_path": None})
    with pytest.raises(ModelError, match="not of dummy"):
        evaluate(tasks=[task], model="dummy", **run)


# -- the command line --------------------------------------------------------------------------------------------


def command(base: Path, *more: str) -> list[str]:
    return ["eval", "--model_args", f"pretrained={base}", "--tasks", "sst2_choice", "--limit", "4", *more]


def test_places_of_the_store(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(command(tiny_model_folder, "--store", "~/shared")) == 0
    assert (tmp_path / "shared" / FILE).is_file()
    assert main(command(tiny_model_folder, "--use_cache", "~/shared")) == 0
    assert "8 answers came from the response store" in capsys.readouterr().out
    assert "--use_cache ~/shared" in caplog.text
    assert main(command(tiny_model_folder, "--use_cache", "x", "--store", "y")) == 2
    assert "contradict" in capsys.readouterr().err
    assert main(command(tiny_model_folder, "--output_path", str(tmp_path / "out"), "--no-store")) == 0
    assert not (tmp_path / "out" / FILE).exists()
    (tmp_path / "shared" / FILE).write_text("this was a store once " * 50)
    assert main(command(tiny_model_folder, "--store", "~/shared")) == 2
    assert "damaged or no response store" in capsys.readouterr().err


def test_a_full_disk_does_not_stop_an_evaluation(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Full(ResponseStore):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._connection.execute("PRAGMA max_page_count = 1")

    monkeypatch.setattr("harness_ext.engine.session.ResponseStore", Full)
    run: dict[str, Any] = {"tasks": ["sst2_choice"], "limit": 60, "log_samples": True, "output_path": str(tmp_path)}
    full = evaluate(str(tiny_model_folder), store=tmp_path / "full", **run)[0]
    assert "the evaluation goes on" in caplog.text
    assert full.results["samples"] == evaluate(str(tiny_model_folder), store=False, **run)[0].results["samples"]


# -- killed and continued ----------------------------------------------------------------------------------------


@pytest.fixture
def many_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every batch is written, and there are many."""
    monkeypatch.setattr(asking, "COMMIT_SECONDS", 0.0)


def run_of(base: Path, adapter: Path, output: Path, model: str) -> None:
    arguments: dict[str, Any] = {"pack_tokens": 200, "cache_tokens": 400} if model == "hf-tree" else {}
    evaluate(
        str(base), tasks=TASKS, adapters=[adapter], limit=10, model=model, model_args=arguments, log_samples=True,
        batch_size=3, output_path=str(output),
    )  # fmt: skip


def _die_at(number: int, run: Callable[[], None]) -> None:
    """Run until the store has been written so often, then die without a word."""
    writes = iter(range(number))
    original = ResponseStore.add

    def add(self: ResponseStore, responses: Any) -> None:
        original(self, responses)
        if next(writes, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    ResponseStore.add = add  # type: ignore[method-assign]  # of the child alone
    run()


def _fork(target: Callable[..., None], *arguments: Any) -> Any:
    process = multiprocessing.get_context("fork").Process(target=_with_own_lock, args=(target, *arguments))
    process.start()
    return process


def _with_own_lock(target: Callable[..., None], *arguments: Any) -> None:
    """Run in a child that may be killed: tqdm's lock is shared with the parent, which would wait for it forever."""
    tqdm.set_lock(threading.RLock())
    target(*arguments)


@pytest.mark.parametrize("model", ["hf-tree", "hf"])
def test_a_killed_run_goes_on_where_it_stood(
    model: str, many_batches: None, tiny_model_folder: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter("killed")
    run_of(tiny_model_folder, adapter, tmp_path / "fresh", model)
    before = 0
    for number in (2, 4):
        run = lambda: run_of(tiny_model_folder, adapter, tmp_path / "killed", model)  # noqa: E731
        killed = _fork(_die_at, number, run)
        killed.join()
        assert killed.exitcode == -signal.SIGKILL
        with ResponseStore(tmp_path / "killed", must_exist=True) as store:
            assert len(store) > before  # it went on
            before = len(store)
    run_of(tiny_model_folder, adapter, tmp_path / "killed", model)
    assert content(tmp_path / "killed") == content(tmp_path / "fresh")


@pytest.mark.long
@pytest.mark.parametrize("model", ["hf-tree", "hf"])
def test_killed_at_random_times(
    model: str, many_batches: None, tiny_model_folder: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter("killed")
    run_of(tiny_model_folder, adapter, tmp_path / "fresh", model)
    started = time.monotonic()
    run_of(tiny_model_folder, adapter, tmp_path / "timed", model)
    taken, draw, kills, attempts = time.monotonic() - started, random.Random(0), 0, 0
    while kills < 12:
        attempts += 1
        output = tmp_path / f"killed {attempts}"
        for _ in range(4):
            process = _fork(run_of, tiny_model_folder, adapter, output, model)
            process.join(draw.uniform(0.1, 0.9) * taken)
            if process.exitcode is None:
                kills += 1
            else:
                taken *= 0.9  # it was faster than the first run
            process.kill()
            process.join()
        run_of(tiny_model_folder, adapter, output, model)
        assert content(output) == content(tmp_path / "fresh")


@pytest.mark.parametrize("seed", range(4))
def test_scores_do_not_depend_on_which_are_known(tree_lm: TreeLM, seed: int) -> None:
    """To the bit: packs are those of all requests, and each finds what it carries on."""
    draw = random.Random(seed)
    passages = [" ".join(draw.choices(["the", "old", "mill", "river", "a", "film"], k=40)) for _ in range(3)]
    requests = [
        request("loglikelihood", (f"Read: {passage} Question {number}: {draw.random()}?", f" {answer}"), number)
        for passage in passages
        for number in range(6)
        for answer in ("yes", "no", "not at all")
    ]
    asked: list[Any] = []
    tree_lm._loglikelihood_tokens = lambda rows, **_: asked.extend(rows)  # type: ignore[method-assign, assignment]
    tree_lm.loglikelihood(requests, disable_tqdm=True)
    del tree_lm._loglikelihood_tokens
    every = tree_lm._loglikelihood_tokens(asked, disable_tqdm=True)
    for share in (0.2, 0.7, 0.95):
        known = {number: score for number, score in enumerate(every) if draw.random() < share}
        assert tree_lm._loglikelihood_tokens(asked, disable_tqdm=True, known=known) == every  # type: ignore[arg-type]


def test_packs_that_nobody_wants_are_not_run() -> None:
    pairs = [packs.TokenPair([1, 2, 3, *range(10 * n, 10 * n + 30)], [4]) for n in range(3, 30)]
    every = list(packs.tree_packs(pairs, max_tokens=100, carry=True))
    last = set(range(len(pairs))) - {*every[-1].sequences}
    some = list(packs.tree_packs(pairs, max_tokens=100, carry=True, known=last))
    assert len(every) > 5
    assert [pack.sequences for pack in some] == [every[0].sequences, every[-1].sequences]

"""Shards ask every request once, and their answers give the results of one run."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from lm_eval.models.huggingface import HFLM
from results_content import content
from versions import request

from harness_ext.cli import main
from harness_ext.engine import store as store_module
from harness_ext.engine.array_job import part_of
from harness_ext.engine.array_shard import Interval, Shard
from harness_ext.engine.content import ModelContent
from harness_ext.engine.evaluate import evaluate, run_shard
from harness_ext.engine.from_store import stored_as
from harness_ext.engine.hf_tree import TreeLM
from harness_ext.engine.store import FILE, ResponseStore, StoredModel
from harness_ext.errors import StoreError, TaskError
from harness_ext.protocol.lm_eval_api import EvaluatorConfig

TASKS = ["sst2_choice", "squad_v2_generate"]
SHAPES = [(1, 1), (2, 1), (3, 2), (2, 3), (5, 2), (7, 3), (24, 2)]  # shards, variants


# -- what a shard is -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "variants"), SHAPES)
def test_shards_divide_variants_equally(count: int, variants: int) -> None:
    shards = [Shard(number, count) for number in range(1, count + 1)]
    for place in range(variants):
        parts = [part for shard in shards if (part := shard.of_variant(place, variants)) is not None]
        assert (parts[0].low, parts[-1].high) == (0, 1)
        assert all(one.high == other.low for one, other in pairwise(parts))
    for shard in shards:
        parts = [part for place in range(variants) if (part := shard.of_variant(place, variants)) is not None]
        assert sum(part.high - part.low for part in parts) * count == variants


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "2", "a/b", "-1/4", "1/4/2", "1.0/4", "", "/", "1/"])
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(TaskError, match="--shard"):
        Shard.parse(text)


def documents(count: int, passages: int, *, task: str = "a") -> list[Any]:
    """Two requests for each document; document n is about passage n modulo `passages`."""
    texts = [f"{name} " * 40 for name in random.Random(0).sample(range(1000, 9999), passages)]
    return [
        request("loglikelihood", (f"Answer from the text. {texts[n % passages]}Question {n}?", choice), n, task=task)
        for n in range(count)
        for choice in (" yes", " no")
    ]


def passage_of(request: Any) -> tuple[str, str]:
    return request.task_name, request.args[0].rpartition("Question")[0]


def intervals(count: int) -> list[Interval]:
    return [part for number in range(1, count + 1) if (part := Shard(number, count).of_variant(0, 1)) is not None]


def packs_in_order(places: Sequence[int], size: int) -> list[list[int]]:
    return [[*places[start : start + size]] for start in range(0, len(places), size)]


@pytest.mark.parametrize("size", [None, 1, 3, 10, 1000])
@pytest.mark.parametrize("count", [1, 2, 3, 8, 50])
def test_each_request_is_in_one_shard_with_its_passage(count: int, size: int | None) -> None:
    requests = documents(40, 10) + documents(9, 9, task="b")
    in_order = sorted(range(len(requests)), key=lambda place: requests[place].args[0])
    packs = None if size is None else packs_in_order(in_order, size)
    parts = [part_of(requests, interval, packs) for interval in intervals(count)]
    assert sorted(place for part in parts for place in part) == list(range(len(requests)))
    for part in parts:
        assert part == sorted(part)
        of_passages = {passage_of(requests[place]) for place in part}
        assert len(part) == sum(passage_of(request) in of_passages for request in requests)
    if size in (None, 1, 3) and count <= 3:
        assert max(map(len, parts)) <= 1.4 * len(requests) / count


def test_packs_are_not_divided_where_passages_allow_it() -> None:
    requests = documents(40, 40)
    in_order = sorted(range(len(requests)), key=lambda place: requests[place].args[0])
    packs = packs_in_order(in_order, 8)
    for interval in intervals(3):
        part = set(part_of(requests, interval, packs))
        assert all(part >= {*pack} or not part & {*pack} for pack in packs)


# -- shards of an evaluation ---------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many answers each call of the model has computed, but for those that it was told."""
    counted: list[int] = []
    for kind in (HFLM, TreeLM):
        for name in ("_loglikelihood_tokens", "generate_until"):
            monkeypatch.setattr(kind, name, _counting(kind.__dict__[name], counted))
    return counted


def _counting(ask: Callable[..., Any], counted: list[int]) -> Callable[..., Any]:
    def wrapped(self: Any, requests: Any, *more: Any, **options: Any) -> Any:
        counted.append(len(requests) - len(options.get("known", ())))
        return ask(self, requests, *more, **options)

    return wrapped


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        monkeypatch.setattr(HFLM, "_create_model", lambda *_, **__: pytest.fail("weights are loaded"))

    return forbid


def run_shards(
    base: Path, numbers: Sequence[int], count: int, store: Callable[[int], Path], *, adapters: Sequence[Path] = (),
    **settings: Any,
) -> None:  # fmt: skip
    for number in numbers:
        given = {
            "model": "hf-tree",
            **settings,
            "model_args": {"pretrained": str(base)} | settings.get("model_args", {}),
        }
        config = EvaluatorConfig(**given)._configure()
        shard = Shard(number, count)
        for done in run_shard(config, shard=shard, adapters=adapters, store=store(number)):
            assert not done.failures
            assert not done.results
            assert done.folder is None


@pytest.mark.parametrize(
    ("count", "shared"),
    [
        pytest.param(1, False, marks=pytest.mark.slow),
        pytest.param(3, True, marks=pytest.mark.slow),
        (5, True),
        pytest.param(5, False, marks=pytest.mark.slow),
    ],
)
def test_shards_give_the_results_of_one_run(
    count: int, shared: bool, tiny_model_folder: Path, make_adapter: Callable[..., Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, no_weights: Callable[[], None], asked: list[int],
) -> None:  # fmt: skip
    """To the byte, with random examples in the prompts, too; on any file system; nothing is asked twice."""
    monkeypatch.setattr(store_module, "is_local", lambda _: not shared)
    adapters = [make_adapter("sharded")]
    (tmp_path / "shots.yaml").write_text(
        "task: shots\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/docs.jsonl, train: {tmp_path}/docs.jsonl}}}}\n"
        "test_split: test\nfewshot_split: train\nnum_fewshot: 2\noutput_type: multiple_choice\n"
        "doc_to_text: 'Is {{text}} even?'\ndoc_to_target: 0\ndoc_to_choice: ['no', 'yes']\n"
    )
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps({"text": str(n)}) + "\n" for n in range(8)))
    settings: dict[str, Any] = {
        "tasks": [*TASKS, str(tmp_path / "shots.yaml")], "limit": 8, "log_samples": True,
        "model_args": {"pack_tokens": 128},
    }  # fmt: skip
    evaluate(str(tiny_model_folder), adapters=adapters, output_path=str(tmp_path / "one"), store=False, **settings)
    asked.clear()
    out = {"output_path": str(tmp_path / "out")}
    run_shards(
        tiny_model_folder, range(1, count + 1), count, lambda _: tmp_path / "store", adapters=adapters,
        **{**settings, **out},
    )  # fmt: skip
    assert sum(asked) == 2 * (8 * 2 + 8 + 8 * 2)
    assert not [*(tmp_path / "out").rglob("*.json*")]
    assert (tmp_path / "store" / FILE).exists() != shared
    no_weights()
    evaluate(
        str(tiny_model_folder), adapters=adapters, store=tmp_path / "store", from_store=True, **{**settings, **out}
    )
    assert content(tmp_path / "out") == content(tmp_path / "one")


def test_shards_with_folders_of_their_own(
    tiny_model_folder: Path, make_adapter: Callable[..., Path], tmp_path: Path, no_weights: Callable[[], None]
) -> None:
    adapters, settings = [make_adapter("own")], {"tasks": TASKS, "limit": 9}
    logged = {**settings, "log_samples": True}
    evaluate(str(tiny_model_folder), adapters=adapters, output_path=str(tmp_path / "one"), store=False, **logged)
    run_shards(tiny_model_folder, [1, 2, 3], 3, lambda n: tmp_path / f"store{n}", adapters=adapters, **settings)
    no_weights()
    stores = [tmp_path / f"store{n}" for n in (1, 2, 3)]
    before = [(store / FILE).read_bytes() for store in stores]
    out = str(tmp_path / "out")
    evaluate(str(tiny_model_folder), adapters=adapters, store=stores, from_store=True, output_path=out, **logged)
    assert content(tmp_path / "out") == content(tmp_path / "one")
    assert [(store / FILE).read_bytes() for store in stores] == before


def test_shards_that_were_killed_go_on(tiny_model_folder: Path, tmp_path: Path, asked: list[int]) -> None:
    """Any of the answers may be missing; only these are asked again, and the results are those of one run."""
    settings: dict[str, Any] = {"tasks": TASKS, "limit": 9, "model_args": {"pack_tokens": 128}}
    logged = {**settings, "log_samples": True}
    evaluate(str(tiny_model_folder), output_path=str(tmp_path / "one"), store=False, **logged)
    store = tmp_path / "store"
    run_shards(tiny_model_folder, [1, 2], 2, lambda _: store, **settings)
    with ResponseStore(store) as answers:
        lost = [key for number, key in enumerate(sorted(keys_of(answers))) if number % 3 == 0]
        answers.forget(lost)
    asked.clear()
    run_shards(tiny_model_folder, [2, 1], 2, lambda _: store, **settings)
    assert sum(asked) == len(lost)
    evaluate(str(tiny_model_folder), output_path=str(tmp_path / "out"), store=store, from_store=True, **logged)
    assert content(tmp_path / "out") == content(tmp_path / "one")


def keys_of(store: ResponseStore) -> list[bytes]:
    return [key for (key,) in store._connection.execute("SELECT key FROM responses")]


def command(base: Path, store: Path, *more: str) -> list[str]:
    return [
        "eval", "--model_args", f"pretrained={base}", "--tasks", *TASKS, "--limit", "8", "--log_samples",
        "--store", str(store), "--output_path", str(store.parent / "out"), *more,
    ]  # fmt: skip


def test_a_shard_that_is_missing_is_named(
    tiny_model_folder: Path, make_adapter: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str],
    asked: list[int],
) -> None:  # fmt: skip
    store = tmp_path / "store"
    variants = ["--adapters", str(make_adapter("named"))]
    for number in (1, 4):
        assert main(command(tiny_model_folder, store, *variants, "--shard", f"{number}/4")) == 0
    shown = capsys.readouterr().out
    assert "shard 1/4, base: " in shown
    assert "shard 4/4, named: " in shown
    assert "shard 1/4, named" not in shown
    assert main(["compare", str(tmp_path / "out")]) == 2  # there are no results that could be taken for whole ones
    capsys.readouterr()
    assert main(command(tiny_model_folder, store, *variants, "--from-store")) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("harness-ext:")]
    assert "run --shard 2/4, 3/4, then this again" in line
    assert "(documents " in line
    assert not (tmp_path / "out").exists() or not [*(tmp_path / "out").rglob("results_*")]
    assert main(command(tiny_model_folder, store, *variants, "--shard", "2/4")) == 0
    asked.clear()
    assert main(command(tiny_model_folder, store, *variants, "--shard", "2/4")) == 0  # again: all answers are there
    assert sum(asked) == 0
    assert main(command(tiny_model_folder, store, *variants, "--shard", "3/4")) == 0
    assert main(command(tiny_model_folder, store, *variants, "--from-store")) == 0
    assert len([*(tmp_path / "out").rglob("results_*")]) == 2


def test_answers_of_another_device_are_taken_if_of_one_only() -> None:
    """Shards run on GPUs, and the merge may run without one."""
    here = ModelContent({"base": "abc", "adapter": None, "device": "cpu"})
    models = {name: ModelContent({**here.parts, "device": name}) for name in ("cuda H100", "cuda A100", "cpu")}
    with ResponseStore(None) as store:
        store.add_model(b"other", StoredModel({**here.parts, "base": "xyz", "device": "cuda H100"}, {}))
        with pytest.raises(StoreError, match="differ in base, device"):
            stored_as(store, here, "base", remedy="run it")
        store.add_model(models["cuda H100"].digest, StoredModel(dict(models["cuda H100"].parts), {"model_dtype": "x"}))
        digest, model = stored_as(store, here, "base", remedy="run it")
        assert (digest, model.info) == (models["cuda H100"].digest, {"model_dtype": "x"})
        store.add_model(models["cuda A100"].digest, StoredModel(dict(models["cuda A100"].parts), {}))
        with pytest.raises(StoreError, match="differ in device; run it"):
            stored_as(store, here, "base", remedy="run it")
        store.add_model(here.digest, StoredModel(dict(here.parts), {}))
        assert stored_as(store, here, "base", remedy="run it")[0] == here.digest


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--shard", "0/4"], "numbered from 1"),
        (["--shard", "x"], "I/N"),
        (["--shard", "1/4", "--from-store"], "--from-store"),
        (["--shard", "1/4", "--until-decided"], "--until-decided"),
        (["--shard", "1/4", "--no-store"], "--no-store"),
    ],
)
def test_a_shard_that_cannot_be_is_one_line(
    flags: list[str], told: str, tiny_model_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["eval", "--model_args", f"pretrained={tiny_model_folder}", "--tasks", "sst2_choice", "--limit", "2"]
    assert main([*arguments, *flags]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("harness-ext:")]
    assert told in line


def test_a_shard_whose_answers_cannot_be_stored_fails(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(ResponseStore):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self._connection.execute("PRAGMA query_only = 1")

    with monkeypatch.context() as patch:
        patch.setattr("harness_ext.engine.session.ResponseStore", Full)
        assert main(command(tiny_model_folder, tmp_path / "store", "--shard", "1/2")) == 2
    assert "could not be written" in capsys.readouterr().err
    assert main(command(tiny_model_folder, tmp_path / "store", "--shard", "2/2")) == 0
    capsys.readouterr()
    assert main(command(tiny_model_folder, tmp_path / "store", "--from-store")) == 2
    assert "run --shard 1/2" in capsys.readouterr().err


def test_a_task_that_fails_in_a_shard_is_named_and_the_others_are_asked(
    tiny_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps({"text": str(n)}) + "\n" for n in range(4)))
    (tmp_path / "texts.py").write_text("def fails(doc):\n    return str(1 / (int(doc['text']) - 2))\n")
    (tmp_path / "broken.yaml").write_text(
        f"task: broken\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/docs.jsonl}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: !function texts.fails\ndoc_to_target: 0\n"
        "doc_to_choice: ['no', 'yes']\n"
    )
    more = ["--shard", "1/1", "--tasks", "sst2_choice", str(tmp_path / "broken.yaml")]
    assert main(command(tiny_model_folder, tmp_path / "store", *more)) == 2
    captured = capsys.readouterr()
    assert "broken: " in captured.err
    assert "shard 1/1 is done" not in captured.out
    assert main(command(tiny_model_folder, tmp_path / "store", "--from-store", "--tasks", "sst2_choice")) == 0

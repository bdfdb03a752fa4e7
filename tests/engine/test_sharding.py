"""Several processes give what one gives, for any number of documents; one that ends is told in one line."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from accelerate.state import AcceleratorState, PartialState
from versions import request

from harness_ext.cli import main
from harness_ext.engine import store as store_module
from harness_ext.engine.array_shard import Shard
from harness_ext.engine.evaluate import evaluate, run_shard
from harness_ext.engine.hf_tree import TreeLM
from harness_ext.engine.sharding import shares
from harness_ext.protocol.lm_eval_api import EvaluatorConfig

TASKS = ["sst2_choice", "squad_v2_generate"]
COUNTS = [1, 2, 3, 5, 9, 17]
Work = Callable[[int], None]


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def in_processes(size: int, work: Work, folder: Path) -> list[int]:
    """Run a function in processes that gloo joins; returns their exit codes. Their output is in `folder`."""
    port = free_port()

    def start(rank: int) -> None:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(size), LOCAL_WORLD_SIZE=str(size),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=port,
        )  # fmt: skip
        PartialState._reset_state()
        AcceleratorState._reset_state()
        with (folder / f"output-{rank}").open("w") as output:
            sys.stdout = sys.stderr = output
            code = 70
            try:
                work(rank)
                code = 0
            except SystemExit as stopped:
                code = int(stopped.code or 0)
            except BaseException:
                traceback.print_exc()
            output.flush()
            os._exit(code)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=start, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
        assert process.exitcode is not None, "hangs"
    return [process.exitcode or 0 for process in processes]


def outputs(folder: Path) -> str:
    return "\n".join(file.read_text() for file in sorted(folder.glob("output-*")))


def settings_for(count: int, folder: Path, **more: Any) -> dict[str, Any]:
    return {
        "tasks": TASKS, "limit": count, "output_path": str(folder / str(count)), "log_samples": True,
        "batch_size": 4, **more,
    }  # fmt: skip


def written(folder: Path) -> dict[str, Any]:
    """All numbers and samples in the files below a folder, by variant and task; log-probabilities rounded."""
    found: dict[str, Any] = {}
    for file in sorted(folder.rglob("results_*.json")):
        payload = json.loads(file.read_text())
        variant = payload["harness_ext"]["variant"]
        found[variant] = {task: rounded(values) for task, values in payload["results"].items()}
        found[variant, "n"] = payload["n-samples"]
        for task in payload["configs"]:
            (samples,) = file.parent.glob(f"samples_{task}_*.jsonl")
            found[variant, task] = [rounded(json.loads(line)) for line in samples.read_text().splitlines()]
    return found


def rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: rounded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [rounded(each) for each in value]
    if isinstance(value, str) and re.fullmatch(r"-?\d+\.\d+(e-?\d+)?", value):
        return round(float(value), 3)
    return repr(round(value, 3)) if isinstance(value, float) else value  # NaN equals nothing


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("model", ["hf-tree", pytest.param("hf", marks=pytest.mark.slow)])
def test_processes_give_what_one_gives(
    model: str, size: int, tiny_model_folder: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = make_adapter("shared")
    base, one, many = str(tiny_model_folder), tmp_path / "one", tmp_path / "many"

    def work(rank: int) -> None:
        for count in COUNTS:
            done = evaluate(base, adapters=[adapter], model=model, **settings_for(count, many))
            assert [bool(each.results) for each in done] == [rank == 0] * 2

    assert in_processes(size, work, tmp_path) == [0] * size, outputs(tmp_path)
    for count in COUNTS:
        evaluate(base, adapters=[adapter], model=model, **settings_for(count, one))
        found, expected = written(many / str(count)), written(one / str(count))
        assert found.keys() == expected.keys()
        for key, value in expected.items():
            assert found[key] == value
        files = [len(list((folder / str(count)).rglob("*.json*"))) for folder in (one, many)]
        assert files == [6, 6]  # the first process alone writes
    metrics = written(many / "17")["base"]["squad_v2_generate"]
    assert {"HasAns_exact,none", "NoAns_exact,none"} <= metrics.keys()


def test_a_task_that_fails_costs_only_itself(tiny_model_folder: Path, tmp_path: Path) -> None:
    """In the first process, behind the answers of all."""
    (tmp_path / "docs.jsonl").write_text("".join(json.dumps({"text": str(n)}) + "\n" for n in range(5)))
    (tmp_path / "hooks.py").write_text("def fails(doc, results):\n    return {'acc': 1 / (int(doc['text']) - 3)}\n")
    (tmp_path / "broken.yaml").write_text(
        f"task: broken\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/docs.jsonl}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{text}}'\ndoc_to_target: 0\n"
        "doc_to_choice: ['no', 'yes']\nprocess_results: !function hooks.fails\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\n"
    )
    base = str(tiny_model_folder)

    def work(rank: int) -> None:
        (done,) = evaluate(base, tasks=["sst2_choice", str(tmp_path / "broken.yaml")], limit=5)
        assert ("broken" in done.failures) == (rank == 0)
        assert ("sst2_choice" in done.results.get("results", {})) == (rank == 0)

    assert in_processes(2, work, tmp_path) == [0, 0], outputs(tmp_path)


def command(base: Path, *flags: str) -> Work:
    arguments = ["eval", "--model_args", f"pretrained={base}", "--tasks", "sst2_choice", "--limit", "4", *flags]

    def work(_: int) -> None:
        raise SystemExit(main(arguments))

    return work


@pytest.mark.parametrize(
    ("flags", "code", "told"),
    [
        (["--limit", "-1"], 2, "--limit must be positive"),
        (["--adapters", "ZERO", "ONE"], 1, "harness-ext: zero was not evaluated: "),
    ],
    ids=["setting", "adapter"],
)
def test_an_error_of_all_is_told_once(
    flags: list[str], code: int, told: str, tiny_model_folder: Path, make_adapter: Callable[..., Path], tmp_path: Path
) -> None:
    made = {"ZERO": str(make_adapter("zero", zero=True)), "ONE": str(make_adapter("one"))}
    codes = in_processes(2, command(tiny_model_folder, *(made.get(flag, flag) for flag in flags)), tmp_path)
    assert codes[0] == code, outputs(tmp_path)
    assert outputs(tmp_path).count(told) == 1
    assert "Traceback" not in outputs(tmp_path)


def test_an_error_of_one_process_is_told_once(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TreeLM.loglikelihood

    def fails(self: TreeLM, requests: Any, **options: Any) -> Any:
        if os.environ.get("RANK") == "1":
            raise RuntimeError("a broken GPU")
        return original(self, requests, **options)

    monkeypatch.setattr(TreeLM, "loglikelihood", fails)
    codes = in_processes(2, command(tiny_model_folder), tmp_path)
    assert codes == [2, 2], outputs(tmp_path)
    lines = [line for line in outputs(tmp_path).splitlines() if line.startswith("harness-ext:")]
    assert len(lines) == 1
    assert "rank 1: RuntimeError: a broken GPU" in lines[0]


@pytest.mark.parametrize("killed", [0, 1, 2])
def test_a_killed_process_ends_all_with_one_line(
    killed: int, tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = TreeLM.loglikelihood

    def dies(self: TreeLM, requests: Any, **options: Any) -> Any:
        if os.environ.get("RANK") == str(killed):
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, requests, **options)

    monkeypatch.setattr(TreeLM, "loglikelihood", dies)
    codes = in_processes(3, command(tiny_model_folder, "--limit", "12"), tmp_path)
    assert codes[killed] == -9
    assert [code for rank, code in enumerate(codes) if rank != killed] == [2, 2], outputs(tmp_path)
    text = outputs(tmp_path)
    assert "Traceback" not in text
    assert text.count("another process of this evaluation has ended") == 1


@pytest.mark.parametrize("shared", [pytest.param(False, marks=pytest.mark.slow), True], ids=["local", "network"])
def test_shards_of_several_processes(
    shared: bool, tiny_model_folder: Path, make_adapter: Callable[..., Path], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Jobs of an array with other numbers of processes, all on one store; their answers are those of one run."""
    monkeypatch.setattr(store_module, "is_local", lambda _: not shared)
    base, adapters = str(tiny_model_folder), [make_adapter("array")]
    settings = settings_for(9, tmp_path / "out")

    def work(shard: Shard) -> Work:
        def of_shard(rank: int) -> None:
            config = EvaluatorConfig(model="hf-tree", model_args={"pretrained": base}, **settings)._configure()
            done = list(run_shard(config, shard=shard, adapters=adapters, store=tmp_path / "store"))
            assert all((each.tally is not None) == (rank == 0) and not each.failures for each in done)

        return of_shard

    for number, processes in ((1, 2), (2, 3), (3, 1)):
        (tmp_path / str(number)).mkdir()
        codes = in_processes(processes, work(Shard(number, 3)), tmp_path / str(number))
        assert codes == [0] * processes, outputs(tmp_path / str(number))
    assert not [*(tmp_path / "out").rglob("*.json*")]
    evaluate(base, adapters=adapters, store=tmp_path / "store", from_store=True, **settings)
    evaluate(base, adapters=adapters, store=False, **settings_for(9, tmp_path / "one"))
    assert written(tmp_path / "out") == written(tmp_path / "one")


@pytest.mark.slow
def test_torchrun_on_a_cpu(tiny_model_folder: Path, tmp_path: Path) -> None:
    """The command as users start it: documents are divided, and one process prints and writes."""
    arguments = [
        "eval", "--model_args", f"pretrained={tiny_model_folder},dtype=float32", "--tasks", "sst2_choice",
        "--limit", "9",
        "--output_path", str(tmp_path / "two"), "--log_samples",
    ]  # fmt: skip
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", free_port()]
    done = subprocess.run(
        [*launcher, "-m", "harness_ext.cli", *arguments], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("|sst2_choice") == 1
    one = {"limit": 9, "output_path": str(tmp_path / "one"), "log_samples": True}
    evaluate(str(tiny_model_folder), tasks=["sst2_choice"], model_args={"dtype": "float32"}, **one)
    assert written(tmp_path / "two") == written(tmp_path / "one")


# -- how requests are divided --------------------------------------------------------------------------------------


def choices(task: str, prompts: list[str]) -> list[Any]:
    return [
        request("loglikelihood", (prompt, choice), number, task=task, idx=idx)
        for number, prompt in enumerate(prompts)
        for idx, choice in enumerate((" yes", " no"))
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 8])
@pytest.mark.parametrize("documents", [0, 1, 2, 3, 5, 9, 17])
def test_every_request_has_one_place(size: int, documents: int) -> None:
    requests = choices("a", [f"Is {n} even?" for n in range(documents)])
    divided = shares(requests, size)
    assert len(divided) == size
    assert sorted(place for share in divided for place in share) == list(range(2 * documents))
    for share in divided:  # both choices of a document
        assert all((place ^ 1) in share for place in share)
    if documents >= 4 * size:
        assert min(map(len, divided)) > 0


def test_documents_that_share_a_passage_stay_together() -> None:
    passages = [f"{name} " * 60 for name in ("One", "Two", "Three", "Four", "Five", "Six")]
    prompts = [f"Answer from the text. {passages[n % 6]} Question {n}?" for n in range(24)]
    divided = shares(choices("a", prompts), 3)
    ranks_of: list[set[int]] = [set() for _ in passages]
    for rank, share in enumerate(divided):
        for place in share:
            ranks_of[place // 2 % 6].add(rank)
    assert all(len(ranks) == 1 for ranks in ranks_of)
    assert [len(share) for share in divided] == [16, 16, 16]


def test_shots_that_all_prompts_share_keep_nothing_together() -> None:
    shots = "Example: a good film. Answer: yes\n" * 30
    divided = shares(choices("a", [f"{shots}Text {n}: {hash(n)}" for n in range(20)]) + choices("b", ["x", "y"]), 4)
    assert max(map(len, divided)) <= 16


def test_repeats_of_a_request_stay_in_order() -> None:
    requests = [each for each in choices("a", [str(n) for n in range(6)]) for _ in range(3)]
    for share in shares(requests, 2):
        assert share == sorted(share)
        assert all(share.count(place) == 1 for place in share)

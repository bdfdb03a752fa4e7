"""Evaluations that are killed at random moments, and run to their end afterwards.

After each kill: every answer that was in the store before is still there, so is every answer that the killed process
had written, and every results file is whole. At the end: results and samples are those of an uninterrupted run.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tiny
from records import Record, Records
from victims import Board, Child

from harness_ext import cli
from harness_ext.cpu import onednn
from harness_ext.engine import asking, evaluate, hosts
from harness_ext.engine.store import FILE, ResponseStore
from harness_ext.protocol import lm_eval_api

KILLS = 250
MOST_IN_A_ROW = 9
TASKS = "sst2_choice,squad_v2_generate"
ENGINES = {"hf-tree": ",pack_tokens=200,cache_tokens=400", "hf": ""}  # small packs: many batches
COMMITS = (asking.COMMIT_SECONDS, 0.0)  # as it is, and after every batch
# the commit is that of the folder in which the command runs, and may change while this runs for hours
VOLATILE = {
    "git_hash",
    "date",
    "seconds",
    "start_time",
    "end_time",
    "total_evaluation_time_seconds",
    "answers_from_store",
}
STAGES = (
    "starting", "loading the model", "computing answers", "writing answers to the store", "scoring",
    "writing results",
)  # fmt: skip

Rows = dict[bytes, str]
Content = dict[str, str]


def run(work: Path, records: Records, kills: int = KILLS) -> None:
    """Kill until there are as many kills as wanted; sequences that are recorded are not repeated."""
    base, adapters = tiny.make(work, 1)
    _import_all()
    onednn.SMALLEST_SIDE = 16  # the layers of the tiny model are multiplied as large ones are
    reference = {engine: _Reference(work / f"reference {engine}", base, adapters[0], engine) for engine in ENGINES}
    done = records.all()
    count, number = sum(len(record["kills"]) for record in done), len(done)
    while count < kills:
        record = sequence(number, work / "killed", base, adapters[0], reference)
        records.add(record)
        count, number = count + len(record["kills"]), number + 1


def _import_all() -> None:
    """What each evaluation would import or ask of the machine anew, before there are children."""
    import nltk  # noqa: F401
    import rouge_score.rouge_scorer  # noqa: F401
    import scipy.stats  # noqa: F401
    from torch.utils.collect_env import get_pretty_env_info

    lm_eval_api._environment(get_pretty_env_info)


class _Reference:
    """An evaluation that nobody interrupts: what it writes, and how long it takes."""

    def __init__(self, output: Path, base: Path, adapter: Path, engine: str) -> None:
        for _ in range(2):  # the second one finds warm caches, as those that are killed do
            shutil.rmtree(output, ignore_errors=True)
            board, log = _board(), output.with_suffix(".log")
            child = Child(lambda board=board: evaluation(base, adapter, output, engine, 0.0, board), log)
            assert child.wait() == 0, log.read_text()
        self.seconds = child.seconds
        self.writes = board["writing answers to the store"]
        self.content = content(output)
        self.answers = len(_stored(output))


def _board() -> Board:
    return Board("committed", "pending", stages=STAGES)


def evaluation(base: Path, adapter: Path, output: Path, engine: str, commit_seconds: float, board: Board) -> int:
    """Run the command, and note what it does."""
    asking.COMMIT_SECONDS = commit_seconds
    board.watch(hosts.PeftHost, "load", "loading the model")
    board.watch(evaluate, "write_results", "writing results")
    board.watch(asking.Answering, "_answer", "computing answers")
    board.watch(evaluate, "evaluate_isolated", "scoring")
    _count_answers(board)
    return cli.main([
        "eval", "--model", engine, "--model_args", f"pretrained={base}{ENGINES[engine]}", "--adapters", str(adapter),
        "--tasks", TASKS, "--limit", "10", "--batch_size", "3", "--log_samples", "--output_path", str(output),
    ])  # fmt: skip


def _count_answers(board: Board) -> None:
    """Note how many answers are in the store for certain, and how many the model has given that are not."""
    add, take, commit = ResponseStore.add, asking._StoreHook._take, asking._StoreHook.commit
    committed: set[bytes] = set()

    def counted_add(self: ResponseStore, responses: Mapping[bytes, Any]) -> None:
        with board.at("writing answers to the store"):
            add(self, responses)
        committed.update(responses)
        board["committed"] = len(committed)

    def pending_after(function: Callable[..., None]) -> Callable[..., None]:
        def counted(self: Any, *arguments: Any) -> None:
            function(self, *arguments)
            board["pending"] = len(self._responses) - len(self._written & self._responses.keys())

        return counted

    ResponseStore.add = counted_add  # type: ignore[method-assign]
    asking._StoreHook._take = pending_after(take)  # type: ignore[method-assign]
    asking._StoreHook.commit = pending_after(commit)  # type: ignore[method-assign]


def sequence(number: int, output: Path, base: Path, adapter: Path, references: Mapping[str, _Reference]) -> Record:
    """Kill an evaluation some times in a row, then let it end; the number is the seed."""
    draw = random.Random(number)
    engine, commit_seconds = draw.choice([*ENGINES]), draw.choice(COMMITS)
    reference, kills, problems = references[engine], [], []
    shutil.rmtree(output, ignore_errors=True)
    log = output.with_suffix(".log")
    log.unlink(missing_ok=True)
    rows: Rows = {}
    for _ in range(draw.randint(1, MOST_IN_A_ROW)):
        board = _board()
        child = Child(lambda board=board: evaluation(base, adapter, output, engine, commit_seconds, board), log)
        _wait(child, board, draw, reference)
        code = child.end()
        before, rows = rows, _stored(output)
        problems += _losses(before, rows, board, output, reference)
        if code == -9:
            kills.append({"stage": board.stage, "pending": board["pending"], "stored": len(rows)})
        elif code:
            problems.append(f"exit code {code}")
    board = _board()
    code = Child(lambda: evaluation(base, adapter, output, engine, commit_seconds, board), log).wait()
    before, rows = rows, _stored(output)
    problems += _losses(before, rows, board, output, reference)
    if code or content(output) != reference.content:
        problems.append(f"the end differs (exit code {code})")
    if left := [file.name for file in output.rglob(".*")]:
        problems.append(f"left behind: {left}")
    if problems:
        shutil.copytree(output, output.with_name(f"problem {number}"), dirs_exist_ok=True)
    return {
        "seed": number, "engine": engine, "commit_seconds": commit_seconds, "kills": kills, "problems": problems,
        "answers": len(rows),
    }  # fmt: skip


def _wait(child: Child, board: Board, draw: random.Random, reference: _Reference) -> None:
    """Until a random moment: of the whole life of the run, or close to a write."""
    aim = draw.random()
    if aim < 0.7:
        child.wait_until(draw.uniform(0.0, reference.seconds))
    elif aim < 0.85:
        child.wait_for(board, "writing answers to the store", draw.randint(1, reference.writes), draw.uniform(0, 0.004))
    else:
        child.wait_for(board, "writing results", draw.randint(1, 2), draw.uniform(0, 0.03))


def _losses(before: Rows, after: Rows, board: Board, output: Path, reference: _Reference) -> list[str]:
    """What a kill has cost that it must not cost."""
    problems = []
    if changed := [key for key, text in before.items() if after.get(key) != text]:
        problems.append(f"{len(changed)} answers of earlier runs are lost")
    if board["committed"] > len(after.keys() - before.keys()):
        problems.append(f"{board['committed']} answers were written, {len(after) - len(before)} are there")
    try:
        written = content(output)
    except ValueError as error:
        return [*problems, f"a file is not whole: {error}"]
    if any(reference.content.get(name) != value for name, value in written.items()):
        problems.append("a results file differs")
    return problems


def _stored(output: Path) -> Rows:
    """What is in a store, read from a copy: opening it would do the repair that belongs to the next run."""
    if not (output / FILE).is_file():
        return {}
    with tempfile.TemporaryDirectory() as folder:
        for file in output.glob(f"{FILE}*"):
            if not file.name.endswith("-shm"):
                shutil.copy(file, folder)
        with contextlib.closing(sqlite3.connect(Path(folder) / FILE)) as connection:
            if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
                return {}  # killed before the tables were made
            assert connection.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
            return dict(connection.execute("SELECT key, response FROM responses").fetchall())


def content(output: Path) -> Content:
    """What results say, without dates and times; of each name the newest.

    Raises:
        ValueError: a file is cut short.
    """
    found: Content = {}
    for file in sorted(output.rglob("*.json*")):
        if file.name.startswith("."):  # the temporary name of one that is being written
            continue
        name, text = str(file.relative_to(output)).rsplit("_", 1)[0], file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            found[name] = json.dumps(_steady(json.loads(text)))
        else:
            found[name] = text
            json.loads(text.splitlines()[-1])
    return found


def _steady(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _steady(part) for key, part in value.items() if key not in VOLATILE}
    return value

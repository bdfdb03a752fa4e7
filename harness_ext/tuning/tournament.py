"""A tournament: train all entries a little, keep the better half, and so on; train the winner to its end.

```
for each rung:  every entry left ── train on from its checkpoint ──> score on documents for the choice ──> record
                decide: the better half, without those that are significantly worse than the best
winner ── train to the end ──> score on untouched documents ──> an ordinary adapter, whose card tells all this
```

Documents are those of `train --evaluate-every`: drawn from the training split, trained on by nobody, never evaluated.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from harness_ext.errors import RecipeError, TrainingError
from harness_ext.models.card import CARD_FILE, read_card
from harness_ext.selection.live import check_one_process, live_evaluator
from harness_ext.stats.halving import Rung, decide_rung, default_first_rung, places, rung_count, rung_shares
from harness_ext.training.evaluator import Evaluator, HeldOutDocuments
from harness_ext.training.lock import OutputLock
from harness_ext.training.schedule import pause_step
from harness_ext.training.trainer import TrainedAdapter, Training, TrainingStart, start_training
from harness_ext.training.workspace import check_output, claimed, has_checkpoint, workspace_of
from harness_ext.tuning.entries import Entry, check_entries
from harness_ext.tuning.record import FILE, Record, Scored, design_of, documents_of, folder_of, read_record
from harness_ext.tuning.summary import summary_lines, summary_of

logger = logging.getLogger(__name__)


def tune(
    entries: Sequence[Entry],
    *,
    first_rung: float | None = None,
    resume: bool = False,
    overwrite: bool = False,
    inspect: Callable[[TrainingStart], None] | None = None,
    report: Callable[[str], None] | None = None,
) -> TrainedAdapter:
    """Train several recipes by successive halving, and write the winner to the output folder that they share.

    Args:
        entries: two or more; see `make_entries`.
        first_rung: share of each training at which the first rung ends; it doubles from rung to rung.
        resume: continue a tournament that was stopped or killed; nothing that is finished is trained or scored again.
        overwrite: replace an existing adapter or the state of an earlier tournament.
        inspect: called before the first step of the first entry; what it raises stops the tournament.
        report: called with a line of text after each scoring and each decision; None: the line is logged.

    Returns:
        The winner's folder and its card, whose `tournament` says how it was chosen.

    Raises:
        HarnessExtError: the tournament cannot start or go on; its state is kept for `resume`.
    """
    check_entries(entries)
    check_one_process()
    first_rung = default_first_rung(len(entries)) if first_rung is None else first_rung
    _check_first_rung(first_rung, len(entries))
    output, design = entries[0].recipe.output, design_of(entries, first_rung)
    folder = folder_of(output)
    with OutputLock(folder, output).held() as lock:
        if resume and (finished := _finished(Record(folder, design), output)):
            lock.clear_workspace()
            return finished
        record = read_record(folder, design, output) if resume else None
        if record is None:
            _check_start(output, folder, resume=resume, overwrite=overwrite)
            lock.clear_workspace()
            record = Record(folder, design)
            record.write()
        check_output(output, overwrite=overwrite)
        tournament = Tournament(entries, record, overwrite=overwrite, inspect=inspect, report=report or logger.info)
        try:
            trained = tournament.run(rung_shares(len(entries), first_rung))
        except BaseException:
            if not any(record.rungs) and not any(map(has_checkpoint, tournament.workspaces)):
                lock.clear_workspace()  # nothing to resume
            raise
        lock.clear_workspace()
    return trained


def _check_first_rung(share: float, entries: int) -> None:
    last = share * 2 ** (rung_count(entries) - 1)
    if not 0 < share <= 1 or last > 1:
        raise RecipeError(
            f"--first-rung must be above 0 and, since it doubles from rung to rung, at most "
            f"{1 / 2 ** (rung_count(entries) - 1):g} with {entries} entries, got {share:g}; correct it"
        )


def _check_start(output: str, folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Make sure that a new tournament may begin."""
    if resume:
        raise TrainingError(f"there is no tournament of {output} to resume; start without --resume")
    check_output(output, overwrite=overwrite)
    if has_checkpoint(workspace_of(output)):
        raise TrainingError(
            f"{output} has a checkpoint of a training of its own; finish it with `harness-ext train --resume`, or "
            "choose another --output"
        )
    if (folder / FILE).exists() and not overwrite:
        raise TrainingError(
            f"{output} holds the state of a tournament; continue it with --resume, start again with --overwrite, or "
            "choose another --output"
        )


def _finished(record: Record, output: str) -> TrainedAdapter | None:
    """The winner of this tournament, if it has been written."""
    place = Path(output).expanduser()
    if not (place / CARD_FILE).is_file() or (card := read_card(place)) is None or card.tournament is None:
        return None
    return TrainedAdapter(place, card) if card.tournament.get("design_sha256") == record.digest else None


class Tournament:
    """The rungs of a tournament, one after the other.

    Args:
        entries: all that take part.
        record: of what has been done so far.
        overwrite: an existing adapter may be replaced at the end.
        inspect: called before the first step of the first entry.
        report: called with lines about the progress.
    """

    def __init__(
        self,
        entries: Sequence[Entry],
        record: Record,
        *,
        overwrite: bool,
        inspect: Callable[[TrainingStart], None] | None,
        report: Callable[[str], None],
    ) -> None:
        self._entries, self._record, self._overwrite = entries, record, overwrite
        self._inspect, self._report = inspect, report
        self._title = f"tune {entries[0].recipe.task_name}"
        self.workspaces = [record.folder / f"entry-{number}" for number in range(1, len(entries) + 1)]

    def run(self, shares: Sequence[float]) -> TrainedAdapter:
        """Play all rungs, then train, score and write the winner.

        Args:
            shares: of the training at which each rung ends.
        """
        alive = list(range(len(self._entries)))
        for number, (share, most) in enumerate(zip(shares, places(len(self._entries)), strict=True)):
            if len(alive) == 1:
                break
            self._play(number, share, alive)
            rung = self._decide(number, alive, most)
            self._report(self._describe_rung(number, rung))
            alive = sorted(rung.kept)
            for entry, workspace in enumerate(self.workspaces):
                if entry not in alive:
                    shutil.rmtree(workspace, ignore_errors=True)
        return self._crown(alive[0])

    # -- rungs -------------------------------------------------------------------------------------------------------

    def _play(self, number: int, share: float, alive: Sequence[int]) -> None:
        """Train and score the entries that have not been scored at a rung."""
        rungs = self._record.rungs
        if len(rungs) == number:
            rungs.append({})
        for entry in alive:
            if entry not in rungs[number]:
                before = rungs[number - 1][entry] if number else None
                if before is not None and pause_step(before.planned_steps, share) == before.step:
                    rungs[number][entry] = replace(before, scoring_seconds=0.0)  # so few steps that none is between
                else:
                    rungs[number][entry] = self._advance(entry, share)
                self._record.write()
                self._report(self._describe_scored(number, entry, rungs[number][entry]))

    def _advance(self, entry: int, share: float) -> Scored:
        """Train an entry up to a share of its steps, and score it."""
        with self._begun(entry) as (training, evaluator):
            training.fit(until=share)
            return _scored(training, evaluator, evaluator.for_choice)

    @contextlib.contextmanager
    def _begun(self, entry: int) -> Iterator[tuple[Training, Evaluator]]:
        """An entry that is ready to be trained on from its checkpoint, if it has one."""
        recipe, workspace = self._entries[entry].recipe, self.workspaces[entry]
        resume = has_checkpoint(workspace)
        with claimed(recipe.output, resume=resume, overwrite=self._overwrite, workspace=workspace) as claim:
            start = start_training(recipe)
            evaluator = live_evaluator(start, report=self._report, seed=self._entries[0].recipe.seed)
            self._record.describe(documents_of(evaluator))
            training = Training(start, claim, evaluator)
            if self._inspect is not None and not resume and not any(self._record.rungs):
                self._inspect(start)
                self._inspect = None
            yield training, evaluator
        gc.collect()  # a trainer and its model refer to each other

    def _decide(self, number: int, alive: Sequence[int], most: int) -> Rung:
        documents, scored = self._record.documents, [self._record.rungs[number][entry] for entry in alive]
        assert documents is not None
        metric = documents.metric
        return decide_rung(
            {entry: each.scores for entry, each in zip(alive, scored, strict=True)},
            [each.cost for each in scored], documents.clusters, most=most, limits=metric.limits,
            higher_is_better=metric.higher_is_better,
        )  # fmt: skip

    def _describe_scored(self, number: int, entry: int, scored: Scored) -> str:
        documents, name = self._record.documents, self._entries[entry].name
        assert documents is not None
        return (
            f"{self._title}: rung {number + 1}, step {scored.step} of {scored.planned_steps}, {name}: "
            f"{documents.shown(scored.scores, documents.clusters)}"
        )

    def _describe_rung(self, number: int, rung: Rung) -> str:
        dropped = ", ".join(
            f"{self._entries[entry].name} ({'worse' if entry in rung.worse else 'not distinguishable'})"
            for entry in rung.order
            if entry not in rung.kept
        )
        kept = ", ".join(self._entries[entry].name for entry in rung.kept)
        count = f"{len(rung.kept)} of {len(rung.order)}"
        return f"{self._title}: after rung {number + 1}, {count} go on: {kept}; dropped: {dropped}"

    # -- the winner --------------------------------------------------------------------------------------------------

    def _crown(self, winner: int) -> TrainedAdapter:
        """Train the winner to its end, score it on untouched documents, and write it."""
        record = self._record
        with self._begun(winner) as (training, evaluator):
            training.fit()
            if record.winner is None:
                record.winner = _scored(training, evaluator, evaluator.for_report)
                record.write()
            summary = summary_of(record, winner)
            for line in summary_lines(summary):
                self._report(f"{self._title}: {line}")
            return training.write(tournament=summary)


def _scored(training: Training, evaluator: Evaluator, documents: HeldOutDocuments) -> Scored:
    started = time.monotonic()
    scores = evaluator.scores(training.model, documents)
    return Scored(**asdict(training.progress()), scores=scores, scoring_seconds=time.monotonic() - started)

"""Does what a card claims hold? The adapter and its base are evaluated again under the protocol of each claim.

```
adapter ──> claims of its card ──> evaluate base and adapter ──> compare ──> equivalent │ better │ worse │ cannot tell
```

A claim and its repetition on the same documents differ by arithmetic alone, so the difference is judged as it is:
within the margin it is `equivalent`. On fewer or other documents, the interval of the measured score decides.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from harness_ext.comparison.rows import Row
from harness_ext.engine.evaluate import evaluate
from harness_ext.errors import CardError, HarnessExtError
from harness_ext.formatting import format_difference, format_difference_interval, format_interval, format_score
from harness_ext.leaderboard import compare_runs
from harness_ext.metrics.statistic import SHARE
from harness_ext.models.adapter_input import WEIGHTS_FILE
from harness_ext.models.adapters import adapter_folder, check_adapter, find_base
from harness_ext.models.card import read_card
from harness_ext.models.sources import files_sha256
from harness_ext.protocol.fingerprint import differing_fields
from harness_ext.publish.card import README, read_readme
from harness_ext.publish.claims import Claim, claims_in
from harness_ext.publish.front_matter import metadata_of
from harness_ext.results.load import load_runs
from harness_ext.results.run import Run
from harness_ext.stats.intervals import Interval
from harness_ext.stats.units import LEAST_UNITS

logger = logging.getLogger(__name__)

Outcome = Literal["equivalent", "better", "worse", "cannot tell"]
_SMALLEST = 1e-4  # differences of a metric without a margin that are none


@dataclass(frozen=True)
class Checked:
    """One claim, and what was measured."""

    claim: Claim
    outcome: Outcome  # of the score; better or worse than claimed
    gain: Outcome | None = None  # of the difference to the base; None if none was claimed
    row: Row | None = None  # as measured; None if it could not be
    reason: str = ""  # why it cannot be told, or what else to know

    @property
    def holds(self) -> bool:
        """Whether nothing is worse than claimed."""
        return "worse" not in (self.outcome, self.gain)

    @property
    def is_decided(self) -> bool:
        """Whether everything claimed could be judged."""
        return "cannot tell" not in (self.outcome, self.gain)


def claims_of(adapter: Path) -> list[Claim]:
    """The claims in the README of an adapter.

    Raises:
        CardError: there is no README, it cannot be read, or it claims nothing that can be evaluated.
    """
    place = str(adapter / README)
    text = read_readme(adapter)
    if text is None:
        raise CardError(f"{adapter} has no {README}, so it claims nothing")
    metadata = metadata_of(text, place)
    claims = claims_in(metadata, place)
    if not claims:
        why = "names no lm-eval task" if metadata.get("model-index") else "is missing"
        raise CardError(f"{place} claims nothing that can be evaluated: its model-index {why}; evaluate the adapter "
                        "and write a card with `harness-ext card`")  # fmt: skip
    return claims


def verify(
    adapter: str | Path,
    *,
    tasks: Sequence[str] = (),
    base: str | None = None,
    margin: float = 1.0,
    include_path: Sequence[str] = (),
    output: str | Path | None = None,
    **settings: Any,
) -> list[Checked]:
    """Evaluate a published adapter and its base, and hold the scores against the claims of its card.

    Args:
        adapter: folder or Hub id.
        tasks: check only the claims on these tasks; empty: all.
        base: model to use; None: the one that the adapter declares.
        margin: differences of up to this many points count as equivalent; metrics with a margin of their own keep it.
        include_path: folders of further tasks.
        output: folder for the results; None: they are not kept.
        settings: further settings of `evaluate` (`device`, `batch_size`, `limit`); they replace those of the claims.

    Raises:
        AdapterError: there is no such adapter.
        CardError: its card claims nothing that can be evaluated, or nothing on `tasks`.
        HarnessExtError: the evaluation cannot run.
    """
    folder = adapter_folder(adapter)
    check_adapter(folder)
    claims = claims_of(folder)
    if tasks:
        known = {claim.task for claim in claims}
        if missing := [task for task in tasks if task not in known]:
            raise CardError(f"the card of {adapter} claims nothing on {missing[0]!r}; it does on "
                            f"{', '.join(sorted(known))}")  # fmt: skip
        claims = [claim for claim in claims if claim.task in tasks]
    model = base or find_base(folder)
    with ExitStack() as stack:
        place = Path(output or stack.enter_context(tempfile.TemporaryDirectory(prefix="harness-ext-verify-")))
        checked = []
        for number, group in enumerate(_groups(claims)):
            where = place / str(number) if number else place
            try:
                runs = _evaluated(model, folder, group, where, include_path=include_path, settings=settings)
            except HarnessExtError as error:
                if len(group) == len(claims):
                    raise
                logger.warning("%s", error)
                checked += [Checked(claim, "cannot tell", reason=str(error)) for claim in group]
                continue
            checked += [_checked(claim, runs, folder, margin) for claim in group]
    order = {id(claim): place for place, claim in enumerate(claims)}
    return sorted(checked, key=lambda each: order[id(each.claim)])


def _groups(claims: Sequence[Claim]) -> list[list[Claim]]:
    """Claims that one evaluation can check: those with the same settings."""
    groups: dict[str, list[Claim]] = {}
    for claim in claims:
        groups.setdefault(repr(sorted(claim.settings.items(), key=lambda item: item[0])), []).append(claim)
    return list(groups.values())


def _evaluated(
    model: str,
    folder: Path,
    claims: Sequence[Claim],
    output: Path,
    *,
    include_path: Sequence[str],
    settings: Mapping[str, Any],
) -> list[Run]:
    """The runs of base and adapter on the tasks of some claims, under their settings."""
    wanted: dict[str, Any] = {**claims[0].settings, **settings}
    if include_path:
        wanted["include_path"] = list(include_path)
    done = evaluate(
        model,
        tasks=list(dict.fromkeys(claim.task for claim in claims)),
        adapters=[folder],
        output_path=str(output),
        log_samples=True,
        store=False,
        **wanted,
    )
    folders = [each.folder for each in done if each.folder is not None]
    if not folders:
        failed = next((reason for each in done for reason in each.failures.values()), "nothing was evaluated")
        raise HarnessExtError(f"{folder}: {failed}")
    return load_runs(*folders)


def _checked(claim: Claim, runs: Sequence[Run], folder: Path, margin: float) -> Checked:
    try:
        rows = compare_runs(runs, metric=claim.metric, tasks=[claim.task], margin=margin, group_seeds=False).rows
    except HarnessExtError as error:
        return Checked(claim, "cannot tell", reason=str(error))
    row = next((row for row in rows if row.filter == claim.filter), None)
    if row is None:
        return Checked(claim, "cannot tell", reason=f"the task has no {claim.metric} of the filter {claim.filter!r}")
    run = next(run for run in runs if run.name == row.run)
    if other := _other_protocol(claim, run, folder):
        return Checked(claim, "cannot tell", None if claim.difference is None else "cannot tell", row, other)
    notes = []
    if claim.weights is not None and claim.weights != files_sha256(folder / WEIGHTS_FILE):
        notes.append("the claim was made with other weights")
    same = claim.fingerprint is not None and claim.n == row.n
    if not same:
        notes.append(f"claimed on {claim.n or 'an unknown number of'} documents, measured on {row.n}")
    return Checked(claim, score_outcome(claim, row, same_documents=same), gain_outcome(claim, row, same_documents=same),
                   row, "; ".join(notes))  # fmt: skip


def _other_protocol(claim: Claim, run: Run, folder: Path) -> str | None:
    """In what the protocol differs from that of the claim; None if it is the same, or the claim does not say."""
    result = run.tasks[claim.task]
    if claim.fingerprint is None or result.fingerprint is None or claim.fingerprint == result.fingerprint:
        return None
    card = read_card(folder)
    if card is not None and card.fingerprint == claim.fingerprint:
        fields = differing_fields(card.fingerprint_fields, result.fingerprint_fields, sorted(card.fingerprint_fields))
        return f"the claim was made under another protocol: {', '.join(fields)} differ here"
    return "the claim was made under another protocol (other documents, prompt, scoring or version of the task)"


def score_outcome(claim: Claim, row: Row, *, same_documents: bool) -> Outcome:
    """How the measured score stands to the claimed one.

    Args:
        claim: the claim.
        row: as measured.
        same_documents: whether both are of the same documents.
    """
    difference = row.score.value - claim.value
    interval = row.score.interval
    if same_documents:
        return _of_repetition(difference, row)
    around = None if interval is None else Interval(interval.low - claim.value, interval.high - claim.value)
    return _of_interval(around, row)


def gain_outcome(claim: Claim, row: Row, *, same_documents: bool) -> Outcome | None:
    """How the measured difference to the base stands to the claimed one; None if none was claimed."""
    if claim.difference is None:
        return None
    if same_documents:
        return _of_repetition(row.difference - claim.difference, row)
    if row.paired is None:
        return "cannot tell"
    interval = row.paired.interval
    return _of_interval(Interval(interval.low - claim.difference, interval.high - claim.difference), row)


def _of_repetition(difference: float, row: Row) -> Outcome:
    """Of the same documents: only what fewer than six documents could not explain counts.

    A score of 0–1 moves by at most 1/n for each document; fewer than six that changed sides prove nothing.
    """
    if abs(difference) <= (row.margin or _SMALLEST * max(1.0, abs(row.score.value))):
        return "equivalent"
    if row.unit == SHARE and abs(difference) * row.n < LEAST_UNITS - 1e-9:
        return "cannot tell"
    return "better" if (difference > 0) == row.higher_is_better else "worse"


def _of_interval(around: Interval | None, row: Row) -> Outcome:
    """Of an interval around the difference between measured and claimed."""
    if around is None:
        return "cannot tell"
    if row.margin and around.within(row.margin):
        return "equivalent"
    if not around.side:
        return "cannot tell"
    return "better" if (around.side > 0) == row.higher_is_better else "worse"


# -- in words --------------------------------------------------------------------------------------------------------


def description(checked: Checked) -> list[str]:
    """One claim and what was measured, in lines of text."""
    claim, row = checked.claim, checked.row
    unit = row.unit if row else claim.unit
    lines = [f"{claim.task}, {claim.metric}: {checked.outcome}{_than(checked.outcome)}"]
    if row is not None:
        interval = f" {format_interval(row.score.interval, unit)}" if row.score.interval else ""
        measured = f"{format_score(row.score.value, unit)}{interval} on {row.n:,} documents"
        lines.append(f"  score     claimed {format_score(claim.value, unit)}, measured {measured}")
    if row is not None and checked.gain is not None and claim.difference is not None:
        claimed = format_difference(claim.difference, unit, row.scale)
        shown = format_difference(row.difference, unit, row.scale)
        around = f" {format_difference_interval(row.paired.interval, unit, row.scale)}" if row.paired else ""
        lines.append(f"  gain      claimed {claimed}, measured {shown}{around}: {checked.gain}{_than(checked.gain)}")
    return [*lines, *([f"  note      {checked.reason}"] if checked.reason else [])]


def _than(outcome: str) -> str:
    return " than claimed" if outcome in ("better", "worse") else ""

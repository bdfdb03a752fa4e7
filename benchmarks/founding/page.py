"""docs/founding-experiment.md and its chart, from what `run.py` computed."""

from __future__ import annotations

import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapters import EXAMPLES, TRAININGS
from harness_ext.comparison.rows import Row
from harness_ext.leaderboard import compare_runs
from harness_ext.results.load import load_runs
from harness_ext.results.run import Run

PACKAGES = ("harness-ext", "lm-eval", "torch", "transformers", "peft", "trl")
TEXT = Path(__file__).with_name("page.md")
LAYERS = {1: "logged outputs", 2: "training batches", 3: "replay"}


@dataclass(frozen=True)
class Case:
    """One run with one mistake, or none."""

    name: str
    mistake: str  # as the tables say it
    task: str
    run: str
    expected: tuple[str, ...] = ()  # findings that name the mistake
    replays: bool = True  # False where the logged outputs prove it

    @property
    def training(self) -> str | None:
        """The training whose batches show the mistake; None if it is one of evaluation."""
        return self.run if self.task == "founding_squad" else None


SQUAD = "founding_squad"
CASES = (
    Case("sst2", "the base's whole text is compared with the label", "founding_sst2", "base", ("D1",), replays=False),
    Case("proper", "none", SQUAD, "proper"),
    Case("no_end_token", "(a) no supervised end token", SQUAD, "no_end_token", ("D7", "D6", "D5")),
    Case("loss_on_prompt", "(b) loss on prompt tokens", SQUAD, "loss_on_prompt", ("D9",)),
    Case("other_template", "(c) another template in evaluation", SQUAD, "other_template", ("D24", "D15")),
    Case("cut_answers", "(d) truncated answers", SQUAD, "cut_answers", ("D10",)),
    Case("raw", '(e) "unanswerable" scored as it is', "founding_squad_raw", "proper", ("D12",), replays=False),
    Case(
        "no_end_token_other_template", "(a) and (c) together", SQUAD, "no_end_token_other_template",
        ("D24", "D7", "D6", "D5", "D15"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A case with what was measured and found."""

    case: Case
    run: Run
    row: Row | None  # beside the base; None for the base itself
    diagnosis: Mapping[str, Any]
    batches: Mapping[str, Any] | None

    @property
    def named(self) -> Mapping[str, Any] | None:
        """The first finding that names the mistake, of any layer; None if none does."""
        return next((f for _, f in self._findings() if f["id"] in self.case.expected), None)

    @property
    def layer(self) -> int | None:
        """The cheapest layer in which the mistake was named."""
        layers = [layer for layer, finding in self._findings() if finding["id"] in self.case.expected]
        return min(layers, default=None)

    @property
    def proof(self) -> Mapping[str, Any] | None:
        """The proved finding with the largest gain."""
        proved = [f for f in self.diagnosis["findings"] if f["numbers"].get("proved")]
        return max(proved, key=lambda f: f["numbers"]["after"] - f["numbers"]["before"], default=None)

    def _findings(self) -> list[tuple[int, Mapping[str, Any]]]:
        logged = [(3 if "tried" in f["numbers"] else 1, f) for f in self.diagnosis["findings"]]
        before = [(2, f) for f in (self.batches or {}).get("findings", ())]
        return sorted([*logged, *before], key=lambda pair: pair[0])


def write_page(results: Path, output: Path) -> None:
    """Write the page and the chart beside it."""
    found = [_result(case, results) for case in CASES]
    chart = output.with_suffix(".svg")
    draw(found, chart)
    versions = ", ".join(f"{package} {importlib.metadata.version(package)}" for package in PACKAGES)
    text = TEXT.read_text(encoding="utf-8")
    parts = {
        "{{versions}}": f"Python {platform.python_version()}, {versions}",
        "{{chart}}": f"![Exact match of each run]({chart.name})",
        "{{scores}}": _scores(found),
        "{{causes}}": _causes(found),
        "{{diagnoses}}": "\n".join(map(_diagnosis, found)),
        "{{documents}}": str(found[1].diagnosis["n"]),
        "{{examples}}": str(EXAMPLES),
        "{{slowest}}": f"{max(each.diagnosis['seconds'] for each in found) / 60:.1f}",
    }
    for name, part in parts.items():
        text = text.replace(name, part)
    output.write_text(text, encoding="utf-8")
    print(f"wrote {output} and {chart}")


def _result(case: Case, results: Path) -> Result:
    runs = load_runs(results / case.task)
    run = next(run for run in runs if run.name == case.run)
    rows = compare_runs(runs, baseline="base").rows if len(runs) > 1 else []
    row = next((row for row in rows if row.run == case.run), None)
    batches = results / "batches" / f"{case.training}.json"
    return Result(
        case, run, row, _json(results / "diagnoses" / f"{case.name}.json"),
        _json(batches) if case.training in TRAININGS else None,
    )  # fmt: skip


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


# -- tables --------------------------------------------------------------------------------------------------------


def _scores(found: Sequence[Result]) -> str:
    """Every run with its interval and the verdict."""
    first = next(each.row for each in found if each.row is not None)
    lines = [
        "| run | mistake | trained by | exact [95 %] | F1 | against the base | verdict |",
        "|---|---|---|---:|---:|---:|---|",
        f"| base | | | {_with_interval(first.baseline)} | | | |",
    ]
    for each in found:
        if each.row is None:
            continue
        trained = TRAININGS[each.case.run].trainer.replace("loop", "a loop")
        low, high = each.row.paired.interval.low, each.row.paired.interval.high  # type: ignore[union-attr]
        difference = f"{100 * each.row.difference:+.1f} [{100 * low:+.1f}, {100 * high:+.1f}]"
        lines.append(
            f"| {each.case.name} | {each.case.mistake} | {trained} | {_with_interval(each.row.score)} | "
            f"{each.run.tasks[each.case.task].metric('f1').value:.1f} | {difference} | {each.row.verdict} |"
        )
    return "\n".join(lines)


def _with_interval(score: Any) -> str:
    return f"{100 * score.value:.1f} [{100 * score.interval.low:.1f}, {100 * score.interval.high:.1f}]"


def _causes(found: Sequence[Result]) -> str:
    """What names each mistake, where, and what the proof restores."""
    lines = ["| run | mistake | named by | found first in | proof |", "|---|---|---|---|---|"]
    for each in found:
        named = _named(each)
        where = LAYERS[each.layer] if each.layer else ""
        lines.append(f"| {each.case.name} | {each.case.mistake} | {named} | {where} | {_proof(each)} |")
    return "\n".join(lines)


def _named(result: Result) -> str:
    """The finding that names the mistake; for a run without one, the errors that were found."""
    if result.case.expected:
        return "**not named**" if result.named is None else str(result.named["id"])
    errors = [finding["id"] for finding in result.diagnosis["findings"] if finding["level"] == "error"]
    return f"no mistake, but {', '.join(errors)}" if errors else "nothing, as it should be"


def _proof(result: Result) -> str:
    if result.proof is None:
        return "nothing restores the score: train again" if result.case.expected else ""
    numbers = result.proof["numbers"]
    gain = numbers["after"] - numbers["before"]
    return (
        f"{100 * numbers['before']:.1f} → **{100 * numbers['after']:.1f}** ({100 * gain:+.1f} "
        f"[{100 * numbers['low']:+.1f}, {100 * numbers['high']:+.1f}], n={numbers['n']}) {numbers['change']}"
    )


def _diagnosis(result: Result) -> str:
    """What the doctor says, as it prints it."""
    lines = [f"### {result.case.name}", "", "```text"]
    for finding in result.diagnosis["findings"]:
        lines.append(f"{finding['level']} {finding['id']}  {finding['text']}")
    lines += [] if result.diagnosis["findings"] else ["nothing found"]
    lines += [f"note: {note}" for note in result.diagnosis["notes"]]
    for finding in (result.batches or {}).get("findings", ()):
        lines.append(f"batches: {finding['level']} {finding['id']}  {finding['text']}")
    return "\n".join([*lines, "```", ""])


# -- chart ---------------------------------------------------------------------------------------------------------


def draw(found: Sequence[Result], file: Path) -> None:
    """Exact match of each run with its interval, and what the proof restores, as SVG."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    mpl.rcParams.update({"svg.hashsalt": "harness-ext", "svg.fonttype": "none", "font.family": "sans-serif"})
    rows = [each for each in found if each.row is not None]
    base = rows[0].row.baseline  # type: ignore[union-attr]
    labels = ["base", *(f"{each.case.name}\n{each.case.mistake}" for each in rows)]
    scores = [base, *(each.row.score for each in rows)]  # type: ignore[union-attr]
    proofs = [None, *(each.proof for each in rows)]
    figure, axes = pyplot.subplots(figsize=(8, 0.62 * len(labels) + 0.9))
    for place, (score, proof) in enumerate(zip(scores, proofs, strict=True)):
        value = 100 * score.value
        error = [[value - 100 * score.interval.low], [100 * score.interval.high - value]]
        axes.barh(place, value, height=0.55, color="#7a8793", xerr=error, ecolor="#30363d", capsize=3)
        axes.text(100 * score.interval.high + 1, place, f"{value:.1f}", va="center", fontsize=9)
        if proof is not None:
            axes.plot([100 * proof["numbers"]["after"]], [place], marker="D", color="#1a7f37", markersize=7)
    floor = found[1].run.tasks[SQUAD].metric("abstain_baseline").value
    axes.axvline(floor, color="#b35900", linestyle="--", linewidth=1)
    axes.text(floor + 0.5, -0.75, f"always abstaining {floor:.1f}", color="#b35900", fontsize=9)
    axes.set(yticks=range(len(labels)), yticklabels=labels, xlabel="exact match", xlim=(0, 100), ylim=(len(labels), -1))
    axes.plot([], [], marker="D", color="#1a7f37", linestyle="none", label="restored by the doctor's proof")
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, metadata={"Date": None})
    pyplot.close(figure)

"""docs/reliability.md, from what was measured."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import linear_regression, median
from typing import Any

from endurance import ADAPTERS, WARM_UP_MINUTES
from records import Record, Records

BESIDE = Path(__file__).with_name("beside.md")
FUZZ = "fuzz"

HEAD = """\
# Reliability

What is lost when a run is killed, a disk fills up, or files are not what they should be? `make fire` tries it, and
writes this page.
"""


def page(records: Mapping[str, Records]) -> str:
    """The page, from the lines of each part; a part that was not measured says so."""
    lines = {part: of_part.all() for part, of_part in records.items()}
    parts = [
        HEAD.strip(),
        _summary(lines),
        "## Evaluations that are killed", *_of("eval", lines, _eval),
        "## Trainings that are killed", *_of("train", lines, _train),
        "## Killed at 90 %, and what the store costs", *_of("real", lines, _real),
        "## Disk, permission, concurrency, ranks, input", *_of("cases", lines, _cases),
        "## Random hostile input", *_of(FUZZ, lines, _fuzz),
        "## An hour of evaluation", *_of("endurance", lines, _endurance),
        "## How to repeat it", HOW.strip(),
        BESIDE.read_text(encoding="utf-8").strip(),
    ]  # fmt: skip
    return "\n\n".join(part for part in parts if part) + "\n"


HOW = """\
```
HARNESS_EXT_DATA=DIR make fire
```

runs everything, on two cores in about four hours, and goes on where it was stopped. One part alone:

```
python benchmarks/fire/run.py eval --eval-kills 1000
python benchmarks/fire/run.py endurance --minutes 60
python tests/hostile/run.py --minutes 60
```

Kill points come from seeds; where exactly a kill hits depends on the machine. What was measured is kept in
`results/fire/`; delete it to start again.
"""


def _of(part: str, lines: Mapping[str, Sequence[Record]], describe: Any) -> Sequence[str]:
    return describe(lines[part]) if lines[part] else ["Not measured."]


def _table(head: str, align: str, rows: Sequence[str]) -> str:
    return "\n".join([head, align, *rows])


def _summary(lines: Mapping[str, Sequence[Record]]) -> str:
    rows = []
    for part, what in (("eval", "evaluations killed at random"), ("train", "trainings killed at random")):
        if lines[part]:
            kills, runs = _kills(lines[part]), len(lines[part])
            rows.append(f"| {what} | {kills} kills in {runs} runs | {_wrong(lines[part])} runs |")
    if lines["cases"]:
        count = {name: sum(record[name] for record in lines["cases"]) for name in ("cases", "failed")}
        rows.append(f"| disk, permission, damage, concurrency, ranks, signals, input | {count['cases']} cases "
                    f"| {count['failed']} cases |")  # fmt: skip
    if lines[FUZZ]:
        rows.append(f"| hostile input at random | {sum(each['cases'] for each in lines[FUZZ]):,} files "
                    f"| {sum(each['problems'] for each in lines[FUZZ])} unexpected errors |")  # fmt: skip
    if lines["endurance"]:
        last = lines["endurance"][-1]
        rows.append(f"| {last['minute']:.0f} minutes of evaluation | {last['switches']:,} adapter switches "
                    f"| {_slope(lines['endurance'])} |")  # fmt: skip
    return _table("| what | how often | lost, or wrong |", "|---|---|---|", rows)


def _wrong(records: Sequence[Record]) -> int:
    return sum(bool(record["problems"]) for record in records)


def _kills(records: Sequence[Record]) -> int:
    return sum(len(record["kills"]) for record in records)


def _stages(records: Sequence[Record]) -> str:
    counts = Counter(kill["stage"] for record in records for kill in record["kills"])
    return _table("| what the process was doing | kills |", "|---|---:|",
                  [f"| {stage} | {count} |" for stage, count in counts.most_common()])  # fmt: skip


def _problems(records: Sequence[Record]) -> list[str]:
    wrong = [record for record in records if record["problems"]]
    return ["\n".join(f"- seed {each['seed']}: {'; '.join(each['problems'])}" for each in wrong)] if wrong else []


def _longest(records: Sequence[Record]) -> int:
    return max(len(record["kills"]) for record in records)


# -- kills ---------------------------------------------------------------------------------------------------------


def _eval(records: Sequence[Record]) -> list[str]:
    kills = [kill for record in records for kill in record["kills"]]
    pending = Counter(kill["pending"] for kill in kills)
    engines = " and ".join(f"`{engine}` ({_kills([r for r in records if r['engine'] == engine])} kills)"
                           for engine in sorted({record["engine"] for record in records}))  # fmt: skip
    return [
        f"A base and an adapter answer `sst2_choice` and `squad_v2_generate` with {engines}. The process gets SIGKILL, "
        f"up to {_longest(records)} times in a row, at a random moment of its whole life, or within milliseconds of a "
        "write. Then the command runs to its end. In half of the runs answers are written after each batch, in the "
        "other half as usual, at most four times a second.",
        _stages(records),
        "After each kill: every answer that an earlier run had stored is there, every answer that the killed process "
        "had written is there, and each results file that exists is whole. At the end: results and samples equal, byte "
        "by byte, those of a run that nobody interrupted, but for dates and durations, and no temporary file is left. "
        f"Runs in which any of this was not so: {_wrong(records)} of {len(records)}.",
        *_problems(records),
        f"What a kill may cost are answers that were computed and not written yet. {pending[0]} of {len(kills)} kills "
        f"cost none, besides the batch that was being computed; the largest number was {max(pending)}.",
    ]  # fmt: skip


def _train(records: Sequence[Record]) -> list[str]:
    kills = [kill for record in records for kill in record["kills"]]
    terms = [kill for kill in kills if kill["signal"] == "SIGTERM"]
    codes = Counter(kill["code"] for kill in terms)
    lost = Counter(kill["steps_lost"] for kill in kills if kill["code"] != 143)
    recipes = Counter(record["recipe"] for record in records)
    return [
        "`harness-ext train` on `sst2_choice`, a checkpoint every second step, killed up to "
        f"{_longest(records)} times in a row, and resumed as its message says. Recipes: "
        f"{', '.join(f'{name} ({count} runs)' for name, count in sorted(recipes.items()))}.",
        _stages(records),
        "At the end: weights and configuration equal those of an uninterrupted training to the bit, so does the card "
        "(losses, tokens, hashes) but for the seconds; no checkpoint, lock or temporary folder is left. "
        f"Runs in which any of this was not so: {_wrong(records)} of {len(records)}.",
        *_problems(records),
        f"SIGKILL costs the steps since the last checkpoint, here at most 2: {_counts(lost, 'step')}. "
        f"{len(terms)} of the signals were SIGTERM: {codes[143]} ended with exit code 143, and a checkpoint of the "
        f"last step where there was one to save; {codes[-15]} came before the command had begun to listen.",
    ]  # fmt: skip


def _counts(counts: Mapping[int, int], what: str) -> str:
    return ", ".join(f"{key} {what}{'' if key == 1 else 's'} {count} times" for key, count in sorted(counts.items()))


# -- the real model ------------------------------------------------------------------------------------------------


def _real(records: Sequence[Record]) -> list[str]:
    parts: list[str] = []
    for killed in (record for record in records if record["what"] == "killed"):
        share, again = killed["rest"]["cpu"] / killed["whole"]["cpu"], killed["all_stored"]
        new = killed["answers"] - killed["stored"]
        parts += [
            f"SmolLM2-135M-Instruct with the adapters {_listed(killed['adapters'])}; {killed['documents']} documents "
            f"each of {_listed(killed['tasks'])}; `hf-tree`, float32, two CPU cores. Killed after "
            f"{killed['killed_at']:.0%} of the work of an uninterrupted run, when "
            f"{killed['stored']:,} of {killed['answers']:,} answers ({killed['stored'] / killed['answers']:.0%}) were "
            "stored.",
            _table("| command | seconds of the processor | seconds on the clock |", "|---|---:|---:|", [
                f"| uninterrupted | {killed['whole']['cpu']:.0f} | {killed['whole']['wall']:.0f} |",
                f"| the rest after the kill | {killed['rest']['cpu']:.0f} | {killed['rest']['wall']:.0f} |",
                f"| again, all answers stored | {again['cpu']:.0f} | {again['wall']:.0f} |",
            ]),
            f"The rest takes {share:.0%} of the uninterrupted run: {new / killed['answers']:.0%} of the answers, and "
            "what every command takes (imports, loading the model, its checks; the last line). Results and samples are "
            f"{'byte-identical but for dates and durations' if killed['identical'] else 'NOT identical'}. Texts are "
            "stored as they end. Those that are generated together end at about the same time, so a kill costs at most "
            "one KV cache full of them.",
        ]  # fmt: skip
    if pairs := [record for record in records if record["what"] == "pair"]:
        stored = [100 * pair["with"]["store"] / pair["with"]["wall"] for pair in pairs]
        differences = sorted(100 * (pair["with"]["cpu"] / pair["without"]["cpu"] - 1) for pair in pairs)
        parts.append(
            f"What the store costs, in {len(pairs)} pairs of evaluations of {pairs[0]['documents']} documents with and "
            f"without it: reading, writing and hashing of requests take {median(stored):.2f} % of the evaluation "
            f"(median; at most {max(stored):.2f} %). The difference of processor time within a pair is "
            f"{median(differences):+.1f} % (median; {differences[0]:+.1f} to {differences[-1]:+.1f} %)."
        )
    return parts


def _listed(names: Sequence[str]) -> str:
    return ", ".join(f"`{name}`" for name in names)


# -- cases, fuzz, endurance ----------------------------------------------------------------------------------------


def _cases(records: Sequence[Record]) -> list[str]:
    rows = [
        f"| {record['kind']} | {record['cases']} | {record['passed']} | {record['failed']} | {len(record['skipped'])} |"
        for record in records
    ]
    skipped = sorted({name.partition("[")[0] for record in records for name in record["skipped"]})
    return [
        "These are tests of the project; `benchmarks/fire/cases.py` has their names.",
        _table("| kind | cases | passed | failed | skipped |", "|---|---:|---:|---:|---:|", rows),
        f"Skipped on this machine: {', '.join(f'`{name}`' for name in skipped)}." if skipped else "",
    ]


def _fuzz(records: Sequence[Record]) -> list[str]:
    rows = [f"| {each['reader']} | {each['cases']:,} | {each['refused']:,} | {each['problems']} |" for each in records]
    return [
        "`python tests/hostile/run.py --minutes 60` changes valid files of each kind at random and reads them as the "
        "commands do. A file is read, or refused with one line; anything else is an unexpected error. Each one that "
        "was found is mended, and its case is a test (`tests/hostile/seeds.jsonl`).",
        _table("| files | tried | refused | unexpected errors |", "|---|---:|---:|---:|", rows),
    ]


def _endurance(records: Sequence[Record]) -> list[str]:
    first = next((record for record in records if record["minute"] >= WARM_UP_MINUTES), records[0])
    last = records[-1]
    every = max(len(records) // 12, 1)
    rows = [
        f"| {record['minute']:.0f} | {record['switches']:,} | {record['megabytes']:.0f} | {record['files']} |"
        for record in [*records[::every], *([last] if (len(records) - 1) % every else [])]
    ]
    return [
        f"One process evaluates a base and {ADAPTERS} adapters on two tasks, over and over, with results, samples and "
        f"a store: {last['evaluations']:,} evaluations and {last['switches']:,} adapter switches in "
        f"{last['minute']:.0f} minutes.",
        _table("| minute | switches | memory (MB) | open files |", "|---:|---:|---:|---:|", rows),
        f"From minute {first['minute']:.0f} on, memory changes by {_slope(records)} (least squares).",
    ]


def _slope(records: Sequence[Record]) -> str:
    warm = [record for record in records if record["minute"] >= WARM_UP_MINUTES]
    if len(warm) < 3 or warm[0]["switches"] == warm[-1]["switches"]:
        return "not long enough to say"
    fitted = linear_regression([record["switches"] / 1000 for record in warm], [record["megabytes"] for record in warm])
    return f"{fitted.slope:+.1f} MB in 1,000 switches"

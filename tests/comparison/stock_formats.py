"""Forty ways in which tasks log metrics, as small seeded results of a base and an adapter.

Each is written to disk in lm-eval's format and compared; `golden/formats.json` records the output of `compare`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval_files import DATE, sample

N = 120
LOWER_IS_BETTER = ("perplexity", "bits_per_byte", "brier", "wer", "mse", "log_loss", "ter", "ece", "loss")


@dataclass(frozen=True)
class Format:
    """One task: what it logs of a document in the base's and in the adapter's run, and how lm-eval aggregates it."""

    before: Mapping[str, Sequence[Any]]  # metric -> what each document logs
    after: Mapping[str, Sequence[Any]]
    values: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # logged aggregates that are no mean
    docs: Sequence[Mapping[str, Any]] = ()  # without: {"idx": n}
    targets: Sequence[Any] = ()  # without: two labels in turn
    config: Mapping[str, Any] = field(default_factory=dict)
    filter: str = "none"
    logs_samples: bool = True


def write_formats(folder: Path, formats: Mapping[str, Format]) -> Path:
    """Results of both runs, each with one task for each format."""
    for place, run in enumerate(("base", "adapter")):
        path = folder / run
        path.mkdir(parents=True)
        payload: dict[str, Any] = {
            "results": {}, "configs": {}, "versions": {}, "n-shot": {}, "n-samples": {}, "higher_is_better": {},
            "config": {"model": "hf", "model_args": "pretrained=org/tiny" + (",peft=adapters/one" if place else "")},
        }  # fmt: skip
        for task, form in formats.items():
            _add_task(payload, path, task, form, place)
        (path / f"results_{DATE}.json").write_text(json.dumps(payload), encoding="utf-8")
    return folder


def _add_task(payload: dict[str, Any], path: Path, task: str, form: Format, place: int) -> None:
    logged = (form.before, form.after)[place]
    n = len(next(iter(logged.values())))
    docs = form.docs or [{"idx": number} for number in range(n)]
    targets = form.targets or [number % 2 for number in range(n)]
    metrics = {
        f"{name},{form.filter}": form.values[name][place] if name in form.values else float(np.mean(column))
        for name, column in logged.items()
    }
    payload["results"][task] = {"alias": task, **metrics, **{key.replace(",", "_stderr,"): "N/A" for key in metrics}}
    payload["configs"][task] = {"task": task, "metadata": {"version": 1.0}, **form.config}
    payload["versions"][task], payload["n-shot"][task] = 1.0, 0
    payload["n-samples"][task] = {"original": n, "effective": n}
    payload["higher_is_better"][task] = {name: not any(part in name for part in LOWER_IS_BETTER) for name in logged}
    if form.logs_samples:
        lines = [
            {**sample(number, dict(docs[number]), {name: column[number] for name, column in logged.items()},
                      target=targets[number]), "filter": form.filter}
            for number in range(n)
        ]  # fmt: skip
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (path / f"samples_{task}_{DATE}.jsonl").write_text(text, encoding="utf-8")


# -- the formats ---------------------------------------------------------------------------------------------------


def right(rng: np.random.Generator, share: float, n: int = N) -> list[float]:
    return (rng.random(n) < share).astype(float).tolist()


def pairs(rng: np.random.Generator, share: float, classes: int = 2, n: int = N) -> list[list[int]]:
    gold = np.arange(n) % classes
    return [
        [int(g), int(p)] for g, p in zip(gold, np.where(rng.random(n) < share, gold, (gold + 1) % classes), strict=True)
    ]


def graded(rng: np.random.Generator, shift: float = 0.0, top: float = 1.0, n: int = N) -> list[float]:
    return (np.round(np.clip(rng.random(n) + shift, 0, 1) * top, 4)).tolist()


def _one(metric: str, before: Sequence[Any], after: Sequence[Any], **rest: Any) -> Format:
    return Format({metric: before}, {metric: after}, **rest)


def _shares(rng: np.random.Generator) -> dict[str, Format]:
    formats: dict[str, Format] = {}
    for name in ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match", "em", "mc1", "pass@1",
                 "prompt_level_strict_acc", "contains", "quasi_exact_match", "bleu_acc"):  # fmt: skip
        formats[f"share_{name.replace('@', '_at_')}"] = _one(name, right(rng, 0.5), right(rng, 0.7))
    formats["gsm8k_strict"] = _one("exact_match", right(rng, 0.3), right(rng, 0.45), filter="strict-match")
    formats["truthfulqa_mc2"] = _one("acc", graded(rng), graded(rng, 0.1))
    formats["coqa"] = Format(
        {"em": right(rng, 0.4), "f1": graded(rng)}, {"em": right(rng, 0.6), "f1": graded(rng, 0.1)}
    )
    rouge = graded(rng, 0, 0.6), graded(rng, 0.1, 0.6)
    formats["rouge"] = _one("rougeL", *rouge)
    formats["label_share"] = _one("content_free_share", [0.7] * N, [0.5] * N)
    formats["blimp"] = _one("acc", right(rng, 0.6), right(rng, 0.8), targets=[0] * N)
    formats["hellaswag"] = _one(
        "acc", right(rng, 0.4), right(rng, 0.5), targets=rng.integers(0, 4, N).tolist(),
        config={"output_type": "multiple_choice", "doc_to_choice": "{{endings}}"},
    )  # fmt: skip
    formats["no_samples"] = _one("acc", right(rng, 0.4), right(rng, 0.5), logs_samples=False)
    return formats


def _points(rng: np.random.Generator) -> dict[str, Format]:
    hundred = Format(
        {"exact": [100 * v for v in right(rng, 0.3)], "f1": graded(rng, 0, 100)},
        {"exact": [100 * v for v in right(rng, 0.4)], "f1": graded(rng, 0.1, 100)},
    )
    low = Format(
        {"exact": [0.0] * N, "f1": graded(rng, -0.98, 100)}, {"exact": [0.0] * N, "f1": graded(rng, -0.97, 100)}
    )
    return {
        "squad_points": hundred,
        "squad_low": low,
        "squad_declared": Format(hundred.before, hundred.after, config={"metadata": {"metric_scale": 100}}),
        "truthfulqa_bleu_max": _one("bleu_max", graded(rng, 0, 40), graded(rng, 0.1, 40)),
        "bleu_without_samples": Format(
            {"bleu": [0.0] * N}, {"bleu": [0.0] * N}, values={"bleu": (0.66, 0.82)}, logs_samples=False
        ),
    }


def _own_units(rng: np.random.Generator) -> dict[str, Format]:
    wer = rng.random(N) * 0.5
    with_one = [
        np.where(np.arange(N) == 7, top, column) for column, top in ((wer, 1.2), (np.clip(wer + 0.15, 0, 1), 1.3))
    ]
    rolling = [[[-float(x), 60] for x in rng.normal(mean, 10, N)] for mean in (120, 100)]

    def rate(make: Callable[[float], float]) -> tuple[float, float]:
        return tuple(make(sum(-a for a, _ in side) / sum(b for _, b in side)) for side in rolling)  # type: ignore[return-value]

    lambada = [np.round(rng.normal(mean, 1, N), 3).tolist() for mean in (-4, -3)]
    return {
        "wer": _one("wer", wer.tolist(), np.clip(wer + 0.15, 0, 1).tolist()),
        "wer_above_one": _one("wer", *(column.tolist() for column in with_one)),
        "mse": _one("mse", rng.exponential(0.3, N).tolist(), rng.exponential(0.5, N).tolist()),
        "judge": _one(
            "judge_score", rng.integers(3, 8, N).astype(float).tolist(), (rng.integers(3, 8, N) + 0.7).tolist()
        ),
        "reward": _one("reward", rng.normal(-0.5, 0.3, N).tolist(), rng.normal(-0.3, 0.3, N).tolist()),
        "log_loss": _one("log_loss", rng.exponential(0.7, N).tolist(), rng.exponential(0.4, N).tolist()),
        "has_ans_bits": _one("HasAns_bits_per_byte", rng.gamma(4, 0.4, N).tolist(), rng.gamma(4, 0.2, N).tolist()),
        "brier_score": _one("brier_score", graded(rng, 0, 1), graded(rng, -0.1, 1)),
        "wikitext": Format(
            dict.fromkeys(("word_perplexity", "byte_perplexity", "bits_per_byte"), rolling[0]),
            dict.fromkeys(("word_perplexity", "byte_perplexity", "bits_per_byte"), rolling[1]),
            values={
                "word_perplexity": rate(math.exp),
                "byte_perplexity": rate(math.exp),
                "bits_per_byte": rate(lambda x: x / math.log(2)),
            },
        ),
        "lambada_perplexity": _one(
            "perplexity", *lambada, values={"perplexity": tuple(math.exp(-float(np.mean(side))) for side in lambada)}
        ),
    }


def _of_labels(rng: np.random.Generator) -> dict[str, Format]:
    from sklearn.metrics import f1_score, matthews_corrcoef, roc_auc_score

    def values(sides: Sequence[Sequence[Sequence[int]]], score: Callable[..., float]) -> tuple[float, float]:
        return tuple(float(score(*np.array(side).T)) for side in sides)  # type: ignore[return-value]

    two, three = ([pairs(rng, share, classes) for share in (0.6, 0.75)] for classes in (2, 3))
    ranked = [
        [[int(g), float(g + x)] for g, x in zip(np.arange(N) % 2, rng.normal(0, sd, N), strict=True)] for sd in (2, 1)
    ]

    def macro(gold: Any, predicted: Any) -> float:
        return float(f1_score(gold, predicted, average="macro"))

    return {
        "mrpc_f1": _one("f1", *two, values={"f1": values(two, f1_score)}),
        "cola_mcc": _one("mcc", *two, values={"mcc": values(two, matthews_corrcoef)}),
        "macro_f1": _one("macro_f1", *three, values={"macro_f1": values(three, macro)}),
        "auroc": _one("auroc", *ranked, values={"auroc": values(ranked, roc_auc_score)}),
    }


def _passages(rng: np.random.Generator) -> dict[str, Format]:
    formats = {}
    for column, config in (("context", {}), ("passage", {}), ("article", {}), ("premise", {})):
        docs = [{"idx": n, column: f"{column} {n // 5}: " + "a sentence that is shared by five questions. " * 4}
                for n in range(N)]  # fmt: skip
        formats[f"passage_{column}"] = _one("acc", right(rng, 0.5), right(rng, 0.7), docs=docs, config=config)
    return formats


def stock_formats() -> dict[str, Format]:
    """Every format, seeded."""
    rng = np.random.default_rng(20)
    return {**_shares(rng), **_points(rng), **_own_units(rng), **_of_labels(rng), **_passages(rng)}

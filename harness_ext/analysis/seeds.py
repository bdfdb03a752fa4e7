"""Runs that differ only in their seed: found, and compared with the baseline over documents and seeds."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.special import stdtrit

from harness_ext.analysis.paired import PairedDifference, paired_difference
from harness_ext.analysis.results import Run
from harness_ext.analysis.statistics import ALPHA, Clusters, Floats, Interval, effective_clusters

ENOUGH_SEEDS = 3  # fewer support no statement about the method
_LEAST_P = 1e-300
_SEED_NAME = re.compile(r"(?P<stem>.+?)[-_]seed[-_]?(?P<seed>\d+)$")


@dataclass(frozen=True)
class Contender:
    """What is compared with the baseline: one run, or the runs of one recipe by seed."""

    name: str
    runs: Mapping[str, Run]  # seed -> run; one entry with key "" for a run that stands alone


def contenders(runs: Sequence[Run], *, group: bool = True) -> list[Contender]:
    """Runs that differ only in their seed together, others alone, in the order given.

    Cards decide where results carry them: the same base, task, data size and recipe, another seed. Without
    cards runs named NAME-seed0, NAME-seed1 … on one base belong together.

    Args:
        runs: without the baseline.
        group: False leaves every run alone.
    """
    found: dict[str, list[tuple[str, Run]]] = defaultdict(list)
    for place, run in enumerate(runs):
        family, seed = _family(run) if group else None, _seed(run)
        found[family if family and seed is not None else f"#{place}"].append((seed or "", run))
    return [made for members in found.values() for made in _made(members)]


def _made(members: Sequence[tuple[str, Run]]) -> list[Contender]:
    seeds = [seed for seed, _ in members]
    if len(members) == 1 or len(set(seeds)) < len(seeds):  # a seed that stands twice was evaluated twice
        return [Contender(run.name, {"": run}) for _, run in members]
    ordered = sorted(members, key=lambda member: int(member[0]))
    stems = {_stem(run.name) for _, run in ordered}
    return [Contender(min(stems, key=lambda stem: (len(stem), stem)), dict(ordered))]


def _family(run: Run) -> str | None:
    """What runs of one recipe have in common, as text; None for a run that belongs to none."""
    recipe = run.card.get("recipe")
    if isinstance(recipe, Mapping):
        facts = {name: value for name, value in recipe.items() if name not in ("seed", "model", "output", "report_to")}
        base = run.card.get("base_sha256") or run.card.get("base")
        return json.dumps([base, run.card.get("task"), facts], sort_keys=True, default=str)
    named = _SEED_NAME.match(run.name)
    return json.dumps([run.base, named["stem"]]) if named else None


def _seed(run: Run) -> str | None:
    seed = run.card.get("seed")
    if isinstance(seed, int):
        return str(seed)
    named = _SEED_NAME.match(run.name)
    return named["seed"] if named else None


def _stem(name: str) -> str:
    named = _SEED_NAME.match(name)
    return named["stem"] if named else name


def two_level_difference(
    before: Floats, afters: Floats, clusters: Clusters | None = None, *, seed: int = 0
) -> PairedDifference:
    """Mean difference over seeds, with an interval over documents and, from three seeds on, over seeds.

    Documents are common to all seeds, so the variance is that of crossed random effects: of document means, plus
    that of seed means less the interaction which both contain. Half the width of the interval is
    sqrt(t(C - 1)^2 V_documents + t(S - 1)^2 V_seeds) (Graybill & Wang, J. Am. Stat. Assoc. 75, 1980), which holds
    its level with three seeds, where Satterthwaite's does not; the p-value is where it touches zero. Fewer than
    three seeds cannot show how seeds differ: the interval is then over documents only, for these adapters.

    Args:
        before: (n,) scores of the baseline.
        afters: (S, n) scores of each seed.
        clusters: passages.
        seed: of the sign flips that fewer than three seeds are tested with.
    """
    delta = afters - before
    count = len(afters)
    if count < ENOUGH_SEEDS or not delta.any():
        return paired_difference(before, afters.mean(axis=0), clusters, seed=seed)
    groups, n = effective_clusters(clusters), len(before)
    units = n if groups is None else groups.count
    mean = float(delta.mean())
    variances = _variances(delta, groups, units)
    half_width = _half_width(variances, (units - 1, count - 1), ALPHA)
    return PairedDifference(
        difference=mean,
        interval=Interval(mean - half_width, mean + half_width),
        p_value=_p_value(mean, variances, (units - 1, count - 1)),
        n=n,
        units=units,
        standard_error=math.sqrt(sum(variances)),
        method=f"two-level t interval over {'documents' if groups is None else 'passages'} and seeds (Graybill–Wang)",
    )


def _variances(delta: Floats, groups: Clusters | None, units: int) -> tuple[float, float]:
    """Of the mean of (S, n) differences: what documents and what seeds contribute."""
    count, n = delta.shape
    documents, by_seed, mean = delta.mean(axis=0), delta.mean(axis=1), delta.mean()
    correction = units / (units - 1) / n**2
    of_documents = correction * _squares((documents - mean)[None], groups)
    of_seeds = float(((by_seed - mean) ** 2).sum()) / (count - 1) / count
    interaction = correction * _squares(delta - documents - by_seed[:, None] + mean, groups) / (count - 1) / count
    return of_documents, max(of_seeds - interaction, 0.0)


def _half_width(variances: tuple[float, float], degrees: tuple[int, int], alpha: float) -> float:
    quantiles = -stdtrit(degrees, alpha / 2)  # of Student's t, also for the smallest alpha
    return math.sqrt(sum(v * float(t) ** 2 for v, t in zip(variances, quantiles, strict=True) if v))


def _p_value(mean: float, variances: tuple[float, float], degrees: tuple[int, int]) -> float:
    """The level at which the interval just touches zero."""
    if mean == 0 or not any(variances):
        return 0.0 if mean else 1.0
    if _half_width(variances, degrees, _LEAST_P) < abs(mean):
        return _LEAST_P
    level = brentq(lambda log: _half_width(variances, degrees, math.exp(log)) - abs(mean), math.log(_LEAST_P), 0.0)
    return math.exp(float(level))


def _squares(rows: Floats, groups: Clusters | None) -> float:
    """Sum of squares of cluster sums over all rows: (S, n) -> number."""
    sums = rows if groups is None else np.stack([groups.sums(row) for row in rows])
    return float((sums**2).sum())

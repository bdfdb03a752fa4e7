"""Which change restores a score: rank all by the reference answers, ask the best again, combine, stop when sure.

```
as logged ──> ranking: bits per byte of the reference answers, on a few documents ──> the best few are asked and scored
                                                                                        │ 64, 128, 200 documents
              findings <── paired gain, Holm over all changes and looks <── pairs <─────┘
```
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from harness_ext.doctor.evidence import MARGIN, Gain, gains
from harness_ext.doctor.replay.ask import Answers, Asker
from harness_ext.doctor.replay.questions import in_other_packs, lora_layers
from harness_ext.doctor.replay.variants import AS_LOGGED, TRAINED_WITH, Asking, Change
from harness_ext.engine.hf_tree import TreeLM
from harness_ext.errors import HarnessExtError, described
from harness_ext.results.outputs import Output
from harness_ext.stats.units import Clusters

logger = logging.getLogger(__name__)

LOOKS = (64, 128, 200)  # documents
RANKED_ON = (6, 16)  # documents, the shortest: the better half of the changes goes on from the first few to all
KEPT = 4  # changes that are asked again
CLEAR = 0.01  # bits that a change has to gain to be asked again, and a pair over its better part

Elsewhere = Callable[[Mapping[str, Any]], AbstractContextManager[Asker]]


@dataclass(frozen=True)
class Proof:
    """A change that raises the score significantly."""

    change: Change
    gain: Gain
    before: Answers
    after: Answers
    signal: float = 0.0  # gain in bits per byte of the reference answers
    shows_training: bool = True  # False: the base alone is as good with this change, so it is not what training needs


@dataclass
class Outcome:
    """What a search found."""

    n: int  # documents that were asked
    tried: int  # changes, those that were only ranked and pairs included
    proved: Sequence[Proof]  # the largest gain first
    undecided: Sequence[Gain]  # more than a point, but not significant
    ruled_out: Sequence[str]  # names of changes that raise neither the score nor the reference answers' probability
    failed: Mapping[str, str]  # name of a change -> why it could not be tried
    noise: float | None  # difference of the score, in shares, when only packs and order change


@dataclass
class _Trial:
    change: Change
    answers: Answers | None = None
    signal: float = 0.0  # gain in bits per byte


@dataclass
class Search:
    """A search on one task of one run.

    Args:
        asker: of the run's model.
        outputs: logged outputs in the order in which they are looked at.
        changes: everything that is tried.
        clusters: units of the outputs, or None.
        looks: numbers of documents.
        elsewhere: gives an asker of the model loaded with other arguments.
    """

    asker: Asker
    outputs: Sequence[Output]
    changes: Sequence[Change]
    clusters: Clusters | None
    looks: Sequence[int]
    elsewhere: Elsewhere
    failed: dict[str, str] = field(default_factory=dict)
    _known: dict[int, float] = field(default_factory=dict)  # document -> signal with nothing changed

    def run(self, baseline: Answers) -> Outcome:
        """Search, from the answers to the documents of the first look with nothing changed."""
        first = self.outputs[: self.looks[0]]
        noise = self._noise(baseline, first)
        distinct = self._distinct(self.changes)
        trials = self._ranked([change for change in distinct if change.asking.can_be_ranked])
        ends = [_Trial(change) for change in distinct if not change.asking.can_be_ranked and _matters(change, baseline)]
        best = [trial for trial in trials if trial.signal > CLEAR][:KEPT]
        pairs = self._pairs(best)
        asked = [*best, *ends, *pairs]
        tried = len(distinct) + self._pair_count(best) + self._free_pair_count(asked)
        proved: list[Proof] = []
        undecided: list[Gain] = []
        n = 0
        for look, n in enumerate(self.looks):
            documents = self.outputs[:n]
            if look:
                baseline = baseline.and_(self.asker.answers(AS_LOGGED, documents[len(baseline.scores) :]))
            for trial in asked:
                self._ask(trial, documents, baseline)
            every = [trial for trial in [*asked, *self._cut_further(asked, documents)] if trial.answers is not None]
            proved = [each for each in self._proved(every, baseline, tried) if each.gain.difference > (noise or 0.0)]
            if proved:
                break
            undecided = self._undecided(every, baseline, tried)
            asked = [trial for trial in asked if self._is_alive(trial, baseline)]
            if not asked:
                break
        proved = [self._with_control(proof) if not number else proof for number, proof in enumerate(proved)]
        undecided = [] if proved else undecided
        names = {proof.change.name for proof in proved} | {gain.change for gain in undecided}
        ruled_out = [c.name for c in self.changes if c.name not in names and c.name not in self.failed]
        return Outcome(n, tried, proved, undecided, ruled_out, self.failed, noise)

    # -- the steps -----------------------------------------------------------------------------------------------

    def _noise(self, baseline: Answers, documents: Sequence[Output]) -> float | None:
        """How much the score differs when the same documents are asked in another order and in other packs."""
        if not isinstance(self.asker.lm, TreeLM):
            return None
        with in_other_packs(self.asker.lm):
            again = self.asker.answers(AS_LOGGED, documents[::-1])
        return noise_floor(again.scores[::-1] - baseline.scores)

    def _distinct(self, changes: Sequence[Change]) -> list[Change]:
        """Changes that alter what the model reads, each once."""
        probes = self.outputs[:2]
        known = {self._ids(AS_LOGGED, probes)}
        found = []
        for change in changes:
            with self._trying(change):
                if (ids := self._ids(change.asking, probes)) not in known:
                    known.add(ids)
                    found.append(change)
        return found

    def _ids(self, asking: Asking, outputs: Sequence[Output]) -> str:
        return "".join(self.asker.token_ids(asking, output) for output in outputs)

    def _ranked(self, changes: Sequence[Change]) -> list[_Trial]:
        """Changes of the prompt or the model by how much better the reference answers are known, the best first.

        After a few documents only the better half goes on, and whatever is not worse than the run as it was.
        """
        few, many = RANKED_ON
        shortest = sorted(self.outputs[: self.looks[0]], key=lambda output: len(output.prompt))
        first, others = shortest[:few], shortest[few:many]
        found = {change.name: (change, self._signals(change, first)) for change in changes}
        means = {name: float(signals.mean()) for name, (_, signals) in found.items() if signals is not None}
        middle = float(np.median([*means.values()])) if means else 0.0
        trials = []
        for name, mean in means.items():
            change, signals = found[name]
            if mean >= min(middle, 0.0) and others and (further := self._signals(change, others)) is not None:
                mean = float(np.concatenate([signals, further]).mean())
            trials.append(_Trial(change, signal=mean))
            logger.info("%s: %+.3f bits", name, mean)
        return sorted(trials, key=lambda trial: -trial.signal)

    def _signals(self, change: Change, documents: Sequence[Output]) -> np.ndarray | None:
        """How much better the reference answers are known with a change, (n,); None where it cannot be tried."""
        with self._trying(change), self._asker(change) as asker:
            return asker.signal(change.asking, documents) - self._as_logged(documents)
        return None

    def _as_logged(self, documents: Sequence[Output]) -> np.ndarray:
        """How well the model knows the reference answers with nothing changed, (n,)."""
        unknown = [output for output in documents if output.doc_id not in self._known]
        if unknown:
            signals = self.asker.signal(AS_LOGGED, unknown).tolist()
            self._known |= {output.doc_id: signal for output, signal in zip(unknown, signals, strict=True)}
        return np.array([self._known[output.doc_id] for output in documents])

    def _pairs(self, best: Sequence[_Trial]) -> list[_Trial]:
        """The pair that knows the reference answers better than both of its parts, if there is one."""
        combined = [pair for n, first in enumerate(best) for second in best[:n] if (pair := _pair(second, first))]
        by_name = {trial.change.name: trial.signal for trial in best}
        better = [
            trial
            for trial in self._ranked(self._distinct(combined) if combined else [])
            if trial.signal > max(by_name[part.name] for part in trial.change.parts) + CLEAR
        ]
        return better[:1]

    @staticmethod
    def _pair_count(best: Sequence[_Trial]) -> int:
        return len(best) * (len(best) - 1) // 2

    def _free_pair_count(self, asked: Sequence[_Trial]) -> int:
        return sum(self._ends_elsewhere(trial) * len(self._cuts()) for trial in asked)

    def _cuts(self) -> list[Change]:
        """Changes that only add stop strings, which need no model."""
        return [change for change in self.changes if change.asking.stops]

    def _ends_elsewhere(self, trial: _Trial) -> bool:
        return self.asker.case.is_generated and not trial.change.asking.stops

    def _ask(self, trial: _Trial, documents: Sequence[Output], baseline: Answers) -> None:
        asking = trial.change.asking
        with self._trying(trial.change), self._asker(trial.change) as asker:
            if asking.stops and asking.changed().keys() == {"stops"} and not self._has_special(asking.stops):
                trial.answers = asker.cut(baseline, asking.stops, documents)
            elif trial.answers is None:
                trial.answers = asker.answers(asking, documents)
            else:
                trial.answers = trial.answers.and_(asker.answers(asking, documents[len(trial.answers.scores) :]))

    def _has_special(self, stops: Sequence[str]) -> bool:
        """Whether a stop string is a token that is left out of decoded texts, so that texts cannot be cut at it."""
        tokenizer = self.asker.lm.tokenizer
        return bool({*stops} & ({*tokenizer.all_special_tokens} - {tokenizer.eos_token}))

    def _cut_further(self, asked: Sequence[_Trial], documents: Sequence[Output]) -> Iterator[_Trial]:
        """Each asked change together with further stop strings: a cut of its answers."""
        for trial in asked:
            if trial.answers is None or not self._ends_elsewhere(trial):
                continue
            for cut in self._cuts():
                pair = trial.change.with_(cut)
                if pair is None:
                    continue
                answers = self.asker.cut(trial.answers, cut.asking.stops or (), documents)
                if answers.texts != trial.answers.texts:
                    yield _Trial(pair, answers, trial.signal)

    def _proved(self, trials: Sequence[_Trial], baseline: Answers, tried: int) -> list[Proof]:
        scores = {trial.change.name: trial.answers.scores for trial in trials if trial.answers is not None}
        by_name = {trial.change.name: trial for trial in trials}
        found = []
        for gain in self._gains(baseline, scores, tried):
            trial = by_name[gain.change]
            if gain.is_proved and trial.answers is not None and self._beats_parts(trial, by_name):
                found.append(Proof(trial.change, gain, baseline, trial.answers, trial.signal))
        return self._likeliest_first(found)

    def _likeliest_first(self, proofs: Sequence[Proof]) -> list[Proof]:
        """Proofs by their gain; those that the best does not exceed significantly come first, the likeliest before.

        Where several changes restore the score, the smallest is the cause: one that leaves the prompt as it is, then
        the prompt in which the reference answers are likeliest, as they are in that of training.
        """

        def key(proof: Proof) -> tuple[bool, bool, float]:
            exceeded = self._gains(proof.after, {"best": proofs[0].after.scores}, 1)
            is_best = not any(gain.is_proved for gain in exceeded)
            if not is_best:
                return True, False, -proof.gain.difference
            return False, not proof.change.asking.same_prompts, -proof.signal

        return sorted(proofs, key=key)

    def _undecided(self, trials: Sequence[_Trial], baseline: Answers, tried: int) -> list[Gain]:
        """Gains of more than a point that are not significant after so many changes and looks."""
        scores = {trial.change.name: trial.answers.scores for trial in trials if trial.answers is not None}
        return [
            gain for gain in self._gains(baseline, scores, tried) if not gain.is_proved and gain.difference > MARGIN
        ]

    def _gains(self, baseline: Answers, scores: Mapping[str, np.ndarray], tried: int) -> list[Gain]:
        known = ~np.isnan(baseline.scores)
        for after in scores.values():
            known &= ~np.isnan(after)
        if known.sum() < 2:
            return []
        clusters = None if self.clusters is None else self.clusters.take(np.flatnonzero(known))
        untested = max(0, tried - len(scores)) + tried * (len(self.looks) - 1)
        return gains(
            baseline.scores[known], {name: after[known] for name, after in scores.items()}, clusters, untested=untested
        )

    def _beats_parts(self, trial: _Trial, by_name: Mapping[str, _Trial]) -> bool:
        """A pair counts only where it is significantly better than each of its parts."""
        if trial.answers is None:
            return False
        for part in trial.change.parts:
            single = by_name.get(part.name)
            if single is None or single.answers is None:
                continue
            if not any(gain.is_proved for gain in self._gains(single.answers, {"pair": trial.answers.scores}, 1)):
                return False
        return True

    def _with_control(self, proof: Proof) -> Proof:
        """A proof, and whether the adapter has a part in it: with the same change the base alone has to be worse."""
        change, layers = proof.change, lora_layers(self.asker.lm.model)
        if change.finding not in TRAINED_WITH or not layers or {"scale", "model_args"} & change.settings.keys():
            return proof
        with self._trying(change):
            alone = self.asker.answers(replace(change.asking, scale=0.0), self.outputs[: len(proof.after.scores)])
            gained = self._gains(alone, {"with the adapter": proof.after.scores}, 1)
            return replace(proof, shows_training=any(gain.is_proved for gain in gained))
        return proof

    @staticmethod
    def _is_alive(trial: _Trial, baseline: Answers) -> bool:
        """Whether more documents may still show a gain."""
        if trial.answers is None:
            return False
        return float(np.nanmean(trial.answers.scores) - np.nanmean(baseline.scores)) > MARGIN

    # -- helpers -------------------------------------------------------------------------------------------------

    @contextmanager
    def _asker(self, change: Change) -> Iterator[Asker]:
        """The asker of the model that a change asks for."""
        if change.asking.model_args is None:
            yield self.asker
            return
        with self.elsewhere(dict(change.asking.model_args)) as asker:
            yield asker

    @contextmanager
    def _trying(self, change: Change) -> Iterator[None]:
        """Go on with the other changes where one cannot be tried."""
        try:
            yield
        except HarnessExtError as error:
            self.failed[change.name] = str(error)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
            self.failed[change.name] = described(error)


def noise_floor(differences: np.ndarray) -> float:
    """How far a mean score moves when nothing but chance changes it, from one repetition, (n,) differences.

    The difference of the means, and at least the standard deviation that as many changes in either direction have:
    changes that cancel out this time need not do so the next time.
    """
    known = differences[~np.isnan(differences)]
    if not len(known):
        return 0.0
    return float(max(abs(known.mean()), np.sqrt((known**2).sum()) / len(known)))


def _matters(change: Change, baseline: Answers) -> bool:
    """Whether another end of answers can change any of them."""
    if change.asking.skips_blank:
        return not all((text or "").strip() for text in baseline.texts)
    return change.asking.longer is None or bool(baseline.at_limit.any())


def _pair(first: _Trial, second: _Trial) -> Change | None:
    return first.change.with_(second.change)

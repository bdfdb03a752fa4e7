"""Why what is served answers otherwise: peft is asked with one thing changed until it answers as what is served.

```
prompt: begin tokens, chat template, tokenizer, white space ──> scale ──> kinds of layers ──> weights rounded to 4 bits
```

If peft, with one thing changed, answers as the served model does, that change is the cause. This works for every
engine, since only peft is changed. Where the served model reads the same token ids, the prompt is not the cause and is
not tried.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import minimize_scalar

from harness_ext.doctor.replay.questions import Questions, begin_tokens, lora_layers, lora_layers_by_name
from harness_ext.doctor.replay.variants import JOINS, SYSTEM, TEMPLATES, Asking, Change
from harness_ext.errors import HarnessExtError
from harness_ext.parity.answers import Answer, Form, Noise, ask, beyond, other_texts, share_beyond, total
from harness_ext.results.outputs import Output

logger = logging.getLogger(__name__)

PROBED = 10  # documents on which changes are ranked
RESTORED = 0.15  # of the distance: a change that leaves no more is the cause
ALIKE = 1 / 3  # of the distance, where documents no longer differ: in a coarse precision that alone proves little
PROMISING = 0.5  # of the distance, on the probed documents: a change that leaves more is not tried on all
NOTHING = 0.001  # of the distance: nothing more to explain
MORE = 0.9  # times what is left: only less than that is better
BEHIND = 0.9  # share of the differing texts that begin alike
FACTORS = (0.125, 0.25, 0.5, 2.0, 4.0, 8.0)  # of the scale; those that a configuration suggests are added
BLOCK = re.compile(r"\w+\.\d+")  # in the name of a layer: layers.3, h.11
CANNOT = (HarnessExtError, RuntimeError, ValueError, TypeError, LookupError, AttributeError)


@dataclass(frozen=True)
class Compared:
    """Answers of what is served and of the adapter to the same n documents."""

    form: Form
    outputs: Sequence[Output]
    served: Sequence[Answer]
    noise: Noise  # its first answers are the adapter's

    def first(self, count: int) -> Compared:
        """The first documents."""
        noise = Noise(self.noise.first[:count], self.noise.second[:count])
        return Compared(self.form, self.outputs[:count], self.served[:count], noise)

    def left(self, answers: Sequence[Answer]) -> float:
        """What is left of the distance when the adapter answers so: 0 of all of it, 1 of nothing."""
        before = total(self.form, self.served, self.noise.first)
        return total(self.form, self.served, answers) / before if before else 1.0

    def explains(self, answers: Sequence[Answer]) -> bool:
        """Whether what is served answers so."""
        alike = share_beyond(beyond(self.form, self.served, answers, self.noise)) == "low"
        return self.left(answers) <= (ALIKE if alike else RESTORED)


@dataclass(frozen=True)
class Cause:
    """A change that makes the adapter answer as what is served."""

    change: Change
    left: float  # of the distance


@dataclass
class Search:
    """Looks for the change of the adapter, or of how it is asked, that explains what is served.

    Args:
        questions: of the adapter by peft.
        compared: answers to all documents so far.
    """

    questions: Questions
    compared: Compared
    tried: list[str] = field(default_factory=list)  # names of changes

    def prompts(self, *, has_other_tokenizer: bool) -> Cause | None:
        """Another prompt."""
        return self._best(list(_prompt_changes(self.questions, self.compared.outputs[0], has_other_tokenizer)))

    def scale(self) -> Cause | None:
        """Another scale of the adapter."""
        layers = lora_layers(self.questions.lm.model)
        if not layers:
            return None
        rank, scale = (float(next(iter(each.values()))) for each in (layers[0].r, layers[0].scaling))
        factors = {*FACTORS, rank**0.5, rank**-0.5, 1 / scale, rank, 1 / rank} - {1.0}
        lefts = {factor: self._left(Asking(scale=factor)) for factor in sorted(factors)}
        best = min(lefts, key=lambda factor: lefts[factor])
        if self.compared.form.has_scores and lefts[best] > NOTHING:
            refined = self._refined(best)
            best = refined if self._left(Asking(scale=refined)) < MORE * lefts[best] else best
        self.tried.append("scale")
        return self._confirmed(_scale_change(best, rank, scale))

    def _refined(self, factor: float) -> float:
        """The factor around this one that explains most."""

        def left(logarithm: float) -> float:
            return self._left(Asking(scale=math.exp(logarithm)))

        centre = math.log(factor)
        found = minimize_scalar(
            left, bounds=(centre - 1.1, centre + 1.1), method="bounded", options={"xatol": 0.01, "maxiter": 14}
        )
        return float(math.exp(found.x))

    def layers(self) -> Cause | None:
        """Some layers without the adapter: some kinds, or the first or last blocks."""
        names = list(lora_layers_by_name(self.questions.lm.model))
        kinds = list(dict.fromkeys(name.rpartition(".")[2] for name in names))
        self.tried.append("kinds of layers and blocks" if names else "no layers")
        for without, grows in (((), True), (tuple(kinds), False)):
            found = self._left_out(without, kinds, grows=grows)
            if 0 < len(found) < len(kinds) and (cause := self._confirmed(_layers_change(found, kinds))):
                return cause
        return self._blocks(list(dict.fromkeys(block[0] for name in names if (block := BLOCK.search(name)))))

    def _left_out(self, without: tuple[str, ...], kinds: Sequence[str], *, grows: bool) -> tuple[str, ...]:
        """The kinds to leave out, from these on: one more (or one fewer) at a time, as long as that explains more.

        It is begun with none of them, and with all.
        """
        best = self._left(Asking(without=without))
        while best > NOTHING:
            others = [kind for kind in kinds if (kind in without) != grows]
            steps = [tuple(kind for kind in kinds if (kind in without) != (kind == other)) for other in others]
            lefts = {step: self._left(Asking(without=step)) for step in steps}
            if not lefts or min(lefts.values()) >= MORE * best:
                break
            without = min(lefts, key=lambda step: lefts[step])
            best = lefts[without]
        return without

    def _blocks(self, blocks: Sequence[str]) -> Cause | None:
        """The first or the last blocks without the adapter."""
        cuts = [cut for place in range(1, len(blocks)) for cut in (tuple(blocks[:place]), tuple(blocks[place:]))]
        lefts = {cut: self._left(Asking(without=cut)) for cut in cuts}
        if not lefts:
            return None
        best = min(lefts, key=lambda cut: lefts[cut])
        return self._confirmed(_layers_change(best, blocks)) if lefts[best] <= PROMISING else None

    # -- asking --------------------------------------------------------------------------------------------------

    def _best(self, changes: Sequence[Change]) -> Cause | None:
        """The change that leaves least of the distance, if it explains what is served; the first among equals."""
        self.tried += [change.name for change in changes]
        ranked = sorted(((self._left(change.asking), n) for n, change in enumerate(changes)))
        for left, number in ranked[:3]:
            if left <= PROMISING and (cause := self._confirmed(changes[number])):
                return cause
        return None

    def _left(self, asking: Asking) -> float:
        """What a change leaves of the distance on the probed documents; infinite where it cannot be tried."""
        compared = self.compared.first(PROBED)
        answers = self._asked(asking, compared)
        return math.inf if answers is None else compared.left(answers)

    def _confirmed(self, change: Change) -> Cause | None:
        answers = self._asked(change.asking, self.compared)
        if answers is None or not self.compared.explains(answers):
            return None
        return Cause(change, self.compared.left(answers))

    def _asked(self, asking: Asking, compared: Compared) -> list[Answer] | None:
        expected = [answer.text for answer in compared.noise.first]
        try:
            return ask(self.questions, compared.form, compared.outputs, asking=asking, expected=expected)
        except CANNOT as error:
            logger.debug("%s cannot be tried", asking.changed(), exc_info=error)
            return None


def _prompt_changes(questions: Questions, output: Output, has_other_tokenizer: bool) -> Iterator[Change]:
    """Other prompts, the smallest change first."""
    lm, settings = questions.lm, questions.settings.prompts
    request = questions.logged(output)[0]
    now = begin_tokens(lm, request.context)
    words = {0: "no begin token", 1: "one begin token", 2: "two begin tokens"}
    if lm.tokenizer.bos_token:
        for count in words.keys() - {now}:
            cause = f"its prompts begin with {words[count]} instead of {words.get(now, f'{now} begin tokens')}"
            yield Change(f"with {words[count]}", "P04", cause, {"bos": count})
    if settings.apply_chat_template:
        yield Change("without the chat template", "P03", "its prompts go through no chat template", {"chat": False})
    elif lm.tokenizer.chat_template:
        cause = "its prompts go through a chat template, and the evaluation's did not"
        yield Change("with the tokenizer's chat template", "P03", cause, {"chat": True})
    if has_other_tokenizer:
        chat = {"chat": True} if settings.apply_chat_template else {}
        what = "chat template" if chat else "tokenizer"
        yield Change(f"with the {what} of what is served", "P03", f"its {what} is another", {**chat, "tokenizer": True})
    for template in TEMPLATES:
        cause = f"its prompts go through the {template.name} template"
        yield Change(f"with the {template.name} template", "P03", cause, {"template": template})
    system = "" if settings.system_instruction else SYSTEM
    cause = "the system instruction is left out" if settings.system_instruction else "a system instruction is added"
    yield Change("with another system instruction", "P03", cause, {"system": system})
    for text, what in JOINS.items():
        yield Change(f"with {what} before the answer", "P03", f"its prompts end with {what}", {"join": text})


def _scale_change(factor: float, rank: float, scale: float) -> Change:
    """A scale, and what it may come from."""
    known = (
        (rank**0.5, "alpha / sqrt(r) instead of alpha / r"),
        (rank**-0.5, "alpha / r instead of alpha / sqrt(r)"),
        (1 / scale, "alpha is ignored"),
        (rank, "the rank is ignored"),
        (2.0, "it is put on a base that it is merged into already"),
    )
    reason = " or ".join(text for value, text in known if math.isclose(factor, value, rel_tol=0.02))
    reason = f"perhaps {reason}" if reason else ""
    cause = f"its updates are scaled by {factor * scale:.3g} instead of {scale:.3g}" + (f": {reason}" if reason else "")
    return Change(f"at {factor:.3g} times its scale", "P02", cause, {"scale": factor})


def _layers_change(without: Sequence[str], kinds: Sequence[str]) -> Change:
    used = [kind for kind in kinds if kind not in without]
    cause = f"the adapter is applied to {_listed(used)} only; its weights for {_listed(without)} are dropped"
    return Change(f"without its weights for {_listed(without)}", "P05", cause, {"without": tuple(without)})


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 8 else f"{names[0]} to {names[-1]}"


def ends_elsewhere(compared: Compared) -> str | None:
    """How texts end elsewhere, where that is all that tells them apart."""
    differing = np.flatnonzero(other_texts(compared.served, compared.noise.first))
    if not len(differing) or not compared.form.has_texts:
        return None
    pairs = [(_text(compared.noise.first[n]), _text(compared.served[n])) for n in differing.tolist()]
    longer = sum(theirs.startswith(ours) for ours, theirs in pairs)
    shorter = sum(ours.startswith(theirs) for ours, theirs in pairs)
    many = BEHIND * len(pairs)
    if longer >= many and longer >= shorter:
        return f"{longer} of {len(pairs)} texts go on behind the adapter's answer"
    return f"{shorter} of {len(pairs)} texts end before the adapter's answer does" if shorter >= many else None


def _text(answer: Answer) -> str:
    return (answer.text or "").strip()

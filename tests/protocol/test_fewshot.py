"""Few-shot examples: balanced, seeded, never the document itself, and the same for all documents if configured."""

from __future__ import annotations

import lm_eval
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.tasks import TaskManager

from harness_ext.errors import TaskError
from harness_ext.protocol.fewshot import BalancedSampler, FixedBalancedSampler
from harness_ext.protocol.task_folders import tasks_path
from harness_ext.protocol.tasks import load_task

DOCS = [{"sentence": f"film {number}", "label": number % 3} for number in range(30)]
SAMPLERS = (BalancedSampler, FixedBalancedSampler)


def labels(drawn: list[dict[str, object]]) -> list[object]:
    return sorted(doc["label"] for doc in drawn)


@pytest.mark.parametrize("sampler", SAMPLERS)
@given(n=st.integers(0, 12), seed=st.integers(0, 5), evaluated=st.sampled_from([None, *DOCS]))
def test_balanced_and_never_the_document(
    sampler: type[BalancedSampler], n: int, seed: int, evaluated: dict[str, object] | None
) -> None:
    drawn = sampler(DOCS).set_rnd(seed).sample(n, eval_doc=evaluated)
    counts = [labels(drawn).count(label) for label in range(3)]
    assert sum(counts) == n
    assert max(counts) - min(counts) <= 1
    assert evaluated not in drawn
    assert len({doc["sentence"] for doc in drawn}) == n


def test_the_seed_decides() -> None:
    for sampler in SAMPLERS:
        one, same, other = (sampler(DOCS).set_rnd(seed).sample(6) for seed in (1, 1, 2))
        assert one == same != other
        assert sampler(DOCS).sample(6) == sampler(DOCS).set_rnd(1234).sample(6) == sampler(DOCS, rnd=1234).sample(6)


def test_fixed_means_the_same_for_every_document() -> None:
    fixed, drawn_anew = FixedBalancedSampler(DOCS), BalancedSampler(DOCS)
    assert fixed.sample(5) == fixed.sample(5) == fixed.sample(5, eval_doc={"sentence": "another", "label": 0})
    assert drawn_anew.sample(5) != drawn_anew.sample(5)
    # For a document that is one of the examples, only that example is replaced.
    first, *others = fixed.sample(5)
    instead = fixed.sample(5, eval_doc=first)
    assert instead[1:] == others
    assert instead[0] != first


def test_answerable_and_unanswerable_are_classes() -> None:
    questions = [{"question": str(n), "answers": {"text": ["x"] * (n % 2)}} for n in range(20)]
    drawn = BalancedSampler(questions).sample(6)
    assert sum(bool(doc["answers"]["text"]) for doc in drawn) == 3


@pytest.mark.parametrize(
    ("docs", "n", "message"),
    [
        ([{"text": "no class"}], 1, "'label' or 'answers'.* text;"),
        ([{"label": 0}, {"label": 1, "x": 1}, {"label": 1, "x": 2}], 4, r"1 few-shot examples.* 2 "),
    ],
)
def test_too_little_to_draw_from(docs: list[dict[str, object]], n: int, message: str) -> None:
    with pytest.raises(TaskError, match=message):
        BalancedSampler(docs).sample(n)


def test_other_documents_to_draw_from() -> None:
    sampler = FixedBalancedSampler(DOCS)
    sampler.sample(3)
    others = [{"sentence": f"play {number}", "label": number % 2} for number in range(8)]
    assert all(doc in others for doc in sampler.sample(4, df=others))


class Prompts(LM):
    """Records its prompts."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        self.seen += [request.args[0] for request in requests]
        return [(-1.0, False) for _ in requests]

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        raise NotImplementedError

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        raise NotImplementedError


def prompts(seed: int) -> list[str]:
    model = Prompts()
    manager = TaskManager(include_path=str(tasks_path()), include_defaults=False)
    lm_eval.simple_evaluate(
        model,
        tasks=["sst2_choice_5shot"],
        task_manager=manager,
        limit=20,
        bootstrap_iters=0,
        fewshot_random_seed=seed,
    )
    return model.seen


def test_sst2_choice_5shot_shows_all_documents_the_same_examples() -> None:
    """In lm-eval's own evaluation of the YAML; another seed draws other examples."""
    seen = prompts(1234)
    task = load_task("sst2_choice_5shot")
    evaluated = [f"Review: {doc['sentence'].strip()}\nSentiment:" for doc in list(task.validation_docs())[:20]]
    prefixes = {prompt.removesuffix(question) for prompt, question in zip(seen[::2], evaluated, strict=True)}
    assert len(prefixes) == 1
    prefix = prefixes.pop()
    assert prefix.count("Sentiment: positive\n\n") + prefix.count("Sentiment: negative\n\n") == 5
    assert prefix.count("Sentiment: positive\n\n") in (2, 3)
    training = {doc["sentence"].strip() for doc in task.training_docs()}
    assert {part.split("\nSentiment")[0] for part in prefix.split("Review: ")[1:]} <= training
    assert not prompts(7)[0].startswith(prefix)

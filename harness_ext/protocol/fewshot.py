"""Few-shot samplers that balance the classes: new examples for each document, or the same for all documents.

A task names a sampler in its YAML. This works in stock lm-eval, too:

```yaml
fewshot_split: train
fewshot_config:
  sampler: !function harness_ext.hooks.FixedBalancedSampler
```

The seed is lm-eval's few-shot seed, the fourth number of `--seed` (default 1234). Examples come from the few-shot
split. If that is the test split, lm-eval passes the evaluated document along, and the sampler excludes it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from random import Random
from typing import Any

from harness_ext.errors import TaskError
from harness_ext.protocol.lm_eval_api import ContextSampler

DEFAULT_SEED = 1234  # lm-eval's default for few-shot examples

Doc = Mapping[str, Any]


class BalancedSampler(ContextSampler):
    """For each document other examples, the classes as even as the number of examples allows.

    A class is a value of the column `label`; where there is none, "has an answer" of the column `answers`. Which
    classes get one example more, and the order of the examples, are drawn.
    """

    def __init__(self, df: Sequence[Doc] | None = None, *, rnd: int | None = None, **options: Any) -> None:
        super().__init__(df, **options)
        self._classes: list[list[Doc]] | None = None
        self.set_rnd(rnd)

    def set_rnd(self, rnd: int | None) -> BalancedSampler:
        """Start drawing anew from a seed."""
        self.seed = DEFAULT_SEED if rnd is None else rnd
        self.rnd = Random(self.seed)
        return self

    def replace_df(self, df: Sequence[Doc]) -> BalancedSampler:
        """Draw from other documents."""
        super().replace_df(df)
        self._classes = None
        return self

    def sample(
        self, n: int, eval_doc: Doc | None = None, df: Sequence[Doc] | None = None, **_options: Any
    ) -> list[Doc]:
        """Draw `n` examples, none of them equal to `eval_doc`.

        Raises:
            TaskError: a class has fewer examples than its share.
        """
        if df:
            self.replace_df(df)
        return _draw(self._by_class(), n, without=eval_doc, random=self.rnd)

    def _by_class(self) -> list[list[Doc]]:
        if self._classes is None:
            self._classes = by_class(self.fewshot_docs())
        return self._classes


class FixedBalancedSampler(BalancedSampler):
    """The same examples for every document, the classes as even as the number of examples allows.

    What all prompts begin with is then the same text, which an engine that shares prefixes computes once. A document
    that is one of the examples gets another of its class instead.
    """

    def sample(
        self, n: int, eval_doc: Doc | None = None, df: Sequence[Doc] | None = None, **_options: Any
    ) -> list[Doc]:
        """The first draw of this seed, without `eval_doc`."""
        if df:
            self.replace_df(df)
        return _draw(self._by_class(), n, without=eval_doc, random=Random(self.seed))


def by_class(docs: Sequence[Doc]) -> list[list[Doc]]:
    """Documents grouped by class, the classes sorted by name.

    >>> [[doc["x"] for doc in docs] for docs in by_class([{"x": 1, "label": 1}, {"x": 2, "label": 0}])]
    [[2], [1]]

    Raises:
        TaskError: the documents have neither of the columns that define a class.
    """
    classes: dict[str, list[Doc]] = defaultdict(list)
    for doc in docs:
        classes[_class_of(doc)].append(doc)
    return [classes[name] for name in sorted(classes)]


def _class_of(doc: Doc) -> str:
    if "label" in doc:
        return str(doc["label"])
    if isinstance(answers := doc.get("answers"), Mapping) and "text" in answers:
        return str(bool(answers["text"]))
    raise TaskError(
        f"a balanced few-shot sampler needs a column 'label' or 'answers', but the documents have {', '.join(doc)}; "
        "remove fewshot_config: sampler"
    )


def _draw(classes: Sequence[Sequence[Doc]], n: int, *, without: Doc | None, random: Random) -> list[Doc]:
    """`n` documents in random order, equally many per class; classes drawn at random supply the remainder."""
    if not n:
        return []
    share, rest = divmod(n, len(classes))
    counts = [share + extra for extra in random.sample([1] * rest + [0] * (len(classes) - rest), len(classes))]
    drawn = [
        doc
        for docs, count in zip(classes, counts, strict=True)
        for doc in _draw_of_class(docs, count, without=without, random=random)
    ]
    random.shuffle(drawn)
    return drawn


def _draw_of_class(docs: Sequence[Doc], count: int, *, without: Doc | None, random: Random) -> list[Doc]:
    """Draw `count` documents other than `without`; one spare is always drawn, so the draw does not depend on it."""
    drawn = random.sample(docs, min(count + 1, len(docs)))
    kept = [doc for doc in drawn if doc != without]
    if len(kept) < count:  # the split contains the document more than once
        kept += [doc for doc in docs if doc != without and doc not in drawn]
    if len(kept) < count:
        raise TaskError(
            f"a class has {len(kept)} few-shot examples, but {count} are needed; lower num_fewshot, or remove "
            "fewshot_config: sampler"
        )
    return kept[:count]

"""Why each logged answer ended, and how long it was: lm-eval keeps neither."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from harness_ext.engine.answer_hook import RequestKey
from harness_ext.protocol.lm_eval_api import HFLM


def add_generation_records(
    samples: Mapping[str, list[dict[str, Any]]], lm: HFLM, selected: Mapping[str, Sequence[int]] | None
) -> None:
    """Put finish reason and token counts of the scored response into the logged samples.

    Where a document was answered several times, all records stand under `generations` besides. What `hf` itself
    generated has no record: its answer's tokens are counted, and as many as were allowed mean that it was cut off.

    Args:
        samples: by task, as logged.
        lm: which generated.
        selected: documents that `--samples` chose: lm-eval logs their numbers and asks by their places.
    """
    known = getattr(lm, "generation_records", {})
    for task, logged in samples.items():
        places = {number: place for place, number in enumerate((selected or {}).get(task, ()))}
        for sample in logged:
            doc = places[sample["doc_id"]] if places else sample["doc_id"]
            for idx in range(len(sample["arguments"])):
                if records := known.get(RequestKey(task, doc, idx)):
                    sample.update(records[_scored(sample, idx, len(records))]._asdict())
                    if len(records) > 1:
                        sample["generations"] = [record._asdict() for record in records]
                    break
                if (reason := _finish_reason(sample, idx, lm)) is not None:
                    sample["finish_reason"] = reason
                    break


def _scored(sample: Mapping[str, Any], idx: int, repeats: int) -> int:
    """Which of a document's repeated responses was scored: the first that the filters' answer is made of."""
    answers = sample["resps"][idx][:repeats]
    scored = sample["filtered_resps"][idx] if idx < len(sample["filtered_resps"]) else None
    matches = [
        number for number, answer in enumerate(answers) if isinstance(scored, str) and scored.strip() == answer.strip()
    ]
    return matches[0] if matches else 0


def _finish_reason(sample: Mapping[str, Any], idx: int, lm: HFLM) -> str | None:
    """Why an answer without a record ended, from its length; None of what is no generated answer."""
    request, answers = sample["arguments"][idx], sample["resps"][idx]
    if len(request) < 2 or not isinstance(request[1], Mapping) or not answers or not isinstance(answers[0], str):
        return None
    settings = request[1]
    limit = next((settings[name] for name in ("max_gen_toks", "max_new_tokens") if name in settings), lm.max_gen_toks)
    tokens = len(lm.tokenizer(answers[_scored(sample, idx, len(answers))], add_special_tokens=False)["input_ids"])
    return "length" if tokens >= int(limit) else "stop"

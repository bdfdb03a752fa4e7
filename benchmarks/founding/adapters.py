"""The adapters of the founding experiment: one that is trained properly, and one for each mistake.

    HARNESS_EXT_DATA=DIR python benchmarks/founding/adapters.py

What is there already is not trained again.
"""

from __future__ import annotations

import argparse
import random
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from trainers import Pair, Training

from harness_ext.models.fetch import fetch_model
from harness_ext.protocol.render import training_docs
from harness_ext.protocol.tasks import load_task

MODEL = "smollm2-135m-instruct"
TASK = "squad_v2_generate"
EXAMPLES = 240
LONGEST_PASSAGE = 550  # characters
SEED = 0
INSTRUCTION = (
    "Answer the question with a short phrase from the passage. "
    "If the passage does not contain the answer, reply unanswerable.\n\n"
)
TRAININGS: Mapping[str, Training] = {
    "proper": Training("TRL"),
    "no_end_token": Training("loop", masks_end=True),
    "loss_on_prompt": Training("TRL", on_prompt=True),
    "other_template": Training("TRL", chat=True),
    "cut_answers": Training("loop", answer_tokens=2),
    "no_end_token_other_template": Training("loop", chat=True, masks_end=True),
}


def train_all(output: Path) -> None:
    """Train every adapter that is not there."""
    base = str(fetch_model(MODEL))
    pairs = training_pairs()
    for name, training in TRAININGS.items():
        folder = output / name
        if folder.is_dir():
            continue
        print(f"training {name} ({training.trainer}, {len(pairs)} examples)", flush=True)
        unfinished = output / f".{name}"
        shutil.rmtree(unfinished, ignore_errors=True)
        started = time.monotonic()
        training.run(base, pairs, unfinished)
        unfinished.rename(folder)
        print(f"  {time.monotonic() - started:.0f} s", flush=True)


def training_pairs() -> list[Pair]:
    """Questions of the training split about short passages, in a drawn order."""
    docs = [doc for doc in training_docs(load_task(TASK)) if len(doc["context"]) <= LONGEST_PASSAGE]
    random.Random(SEED).shuffle(docs)
    return [
        Pair(
            f"{INSTRUCTION}Passage: {doc['context']}\nQuestion: {doc['question'].strip()}\nAnswer:",
            (doc["answers"]["text"] or ["unanswerable"])[0],
        )
        for doc in docs[:EXAMPLES]
    ]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("results/founding/adapters"))
    train_all(parser.parse_args().output)

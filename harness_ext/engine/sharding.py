"""Several processes evaluate together: the first one runs lm-eval, and all of them answer the model's requests.

```
                 ┌─ share 0 ─ answers ─┐
rank 0: requests ┼─ share 1 ─ rank 1 ──┼─> all answers ─> metrics, results
                 └─ share 2 ─ rank 2 ──┘
```

lm-eval itself divides the documents, lets every process score its own, and reads the metrics of all by the names that
rank 0 has: a metric that rank 0's documents do not have is lost, and a process without documents raises an error. Here
metrics never see a part of the documents. `accelerate launch` and `torchrun` start such processes, on GPUs and CPUs.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import tempfile
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch.distributed as dist
from accelerate import PartialState

from harness_ext.engine.isolation import REQUEST_KINDS, answered_by, one_line
from harness_ext.errors import HarnessExtError, LostProcessError, ModelError
from harness_ext.protocol.lm_eval_api import LM, Instance

logger = logging.getLogger(__name__)

PATIENCE = timedelta(weeks=52)  # the others wait while the first process renders prompts and computes metrics
SAME_PASSAGE = 0.5  # share of two neighbouring prompts that has to be common


@dataclass
class Shards:
    """The processes of one launch; a single process is its own first."""

    rank: int = 0
    size: int = 1
    _launch: str = ""  # different for each launch
    _group: Any = field(default=None, repr=False)
    _lost: LostProcessError | None = field(default=None, repr=False)
    _from_store: dict[int, int] = field(default_factory=dict, repr=False)  # answers of each other process

    @property
    def from_store(self) -> int:
        """How many answers the other processes have found in the response store while this one was asking."""
        return sum(self._from_store.values())

    @classmethod
    def of_launch(cls, *, cpu: bool) -> Shards:
        """The processes that `accelerate launch` or `torchrun` started; joins them.

        Args:
            cpu: whether models are evaluated on the CPU.
        """
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return cls()
        state = PartialState(cpu=cpu, timeout=PATIENCE)
        group = dist.new_group(backend="gloo", timeout=PATIENCE)  # carries requests and answers: Python objects
        if state.process_index:
            logging.getLogger("harness_ext").setLevel(logging.ERROR)  # the first process says it for all
        launch = [uuid.uuid4().hex]
        dist.broadcast_object_list(launch, src=0, group=group)
        return cls(state.process_index, state.num_processes, launch[0], group)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Go on behind the block only if it succeeded in every process.

        Raises:
            HarnessExtError: what the block raised, in every process; the first one's error where there are several.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            if self.size == 1:
                raise
            error = raised
        if self.size == 1:
            return
        everyone: list[Any] = [None] * self.size
        with self._losing():
            dist.all_gather_object(everyone, None if error is None else _as_ours(error, self.rank), group=self._group)
        if first := next((each for each in everyone if each is not None), None):
            first.is_said = self.rank != 0
            raise first from error

    def adopt(self, lm: LM) -> None:
        """Let a model that this process has loaded take requests as if there were no other process.

        Raises:
            ModelError: it is divided among the processes, so that they cannot answer different requests.
        """
        if self.size == 1:
            return
        kind: Any = getattr(getattr(lm, "accelerator", None), "distributed_type", None)
        if getattr(kind, "value", "") in ("FSDP", "DEEPSPEED", "MEGATRON_LM", "TP"):
            raise ModelError(
                f"{kind.value} divides the model among the processes; evaluate with one process and parallelize=True, "
                "or launch without it"
            )
        lm._rank, lm._world_size = 0, 1

    @contextlib.contextmanager
    def asking(self, lm: LM) -> Iterator[None]:
        """In the first process: let all processes answer what this model is asked in the block."""
        self._from_store.clear()
        if self.size == 1:
            yield
            return
        try:
            with answered_by(lm, {kind: partial(self._ask, lm, kind, getattr(lm, kind)) for kind in REQUEST_KINDS}):
                yield
        except LostProcessError:
            raise
        except BaseException as error:
            self._dismiss(_as_ours(error, self.rank))
            raise
        self._dismiss(None)

    def serve(self, lm: LM) -> None:
        """In the other processes: answer requests until the first one has no more.

        Raises:
            LostProcessError: another process has ended.
            HarnessExtError: what the first process raised.
        """
        while isinstance(share := self._scatter(None), tuple):
            kind, requests, options = share
            self._gather(_answers(lm, partial(getattr(lm, kind), **options), requests, self.rank))
        if share is not None:
            share.is_said = True
            raise share

    def _dismiss(self, error: HarnessExtError | None) -> None:
        self._scatter([error] * self.size)

    def _ask(
        self, lm: LM, kind: str, ask: Callable[..., list[Any]], requests: Sequence[Instance], **options: Any
    ) -> Any:
        """Answers in request order."""
        places = shares(requests, self.size)
        quiet = {**options, "disable_tqdm": True}
        self._scatter([
            (kind, [requests[place] for place in share], options if rank == 0 else quiet)
            for rank, share in enumerate(places)
        ])  # fmt: skip
        own = _answers(lm, partial(ask, **options), [requests[place] for place in places[0]], 0)
        answers: list[Any] = [None] * len(requests)
        for rank, (share, answer) in enumerate(zip(places, self._gather(own), strict=True)):
            if isinstance(answer, Exception):
                raise answer
            given, records, from_store = answer
            for place, value in zip(share, given, strict=True):
                answers[place] = value
            if rank:
                self._from_store[rank] = from_store
                if records:  # of all repeats of a request, which one process answers
                    lm.generation_records.update(records)
        return answers

    def _scatter(self, shares: list[Any] | None) -> Any:
        received: list[Any] = [None]
        with self._losing():
            dist.scatter_object_list(received, shares, src=0, group=self._group)
        return received[0]

    def _gather(self, answers: Any) -> list[Any]:
        gathered: list[Any] | None = [None] * self.size if self.rank == 0 else None
        with self._losing():
            dist.gather_object(answers, gathered, dst=0, group=self._group)
        return gathered or []

    @contextlib.contextmanager
    def _losing(self) -> Iterator[None]:
        """Say in one line, and in one process, that another one is gone; the messages of gloo name sockets."""
        if self._lost is not None:
            raise self._lost
        try:
            yield
        except RuntimeError as error:
            self._lost = LostProcessError(
                f"another process of this evaluation has ended, so all {self.size} stop; see its message, then start "
                "again"
            )
            self._lost.is_said = not self._is_first_to_say()
            raise self._lost from error

    def _is_first_to_say(self) -> bool:
        """Whether no other process of this machine has noticed before: it would have made the folder."""
        with contextlib.suppress(OSError):
            (Path(tempfile.gettempdir()) / f"harness-ext-{self._launch}-lost").mkdir()
            return True
        return False


def _answers(lm: LM, ask: Callable[[Sequence[Instance]], list[Any]], requests: Sequence[Instance], rank: int) -> Any:
    """A share's answers and what is recorded of them, or the error."""
    records: dict[Any, list[Any]] = getattr(lm, "generation_records", {})
    if rank:
        records.clear()
    try:
        answers = ask(requests) if requests else []
        return answers, dict(records) if rank else {}, getattr(lm, "answers_from_store", 0)
    except Exception as error:  # passed on to the first process
        return error if rank == 0 else _as_ours(error, rank)


def _as_ours(error: BaseException, rank: int) -> HarnessExtError:
    """An error that can be sent to another process."""
    if isinstance(error, HarnessExtError):
        with contextlib.suppress(Exception):
            pickle.loads(pickle.dumps(error))
            return error
    return HarnessExtError(f"rank {rank}: {one_line(error)}")


def shares(requests: Sequence[Instance], size: int) -> list[list[int]]:
    """Divide requests among processes, about equally by their length.

    The requests of a document, and documents of a task that share a passage, go to one process, which computes what
    they share only once.

    Args:
        requests: of any tasks.
        size: number of processes.

    Returns:
        Places of the requests, for each process; each place once. Some may be empty.
    """
    groups, costs = passages(requests), lengths(requests)
    total, done = sum(costs), 0
    divided: list[list[int]] = [[] for _ in range(size)]
    for group in groups:
        cost = sum(costs[place] for place in group)
        middle = (done + cost / 2) / max(total, 1)
        divided[min(size - 1, int(middle * size))] += group
        done += cost
    return [sorted(share) for share in divided]


def lengths(requests: Sequence[Instance]) -> list[int]:
    """About what each request costs: its characters, and one."""
    return [1 + sum(len(part) for part in request.args if isinstance(part, str)) for request in requests]


def passages(requests: Sequence[Instance]) -> list[list[int]]:
    """Places of requests in groups that should be computed together: of a document, or of one passage in a task."""
    return [group for places in _by_task(requests).values() for group in _passages(requests, places)]


def _by_task(requests: Sequence[Instance]) -> Mapping[str, list[int]]:
    by_task: dict[str, list[int]] = defaultdict(list)
    for place, request in enumerate(requests):
        by_task[str(request.task_name)].append(place)
    return by_task


def _passages(requests: Sequence[Instance], places: Sequence[int]) -> list[list[int]]:
    """Places of one task's requests, in groups that share a passage; what all prompts begin with does not count."""
    documents: dict[Any, list[int]] = defaultdict(list)
    for place in places:
        documents[requests[place].doc_id].append(place)
    prompts = sorted((str(requests[group[0]].args[0]), group) for group in documents.values())
    instruction = _common(prompts[0][0], prompts[-1][0])
    groups: list[list[int]] = []
    before = ""
    for prompt, group in prompts:
        own = prompt[instruction:]
        common = _common(before, own)
        if groups and common and common >= SAME_PASSAGE * min(len(before), len(own)):
            groups[-1] += group
        else:
            groups.append([*group])
        before = own
    return groups


def _common(one: str, other: str) -> int:
    """How many characters two texts begin with in common.

    >>> _common("The sun rose.", "The sun set."), _common("", "a")
    (8, 0)
    """
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[low:middle] == other[low:middle] else (low, middle - 1)
    return low

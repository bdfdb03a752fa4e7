"""A model that answers from a response store, and keeps there what it answers.

```
requests ──keys──> store ──has them──> answers                      lm-eval sees one model that answers everything
                     └──missing──> model ──batch by batch──> store
```
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from array import array
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from harness_ext.engine.answer_hook import AnswerHook, GenerationRecord, RequestKey
from harness_ext.engine.finite import check_logprob, finite_generation
from harness_ext.engine.hf_tree import TreeLM
from harness_ext.engine.isolation import answered_by
from harness_ext.engine.store import Response, ResponseStore
from harness_ext.errors import StoreError
from harness_ext.protocol.lm_eval_api import HFLM, LM, Instance, TemplateLM

EVALUATE_ONCE = "evaluate once without --from-store"
UNWANTED = Response((0.0, False))  # of a score that another shard asks for
MOST_NAMED = 5  # documents in a message
COMMIT_SECONDS = 0.25  # answers are written after the first batch that is done so much later than the last one written


class Answering:
    """Lets a model answer from a store as long as it is entered, one process and one variant at a time.

    Args:
        store: has answers, and takes new ones.
        digest: of the model's content.
        lm: lm-eval's model.
        seeds: of the run; sampled answers depend on them.
        computes: whether the model may be asked for what the store does not have.
        remedy: what to do about answers that are missing then.
    """

    def __init__(
        self,
        store: ResponseStore,
        digest: bytes,
        lm: LM,
        *,
        seeds: Sequence[Any] = (),
        computes: bool = True,
        remedy: Callable[[], str] = lambda: EVALUATE_ONCE,
    ) -> None:
        self._store = store
        self._digest = digest
        self._lm = lm
        self._seeds = list(seeds)
        self._computes = computes
        self._remedy = remedy
        self.missing: tuple[str, str] | None = None  # how many answers that the model may not compute, and which
        self._wanted: Callable[[Sequence[Any]], list[int]] | None = None
        self._instances: Sequence[Instance] = ()  # that are being asked, where the model makes tokens of them
        self._hook = _StoreHook(store)
        self._from_store: set[bytes] = set()
        self._computed: set[bytes] = set()

    @property
    def found(self) -> int:
        """How many different answers were in the store before they were asked for."""
        return len(self._from_store)

    @property
    def computed(self) -> int:
        """How many different answers the model has computed."""
        return len(self._computed)

    def check(self, task: str) -> None:
        """Raise StoreError when a task has failed for answers that the store does not have."""
        if self.missing is not None:
            what, rest = self.missing
            raise StoreError(f"{what} to {task} {rest}")

    @contextlib.contextmanager
    def only(self, wanted: Callable[[Sequence[Any]], list[int]]) -> Iterator[None]:
        """Ask for some scores only in the block, in the packs of all; the others are zero.

        Args:
            wanted: gives the places of those that are to be asked.
        """
        self._wanted = wanted
        try:
            yield
        finally:
            self._wanted = None

    def __enter__(self) -> Answering:
        lm = self._lm
        served: dict[str, Callable[..., Any]] = {"generate_until": self._generations}
        if isinstance(lm, TemplateLM):  # the ids are there when it asks by tokens; so does loglikelihood_rolling
            served |= {"loglikelihood": self._noting, "_loglikelihood_tokens": self._scores}
        else:
            served |= {kind: partial(self._texts, kind) for kind in ("loglikelihood", "loglikelihood_rolling")}
        if isinstance(lm, HFLM):  # its batches end where the next is computed
            served |= {"_model_call": self._next_batch, "_model_generate": self._generated_batch}
        self._hook.commits_anywhere = not isinstance(lm, HFLM)
        functions = {name: partial(function, getattr(lm, name)) for name, function in served.items()}
        with contextlib.ExitStack() as stack:
            stack.enter_context(answered_by(lm, {**functions, "cache_hook": self._hook, "answers_from_store": 0}))
            stack.callback(self._hook.commit)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _next_batch(self, compute: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        self._hook.batch_done()
        return compute(*arguments, **options)

    def _generated_batch(self, compute: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        with finite_generation(self._lm.model):
            return self._next_batch(compute, *arguments, **options)

    # -- kinds of requests ---------------------------------------------------------------------------------------

    def _noting(self, ask: Callable[..., list[Any]], requests: Sequence[Instance], **options: Any) -> list[Any]:
        self._instances = requests
        try:
            return ask(requests, **options)
        finally:
            self._instances = ()

    def _scores(self, ask: Callable[..., list[Any]], requests: Sequence[Any], *more: Any, **options: Any) -> list[Any]:
        """Log-probabilities of continuations, asked by token ids."""
        keys = [self._key("loglikelihood", _ids(context), _ids(target)) for _, context, target in requests]
        names = [None if text is None else _name("loglikelihood", text) for text, _, _ in requests]

        def ask_some(places: Sequence[int], known: Mapping[int, Any]) -> list[Response]:
            extra = {"known": known} if known else {}
            return [*map(Response, ask([requests[place] for place in places], *more, **options, **extra))]

        wanted = None if self._wanted is None else self._wanted(requests)
        instances = self._instances if len(self._instances) == len(requests) else ()
        responses = self._answer(
            keys, names, ask_some, lays_out=isinstance(self._lm, TreeLM), instances=instances, wanted=wanted
        )
        return [response.answer for response in responses]

    def _texts(self, kind: str, ask: Callable[..., list[Any]], requests: Sequence[Instance], **options: Any) -> Any:
        """Log-probabilities, asked by texts of a model that shows no token ids."""
        keys = [self._key(kind, *map(str, request.args)) for request in requests]
        names = [_name(kind, request.args) for request in requests]

        def ask_some(places: Sequence[int], _: Mapping[int, Any]) -> list[Response]:
            return [*map(Response, ask([requests[place] for place in places], **options))]

        return [response.answer for response in self._answer(keys, names, ask_some, instances=requests)]

    def _generations(self, ask: Callable[..., list[Any]], requests: Sequence[Instance], **options: Any) -> list[Any]:
        if any(len(request.args) != 2 for request in requests):  # with pictures or sounds, which are not hashed
            return ask(requests, **options)
        repeats = Counter[str]()
        keys = []
        for request in requests:
            number = repeats[document := _document(request)]
            repeats[document] += 1
            keys.append(self._generation_key(request, f"{document} {number}"))
        names = [_name("generate_until", request.args) for request in requests]

        def ask_some(places: Sequence[int], _: Mapping[int, Any]) -> list[Response]:
            asked = [requests[place] for place in places]
            with self._own_records() as records:
                answers = ask(asked, **options)
                found = {key: iter(of_request) for key, of_request in records.items()}
            return [
                Response(answer, next(found.get(RequestKey.of(request), iter(())), None))
                for request, answer in zip(asked, answers, strict=True)
            ]

        responses = self._answer(keys, names, ask_some, instances=requests)
        self._keep_records(requests, responses)
        return [response.answer for response in responses]

    @contextlib.contextmanager
    def _own_records(self) -> Iterator[dict[RequestKey, list[GenerationRecord]]]:
        """The records that a model notes meanwhile, without those it has; empty for a model that notes none."""
        records = getattr(self._lm, "generation_records", {})
        before = dict(records)
        records.clear()
        yield records
        records.clear()
        records.update(before)

    def _keep_records(self, requests: Sequence[Instance], responses: Sequence[Response]) -> None:
        """Give every request the records of its answers, in the order of its repeats."""
        kept = getattr(self._lm, "generation_records", {})
        for request in requests:
            kept.pop(RequestKey.of(request), None)
        for request, response in zip(requests, responses, strict=True):
            if response.record is not None:
                kept.setdefault(RequestKey.of(request), []).append(GenerationRecord(*response.record))

    # -- keys ----------------------------------------------------------------------------------------------------

    def _key(self, *parts: str | bytes) -> bytes:
        digest = hashlib.sha256(self._digest)
        for part in parts:
            content = part if isinstance(part, bytes) else part.encode("utf-8", "surrogatepass")
            digest.update(len(content).to_bytes(8, "big") + content)
        return digest.digest()

    def _generation_key(self, request: Instance, draw: str) -> bytes:
        """The key of a generation; one that is sampled belongs to its document, its repeat and the run's seeds."""
        context, settings = request.args
        ids = _ids(self._lm.tok_encode(context)) if isinstance(self._lm, HFLM) else context
        how = json.dumps(settings, sort_keys=True, default=repr)
        drawn = json.dumps([draw, self._seeds], default=str) if _may_sample(settings) else ""
        return self._key("generate_until", ids, how, drawn)

    # -- asking --------------------------------------------------------------------------------------------------

    def _answer(
        self,
        keys: Sequence[bytes],
        names: Sequence[Any],
        ask: Callable[[Sequence[int], Mapping[int, Any]], list[Response]],
        *,
        lays_out: bool = False,
        instances: Sequence[Instance] = (),
        wanted: Sequence[int] | None = None,
    ) -> list[Response]:
        """Answers in the order of the keys; what the store does not have is asked, each key once.

        Args:
            keys: of the requests.
            names: by which the model's hook call knows them.
            ask: gives the answers to the requests at some places, some of which may be known.
            lays_out: the model computes requests together, and wants to know of those that it has laid out before.
            instances: the requests as lm-eval made them, where they are known.
            wanted: places of those that are to be answered; None for all.
        """
        self.missing = None
        places: dict[bytes, int] = {}
        for place, key in enumerate(keys):
            places.setdefault(key, place)
        known = {key: _finite(found) for key, found in self._store.get(places).items()} if self._reads() else {}
        mine = places.keys() if wanted is None else {keys[place] for place in wanted}
        self._from_store |= (known.keys() & mine) - self._computed
        missing = [key for key in places if key not in known]
        if missing and not self._computes:
            self.missing = self._told(places, missing, keys, instances)
            raise StoreError(" ".join(self.missing))
        if asked := [key for key in missing if key in mine]:
            batch = _same_batch(missing, known) if lays_out else None
            together = sorted(batch.known | {*missing}, key=places.__getitem__) if batch else asked
            done = {n: known[key].answer for n, key in enumerate(together) if key in known}
            others = {n: UNWANTED.answer for n, key in enumerate(together) if key not in known and key not in mine}
            self._hook.expect({key: names[places[key]] for key in asked}, batch.number if batch else None)
            new = dict(zip(together, ask([places[key] for key in together], {**done, **others}), strict=True))
            again = [key for key in known if key not in new] if self._hook.retracted else []
            if again:  # they were computed in the same way, by an earlier run
                self._store.forget(again)
                new |= zip(again, ask([places[key] for key in again], {}), strict=True)
            known |= self._hook.finish({key: new[key] for key in [*asked, *again]})
            self._computed.update(asked, again)
            self._from_store -= self._computed
        self._lm.answers_from_store = self.found
        return [known.get(key, UNWANTED) for key in keys]

    def _told(
        self,
        places: Mapping[bytes, int],
        missing: Sequence[bytes],
        keys: Sequence[bytes],
        instances: Sequence[Instance],
    ) -> tuple[str, str]:
        """How many answers are missing, and which, with what to do."""
        lacking = {*missing}
        docs = sorted({instances[place].doc_id for place, key in enumerate(keys) if key in lacking and instances})
        shown = ", ".join(map(str, docs[:MOST_NAMED]))
        more = f" and {len(docs) - MOST_NAMED} more" if len(docs) > MOST_NAMED else ""
        which = f" (document{'s' * (len(docs) > 1)} {shown}{more})" if docs else ""
        what = f"{len(missing)} of the {len(places)} answers"
        return what, f"are not in {self._store.path}{which}; {self._remedy()}"

    def _reads(self) -> bool:
        """Ranks that find an automatic batch size together must all compute."""
        return self._lm.world_size == 1 or not str(getattr(self._lm, "batch_size", "")).startswith("auto")


class _StoreHook(AnswerHook):
    """Takes answers from a model while it computes others, and writes them batch by batch."""

    def __init__(self, store: ResponseStore) -> None:
        self.commits_anywhere = False  # the model does not say where its batches end
        self.retracted = False
        self._store = store
        self._expected: dict[Any, deque[bytes]] = {}
        self._batch: int | None = None
        self._written: set[bytes] = set()
        self._responses: dict[bytes, Response] = {}  # of this call
        self._last_commit = time.monotonic()

    def expect(self, names: Mapping[bytes, Any], batch: int | None) -> None:
        """Begin a call for the answers to these keys."""
        self.retracted, self._batch = False, batch
        self._expected = defaultdict(deque)
        self._responses, self._written = {}, set()
        for key, name in names.items():
            if name is not None:
                self._expected[name].append(key)

    def add(self, kind: str, args: Sequence[Any], answer: Any, record: GenerationRecord | None = None) -> None:
        """Take an answer; see `AnswerHook`."""
        if self.commits_anywhere and self.is_due():
            self.commit()
        keys = self._expected.get(_name(kind, args))
        if not keys:
            return
        self._take(keys[0], answer, record)
        keys.rotate(-1)  # to the next repeat of the request

    def _take(self, key: bytes, answer: Any, record: tuple[str, int, int] | None) -> None:
        response = _finite(Response(_plain(answer), record, self._batch))
        if response != self._responses.get(key):
            self._responses[key] = response
            self._written.discard(key)

    def is_due(self) -> bool:
        """Whether the last transaction is long enough ago."""
        return time.monotonic() - self._last_commit >= COMMIT_SECONDS

    def batch_done(self) -> None:
        """Write what is there, if it is time."""
        if self.is_due():
            self.commit()

    def commit(self) -> None:
        """Write what has not been written, but for answers that are no numbers and no texts."""
        unwritten = ((key, response) for key, response in self._responses.items() if key not in self._written)
        if new := {key: response for key, response in unwritten if _can_be_stored(response.answer)}:
            self._store.add(new)
            self._written |= new.keys()
        self._last_commit = time.monotonic()

    def retract(self) -> None:
        """Remove what this call has handed over so far."""
        self.retracted = True
        self._store.forget(self._written)
        self._responses, self._written = {}, set()

    def finish(self, returned: Mapping[bytes, Response]) -> dict[bytes, Response]:
        """End a call: write what the model has returned, whatever it has handed over; returns the answers."""
        for key, response in returned.items():
            self._take(key, response.answer, response.record)
        self.commit()
        responses = {key: self._responses[key] for key in returned}
        self.expect({}, None)
        return responses


class _Batch:
    """Requests that a model lays out together."""

    def __init__(self, number: int, known: set[bytes]) -> None:
        self.number = number
        self.known = known


def _same_batch(missing: Sequence[bytes], known: Mapping[bytes, Response]) -> _Batch:
    """The batch that an earlier process has not finished: the missing requests and those that it has answered.

    Where the store has answers of other batches only, the missing requests are a batch by themselves.
    """
    by_batch: dict[int, set[bytes]] = defaultdict(set)
    for key, response in known.items():
        if response.batch is not None:
            by_batch[response.batch].add(key)
    rest = _number(missing)
    for number, keys in by_batch.items():
        if (rest + _number(keys)) % 2**63 == number:
            return _Batch(number, keys)
    return _Batch(rest, set())


def _number(keys: Any) -> int:
    """Identifies a set of keys, in any order; sums of two sets are numbers of their union."""
    return sum(int.from_bytes(key[:8], "big") for key in keys) % 2**63


def _name(kind: str, args: Sequence[Any]) -> Any:
    return (kind, *(arg if isinstance(arg, str) else json.dumps(arg, sort_keys=True, default=repr) for arg in args))


def _ids(tokens: Sequence[int]) -> bytes:
    return array("q", tokens).tobytes()


def _document(request: Instance) -> str:
    """Identifies a request of a document by content: lm-eval numbers documents anew where --samples chooses."""
    content = json.dumps(request.doc, sort_keys=True, default=repr)
    return f"{request.task_name} {hashlib.sha256(content.encode('utf-8', 'surrogatepass')).hexdigest()} {request.idx}"


def _may_sample(settings: Mapping[str, Any]) -> bool:
    """Whether a generation may draw tokens at random."""
    return bool(settings.get("do_sample", settings.get("temperature") not in (None, 0, 0.0, "0", "0.0")))


def _plain(answer: Any) -> Any:
    """Numbers of Python's own types, as they are read from a store; anything else as it is."""
    if isinstance(answer, (tuple, list)) and len(answer) == 2:
        return (float(answer[0]), bool(answer[1]))
    return float(answer) if hasattr(answer, "__float__") else answer


def _finite(response: Response) -> Response:
    """The response; raises ModelError where it is no number."""
    logprob = response.answer[0] if isinstance(response.answer, tuple) else response.answer
    if isinstance(logprob, float):
        check_logprob(logprob)
    return response


def _can_be_stored(answer: Any) -> bool:
    return isinstance(answer, (str, float, tuple))

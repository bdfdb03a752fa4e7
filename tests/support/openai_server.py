"""A small OpenAI-compatible server over a tiny model and its adapters, with the faults that real ones have."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

PATHS = ("completions", "chat/completions")


@dataclass
class OpenAIServer:
    """What is served, and how it fails."""

    base: Path
    adapters: Mapping[str, Path]
    without_echo: bool = False  # no log-probabilities of prompts, as llama-server
    ignores_adapters: bool = False  # takes their names and answers as the base
    without_logprobs: bool = False  # of generated texts
    refuses_logprobs: bool = False  # with status 400
    leaves_out: bool = False  # every second text
    says: str | None = None  # instead of what was generated
    answers: int = 10**9  # to as many requests, then `fault`
    fault: str = ""  # limits, slow, short (fewer answers than prompts), nonsense, cut (fewer scores than tokens)
    goes_on: bool = False  # behind the end of each text
    requests: list[dict[str, Any]] = field(default_factory=list)
    url: str = ""

    def __post_init__(self) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(self.base)
        self._models = {"base": AutoModelForCausalLM.from_pretrained(self.base).eval()}
        for name, folder in self.adapters.items():
            model = AutoModelForCausalLM.from_pretrained(self.base)
            self._models[name] = PeftModel.from_pretrained(model, str(folder)).eval()
        self._lock = threading.Lock()

    def reply(self, asked: dict[str, Any]) -> tuple[int, Any]:
        """Status and body of a reply of /v1/completions, with its fault."""
        self.requests.append(asked)
        if self.refuses_logprobs and asked.get("logprobs") and not asked.get("echo"):
            return 400, {"error": "logprobs are not supported"}
        if len(self.requests) <= self.answers:
            return 200, self.complete(asked)
        if self.fault == "limits":
            return 429, {"error": "too many requests"}
        if self.fault == "slow":
            time.sleep(2)
        body = {"error": "busy"} if self.fault == "nonsense" else self.complete(asked)
        if self.fault == "short":
            body["choices"].pop()
        for choice in body["choices"] if self.fault == "cut" else ():
            choice["logprobs"]["token_logprobs"].pop(1)
        return 200, body

    @torch.no_grad()
    def complete(self, asked: dict[str, Any]) -> dict[str, Any]:
        """What the model says."""
        model = self._models["base" if self.ignores_adapters else asked["model"]]
        if "messages" in asked:
            return {"choices": [{"index": 0, "message": {"content": self._chat(model, asked)}}]}
        prompts = asked["prompt"]
        if isinstance(prompts, str) or isinstance(prompts[0], int):
            prompts = [prompts]
        choices = []
        for index, prompt in enumerate(prompts):
            ids = self._tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else prompt
            choice: dict[str, Any] = {"index": index, "finish_reason": "stop"}
            if asked.get("echo") and not self.without_echo:
                choice |= {"text": "", "logprobs": self._scores(model, ids)}
            else:
                choice["text"] = self._text(model, ids, asked) if self.says is None else self.says
                if asked.get("logprobs") and not self.without_logprobs:
                    choice["logprobs"] = {"token_logprobs": self._scores(model, ids)["token_logprobs"][-1:]}
                if self.leaves_out and len(self.requests) % 2:
                    choice["text"] = None
            choices.append(choice)
        return {"choices": choices}

    def _scores(self, model: Any, ids: list[int]) -> dict[str, Any]:
        logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        best = logits.max(-1).values.tolist()
        scores = [None, *(float(logits[place, token]) for place, token in enumerate(ids[1:])), best[-1]]
        tops = [None, *({"top": best[place], "own": scores[place + 1]} for place in range(len(ids)))]
        return {"token_logprobs": scores, "top_logprobs": tops}

    def _chat(self, model: Any, asked: dict[str, Any]) -> str:
        """The reply to messages, in the tokenizer's own template."""
        text = self._tokenizer.apply_chat_template(asked["messages"], tokenize=False, add_generation_prompt=True)
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return self._text(model, ids, {"max_tokens": 16, **asked})

    def _text(self, model: Any, ids: list[int], asked: dict[str, Any]) -> str:
        made = model.generate(torch.tensor([ids]), max_new_tokens=asked["max_tokens"], do_sample=False, pad_token_id=2)[
            0, len(ids) :
        ]
        text = self._tokenizer.decode(made, skip_special_tokens=True)
        for stop in asked.get("stop") or []:
            text = text.split(stop)[0]
        return f"{text} and more" if self.goes_on else str(text)

    @contextmanager
    def running(self) -> Iterator[OpenAIServer]:
        """Serve in a thread, at `url`."""
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                names = ["base", *served.adapters]
                self._reply({"data": [{"id": name} for name in names]} if self.path == "/v1/models" else None)

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with served._lock:
                    is_known = self.path.removeprefix("/v1/") in PATHS
                    status, body = served.reply(asked) if is_known else (404, None)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    self._reply(body, status)

            def _reply(self, body: Any, status: int = 200) -> None:
                content = json.dumps(body).encode()
                self.send_response(status if body is not None else 404)
                self.send_header("Content-Type", "application/json")
                self.send_header("Retry-After", "0")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{server.server_port}/v1/completions"
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()

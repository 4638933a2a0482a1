"""A stand-in for ``vllm serve`` 0.33.0 on loopback: the requests that rcgrpo makes, answered with a small HF model.

It is stricter than the original: unknown fields are refused, and so is sampling while anything may be stale (paused,
prefix cache of other weights, an adapter that was evicted).
"""

import json
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

import torch
from peft import PeftModel
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import AutoModelForCausalLM, PreTrainedModel


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class CompletionRequest(Strict):
    model: str
    prompt: list[int]
    n: Literal[1]
    max_tokens: int = Field(ge=1)
    temperature: float | int = Field(ge=0)
    top_p: float
    top_k: Literal[0]
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int = Field(ge=-(2**63), le=2**63 - 1)
    stop_token_ids: list[int]
    ignore_eos: bool
    logprobs: int = Field(ge=0)
    return_token_ids: bool
    return_tokens_as_token_ids: bool
    return_weight_versions: bool
    add_special_tokens: bool
    skip_special_tokens: bool
    stream: Literal[False]


class LoadAdapter(Strict):
    lora_name: str
    lora_path: str


class UnloadAdapter(Strict):
    lora_name: str


class NewVersion(Strict):
    new_version: str


class Reload(Strict):
    method: Literal["reload_weights"]
    kwargs: dict[str, str]


class Refusal(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


Spoil = Callable[[dict[str, Any]], Any]


class FakeVllm:
    """State of the server. ``log``: the (method, path, query, body) of all requests, in their order."""

    def __init__(self, model: PreTrainedModel, name: str = "policy", max_model_len: int = 512) -> None:
        self.model, self.name, self.max_model_len = model, name, max_model_len
        self.logprobs_mode, self.prefix_caching = "processed_logprobs", True
        self.dev_mode, self.runtime_lora = True, True
        self.version, self.paused, self.stale_cache = "default", False, False
        self.adapters: dict[str, PeftModel] = {}
        self.log: list[tuple[str, str, dict[str, str], Any]] = []
        self.most_at_once = 0
        self.spoil: Spoil | None = None
        """Changes an answer to a completion; returning bytes sends them, None drops the connection."""
        self.fail: dict[str, int] = {}
        """Paths that answer with this status."""
        self.seconds = 0.0
        """Each completion takes at least so long."""
        self._at_once = 0
        self._lock = threading.Lock()

    def paths(self) -> list[str]:
        """Paths of the POST requests, runs of completions as one."""
        posts = [path for method, path, *_ in self.log if method == "POST"]
        return [path for i, path in enumerate(posts) if path != "/v1/completions" or posts[i - 1 : i] != [path]]

    def completions(self) -> list[dict[str, Any]]:
        return [body for _, path, _, body in self.log if path == "/v1/completions"]

    def answer(self, method: str, path: str, query: dict[str, str], body: Any) -> Any:
        with self._lock:
            self.log.append((method, path, query, body))
            self._at_once += path == "/v1/completions"
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if path in self.fail:
                raise Refusal(self.fail[path], "as the test wants")
            if path == "/v1/completions":
                time.sleep(self.seconds)
            with self._lock:
                return self._routes()[method, path](query, body)
        except KeyError:
            raise Refusal(404, "Not Found") from None
        except ValidationError as error:
            raise Refusal(422, str(error)) from None
        finally:
            with self._lock:
                self._at_once -= path == "/v1/completions"

    def _routes(self) -> dict[tuple[str, str], Callable[[dict, Any], Any]]:
        routes: dict[tuple[str, str], Callable] = {
            ("GET", "/v1/models"): self._models,
            ("POST", "/v1/completions"): self._complete,
        }
        if self.dev_mode:
            routes |= {
                ("GET", "/server_info"): self._info,
                ("GET", "/weight_info"): lambda query, body: {"weight_version": self.version},
                ("POST", "/pause"): self._pause,
                ("POST", "/resume"): self._resume,
                ("POST", "/collective_rpc"): self._reload,
                ("POST", "/reset_prefix_cache"): self._reset,
                ("POST", "/update_weight_version"): self._label,
            }
        if self.runtime_lora:
            routes |= {
                ("POST", "/v1/load_lora_adapter"): self._load_adapter,
                ("POST", "/v1/unload_lora_adapter"): self._unload_adapter,
            }
        return routes

    def _models(self, query, body):
        cards: list[dict[str, Any]] = [{"id": self.name, "max_model_len": self.max_model_len, "parent": None}]
        return {"object": "list", "data": cards + [{"id": name, "parent": self.name} for name in self.adapters]}

    def _info(self, query, body):
        assert query == {"config_format": "json"}
        return {
            "vllm_config": {
                "model_config": {"logprobs_mode": self.logprobs_mode, "dtype": "torch.bfloat16"},
                "cache_config": {"enable_prefix_caching": self.prefix_caching},
            },
            "vllm_env": {},
            "system_env": {},
        }

    def _pause(self, query, body):
        assert query == {"mode": "abort"}
        self.paused = True
        return {"status": "paused"}

    def _resume(self, query, body):
        self.paused = False
        return {"status": "resumed"}

    def _reload(self, query, body):
        request = Reload.model_validate(body)
        if not self.paused:
            raise Refusal(500, "weights changed while requests could run")
        old = self.model
        path = request.kwargs["weights_path"]
        self.model = AutoModelForCausalLM.from_pretrained(path, dtype=old.dtype).eval()
        if [p.shape for p in self.model.parameters()] != [p.shape for p in old.parameters()]:
            raise Refusal(500, "shapes differ")
        self.adapters.clear()
        self.stale_cache = True
        return {"results": [None]}

    def _reset(self, query, body):
        self.stale_cache = False
        return {"success": True}

    def _label(self, query, body):
        self.version = NewVersion.model_validate(body).new_version
        return {"success": True, "new_version": self.version}

    def _load_adapter(self, query, body):
        request = LoadAdapter.model_validate(body)
        if request.lora_name in self.adapters:
            raise Refusal(400, "already loaded")
        base = AutoModelForCausalLM.from_config(self.model.config, dtype=self.model.dtype)
        base.load_state_dict(self.model.state_dict())
        self.adapters[request.lora_name] = PeftModel.from_pretrained(base, request.lora_path).eval()
        return f"Success: LoRA adapter '{request.lora_name}' added successfully."

    def _unload_adapter(self, query, body):
        name = UnloadAdapter.model_validate(body).lora_name
        if name not in self.adapters:
            raise Refusal(404, "no such adapter")
        del self.adapters[name]
        return f"Success: LoRA adapter '{name}' removed successfully."

    def _complete(self, query, body):
        request = CompletionRequest.model_validate(body)
        if self.paused:
            raise Refusal(503, "paused")
        if self.stale_cache:
            raise Refusal(500, "the prefix cache is of other weights")
        if request.model != self.name and request.model not in self.adapters:
            raise Refusal(404, f"The model {request.model} does not exist.")
        if len(request.prompt) + request.max_tokens > self.max_model_len:
            raise Refusal(400, "maximum context length")
        ids, logprobs = self._generate(self.adapters.get(request.model, self.model), request)
        stopped = ids[-1] in request.stop_token_ids
        choice = {
            "index": 0,
            "text": "",
            "finish_reason": "stop" if stopped else "length",
            "stop_reason": ids[-1] if stopped else None,
            "prompt_token_ids": request.prompt,
            "token_ids": ids,
            "logprobs": {"token_logprobs": logprobs, "tokens": [f"token_id:{i}" for i in ids], "top_logprobs": []},
            "weight_versions": [{"version": self.version, "start": 0, "end": len(ids)}],
        }
        answer = {"id": "cmpl-1", "object": "text_completion", "model": request.model, "choices": [choice], "usage": {}}
        return self.spoil(answer) if self.spoil else answer

    def _generate(self, model: Any, request: CompletionRequest) -> tuple[list[int], list[float]]:
        torch.manual_seed(request.seed)
        prompt = torch.tensor([request.prompt])
        sampling = {"do_sample": False}
        if request.temperature:
            sampling = {"do_sample": True, "temperature": request.temperature, "top_k": 0, "top_p": request.top_p}
        with torch.no_grad():
            generated = model.generate(
                input_ids=prompt,
                attention_mask=torch.ones_like(prompt),
                max_new_tokens=request.max_tokens,
                eos_token_id=request.stop_token_ids or None,
                pad_token_id=0,
                output_logits=True,
                return_dict_in_generate=True,
                **sampling,
            )
        ids = generated.sequences[0, len(request.prompt) :].tolist()
        raw = torch.stack([logits[0] for logits in generated.logits])
        logprobs = (raw / (request.temperature or 1.0)).log_softmax(-1)
        return ids, [logprobs[t, token].item() for t, token in enumerate(ids)]


def _handler(state: FakeVllm) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _serve(self, body: Any) -> None:
            url = urlsplit(self.path)
            status = 200
            try:
                answer = state.answer(self.command, url.path, dict(parse_qsl(url.query)), body)
            except Refusal as refusal:
                status, answer = refusal.status, {"error": {"message": str(refusal), "code": refusal.status}}
            if answer is None:
                self.close_connection = True
                return
            content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
            self.send_response(status)
            # bytes are a broken answer: cut off before the announced end
            self.send_header("Content-Length", str(len(content) + (10 if isinstance(answer, bytes) else 0)))
            self.end_headers()
            self.wfile.write(content)
            self.close_connection = isinstance(answer, bytes)

        def do_GET(self) -> None:
            self._serve(None)

        def do_POST(self) -> None:
            self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    return Handler


@contextmanager
def serving(state: FakeVllm, port: int = 0):
    """Serve on a port of loopback, by default a free one; yields the url."""
    server = ThreadingHTTPServer(("127.0.0.1", port), _handler(state))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# -- ways to spoil an answer


def choice_with(**changes: Any) -> Spoil:
    """Answers whose choice has other values; functions get the choice."""

    def spoil(answer):
        choice = answer["choices"][0]
        answer["choices"] = [choice | {k: v(choice) if callable(v) else v for k, v in changes.items()}]
        return answer

    return spoil


def logprobs_with(change: Callable[[list[float]], list]) -> Spoil:
    """Answers with changed log-probs."""
    return choice_with(logprobs=lambda c: c["logprobs"] | {"token_logprobs": change(c["logprobs"]["token_logprobs"])})


def shortened(count: int) -> Spoil:
    """An answer of ``count`` tokens that is whole in itself."""

    def spoil(answer):
        choice = answer["choices"][0]
        for part, key in (
            (choice, "token_ids"),
            (choice["logprobs"], "token_logprobs"),
            (choice["logprobs"], "tokens"),
        ):
            part[key] = (part[key] * 2)[:count]
        choice["weight_versions"][0]["end"] = count
        return answer

    return spoil

"""A running vLLM server: requests to it, and keeping its weights those of the policy.

Written against vLLM 0.33.0 (its documentation, and the request and response models of its published wheel). The server
is a process of its own, on a GPU and in an environment of its own; see docs/vllm.md for how it must be started.
"""

from __future__ import annotations

import copy
import os
import shutil
import uuid
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar

import httpx2
from peft import PeftModel
from pydantic import BaseModel, ValidationError

from rcgrpo.errors import UserError
from rcgrpo.policy.load import Policy, save_policy

VERSION = "0.33.0"
"""The vLLM whose interface this speaks."""

_CONNECT_SECONDS = 10.0
_CONNECT_RETRIES = 3
_KEEPALIVE_SECONDS = 2.0
"""Idle connections are dropped before the server does it (after 5 s), which could meet a request on its way."""

_HINTS = {
    "/v1/load_lora_adapter": "start the server with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
    "/v1/unload_lora_adapter": "start the server with VLLM_ALLOW_RUNTIME_LORA_UPDATING=True",
    "/v1/models": "is rollout.vllm.url a vLLM server?",
    "/v1/completions": "the server has dropped the model; was it restarted, or used by another run?",
}
_DEV_HINT = f"start the server (vLLM {VERSION}) with VLLM_SERVER_DEV_MODE=1"

Shape = TypeVar("Shape", bound=BaseModel)


class ServerFailure(RuntimeError):
    """The server failed or broke its contract: nothing of the answer was used."""


class _Card(BaseModel):
    id: str
    max_model_len: int | None = None


class Models(BaseModel):
    """GET /v1/models: the base model and the adapters."""

    data: list[_Card]


class ServerInfo(BaseModel):
    """GET /server_info?config_format=json: how the server was started."""

    vllm_config: dict[str, Any]

    def setting(self, table: str, name: str) -> Any:
        """One value of the configuration; None where this server has no such setting."""
        content = self.vllm_config.get(table)
        return content.get(name) if isinstance(content, dict) else None


class _WeightInfo(BaseModel):
    weight_version: str


class _Success(BaseModel):
    success: bool


class Connection:
    """Requests to one server. A connection that cannot be opened is tried again, a request that was sent never is.

    Raises :class:`UserError` for what the user can cure (no server, wrong flags, refused request) and
    :class:`ServerFailure` for the rest.
    """

    def __init__(self, url: str, timeout: float) -> None:
        self.url, self.timeout = url.rstrip("/"), timeout
        limits = httpx2.Limits(max_connections=None, keepalive_expiry=_KEEPALIVE_SECONDS)
        key = os.environ.get("VLLM_API_KEY")  # the server reads its own from the same variable
        self._client = httpx2.AsyncClient(
            base_url=self.url,
            timeout=httpx2.Timeout(timeout, connect=_CONNECT_SECONDS, pool=None),
            transport=httpx2.AsyncHTTPTransport(retries=_CONNECT_RETRIES, limits=limits),
            headers={"Authorization": f"Bearer {key}"} if key else {},
        )

    async def __aenter__(self) -> Connection:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def get(self, path: str, shape: type[Shape], **params: str) -> Shape:
        """GET; the answer as a ``shape``."""
        return self._shaped(path, await self._request("GET", path, params=params), shape)

    async def post(self, path: str, shape: type[Shape], body: dict[str, Any], **params: str) -> Shape:
        """POST a JSON body; the answer as a ``shape``."""
        return self._shaped(path, await self._request("POST", path, json=body, params=params), shape)

    async def order(self, path: str, body: dict[str, Any] | None = None, **params: str) -> None:
        """POST where only success counts."""
        await self._request("POST", path, json=body or {}, params=params)

    async def _request(self, method: str, path: str, **content: Any) -> httpx2.Response:
        try:
            response = await self._client.request(method, path, **content)
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise UserError(
                f"no vLLM server at rollout.vllm.url = {self.url!r} ({error or type(error).__name__}): "
                f"start it as docs/vllm.md says, or correct the url"
            ) from error
        except httpx2.TimeoutException as error:
            raise UserError(
                f"the vLLM server at {self.url} did not answer {path} within {self.timeout:g} s: "
                f"raise rollout.vllm.timeout, or lower rollout.slots"
            ) from error
        except httpx2.TransportError as error:
            raise ServerFailure(
                f"the vLLM server at {self.url} broke off its answer to {path} ({error}): see the server's log"
            ) from error
        if response.is_success:
            return response
        raise self._refused(path, response)

    def _refused(self, path: str, response: httpx2.Response) -> Exception:
        said = f"the vLLM server at {self.url} answered {path} with {response.status_code}: {response.text[:500]}"
        if response.status_code == 404:
            return UserError(f"{said}; {_HINTS.get(path, _DEV_HINT)}")
        if response.status_code == 401:
            return UserError(f"{said}; set VLLM_API_KEY to the key that the server was started with")
        if response.status_code == 503:
            return ServerFailure(f"{said}; it is paused or busy: does another run change its weights?")
        if response.status_code < 500:
            return UserError(said)
        return ServerFailure(f"{said}; see the server's log")

    def _shaped(self, path: str, response: httpx2.Response, shape: type[Shape]) -> Shape:
        try:
            return shape.model_validate_json(response.content)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ServerFailure(
                f"the vLLM server at {self.url} answered {path} not as vLLM {VERSION} does: {where}: {first['msg']}"
            ) from error


class VllmServer:
    """A server whose weights follow a policy.

    ``model``: the name it serves. ``folder``: absolute; weights are handed over in it, so both sides must see it.
    ``sync``: ``weights`` writes a checkpoint and has the server reload it in place (an adapter is merged first);
    ``adapter`` does so once with the base model, then hands over the LoRA adapter alone. Every hand-over gives the
    weights a new version label, which the server reports with each completion.
    """

    def __init__(
        self, *, url: str, model: str, folder: str | Path, sync: Literal["weights", "adapter"], timeout: float
    ) -> None:
        self.url, self.model, self.timeout = url, model, timeout
        self.folder, self.sync = Path(folder), sync
        self.version: str | None = None
        """Label of the weights that rollouts must come from; None: nothing was handed over yet."""
        self._run = uuid.uuid4().hex[:12]
        self._count = 0
        self._base_is_loaded = False
        self._adapter: Path | None = None

    def connect(self) -> Connection:
        """A connection; its requests belong to the event loop that made it."""
        return Connection(self.url, self.timeout)

    async def load(self, policy: Policy) -> None:
        """Make the server's weights those of ``policy``. Nothing may be generating.

        Where it fails, ``version`` is None and the server is left paused or with a label that no one expects: what
        it would sample is never taken for the policy's.
        """
        self.version = None
        self._count += 1
        version = f"rcgrpo-{self._run}-{self._count}"
        async with self.connect() as connection:
            if self.sync == "adapter" and isinstance(policy.model, PeftModel):
                if not self._base_is_loaded:
                    base = copy.deepcopy(policy.model).unload()
                    await self._replace_weights(connection, _plain(policy, base), f"{version}-base")
                    self._base_is_loaded = True
                await self._replace_adapter(connection, policy.model, version)
            else:
                model = policy.model
                if isinstance(model, PeftModel):
                    model = copy.deepcopy(model).merge_and_unload()
                await self._replace_weights(connection, _plain(policy, model), version)
        self.version = version

    async def follow(self) -> None:
        """Take the weights that another process has handed over for the policy that this one shares."""
        async with self.connect() as connection:
            self.version = (await connection.get("/weight_info", _WeightInfo)).weight_version

    async def _replace_weights(self, connection: Connection, policy: Policy, version: str) -> None:
        folder = self._new_folder(version)
        save_policy(policy, folder)
        try:
            await connection.order("/pause", mode="abort")
            reload = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
            await connection.order("/collective_rpc", reload)
            if not (await connection.post("/reset_prefix_cache", _Success, {})).success:
                raise ServerFailure(f"the vLLM server at {self.url} could not drop its prefix cache: restart it")
            await connection.order("/update_weight_version", {"new_version": version})
            await connection.order("/resume")
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    async def _replace_adapter(self, connection: Connection, model: PeftModel, version: str) -> None:
        """A new name for every version: the prefix cache is keyed by the adapter, so nothing stale is found in it."""
        folder, old = self._new_folder(version), self._adapter
        partial = folder.with_name(f".{folder.name}.partial")
        model.save_pretrained(str(partial), save_embedding_layers=False)
        os.replace(partial, folder)
        try:
            await connection.order("/v1/load_lora_adapter", {"lora_name": version, "lora_path": str(folder)})
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        if old is not None:
            await connection.order("/v1/unload_lora_adapter", {"lora_name": old.name})
            shutil.rmtree(old, ignore_errors=True)
        await connection.order("/update_weight_version", {"new_version": version})
        self._adapter = folder

    def _new_folder(self, version: str) -> Path:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"rollout.vllm.folder = {str(self.folder)!r} cannot be made: {error}") from error
        return self.folder / version


def _plain(policy: Policy, model: Any) -> Policy:
    return Policy(policy.name, model, policy.tokenizer)

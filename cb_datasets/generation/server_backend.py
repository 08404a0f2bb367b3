"""The backend for a remote model: any `vllm serve`, over its OpenAI-compatible API."""

import hashlib
import http.client
import json
import os
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from itertools import repeat
from typing import Any

from ..public_name import public_name
from .backend import Completion, Sampling, context_length, decode_completion, end_token_ids
from .tokenizer import load_tokenizer


# Seconds between attempts, while the server is busy, restarting or not up yet.
RETRY_DELAYS = (1, 2, 4, 8, 16)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Takes a redirect for an error: the library would send the API key on to whatever host it names."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


_open = urllib.request.build_opener(_NoRedirects).open

# Seconds until a request times out; under load it spends most of them in the server's queue.
REQUEST_TIMEOUT = 1800


class ServerBackend:
    """Generates with a served model. The API key, if the server needs one, is read from `OPENAI_API_KEY`.

    Args:
        base_url (`str`): Base URL of the server, e.g. `http://node-7:8000/v1`.
        model (`str`): Served model name; each adapter has its own.
        tokenizer (`str`, *optional*): Folder or Hub id of the model's tokenizer; defaults to `model`.
        concurrency (`int`, *optional*, defaults to `64`): Number of concurrent requests, one per prompt; the server
            batches them.

    Raises:
        ConnectionError: If no server answers at that URL.
        ValueError: If it does not serve the model; if the tokenizer has no chat template, or one whose tool-call
            format is unknown.
    """

    # As in `VllmBackend`, since the server is most likely vLLM.
    shard_size = 1000

    def __init__(self, base_url: str, model: str, tokenizer: str | None = None, concurrency: int = 64) -> None:
        self._url = base_url.rstrip("/").removesuffix("/v1") + "/v1"
        self._concurrency = concurrency
        self._served_name, self.model = model, public_name(model)
        model_entry = self._model_entry()
        # Folder or Hub id of the model or adapter: a server reports nothing else that identifies the weights.
        self.revision = _root_revision(model_entry.get("root") or "server")
        self.max_length = model_entry.get("max_model_len") or context_length(tokenizer or model)
        self.tokenizer = load_tokenizer(tokenizer or model)
        # The server itself adds the end tokens of the model's generation config.
        self._end_ids = end_token_ids(self.tokenizer)

    def generate(self, prompt_token_ids: list[list[int]], sampling: Sampling, seed: int) -> list[list[Completion]]:
        # vLLM seeds sample k of a request with seed + k, so the seeds of prompts are `num_samples` apart.
        seeds = [seed + index * sampling.num_samples for index in range(len(prompt_token_ids))]
        with ThreadPoolExecutor(self._concurrency) as pool:
            return list(pool.map(self._complete, prompt_token_ids, repeat(sampling), seeds))

    def _complete(self, prompt: list[int], sampling: Sampling, seed: int) -> list[Completion]:
        response = self._request_json(
            "/completions",
            {
                "model": self._served_name,
                "prompt": prompt,
                "n": sampling.num_samples,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "max_tokens": sampling.max_new_tokens,
                "seed": seed,
                "stop_token_ids": self._end_ids,
                "skip_special_tokens": False,
                "return_token_ids": True,
                # The server fills in parameters that are left out from the model's generation config.
                "top_k": 0,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
            },
        )
        choices = sorted(response["choices"], key=lambda choice: choice["index"])
        if len(choices) != sampling.num_samples or any(not choice.get("token_ids") for choice in choices):
            raise ValueError(f"{self._url} returns no token ids; is it a vLLM server that knows return_token_ids?")
        if wrong := [id for choice in choices for id in choice["token_ids"] if not _is_token_id(id)]:
            raise ValueError(f"{self._url} returns {wrong[0]!r} among the token ids; is it a vLLM server?")
        return [
            decode_completion(self.tokenizer, choice["token_ids"], str(choice["finish_reason"])) for choice in choices
        ]

    def _model_entry(self) -> dict:
        """The model's entry in the server's `/models` list."""
        entries = {entry["id"]: entry for entry in self._request_json("/models")["data"]}
        if self._served_name not in entries:
            raise ValueError(
                f"{self._url} does not serve {self._served_name!r}; it serves {', '.join(sorted(entries))}."
            )
        return entries[self._served_name]

    def _request_json(self, path: str, body: dict | None = None) -> dict:
        """Send a request and decode its JSON response, with retries after `RETRY_DELAYS`."""
        problem = ""
        for delay in (*RETRY_DELAYS, None):
            try:
                with _open(self._request(path, body), timeout=REQUEST_TIMEOUT) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                if 300 <= error.code < 400:
                    raise ValueError(
                        f"{self._url}{path} redirects to {error.headers.get('Location')!r}, which is not followed: "
                        "the API key would go with the request. Pass the address of the server itself."
                    ) from error
                problem = f"{error.code} {error.read().decode(errors='replace')[:500]}"
                # A client error other than 429 (too many requests) would fail again: no retry.
                if error.code < 500 and error.code != 429:
                    raise ValueError(f"{self._url}{path} rejects the request: {problem}") from error
            except (OSError, http.client.HTTPException) as error:
                problem = str(getattr(error, "reason", error))
            if delay is not None:
                time.sleep(delay)
        raise ConnectionError(f"No answer from {self._url}{path}: {problem}. Is the server up, and the URL right?")

    def _request(self, path: str, body: dict | None) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        return urllib.request.Request(self._url + path, data=data, headers=headers)


def _is_token_id(value: object) -> bool:
    """Whether a tokenizer takes it. Models may have more tokens than their tokenizers, which decode to nothing."""
    return type(value) is int and 0 <= value < 2**32


def _root_revision(root: str) -> str:
    """A served folder or Hub id. The hash of a path tells folders of one name apart."""
    name = public_name(root)
    return name if name == root else f"{name}@{hashlib.sha256(root.encode()).hexdigest()[:8]}"

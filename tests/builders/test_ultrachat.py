"""UltraChat: valid conversations, where they are cut, and which rows are sampled."""

import hashlib
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from builders import load_source, prepare_source
from builders.trace import TRACE_FEATURES, Dropped
from builders.ultrachat import chat_trace, sample_rows


MESSAGES = pa.list_(pa.struct([("content", pa.string()), ("role", pa.string())]))


def turns(*contents: str) -> list[dict]:
    return [
        {"content": content, "role": "assistant" if number % 2 else "user"} for number, content in enumerate(contents)
    ]


def row(number: int = 1, *contents: str) -> dict:
    contents = contents or (f"How do I prune plum tree {number}?", "In summer.", "And pears?", "In winter.")
    prompt_id = hashlib.sha256(contents[0].encode()).hexdigest()
    return {"prompt": contents[0], "prompt_id": prompt_id, "messages": turns(*contents)}


def trace_of(messages: list[dict], max_characters: int = 8192) -> dict | Dropped:
    return chat_trace({"prompt_id": "9b1f", "messages": messages}, max_characters, where="a.jsonl:1")


def write_jsonl(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(each) + "\n" for each in rows), encoding="utf-8")


def write_parquet(path: Path, rows: list[dict], row_group_size: int = 7, messages: pa.DataType = MESSAGES) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([("prompt", pa.string()), ("prompt_id", pa.string()), ("messages", messages)])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path, row_group_size=row_group_size)


def contents_of(trace: dict) -> list[str]:
    return [message["content"] for message in trace["messages"]]


def test_a_row_becomes_a_conversation_without_tools():
    trace = trace_of(turns("Hello there!", "Hello.", "Bye.", "Goodbye."))
    assert set(trace) == set(TRACE_FEATURES)
    assert (trace["id"], trace["source"], trace["group"]) == ("ultrachat/9b1f", "ultrachat", "hello there")
    assert [message["role"] for message in trace["messages"]] == ["user", "assistant", "user", "assistant"]
    assert contents_of(trace) == ["Hello there!", "Hello.", "Bye.", "Goodbye."]
    assert (trace["verdict"], trace["attack"], trace["tools"], trace["decision_turn"]) == (
        "benign_success",
        None,
        None,
        None,
    )
    metadata = {"generator": "ChatGPT", "task": "chat", "prompt_id": "9b1f", "turns": 4, "turns_cut": 0}
    assert json.loads(trace["metadata"]) == metadata


def test_only_messages_are_read_not_the_prompt():
    record = {"prompt": "something else", "prompt_id": "9b1f", "messages": turns("Hello!", "Hello.")}
    assert chat_trace(record, 8192, "a.jsonl:1") == trace_of(turns("Hello!", "Hello."))
    assert "something else" not in json.dumps(trace_of(turns("Hello!", "Hello.")))


def test_prompts_that_differ_in_case_and_punctuation_are_one_group():
    groups = {trace_of(turns(text, "Yes."))["group"] for text in ("Is it late?", "is it  late", "IS IT LATE?!")}
    assert groups == {"is it late"}
    assert trace_of(turns("?!", "What?"))["group"] == "9b1f"


@pytest.mark.parametrize(
    ("max_characters", "num_turns", "num_cut"),
    [(40, 6, 0), (12, 6, 0), (11, 4, 2), (8, 4, 2), (7, 2, 4), (4, 2, 4)],
)
def test_a_long_conversation_is_cut_between_exchanges(max_characters: int, num_turns: int, num_cut: int):
    messages = turns("ab", "cd", "ef", "gh", "ij", "kl")
    trace = trace_of(messages, max_characters)
    assert contents_of(trace) == [turn["content"] for turn in messages[:num_turns]]
    assert trace["messages"][-1]["role"] == "assistant"
    metadata = json.loads(trace["metadata"])
    assert (metadata["turns"], metadata["turns_cut"]) == (num_turns, num_cut)


def test_an_unanswered_last_question_is_cut_off():
    trace = trace_of(turns("ab", "cd", "ef"))
    assert contents_of(trace) == ["ab", "cd"]
    assert json.loads(trace["metadata"])["turns_cut"] == 1


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        (turns("abc", "de", "f", "g"), "too_long"),
        ([], "empty"),
        (turns("a"), "unanswered"),
        ([{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}], "not_user_first"),
        ([{"role": "system", "content": "s"}, *turns("a", "b")], "not_user_first"),
        ([*turns("a", "b"), *turns("c", "d")[1:]], "not_alternating"),
        ([*turns("a", "b"), {"role": "tool", "content": "c"}], "not_alternating"),
        (turns("a", " \n"), "empty_turn"),
        (turns("a", "b", "", "d"), "empty_turn"),
    ],
)
def test_unusable_conversations_are_dropped_with_a_named_reason(messages: list[dict], reason: str):
    assert trace_of(messages, max_characters=4) == Dropped(reason, "a.jsonl:1")


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"messages": turns("a", "b")}, "a.jsonl:1: field 'prompt_id' is missing"),
        ({"prompt_id": 7, "messages": []}, "a.jsonl:1: field 'prompt_id' must be str, got int"),
        ({"prompt_id": "7"}, "a.jsonl:1: field 'messages' is missing"),
        ({"prompt_id": "7", "messages": "a"}, "a.jsonl:1: field 'messages' must be list, got str"),
        ({"prompt_id": "7", "messages": ["a"]}, "a.jsonl:1, message 0: expected an object, got str"),
        (
            {"prompt_id": "7", "messages": [{"role": "user"}]},
            "a.jsonl:1, message 0: field 'content' is missing",
        ),
        (
            {"prompt_id": "7", "messages": [{"role": "user", "content": None}]},
            "a.jsonl:1, message 0: field 'content' must be str, got NoneType",
        ),
    ],
)
@pytest.mark.parametrize("num_samples", [None, 1])
def test_malformed_rows_are_errors_that_name_file_and_line(
    tmp_path: Path, record: dict, fault: str, num_samples: int | None
):
    write_jsonl(tmp_path / "a.jsonl", [record])
    with pytest.raises(ValueError) as raised:
        prepare_source("ultrachat", data_dir=tmp_path, num_samples=num_samples)
    assert str(raised.value).startswith(fault)


def test_published_shards_give_train_and_test_and_generation_splits_are_not_read(tmp_path: Path):
    write_parquet(tmp_path / "data" / "train_sft-00000-of-00002.parquet", [row(1), row(2)])
    write_parquet(tmp_path / "data" / "train_sft-00001-of-00002.parquet", [row(3)])
    write_parquet(tmp_path / "data" / "test_sft-00000-of-00001.parquet", [row(4)])
    write_parquet(tmp_path / "data" / "train_gen-00000-of-00001.parquet", [row(5)])
    traces = load_source("ultrachat", data_dir=tmp_path)
    questions = {split: [contents_of(trace)[0] for trace in rows] for split, rows in traces.items()}
    assert questions == {
        "train": [f"How do I prune plum tree {number}?" for number in (1, 2, 3)],
        "test": ["How do I prune plum tree 4?"],
    }


def test_a_split_for_generation_is_refused_if_passed(tmp_path: Path):
    write_jsonl(tmp_path / "test_gen.jsonl", [row(1)])
    with pytest.raises(ValueError, match=r"test_gen\.jsonl: a split for generation is not training data"):
        load_source("ultrachat", data_files=[tmp_path / "test_gen.jsonl"])


def test_both_layouts_give_the_same_traces(tmp_path: Path):
    rows = [row(number) for number in range(20)]
    write_jsonl(tmp_path / "lines" / "ultrachat_200k.jsonl", rows)
    write_parquet(tmp_path / "shards" / "train_sft-0.parquet", rows)
    for options in ({}, {"num_samples": 6}):
        lines, shards = (
            load_source("ultrachat", data_dir=tmp_path / name, **options)["train"] for name in ("lines", "shards")
        )
        assert lines.to_list() == shards.to_list()


def test_a_sample_is_independent_of_order_files_and_processes(tmp_path: Path):
    rows = [row(number) for number in range(60)]
    write_parquet(tmp_path / "one" / "train_sft-0.parquet", rows)
    for shard in range(3):
        write_parquet(tmp_path / "three" / f"train_sft-{shard}.parquet", rows[::-1][shard::3])
    by_hash = sorted(rows, key=lambda each: hashlib.sha256(f"5/{each['prompt_id']}".encode()).digest())
    expected = {f"ultrachat/{each['prompt_id']}" for each in by_hash[:20]}
    for folder, num_proc in (("one", None), ("three", None), ("three", 3)):
        sample = load_source(
            "ultrachat",
            data_dir=tmp_path / folder,
            num_proc=num_proc,
            cache_dir=tmp_path / f"{folder}-{num_proc}",
            num_samples=20,
            seed=5,
        )["train"]
        assert len(sample) == 20 and set(sample["id"]) == expected


def test_row_groups_larger_than_a_batch_are_read_whole(tmp_path: Path):
    rows = [row(number) for number in range(1200)]
    write_parquet(tmp_path / "train_sft-0.parquet", rows, row_group_size=600)
    sample = load_source("ultrachat", data_dir=tmp_path, num_samples=400)["train"]
    by_hash = sorted(rows, key=lambda each: hashlib.sha256(f"0/{each['prompt_id']}".encode()).digest())
    assert set(sample["id"]) == {f"ultrachat/{each['prompt_id']}" for each in by_hash[:400]}


def test_another_seed_takes_other_rows_and_a_larger_sample_contains_the_smaller(tmp_path: Path):
    file = tmp_path / "train_sft-0.parquet"
    write_parquet(file, [row(number) for number in range(60)])
    [few], [more], [others] = (sample_rows([file], count, seed) for count, seed in ((10, 0), (30, 0), (10, 1)))
    assert few < more and few != others
    [everything] = sample_rows([file], 1000, 0)
    assert everything == frozenset(range(60))


def test_sampling_reads_only_the_id_column(tmp_path: Path):
    file = tmp_path / "train_sft-0.parquet"
    pq.write_table(pa.table({"prompt_id": ["a", "b", "c"]}), file)
    [positions] = sample_rows([file], 2, 0)
    assert len(positions) == 2


def test_each_split_is_sampled_and_rows_keep_their_places(tmp_path: Path):
    write_parquet(tmp_path / "train_sft-0.parquet", [row(number) for number in range(30)])
    write_parquet(tmp_path / "test_sft-0.parquet", [row(number) for number in range(100, 130)])
    whole = load_source("ultrachat", data_dir=tmp_path)
    sample = load_source("ultrachat", data_dir=tmp_path, num_samples=9)
    for split in ("train", "test"):
        sampled = sample[split]["id"]
        assert len(sampled) == 9
        assert sampled == [id for id in whole[split]["id"] if id in set(sampled)]


def test_drops_of_a_sample_name_the_row_in_the_shard(tmp_path: Path):
    write_parquet(tmp_path / "train_sft-0.parquet", [row(1), row(2), {"prompt_id": "x", "messages": []}])
    for num_samples in (None, 3):
        builder = prepare_source("ultrachat", data_dir=tmp_path, num_samples=num_samples)
        assert builder.dropped() == [Dropped("empty", "train_sft-0.parquet:row 2")]


def test_a_stream_takes_the_same_sample(tmp_path: Path):
    write_parquet(tmp_path / "train_sft-0.parquet", [row(number) for number in range(30)])
    options = {"data_dir": tmp_path, "num_samples": 5}
    assert list(load_source("ultrachat", streaming=True, **options)["train"]) == list(
        load_source("ultrachat", **options)["train"]
    )


@pytest.mark.parametrize("num_samples", [None, 1])
def test_a_file_that_is_not_a_shard_is_an_error_that_names_it(tmp_path: Path, num_samples: int | None):
    shard = tmp_path / "train_sft-0.parquet"
    for content in (b"", b"PAR1 and no more", b"a" * 1000):
        shard.write_bytes(content)
        with pytest.raises(ValueError, match=r"^train_sft-0\.parquet: not a shard of UltraChat \(.+Fetch") as raised:
            load_source("ultrachat", data_dir=tmp_path, num_samples=num_samples)
        assert "\n" not in str(raised.value)
    pq.write_table(pa.table({"text": ["a"]}), shard)
    with pytest.raises(ValueError, match=r"train_sft-0\.parquet: not a shard .* no column '(messages|prompt_id)'"):
        load_source("ultrachat", data_dir=tmp_path, num_samples=num_samples)


def test_a_damaged_shard_is_an_error_that_names_it(tmp_path: Path):
    shard = tmp_path / "train_sft-0.parquet"
    pq.write_table(pa.table({"prompt_id": ["a", "b"], "messages": pa.array([[], []], MESSAGES)}), shard)
    content = bytearray(shard.read_bytes())
    content[4:24] = b"\xff" * 20  # the header of the first page
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"^train_sft-0\.parquet: not a shard of UltraChat \("):
        load_source("ultrachat", data_dir=tmp_path)


def test_a_shard_with_text_in_another_encoding_is_an_error_that_names_it(tmp_path: Path):
    array = pa.array([b"\xff"], pa.binary()).view(pa.string())
    messages = pa.array([[]], MESSAGES)
    pq.write_table(pa.table({"prompt_id": array, "messages": messages}), tmp_path / "train_sft-0.parquet")
    with pytest.raises(ValueError, match=r"train_sft-0\.parquet: not a shard of UltraChat \('utf-8' codec"):
        load_source("ultrachat", data_dir=tmp_path)


def test_a_shard_with_another_type_of_messages_is_an_error_that_names_the_row(tmp_path: Path):
    rows = [{"prompt_id": "a", "messages": "[]"}]
    write_parquet(tmp_path / "train_sft-0.parquet", rows, messages=pa.string())
    with pytest.raises(ValueError, match=r"train_sft-0\.parquet:row 0: field 'messages' must be list, got str"):
        load_source("ultrachat", data_dir=tmp_path)


def test_the_real_sample(real_data: Path):
    data_dir = real_data / "ultrachat"
    builder = prepare_source("ultrachat", data_dir=data_dir)
    traces = builder.as_dataset()["train"]
    assert (len(traces), len(set(traces["group"])), builder.dropped()) == (20, 20, [])
    lines = (data_dir / "ultrachat_200k_sample20.jsonl").read_text(encoding="utf-8").splitlines()
    records = {f"ultrachat/{record['prompt_id']}": record for record in map(json.loads, lines)}
    turns_cut = Counter()
    for trace in traces:
        recorded = [turn["content"] for turn in records[trace["id"]]["messages"]]
        contents = contents_of(trace)
        assert contents == recorded[: len(contents)] and sum(map(len, contents)) <= 8192
        turns_cut[len(recorded) - len(contents)] += 1
    assert sum(record["prompt"] != record["messages"][0]["content"] for record in records.values()) == 2
    assert turns_cut == {0: 16, 2: 2, 4: 1, 6: 1}


def test_a_budget_drops_and_cuts_real_conversations(real_data: Path):
    builder = prepare_source("ultrachat", data_dir=real_data / "ultrachat", max_characters=2000)
    assert Counter(drop.reason for drop in builder.dropped()) == {"too_long": 9}
    assert len(builder.as_dataset()["train"]) == 11

"""Strict reading of records: JSON that is ambiguous or cannot be stored in a column is refused."""

import pytest

from builders.json_records import optional, parse_json, parse_object, read_json, read_json_lines, required


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('{"security": true, "security": false}', "the key 'security' occurs twice in one object"),
        ('{"a": {"b": 1, "b": 1}}', "the key 'b' occurs twice"),
        ('{"a": NaN}', "NaN is not a JSON number"),
        ('{"a": 1e999}', "1e999 is too large for a number"),
        ('{"a": "\\ud800"}', "surrogates not allowed"),
        ("[" * 100_000 + "]" * 100_000, "nested too deeply"),
        ('{"a": ' + "9" * 5000 + "}", "Exceeds the limit"),
        ('{"a": 1', "Expecting ',' delimiter"),
    ],
)
def test_ambiguous_or_unstorable_json_is_refused(text: str, reason: str):
    with pytest.raises(ValueError, match=reason):
        parse_json(text)


def test_a_record_must_be_an_object():
    assert parse_object('{"a": 0.7}') == {"a": 0.7}
    with pytest.raises(ValueError, match="it is of type list"):
        parse_object("[1]")


@pytest.mark.parametrize(
    ("value", "types", "message"),
    [
        (True, (int, float), "field 'a' must be int or float, got bool"),
        (1, bool, "field 'a' must be bool, got int"),
        (None, str, "field 'a' must be str, got NoneType"),
    ],
)
def test_booleans_are_not_numbers_and_null_is_not_text(value, types, message: str):
    with pytest.raises(ValueError, match=f"x.jsonl:3: {message}. Correct it."):
        required({"a": value}, "a", types, "x.jsonl:3")


def test_an_optional_field_may_be_missing_or_null_but_not_of_another_type():
    assert optional({}, "a", str, "x:1") is None is optional({"a": None}, "a", str, "x:1")
    with pytest.raises(ValueError, match="must be str, got int"):
        optional({"a": 1}, "a", str, "x:1")


def test_the_error_names_a_bad_line_and_blank_lines_are_skipped(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"n": 1}\r\n\r\n{"n": 2}\n{"n": \xff}\n')
    lines = read_json_lines(tmp_path / "a.jsonl")
    assert [next(lines), next(lines)] == [("a.jsonl:1", {"n": 1}), ("a.jsonl:3", {"n": 2})]
    with pytest.raises(ValueError, match=r"^a\.jsonl:4: not a JSON object \(.*invalid start byte.*\)"):
        next(lines)


def test_the_error_names_a_bad_document(tmp_path):
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(ValueError, match=r"^a\.json: not a JSON document \(.*\)\. Fetch the file again\.$"):
        read_json(tmp_path / "a.json")

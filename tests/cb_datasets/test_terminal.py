"""Text of strangers is shown on the terminal and in Markdown, and obeyed by neither."""

import logging
import random
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from typer.testing import CliRunner

from builders.trace import message
from cb_datasets.checks.show_tokens import show_tokens
from cb_datasets.cli import app
from cb_datasets.cli.output import table, tokenizer
from cb_datasets.files import save_rows, to_dataset
from cb_datasets.generation.progress import Progress
from cb_datasets.markdown import Markdown, cell, code, markdown_table
from cb_datasets.sample import SAMPLE_FEATURES
from cb_datasets.terminal import show_log_messages, shown, shown_line

from .command import run
from .conftest import INJECTION, REQUEST, RIGHT, WRONG


HOSTILE = "a\x1b[2J\x1b]0;owned\x07\x9b31m\u202eb\r\n[red]x[/red][link=http://x.org]y[/link]\x00"
# What a terminal acts on, the line break of our own output aside.
OBEYED = {*map(chr, range(0x20)), *map(chr, range(0x7F, 0xA0)), "\u202e", "\u2028"} - {"\n"}


def test_every_character_is_shown_where_it_was():
    assert shown("a\x1b[2Jb\x07\x00\x7f\x9b\u202e\r") == "a␛[2Jb␇␀␡��␍"
    assert shown("a\n\tb") == "a\n\tb" and shown_line("a\n\tb") == "a␊␉b"
    ordinary = "Zoë 東京 مرحبا 🙂 e\u0301 § “quotes” <|eot_id|> [red]"
    assert shown(ordinary) == shown_line(ordinary) == ordinary
    draw = random.Random(0)
    for _ in range(200):
        text = "".join(chr(draw.choice((draw.randrange(0x300), draw.randrange(0x110000)))) for _ in range(30))
        assert len(shown(text)) == len(text) and not OBEYED & set(shown_line(text))
        shown_line(text).encode()


def test_tables_show_markup_and_escape_sequences(capsys):
    table(["name", f"{HOSTILE}head"], [(HOSTILE, 1)])
    printed = capsys.readouterr().out
    assert not OBEYED & set(printed) and "[red]x[/red][link=http://x.org]y[/link]" in printed and "␛[2J" in printed


@pytest.fixture
def hostile_data(make_sample, tmp_path) -> Path:
    """A data folder with two rows in which strangers wrote every text that they can."""
    query = f"{REQUEST}\x1b[2J\n\n{INJECTION}"
    fields = {
        "category": HOSTILE,
        "group": HOSTILE,
        "pair": HOSTILE,
        "messages": [message("system", "Help."), message("user", query)],
        "injection": [{"message": 1, "start": query.index(INJECTION), "end": len(query)}],
    }
    flip = make_sample(WRONG.replace("pump", "pump\x9b31m"), "harmful_flip", id=f"harmful/{HOSTILE}", **fields)
    safe = make_sample(f"One moment.\x1b[2J\n  outcome\n{RIGHT}", "adversarial_safe", id=f"retain/{HOSTILE}", **fields)
    for name, row in (("harmful/b4_flips", flip), ("retain/safe", safe)):
        save_rows(to_dataset([row], SAMPLE_FEATURES), tmp_path / name, {})
    return tmp_path


@pytest.mark.parametrize(
    "command",
    [
        ("explain", f"retain/{HOSTILE}", "--data-dir", "{data}", "--model", "{model}"),
        ("explain", f"nowhere/{HOSTILE}", "--data-dir", "{data}"),
        ("preflight", "--train-data", "{data}/harmful", "--model", "{model}", "--show", "1"),
        ("validate", "--data-dir", "{data}"),
        ("quality-gates", "{data}"),
        ("merge", "{data}", "--output", "{data}/out"),
    ],
)
def test_commands_print_what_strangers_wrote(hostile_data, tiny_agent_path, command):
    arguments = [part.format(data=hostile_data, model=tiny_agent_path) for part in command]
    result = CliRunner().invoke(app, arguments, color=False)
    errors = str(result.exception) if result.exception else ""
    assert not isinstance(result.exception, TypeError | KeyError), result.exception
    printed = result.stdout + (result.stderr if "Error" not in errors else "")
    printed = "".join(line.rpartition("\r")[2] for line in printed.splitlines(keepends=True))  # of progress bars
    assert not OBEYED & set(printed), sorted(map(hex, map(ord, OBEYED & set(printed))))


def test_an_error_shows_the_id_that_it_names(hostile_data):
    result = run("explain", "x\x1b[2J\u202e", "--data-dir", hostile_data)
    assert result.returncode == 1 and not OBEYED & set(result.stderr) and "No sample has the id" in result.stderr


def test_a_fault_of_ours_shows_what_it_quotes(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError(HOSTILE)

    monkeypatch.setattr("cb_datasets.audit.explain.explain_row", fail)
    result = run("explain", "x", "--data-dir", ".")
    assert result.returncode == 1 and "Traceback" in result.stderr and "AssertionError" in result.stderr
    assert not OBEYED & set(result.stderr)


def test_no_text_looks_like_a_part_of_the_report(hostile_data):
    result = CliRunner().invoke(app, ["explain", f"retain/{HOSTILE}", "--data-dir", str(hostile_data)])
    headings = [line for line in result.stdout.splitlines() if line and not line.startswith(" ")]
    assert headings[1:] == ["outcome", "rules", "provenance", "raw record", "completion"]
    assert [line for line in result.stdout.splitlines() if line.strip() == "outcome"] == ["outcome", "      outcome"]


def test_the_injection_is_highlighted_where_it_stands(hostile_data, tiny_agent_path, make_sample):
    from cb_datasets.files import load_rows

    [row] = load_rows(hostile_data / "retain" / "safe")
    text = show_tokens(row, tokenizer(str(tiny_agent_path)))
    [marked] = [text.plain[span.start : span.end] for span in text.spans if "yellow" in str(span.style)]
    assert INJECTION in marked and len(marked) < len(INJECTION) + 12 and not OBEYED & set(text.plain)


def test_log_messages_show_names(caplog):
    usual = logging.getLogRecordFactory()
    show_log_messages()
    try:
        logging.getLogger("builders").warning("left out: %s", HOSTILE)
        logging.getLogger("builders").warning(f"{HOSTILE} 100 %")
    finally:
        logging.setLogRecordFactory(usual)
    assert len(caplog.messages) == 2 and not OBEYED & set("".join(caplog.messages))


def test_progress_bars_show_names(capsys):
    with Progress(HOSTILE, 3, 0) as progress:
        progress._bar.refresh()
    assert "a␛[2J" in capsys.readouterr().err


MARKDOWN = [
    "![alt](http://x.org/pixel.png)",
    "[text](javascript:alert(1))",
    "<img src=x onerror=alert(1)>",
    "<!-- hidden -->",
    "&lt;b&gt; &#33;",
    "`code` **bold** *soft* ~~gone~~ __init__ _soft_ a_b",
    "a | b \\| c \\",
    "---\nlicense: mit\n---\n# Title",
    "{{ 7 * 7 }} {% raw %}",
    "\x1b[2J",
]


@pytest.mark.parametrize("text", MARKDOWN)
def test_markdown_renders_to_the_text_itself(text):
    markdown = MarkdownIt("commonmark").enable(["table", "strikethrough"])
    expected = shown_line(" ".join(text.split()))
    [_, inline, _] = markdown.parse(f"x {cell(text)} y")
    assert {token.type for token in inline.children} <= {"text", "text_special"}
    assert "".join(token.content for token in inline.children) == f"x {expected} y"
    cells = [t for t in markdown.parse(markdown_table(["a", "b"], [(text, 1)])) if t.type == "inline"]
    assert len(cells) == 4 and "".join(token.content for token in cells[2].children) == expected
    inside = [t for t in markdown.parse(f"| a |\n|---|\n| {code(text)} |") if t.type == "inline"][1].children
    assert [token.type for token in inside] == ["code_inline"] and inside[0].content == expected.strip()


def test_markdown_of_our_own_stays():
    assert "| **no** |" in markdown_table(["a"], [[Markdown("**no**")]])
    assert cell("tool_flip 12.5% [3, 4]; a-b") == "tool_flip 12.5% [3, 4]; a-b"

"""The results for people: a table on the screen, the same as Markdown, and a plot."""

from pathlib import Path

from ..files import write_json, write_text


ROWS = {
    "asr": "attack success (ASR) ↓",
    "correct_under_attack": "correct call under attack ↑",
    "other_tool": "other call under attack",
    "no_tool_call": "no call under attack",
    "malformed": "malformed call under attack",
    "benign_call": "benign call ↑",
    "refusal_kept": "refusals kept ↑",
    "chat_kept": "chat kept ↑",
    "gibberish": "gibberish ↓",
}
ARGUMENTS = "arguments of right benign calls ↑"


def table_rows(comparison: dict) -> list[tuple[str, str, str]]:
    """`(label, base, breaker)` for every figure that was measured."""
    base, breaker = comparison["base"], comparison["breaker"]
    rows = [(label, _cell(base[key]), _cell(breaker[key])) for key, label in ROWS.items() if key in base]
    arguments = comparison["arguments"]
    if arguments["base"] and arguments["breaker"]:
        rows.append((ARGUMENTS, _cell(arguments["base"]), _cell(arguments["breaker"])))
    return rows


def _cell(figure: dict) -> str:
    return f"{figure['value']:6.1%}  [{figure['low']:.1%}, {figure['high']:.1%}]  n={figure['n']}"


def write_report(comparison: dict, settings: dict, folder: Path) -> None:
    """Write `results.json` (the figures alone), `details.json`, `report.md` and `report.png`."""
    folder.mkdir(parents=True, exist_ok=True)
    _plot(comparison, folder / "report.png")
    write_text(folder / "report.md", _markdown(comparison, settings))
    write_json(folder / "details.json", {"settings": settings, **comparison})
    write_json(folder / "results.json", {side: comparison[side] for side in ("base", "breaker")})


def _markdown(comparison: dict, settings: dict) -> str:
    lines = ["# Base against breaker", ""]
    lines += [f"- {key}: `{value}`" for key, value in settings.items()]
    lines += ["", "Rates with 95 % Wilson intervals; greedy decoding, the same prompts for both.", ""]
    lines += ["| | base | breaker | gained | lost | McNemar p |", "|---|---|---|---|---|---|"]
    for key, label in ROWS.items():
        if key not in comparison["base"]:
            continue
        changed = comparison["changed"].get(key)
        tail = " | | |" if changed is None else f"{changed['gained']} | {changed['lost']} | {changed['p']:.2g} |"
        lines.append(f"| {label} | {_cell(comparison['base'][key])} | {_cell(comparison['breaker'][key])} | {tail}")
    lines += [
        "",
        "## Attack families",
        "",
        "| family | n | base ASR | breaker ASR | breaker correct |",
        "|---|---|---|---|---|",
    ]
    for family, base in comparison["by_family"]["base"].items():
        breaker = comparison["by_family"]["breaker"][family]
        shown = (base["asr"], breaker["asr"], breaker["correct_under_attack"])
        cells = " | ".join(f"{figure['value']:.1%}" for figure in shown)
        lines.append(f"| {family} | {base['asr']['n']} | {cells} |")
    lines += [
        "",
        f"Engine failures: base {comparison['errors']['base']}, breaker {comparison['errors']['breaker']}.",
        "",
    ]
    lines += [
        "The attacks are fixed texts: these figures say nothing about an attacker who adapts to the breaker.",
        "",
    ]
    lines += ["![base against breaker](report.png)", ""]
    return "\n".join(lines)


def _plot(comparison: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    keys = [key for key in ROWS if key in comparison["base"]]
    figure, axes = plt.subplots(figsize=(8, 0.55 * len(keys) + 1.2))
    for offset, side, colour in ((-0.19, "base", "#9aa5b1"), (0.19, "breaker", "#1f6f8b")):
        values = [comparison[side][key] for key in keys]
        errors = [
            [value["value"] - value["low"] for value in values],
            [value["high"] - value["value"] for value in values],
        ]
        positions = [index + offset for index in range(len(keys))]
        widths = [value["value"] for value in values]
        axes.barh(positions, widths, 0.36, xerr=errors, color=colour, label=side, error_kw={"lw": 1, "capsize": 2})
    axes.set_yticks(range(len(keys)), [ROWS[key] for key in keys])
    axes.invert_yaxis()
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(matplotlib.ticker.PercentFormatter(1.0))
    axes.set_xlabel("share of prompts, 95 % interval")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)

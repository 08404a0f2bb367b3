"""Names of the sets that a model generates: flips and benign twins are named for the source of their prompts.

    traces/fujitsu_b4    harmful/b4_flips           retain/b4_benign_twins
    traces/lookalike     harmful/lookalike_flips    retain/lookalike_benign_twins

The other generated sets (adversarial_safe, refusals, chat) have one name whatever their sources. Recorded sets are
listed in `recorded.py`.
"""

from pathlib import Path

from ..files import holds_rows, stream_rows


FLIPS, BENIGN_TWINS = "flips", "benign_twins"

# What a set's name says of a source, where that is not the source's own name.
_PREFIXES = {"fujitsu_b4": "b4"}

# Sets of look-alike prompts, and what the release before called them.
_FORMER_NAMES = {"lookalike_flips": "b4_flips", "lookalike_benign_twins": "b4_benign_twins"}


def set_name(source: str, subset: str) -> str:
    """The name of a source's flips or benign twins: `set_name("fujitsu_b4", FLIPS)` is `b4_flips`."""
    return f"{_PREFIXES.get(source, source)}_{subset}"


def check_former_name(folder: Path) -> None:
    """Refuse a set that is missing under its name and there under the one it had in the release before.

    Raises:
        ValueError: Naming both folders and the remedy.
    """
    former = folder.with_name(_FORMER_NAMES.get(folder.name, folder.name))
    if not holds_rows(folder) and former != folder and holds_rows(former):
        raise ValueError(
            f"There is no set in {folder}, but {former} is there: the release before called it {former.name}. Rename "
            "the folder, or run the step again that makes it."
        )


def former_name_notice(folder: Path) -> str | None:
    """A sentence on a set of look-alike prompts that still has the name of the release before; `None` for others."""
    name = next((name for name, former in _FORMER_NAMES.items() if former == folder.name), None)
    if name is None or not holds_rows(folder):
        return None
    row = next(stream_rows([folder]), None)
    if row is None or row["provenance"]["source_dataset"] != "lookalike":
        return None
    return f"{folder}: look-alike prompts under the name of the release before; the set is called {name} now."

"""Help texts of command-line arguments, taken from the docstring of their dataclass.

@dataclass
@docstring_help                         # below `dataclass`, which reads the metadata
class ScriptArguments:
    '''
    Args:
        max_rows (`int`, *optional*, defaults to `200`):
            Maximum number of rows.
    '''

    max_rows: int = 200                 # field(default=200, metadata={"help": "Maximum number of rows."})
"""

import inspect
import re
from dataclasses import MISSING, Field, field
from types import MappingProxyType
from typing import TypeVar


T = TypeVar("T", bound=type)

_ENTRY = re.compile(r"^    (\w+) \(.*\):\n((?: {8}.*\n?|\n)+)", re.MULTILINE)
_REFERENCE = re.compile(r"\[`(?:~\w+\.)?(.+?)`\]")  # a link in the documentation, such as [`~peft.PeftModel`]


def docstring_help(cls: T) -> T:
    """
    Give each field of a dataclass the `help` metadata that [`~transformers.HfArgumentParser`] prints.

    Raises:
        TypeError: If a field has no entry in the docstring, or an entry no field.
    """
    entries = dict(_ENTRY.findall(inspect.cleandoc(cls.__doc__ or "")))
    names = inspect.get_annotations(cls)
    if unmatched := sorted(entries.keys() ^ names.keys()):
        raise TypeError(
            f"The fields of {cls.__name__} and the entries of its docstring differ: {', '.join(unmatched)}."
        )
    for name, text in entries.items():
        help_text = _REFERENCE.sub(r"`\1`", " ".join(text.split())).replace("%", "%%")  # argparse formats it with `%`
        default = cls.__dict__.get(name, MISSING)
        if not isinstance(default, Field):
            default = field() if default is MISSING else field(default=default)
        default.metadata = MappingProxyType({**default.metadata, "help": help_text})
        setattr(cls, name, default)
    return cls

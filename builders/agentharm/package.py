"""Tools and system prompt of AgentHarm, read from the code of the installed package `inspect-evals`.

A tool is a factory that returns the function to call; the inner function has the signature and the docstring. An
invented example, in a file `ring_bell.py`:

    @tool
    def ring_bell() -> Tool:
        async def run(times: int) -> str:
            \"\"\"Ring the bell.

            Args:
                times: How often.
            \"\"\"
        return run

The code is parsed, never imported or run: importing it would load the whole framework for 160 descriptions.
"""

import ast
import importlib.util
import re
from pathlib import Path


_REINSTALL = "Install the version of inspect-evals that setup.py names."

# Parts of a docstring: a section header such as "Args:", and an entry below it with its continuation lines.
_SECTION = re.compile(r"^(\w+):$", re.MULTILINE)
_ARGUMENT = re.compile(r"^ {4}(\w++)[^:\n]*+:(.*(?:\n {5,}.*)*)", re.MULTILINE)

_TYPES = {"str": "string", "int": "integer", "float": "number", "bool": "boolean"}


def installed_benchmark() -> Path:
    """Locate the benchmark's folder in the installed package, without importing the package.

    Raises:
        FileNotFoundError: If the package is not installed, or does not contain AgentHarm.
    """
    package = importlib.util.find_spec("inspect_evals")
    folders = [] if package is None else [Path(folder) for folder in package.submodule_search_locations or ()]
    for folder in folders:
        if (folder / "agentharm" / "benchmark").is_dir():
            return folder / "agentharm"
    raise FileNotFoundError(
        "The tools of AgentHarm are read from the package inspect-evals, which is not installed: "
        "pip install 'cb-datasets[sources]'."
    )


def read_system_prompt(benchmark: Path) -> str:
    """Read the system prompt of the benchmark's default agent, which is used for models without one of their own.

    Raises:
        ValueError: If the package's code does not contain it as a literal.
    """
    path = benchmark / "prompts.py"
    for node in _parse_module(path).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "system_prompt_dict":
            try:
                return ast.literal_eval(node.value)["default"]
            except (ValueError, TypeError, KeyError):
                break
    raise ValueError(f"{path.name}: contains no default system prompt. {_REINSTALL}")


def read_tools(folder: Path) -> dict[str, dict]:
    """OpenAI function schemas of the tools in a folder, by name; each file defines one tool, named like the file.

    Raises:
        ValueError: If a file does not define a tool of the form above.
    """
    paths = sorted(path for path in folder.glob("*.py") if not path.stem.startswith("__"))
    return {path.stem: _tool_schema(path) for path in paths}


def _tool_schema(path: Path) -> dict:
    factory = _find_function(_parse_module(path).body, path, name=path.stem)
    inner = _find_function(factory.body, path)
    description, argument_descriptions = _parse_docstring(ast.get_docstring(inner) or "")
    arguments, defaults = inner.args.args, inner.args.defaults
    parameters = {
        argument.arg: {
            **_type_schema(argument.annotation, path),
            "description": argument_descriptions.get(argument.arg, ""),
        }
        for argument in arguments
    }
    return {
        "type": "function",
        "function": {
            "name": path.stem,
            "description": description,
            "parameters": {
                "type": "object",
                "properties": parameters,
                # Arguments with defaults come last in a Python signature.
                "required": list(parameters)[: len(arguments) - len(defaults)],
                "additionalProperties": False,
            },
        },
    }


def _parse_module(path: Path) -> ast.Module:
    try:
        return ast.parse(path.read_bytes())
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{path.name}: cannot be read ({error}). {_REINSTALL}") from None


def _find_function(
    body: list[ast.stmt], path: Path, name: str | None = None
) -> ast.FunctionDef | ast.AsyncFunctionDef:
    functions = [node for node in body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    for function in functions:
        if name in (None, function.name):
            return function
    raise ValueError(f"{path.name}: defines no tool {path.stem}. {_REINSTALL}")


def _type_schema(annotation: ast.expr | None, path: Path) -> dict:
    match annotation:
        case ast.Name(id=name) if name in _TYPES:
            return {"type": _TYPES[name]}
        case ast.Subscript(value=ast.Name(id="list"), slice=items):
            return {"type": "array", "items": _type_schema(items, path)}
    type_name = "none" if annotation is None else ast.unparse(annotation)
    raise ValueError(f"{path.name}: a parameter has the unsupported type {type_name}. {_REINSTALL}")


def _parse_docstring(docstring: str) -> tuple[str, dict[str, str]]:
    """Split a docstring into its description and the descriptions of the arguments in its `Args` section, by name."""
    description, *rest = _SECTION.split(docstring)
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    arguments = {name: " ".join(text.split()) for name, text in _ARGUMENT.findall(sections.get("Args", ""))}
    return description.strip(), arguments

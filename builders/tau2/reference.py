"""Reference data of a domain: the benchmark's splits of its tasks, and the tools of the assistant.

Both are looked up in the inputs first, and then in the benchmark, if it is installed:

    domains/<domain>/split_tasks.json   {"train": ["1", "5"], "test": ["2"], "base": ["1", "2", "5"]}    ids of tasks
    tool_schemas_<domain>.json          {"assistant_tools": [{"type": "function", ...}, ...], "user_tools": [...]}
"""

from pathlib import Path

from ..json_records import read_json, required
from ..trace import to_json
from .conversation import Unusable, as_object
from .replay import DOMAINS, assistant_tools, package_data_dir
from .tasks import read_tasks


# Files with a domain's tasks, by priority. Only the first match is read, since all others are subsets of `tasks.json`.
# Telecom's `tasks.v0.1.0.json` is the subset that the benchmark runs by default.
_TASKS = ("tasks.json", "tasks.v*.json", "tasks_full*.json", "tasks_small.json")


# Folders whose JSON files are result files, at any depth: `trajectories` is that of a submission to the leaderboard.
RESULT_FOLDERS = ("results", "trajectories")
# The file that a run's folder is recognised by, and the folder of its simulations.
RUN_FILE, _SIMULATIONS = "results.json", "simulations"


def find_files(data_dir: Path) -> list[Path]:
    """Files with records and with reference data below a folder, sorted."""
    files = {path for pattern in ("taubench*.json", "tool_schemas_*.json") for path in data_dir.glob(pattern)}
    files.update(_result_files(data_dir))
    for folder in (data_dir / "domains" / domain for domain in DOMAINS):
        matches = (sorted(folder.glob(pattern)) for pattern in _TASKS)
        files.update(next(filter(None, matches), [])[-1:])  # the latest of several versions
        files.update(folder.glob("split_tasks.json"))
    return sorted(files)


def _result_files(data_dir: Path) -> set[Path]:
    files = set(data_dir.rglob(RUN_FILE))
    runs = [folder for file in files if (folder := run_folder(file))]
    for name in RESULT_FOLDERS:
        files.update((data_dir / name).rglob("*.json"))
    # Beside its simulations a run has a folder of logs and sound; a submission describes itself.
    others = {file for file in files for run in runs if run.with_name("artifacts") in file.parents}
    others |= {file for file in files if file.name == "submission.json"}
    return (files - others).union(*(run.glob("*.json") for run in runs))


def run_folder(file: Path) -> Path | None:
    """Folder of the simulations of a run, if this is the file that describes the run."""
    folder = file.with_name(_SIMULATIONS)
    return folder if file.name == RUN_FILE and folder.is_dir() else None


def is_simulation(file: Path) -> bool:
    """Whether a file is one simulation of a run's folder."""
    return file.parent.name == _SIMULATIONS and file.parent.with_name(RUN_FILE).is_file()


def holds_tasks(file: Path) -> bool:
    """Whether a file holds a domain's tasks."""
    return file.parent.name in DOMAINS and file.name.startswith("tasks")


class Reference:
    """Splits and tools, by domain.

    Args:
        inputs (`list[Path]`): The input files.
    """

    def __init__(self, inputs: list[Path]):
        package = package_data_dir()
        self._inputs = inputs
        self._files = [*inputs, *(find_files(package) if package else [])]
        self._splits: dict[str, dict[str, list[str]]] = {}
        self._groups: dict[str, dict[str, set[str]]] = {}

    def official_splits(self, domain: str) -> dict[str, list[str]]:
        """The benchmark's splits of a domain: split name -> task ids."""
        if domain not in self._splits:
            file = next((file for file in self._files if _is_of(file, domain, "split_tasks.json")), None)
            self._splits[domain] = _read_splits(file) if file else {}
        return self._splits[domain]

    def official_splits_of(self, domain: str, task: str) -> list[str]:
        """The benchmark's splits that contain a task."""
        return [name for name, ids in self.official_splits(domain).items() if task in ids]

    def split_of(self, domain: str, group: str, task: str | None) -> str | None:
        """The split of a task or of a recording of it; `None` for what must be dropped, lest a group be in both.

        Args:
            domain (`str`): The domain.
            group (`str`): The group of the task.
            task (`str`, *optional*): Its id, if it is one of the benchmark's tasks.
        """
        splits = self._splits_of_group(domain, group)
        if len(splits) < 2:
            return next(iter(splits), "train")
        return "train" if task is not None and task in self.official_splits(domain)["train"] else None

    def _splits_of_group(self, domain: str, group: str) -> set[str]:
        """Which of `train` and `test` the benchmark's tasks of a group are in."""
        if domain not in self._groups:
            file = next((file for file in self._files if holds_tasks(file) and file.parent.name == domain), None)
            official = {name: set(self.official_splits(domain).get(name, [])) for name in ("train", "test")}
            self._groups[domain] = {}
            for each in read_tasks(file) if file and any(official.values()) else ():
                own = {name for name, ids in official.items() if each.id in ids}
                self._groups[domain].setdefault(each.group, set()).update(own)
        return self._groups[domain].get(group, set())

    def tools(self, domain: str) -> str:
        """JSON text of the assistant's tools in a domain.

        Raises:
            Unusable: If the tools are unknown.
        """
        file = next((file for file in self._inputs if file.name == f"tool_schemas_{domain}.json"), None)
        if file is not None:
            return _read_tools(file)
        try:
            return assistant_tools(domain)
        except (FileNotFoundError, Unusable):
            raise Unusable("unknown_tools") from None


def _is_of(file: Path, domain: str, name: str) -> bool:
    return file.parent.name == domain and file.name == name


def _read_splits(file: Path) -> dict[str, list[str]]:
    where = f"{file.parent.name}/{file.name}"
    splits = as_object(read_json(file, where), where)
    for name in splits:
        for number, id in enumerate(required(splits, name, list, where)):
            if not isinstance(id, str):
                raise ValueError(
                    f"{where}: {name}[{number}] must be the id of a task, got {repr(id)[:40]}. Correct it."
                )
    return splits


def _read_tools(file: Path) -> str:
    schemas = as_object(read_json(file), file.name)
    tools = required(schemas, "assistant_tools", list, file.name)
    for number, tool in enumerate(tools):
        where = f"{file.name}: assistant_tools[{number}]"
        required(required(as_object(tool, where), "function", dict, where), "name", str, where)
    return to_json(tools)

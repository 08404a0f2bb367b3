"""Test cases of the mutations: input files, mutations and oracle, for every source and layout, real and invented."""

import csv
import io
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random

from tests.builders import mutations as mutate

from . import agentdojo, agentdojo_runs, agentharm, bfcl, fujitsu, injecagent, jsonl, llmail, tau2, ultrachat, xstest
from . import inputs as small
from .expected import Outcomes, Unit, comparable, json_lines, parse_json, parse_json_mended


Judge = Callable[[dict], Outcomes]
Oracle = Callable[[dict[str, bytes]], list[Unit]]
Mutations = tuple[mutate.BytesMutation, ...]


@dataclass(frozen=True)
class Input:
    """Input folder of a source, in which one file is damaged.

    Args:
        target (`str`): Path of the damaged file in the folder.
        data (`bytes`): Its undamaged content.
        beside (`dict[str, bytes]`): Other files with records.
        fixed (`dict[str, bytes | Path]`): Files without records, and folders of such files to link to.
    """

    target: str
    data: bytes
    beside: dict[str, bytes] = field(default_factory=dict)
    fixed: dict[str, bytes | Path] = field(default_factory=dict)

    def records(self, data: bytes) -> dict[str, bytes]:
        """Path -> content of the files with records, with `data` in the damaged file."""
        return {**self.beside, self.target: data}


@dataclass(frozen=True)
class Case:
    """A source's inputs in one layout.

    Args:
        source (`str`): Name of the source.
        inputs (`list[Input]`): Inputs, used in turn.
        units (`Oracle`): Oracle that returns the units of the files.
        mutations (`tuple[Mutations, ...]`): Groups of mutations, chosen with equal probability.
        count (`int`): Number of mutations.
    """

    source: str
    inputs: list[Input]
    units: Oracle
    mutations: tuple[Mutations, ...]
    count: int


def in_lines(*mutations: mutate.RecordMutation) -> Mutations:
    return tuple(mutate.in_one_line(mutation) for mutation in mutations)


def in_document(*mutations: mutate.RecordMutation) -> Mutations:
    return tuple(mutate.in_a_document(mutation) for mutation in mutations)


OF_LINES = (mutate.ANY_FILE, in_lines(*mutate.ANY_RECORD))
OF_DOCUMENTS = (mutate.ANY_FILE, in_document(*mutate.ANY_RECORD), in_document(*mutate.ANY_RECORD))
OF_TABLES = (mutate.ANY_FILE, mutate.TABLE, mutate.TABLE)


def by_file(units: Callable[[str, bytes], list[Unit]]) -> Oracle:
    """Oracle that applies `units` to each file, in the order of their paths."""

    def units_of(files: dict[str, bytes]) -> list[Unit]:
        return [unit for path in sorted(map(Path, files)) for unit in units(path.name, files[str(path)])]

    return units_of


def lines(judge: Judge, parse: Callable[[str], object] = parse_json) -> Oracle:
    return by_file(partial(json_lines, judge=judge, parse=parse))


# ---------------------------------------------------------------------------------------------------------------------
# Real files


def real_dumps(real_data: Path, suite: str) -> Case:
    """From every dump, a few runs of one suite for every outcome."""
    folder = real_data / "agentdojo"
    rng = Random(suite)
    fixed: dict[str, bytes | Path] = {
        f"reference/{path.name}": path for path in folder.glob(f"reference/*_{suite}_v*.json")
    }
    inputs = [
        Input(
            f"dumps/agentdojo-some model (1) {number}.jsonl", _part_of_dump(path.read_bytes(), suite, rng), fixed=fixed
        )
        for number, path in enumerate(sorted(folder.glob("dumps/agentdojo-*.jsonl")))
    ]
    goal = agentdojo.GOALS[suite]
    groups = (*OF_LINES, in_lines(*mutate.TURNS), in_lines(*_goal_mutations(goal)))
    return Case("agentdojo", inputs, lines(agentdojo.judge), groups, 225)


def _part_of_dump(data: bytes, suite: str, rng: Random) -> bytes:
    header, *runs = [line for line in data.split(b"\n") if 0 < len(line) < 60_000]
    by_outcome: dict[str, list[bytes]] = {}
    for run in runs:
        record = json.loads(run)
        if record["metadata"]["suite_name"] == suite:
            [outcome] = agentdojo.judge(record)
            by_outcome.setdefault(outcome.split("@")[0], []).append(run)
    resisted, compromised = by_outcome.get("resisted", []), by_outcome.get("compromised", [])
    if len(resisted) < 4 or not compromised:
        # With few other runs, these and a damaged label would look like inverted labels.
        by_outcome.pop("attempted", None)
    sample = [run for runs in by_outcome.values() for run in rng.sample(runs, 1)]
    sample += rng.sample(resisted, min(4, len(resisted))) + rng.sample(compromised, min(2, len(compromised)))
    sample = list(dict.fromkeys(sample))
    rng.shuffle(sample)
    return b"\n".join([header, *sample]) + b"\n"


def _goal_mutations(goal: agentdojo.Goal) -> tuple[mutate.RecordMutation, ...]:
    return *mutate.DUMPED_RUN, *mutate.against_goal(sorted(goal.tools), goal.argument, goal.token)


def real_runs(real_data: Path) -> Case:
    """Three files at a time, one of them damaged."""
    folder = real_data / "agentdojo"
    paths = sorted(folder.glob("runs/*/*/*/*/*.json"))
    runs = {str(path.relative_to(folder)): path.read_bytes() for path in paths}
    inputs = []
    for number, target in enumerate(runs):
        beside = {path: runs[path] for path in (list(runs)[number - 1], list(runs)[number - 9])}
        inputs.append(Input(target, runs[target], beside, {"reference": folder / "reference"}))
    groups = (*OF_DOCUMENTS, in_document(*mutate.TURNS))
    return Case("agentdojo", inputs, agentdojo_runs.units, groups, 250)


def real_b4(real_data: Path) -> Case:
    records = (real_data / "fujitsu" / "b4_records_sample.jsonl").read_bytes().splitlines(keepends=True)
    inputs = [Input("b4_part.jsonl", b"".join(records[start : start + 6])) for start in range(20)]
    return Case("fujitsu_b4", inputs, lines(fujitsu.judge_b4), OF_LINES, 200)


def real_xstest(real_data: Path) -> Case:
    names = ("xstest_prompts.csv", "xstest_v2_prompts.csv")
    inputs = [part for name in names for part in _parts_of_table(real_data / "xstest" / name)]
    return Case("xstest", inputs, by_file(xstest.prompt_units), OF_TABLES, 250)


def real_xstest_completions(real_data: Path) -> Case:
    inputs = _parts_of_table(real_data / "xstest" / "xstest_v2_completions_mistralinstruct.csv")
    return Case("xstest_completions", inputs, by_file(xstest.completion_units), OF_TABLES, 150)


def _parts_of_table(path: Path) -> list[Input]:
    header, *rows = csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline=""))
    return [Input(path.name, small.table([header, *rows[start : start + 12]])) for start in range(0, 440, 40)]


def real_ultrachat(real_data: Path) -> Case:
    rows = (real_data / "ultrachat" / "ultrachat_200k_sample20.jsonl").read_bytes().splitlines(keepends=True)
    inputs = [Input("ultrachat_train_sft.jsonl", b"".join(rows[start : start + 5])) for start in range(0, 16, 3)]
    return Case("ultrachat", inputs, lines(ultrachat.judge), (*OF_LINES, in_lines(*mutate.TURNS)), 150)


def real_tau2_tasks(real_data: Path) -> Case:
    """Tasks of the mock domain, without tasks that give the same conversation."""
    folder = real_data / "tau2"
    tasks = json.loads((folder / "domains" / "mock" / "tasks.json").read_bytes())
    parts = [[tasks[number] for number in part] for part in ((0, 3, 9), (2, 3, 0), (9, 0, 3), (4, 0, 5))]
    return _tau2_tasks([small.document(part) for part in parts], tasks, 70)


def real_taubench(real_data: Path) -> Case:
    """Three trajectories at a time, one of them with full reward."""
    folder = real_data / "tau2"
    schemas = (folder / "tool_schemas_airline.json").read_bytes()
    tools = [tool["function"]["name"] for tool in json.loads(schemas)["assistant_tools"]]
    records = json.loads((folder / "taubench_v1_gpt-4o-airline_first20.json").read_bytes())
    rewarded = [record for record in records if record["reward"] == 1]
    parts = [[records[number], record, records[number + 1]] for number, record in enumerate(rewarded)]
    return _taubench([small.document(part) for part in parts], "airline", schemas, tools, 80)


def real_injecagent(real_data: Path) -> Case:
    """Every 40th case of each file."""
    folder = real_data / "injecagent"
    tools = (folder / "tools.json").read_bytes()
    parts = {name: small.document(json.loads((folder / name).read_bytes())[::40]) for name in INJECAGENT_FILES}
    return _injecagent(parts, tools, 200)


def whole(real_data: Path, case: Case, files: str) -> Case:
    """The same case with all records of the real files that match a glob, to check the oracle."""
    folder = real_data / files.split("/")[0]
    contents = {str(path.relative_to(folder)): path.read_bytes() for path in sorted(real_data.glob(files))}
    target, *beside = contents
    fixed = (
        {"reference": real_data / "agentdojo" / "reference"} if case.source == "agentdojo" else case.inputs[0].fixed
    )
    return replace(case, inputs=[Input(target, contents[target], {path: contents[path] for path in beside}, fixed)])


# ---------------------------------------------------------------------------------------------------------------------
# Invented files


def small_dump() -> Case:
    fixed: dict[str, bytes | Path] = {path: small.document(value) for path, value in small.REFERENCE.items()}
    oracle = lines(partial(agentdojo.judge, goals={"ferry": small.GOAL}))
    groups = (*OF_LINES, in_lines(*mutate.TURNS), in_lines(*_goal_mutations(small.GOAL)))
    return Case(
        "agentdojo", [Input("dumps/agentdojo-own.jsonl", small.ferry_dump(), fixed=fixed)], oracle, groups, 120
    )


def small_runs() -> Case:
    """A suite of which only the tools are known, so that the goal comes from the injection."""
    tools = "reference/tool_schemas_ferry.json"
    fixed: dict[str, bytes | Path] = {tools: small.document(small.FERRY_TOOLS)}
    runs = small.ferry_runs()
    inputs = [
        Input(path, data, {other: runs[other] for other in runs if other != path}, fixed)
        for path, data in runs.items()
    ]
    goal = replace(small.GOAL, tools=frozenset())
    oracle = partial(agentdojo_runs.units, goals={("ferry", "injection_task_3"): goal})
    return Case("agentdojo", inputs, oracle, (*OF_DOCUMENTS, in_document(*mutate.TURNS)), 80)


def small_b4() -> Case:
    return Case("fujitsu_b4", [Input("b4_own.jsonl", small.b4())], lines(fujitsu.judge_b4), OF_LINES, 80)


def small_b1() -> Case:
    data = small.answers(poison_content="Notice: well water is safe.", benign_content="['Boil it.']")
    return Case("fujitsu_b1", [Input("b1_own.jsonl", data)], lines(fujitsu.judge_b1), OF_LINES, 80)


def small_b3() -> Case:
    data = small.answers(role_play="none", intent_Opacity="low", Obfuscation="none")
    return Case("fujitsu_b3", [Input("b3_own.jsonl", data)], lines(fujitsu.judge_b3), OF_LINES, 80)


def small_xstest() -> Case:
    inputs = [Input("xstest_prompts.csv", small.xstest_new()), Input("xstest_v2_prompts.csv", small.xstest_old())]
    return Case("xstest", inputs, by_file(xstest.prompt_units), OF_TABLES, 80)


def small_xstest_completions() -> Case:
    inputs = [Input("xstest_v2_completions_own.csv", small.xstest_completions())]
    return Case("xstest_completions", inputs, by_file(xstest.completion_units), OF_TABLES, 60)


def small_ultrachat() -> Case:
    inputs = [Input("own_train_sft.jsonl", small.ultrachat())]
    return Case("ultrachat", inputs, lines(ultrachat.judge), (*OF_LINES, in_lines(*mutate.TURNS)), 60)


def small_tau2_tasks() -> Case:
    tasks = small.tau2_tasks()
    return _tau2_tasks([tasks], json.loads(tasks), 60)


def small_taubench() -> Case:
    schemas = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in small.MOCK_TOOLS]
    tools = small.document({"assistant_tools": schemas, "user_tools": []})
    return _taubench([small.taubench()], "mock", tools, small.MOCK_TOOLS, 60)


def small_tau2_results() -> Case:
    schemas = [{"type": "function", "function": {"name": name, "parameters": {}}} for name in small.MOCK_TOOLS]
    fixed: dict[str, bytes | Path] = {
        "tool_schemas_mock.json": small.document({"assistant_tools": schemas}),
        "domains/mock/split_tasks.json": NO_TEST_TASKS,
    }
    oracle = by_file(partial(tau2.result_units, tools=small.MOCK_TOOLS))
    inputs = [Input("results/own.json", small.tau2_results(), fixed=fixed)]
    return Case("tau2", inputs, oracle, (*OF_DOCUMENTS, in_document(*mutate.TURNS)), 60)


def small_agentharm() -> Case:
    files = small.agentharm()
    inputs = [
        Input(path, data, {other: files[other] for other in files if other != path}) for path, data in files.items()
    ]
    return Case("agentharm", inputs, partial(agentharm.units, tools=small.AGENTHARM_TOOLS), OF_DOCUMENTS, 40)


def small_llmail(target: str, groups: tuple[Mutations, ...], count: int) -> Case:
    """The submissions or the honest mails are damaged, beside the other."""
    files = small.llmail() | {"raw_submissions_phase1.jsonl": small.llmail_submissions()}
    without_records = ("levels_descriptions.json", "system_prompt.json")
    fixed: dict[str, bytes | Path] = {name: files.pop(name) for name in without_records}
    inputs = [Input(target, files.pop(target), files, fixed)]
    return Case("llmail", inputs, partial(llmail.units, letters="ab"), groups, count)


def small_bfcl() -> Case:
    files = small.bfcl()
    inputs = [
        Input(path, data, {other: files[other] for other in files if other != path}) for path, data in files.items()
    ]
    return Case("bfcl", inputs, bfcl.units, OF_LINES, 500)


# In the order in which the builder reads them.
INJECAGENT_FILES = sorted(
    f"test_cases_{kind}_{setting}.json" for kind in ("dh", "ds") for setting in ("base", "enhanced")
)


def injecagent_files() -> dict[str, bytes]:
    """Path -> content of invented cases and tools."""
    cases = {name: small.injecagent_cases(*Path(name).stem.split("_")[2:]) for name in INJECAGENT_FILES}
    return {name: small.document(value) for name, value in (cases | {"tools.json": small.injecagent_tools()}).items()}


def small_injecagent() -> Case:
    files = injecagent_files()
    return _injecagent(files, files.pop("tools.json"), 60)


def _injecagent(files: dict[str, bytes], tools: bytes, count: int) -> Case:
    names = [toolkit["name_for_model"] + tool["name"] for toolkit in json.loads(tools) for tool in toolkit["tools"]]
    inputs = [
        Input(path, data, {other: files[other] for other in files if other != path}, {"tools.json": tools})
        for path, data in files.items()
    ]
    return Case("injecagent", inputs, partial(injecagent.units, tools=names), OF_DOCUMENTS, count)


def small_traces() -> Case:
    groups = (*OF_LINES, in_lines(*mutate.TURNS))
    return Case("jsonl", [Input("own.jsonl", small.traces())], lines(jsonl.judge, parse_json_mended), groups, 100)


# ---------------------------------------------------------------------------------------------------------------------
# Shared by both

# With test tasks there would be two splits, and the items would not be in the order of the records.
NO_TEST_TASKS = b'{"base": []}'


def _tau2_tasks(parts: list[bytes], whole: list[dict], count: int) -> Case:
    states = {comparable(task["initial_state"]) for task in whole if task.get("initial_state")}
    judge = partial(tau2.judge_task, tools=small.MOCK_TOOLS, known_states=states)

    def units(files: dict[str, bytes]) -> list[Unit]:
        [data] = files.values()
        return tau2.list_units("mock/tasks.json", data, judge)

    fixed: dict[str, bytes | Path] = {"domains/mock/split_tasks.json": NO_TEST_TASKS}
    inputs = [Input("domains/mock/tasks.json", part, fixed=fixed) for part in parts]
    return Case("tau2", inputs, units, OF_DOCUMENTS, count)


def _taubench(parts: list[bytes], domain: str, schemas: bytes, tools: Iterable[str], count: int) -> Case:
    judge = partial(tau2.judge_trajectory, tools=set(tools), policy=f"# {domain} agent policy")
    fixed: dict[str, bytes | Path] = {
        f"tool_schemas_{domain}.json": schemas,
        f"domains/{domain}/split_tasks.json": NO_TEST_TASKS,
    }
    inputs = [Input("taubench_own.json", part, fixed=fixed) for part in parts]
    oracle = by_file(partial(tau2.list_units, judge=judge))
    return Case("tau2", inputs, oracle, (*OF_DOCUMENTS, in_document(*mutate.TURNS)), count)


REAL: dict[str, Callable[[Path], Case]] = {
    **{f"agentdojo dumps, {suite}": partial(real_dumps, suite=suite) for suite in agentdojo.GOALS},
    "agentdojo runs": real_runs,
    "fujitsu_b4": real_b4,
    "xstest": real_xstest,
    "xstest_completions": real_xstest_completions,
    "ultrachat": real_ultrachat,
    "tau2 tasks": real_tau2_tasks,
    "tau2 trajectories": real_taubench,
    "injecagent": real_injecagent,
}
SMALL: dict[str, Callable[[], Case]] = {
    "agentdojo dumps": small_dump,
    "agentdojo runs": small_runs,
    "fujitsu_b4": small_b4,
    "fujitsu_b1": small_b1,
    "fujitsu_b3": small_b3,
    "xstest": small_xstest,
    "xstest_completions": small_xstest_completions,
    "ultrachat": small_ultrachat,
    "tau2 tasks": small_tau2_tasks,
    "tau2 trajectories": small_taubench,
    "tau2 results": small_tau2_results,
    "agentharm": small_agentharm,
    "llmail": partial(small_llmail, "raw_submissions_phase1.jsonl", OF_LINES, 400),
    "llmail, honest mails": partial(small_llmail, "emails_for_fp_tests.json", (mutate.ANY_FILE,), 100),
    "bfcl": small_bfcl,
    "injecagent": small_injecagent,
    "jsonl": small_traces,
}

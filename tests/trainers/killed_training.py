"""Program of `test_killed_training.py`: runs of the training script, each in a forked process, killed and resumed.

killed_training.py FOLDER KILLS     reads FOLDER/flags.json, writes FOLDER/results.json

KILLS is JSON text: a list of {"signal": 9, "write": 0.3} or {"signal": 15, "time": 0.7}, the moment as a fraction of
the writes, or of the time, of the uninterrupted run. A write is an event in the output folder that Python audits: a
file opened, a folder made or removed, a rename.
"""

import hashlib
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers

import trainers.circuit_breaker_trainer
import trainers.curves
from trainers.checkpoints import fault
from trainers.train import main, parse_arguments


# So that no run has to import them, which takes longer than the run
IMPORTED = (peft, torch, transformers, trainers.circuit_breaker_trainer, trainers.curves)
WRITES = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def run(flags: list[str], output: Path, log: Path, at_write: Callable[[int], None] | None = None) -> int:
    """Train in a process of its own; returns its process id. `at_write` is called with the number of each write."""
    if pid := os.fork():
        return pid
    status = 1
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        if at_write is not None:
            count_writes(output, at_write)
        main(*parse_arguments([*flags, "--output_dir", str(output)]))
        status = 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            sys.stderr.write(f"{ended.code}\n")
        else:
            status = ended.code
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def count_writes(folder: Path, at_write: Callable[[int], None]) -> None:
    number = 0

    def hook(event: str, args: tuple) -> None:
        nonlocal number
        if event in WRITES and args and str(folder) in str(args[0]):
            number += 1
            at_write(number)

    sys.addaudithook(hook)


def finished(pid: int) -> int:
    """Exit status of a process; minus the signal, if one ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def outcome(output: Path) -> dict[str, Any]:
    """What a finished training leaves."""
    history = json.loads((output / "trainer_state.json").read_text())["log_history"]
    timed = ("train_runtime", "train_samples_per_second", "train_steps_per_second", "train_loss", "total_flos")
    return {
        "adapter": digest(output / "adapter_model.safetensors"),
        "picture": digest(output / "curves.png"),
        "curves": [{name: value for name, value in entry.items() if name not in timed} for entry in history],
        "files": sorted(path.name for path in output.iterdir()),
    }


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def killed(flags: list[str], output: Path, kill: dict[str, Any], writes: int, seconds: float) -> dict[str, Any]:
    """Kill a training at a moment, and resume it."""
    log = output.with_suffix(".log")
    if "write" in kill:
        last = 1 + int(kill["write"] * writes)
        status = finished(
            run(flags, output, log, lambda n: os.kill(os.getpid(), kill["signal"]) if n == last else None)
        )
    else:
        status, wait = 0, kill["time"] * seconds
        while status == 0:  # it was faster than the uninterrupted run, and has finished
            shutil.rmtree(output, ignore_errors=True)
            pid = run(flags, output, log)
            time.sleep(wait)
            os.kill(pid, kill["signal"])
            status, wait = finished(pid), wait / 2
    left = sorted(path.name for path in output.glob("*")) if output.exists() else []
    broken = [name for name in left if name.startswith("checkpoint-") and fault(output / name)]
    resumed = finished(run([*flags, "--resume_from_checkpoint", "true"], output, log))
    return {"kill": kill, "status": status, "left": left, "broken": broken, "resumed": resumed} | (
        outcome(output) if resumed == 0 else {"log": log.read_text()[-4000:]}
    )


def program(folder: Path, kills: list[dict[str, Any]]) -> None:
    flags = json.loads((folder / "flags.json").read_text())
    counter = folder / "writes"
    whole, log = folder / "whole", folder / "whole.log"
    assert finished(run(flags, whole, log, lambda n: counter.write_text(str(n)) and None)) == 0, log.read_text()
    started = time.monotonic()
    assert finished(run(flags, folder / "again", log)) == 0, log.read_text()
    seconds = time.monotonic() - started
    results = {"whole": outcome(whole), "again": outcome(folder / "again"), "killed": []}
    for number, kill in enumerate(kills):
        result = killed(flags, folder / f"run-{number}", kill, int(counter.read_text()), seconds)
        results["killed"].append(result)
        same = all(result.get(name) == results["whole"][name] for name in ("adapter", "picture", "curves", "files"))
        words = {9: "SIGKILL", 15: "SIGTERM", 1: "SIGHUP"}[kill["signal"]]
        moment = f"write {kill['write']:.2f}" if "write" in kill else f"time {kill['time']:.2f}"
        sys.stdout.write(
            f"{number + 1}: {words} at {moment}, status {result['status']}, left {result['left']}, "
            f"resumed {result['resumed']}, identical {same}\n"
        )
        sys.stdout.flush()
    (folder / "results.json").write_text(json.dumps(results))


if __name__ == "__main__":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    program(Path(sys.argv[1]), json.loads(sys.argv[2]))

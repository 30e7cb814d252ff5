"""A run that is killed at any instant, and started again, ends in the bytes of one that was never stopped."""

from pathlib import Path
from typing import Any

import pytest
from runs import Case, Laboratory, different, distinct, finish, killed, log, outcome, record

DIGITS: dict[str, Any] = {
    "name": "crash",
    "device": "cpu",
    "model": {"name": "test_resnet"},
    "data": {"name": "digits", "image_size": 16, "batch_size": 8, "eval_batch_size": 512, "mixup": 0.2, "cutmix": 1.0},
    "gate": {"name": "weight"},
    "budget": {"cost": "macs", "target": "0.6x"},
    "latency": {"batch_size": 2, "threads": 1, "samples": 12, "seconds": 0.001, "predictor": "additive"},
    "dense": {"epochs": 2, "lr": 0.02, "max_steps": 2, "ema_decay": 0.5},
    "search": {"warmup": 1, "joint": 2, "freeze": 1, "lr": 0.02, "max_steps": 2, "ema_decay": 0.5},
    "finetune": {"epochs": 2, "lr": 0.02, "max_steps": 2, "ema_decay": 0.5, "recalibrate_batches": 2},
    "track": {"wandb": "disabled"},
}
SHORT = {
    "budget": {"cost": "latency", "target": "0.6x"},
    "dense": DIGITS["dense"] | {"epochs": 1, "baseline": False},
    "search": DIGITS["search"] | {"joint": 1},
    "finetune": DIGITS["finetune"] | {"epochs": 1},
}
RECIPES = {"macs": DIGITS, "ms": DIGITS | SHORT}


def failures(laboratory: Laboratory, cases: list[Case], reference: dict[str, bytes]) -> list[str]:
    """Every case that does not end as the run that was never stopped."""
    groups = list(distinct(cases).values())
    codes = finish(laboratory, [group[0] for group in groups])
    found = []
    for group in groups:
        folder = group[0].folder
        code = codes[folder.name]
        wrong = [f"exit code {code}: {log(folder)[-300:]}"] if code else different(folder, reference)
        found += [f"{case}: {'; '.join(wrong)}" for case in group if wrong]
    return found


@pytest.mark.crash
@pytest.mark.parametrize("name", RECIPES)
def test_killed_at_any_operation_a_run_ends_in_the_same_bytes(name: str, tmp_path: Path) -> None:
    with Laboratory(tmp_path, RECIPES[name]).open() as laboratory:
        start = laboratory.fresh("whole")
        cases = record(laboratory, start, killed)
        wrong = failures(laboratory, cases, outcome(start))
    print(f"{name}: {cases[-1].number} operations, {len(cases)} kills, {len(wrong)} differ")
    assert not wrong, "\n".join(wrong)

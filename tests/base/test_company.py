"""Laws of several processes: an error of one ends all of them, each with a message, and a budget stays a result."""

from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp
from processes import free_port, joined

from nas_prune.base.company import before_others, in_company
from nas_prune.base.errors import BudgetError, DivergedError, NasPruneError, RunError
from nas_prune.base.files.whole import read_json, write_json


def _in_turn(rank: int, port: int, folder: str) -> None:
    """As one of two processes: an error of the first one while the other waits, then one of the second alone."""
    accelerator, said = joined(rank, 2, port=port), dict[str, object]()
    with before_others(accelerator):
        pass
    try:
        with before_others(accelerator):
            raise BudgetError("nothing is within") if rank == 0 else AssertionError
    except BudgetError as error:
        said["budget"] = str(error)
    try:
        with in_company(accelerator):
            if rank == 1:
                raise DivergedError("the loss is nan")
            accelerator.gather(torch.zeros(1))
    except NasPruneError as error:
        said["alone"], said["kind"], said["code"] = str(error), type(error).__name__, error.exit_code
    write_json(f"{folder}/{rank}.json", said)


def test_an_error_of_one_is_an_error_of_all(tmp_path: Path) -> None:
    mp.spawn(_in_turn, (free_port(), str(tmp_path)), nprocs=2)
    first, second = (read_json(tmp_path / f"{rank}.json") for rank in (0, 1))
    assert first["budget"] == second["budget"] == "nothing is within"
    assert (second["alone"], second["kind"], second["code"]) == ("the loss is nan", "DivergedError", 1)
    assert (first["kind"], first["code"]) == (RunError.__name__, 1)
    assert first["alone"].startswith("process 1 of this run has ended, and this one cannot go on alone")


def test_an_error_of_the_only_process_stays_what_it_is() -> None:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    for block in (in_company, before_others):
        with pytest.raises(DivergedError, match=r"^the loss$"), block(accelerator):
            raise DivergedError("the loss")

"""Small runs with all that is in a run: every stage takes several steps, with averaged weights, mixup and cutmix."""

from typing import Any

STEPS = {"lr": 0.02, "max_steps": 2, "ema_decay": 0.5}
DIGITS: dict[str, Any] = {
    "name": "crash",
    "device": "cpu",
    "model": {"name": "test_resnet"},
    "data": {"name": "digits", "image_size": 16, "batch_size": 8, "eval_batch_size": 512, "mixup": 0.2, "cutmix": 1.0},
    "gate": {"name": "weight"},
    "latency": {"batch_size": 2, "threads": 1, "samples": 12, "seconds": 0.001, "predictor": "additive"},
    "track": {"wandb": "disabled"},
}
SHORT = {
    "dense": STEPS | {"epochs": 1, "baseline": False},
    "search": STEPS | {"warmup": 1, "joint": 1, "freeze": 1},
    "finetune": STEPS | {"epochs": 1, "recalibrate_batches": 2},
}
MACS = DIGITS | {
    "budget": {"cost": "macs", "target": "0.6x"},
    "dense": STEPS | {"epochs": 2},
    "search": STEPS | {"warmup": 1, "joint": 2, "freeze": 1},
    "finetune": STEPS | {"epochs": 2, "recalibrate_batches": 2},
}
MILLISECONDS = DIGITS | SHORT | {"budget": {"cost": "latency", "target": "0.6x"}}
ONCE = DIGITS | SHORT | {"budget": {"cost": "macs", "target": "0.6x"}, "dense": STEPS | {"epochs": 1}}
SAMPLE = MILLISECONDS | {
    "dense": {"epochs": 0},
    "search": STEPS | {"warmup": 0, "joint": 2, "freeze": 0},
    "finetune": STEPS | {"epochs": 1, "distill": 0.0, "recalibrate_batches": 2},
}
SHAPLEY = DIGITS | {
    "space": "widths_and_depth",
    "gate": {"name": "weight", "kinds": {"depth": {"name": "shapley"}}},
    "budget": {"cost": "macs", "target": "0.8x"},
    "search": STEPS | {"warmup": 1, "joint": 2, "freeze": 1, "shapley": {"evaluations": 20}},
    "finetune": STEPS | {"epochs": 1, "distill": 0.0, "recalibrate_batches": 2},
}
OPERATORS = MILLISECONDS | {"latency": DIGITS["latency"] | {"operators": True, "staircase": True}}

"""``nas-prune timm``: what timm's own scripts do, for derived models too; options are named as there."""

from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import typer

from nas_prune.base.errors import DataError, RecipeError
from nas_prune.cli.help import figures

KEYS = {  # option -> the keys of a recipe that it sets
    "dataset": ("data.name",),
    "data_dir": ("data.root",),
    "img_size": ("data.image_size",),
    "batch_size": ("data.batch_size", "data.eval_batch_size", "latency.batch_size"),
    "workers": ("data.workers",),
    "num_classes": ("model.kwargs.num_classes",),
    "pretrained": ("model.pretrained",),
    "device": ("device",),
    "epochs": ("finetune.epochs",),
    "lr": ("finetune.lr",),
    "opt": ("finetune.optimizer",),
    "weight_decay": ("finetune.weight_decay",),
    "sched": ("finetune.scheduler",),
    "seed": ("seed",),
}

app = typer.Typer(help="What timm's scripts do, for derived models and models of timm.", no_args_is_help=True)


@dataclass(frozen=True)
class Benchmark:
    """Measure throughput and latency of a model on this machine.

    Throughput is that of batches, latency that of one image: medians of
    single calls, each with half its interquartile range.
    """

    model: Annotated[
        str, typer.Option(metavar="local-dir:FOLDER|NAME", help="folder of a derived model, or a model of timm")
    ]
    settings: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="any key of a recipe, e.g. data.hflip=0.5 latency.threads=1"),
    ] = None
    batch_size: Annotated[int | None, typer.Option(min=1, help="images in a batch")] = None
    img_size: Annotated[int | None, typer.Option(min=1, help="side of the images; the model's own if left out")] = None
    num_classes: Annotated[int | None, typer.Option(min=0, help="another classifier on the same trunk")] = None
    pretrained: Annotated[
        bool | None, typer.Option("--pretrained/--no-pretrained", help="load weights; of a folder: yes, of a name: no")
    ] = None
    device: Annotated[str | None, typer.Option(metavar="auto|cpu|cuda|mps", help="where to run")] = None
    amp: Annotated[bool, typer.Option("--amp", help="mixed precision (bfloat16; precision=fp16 for float16)")] = False


@dataclass(frozen=True)
class Validate(Benchmark):
    """Top-1 and top-5 accuracy and the loss of a model on held-out images.

    How images are prepared is what the model was trained with, as far as it
    is known: the recipe of a derived model, or timm's settings of a model.
    """

    dataset: Annotated[
        str | None, typer.Option(metavar="NAME", help="`nas-prune list datasets`; folder if only --data-dir is given")
    ] = None
    data_dir: Annotated[Path | None, typer.Option(help="where the data is, e.g. train/<class>/ and val/<class>/")] = (
        None
    )
    workers: Annotated[int | None, typer.Option(min=0, help="processes that load data")] = None


@dataclass(frozen=True)
class Train(Validate):
    """Fine-tune a model and save it as an artefact, OUTPUT/finetuned.

    Classes and channels follow the data: where they differ, timm makes a new
    classifier, or adapts the first convolution. A derived model is trained as
    its recipe fine-tuned it, but for what is given here. Stopped, the same
    command goes on from the last checkpoint.
    """

    output: Annotated[Path, typer.Option(help="folder for checkpoints, metrics.jsonl and the artefact")] = Path(
        "output/train"
    )
    epochs: Annotated[int | None, typer.Option(min=0, help="epochs to train")] = None
    lr: Annotated[float | None, typer.Option(help="peak learning rate")] = None
    opt: Annotated[str | None, typer.Option(metavar="NAME", help="timm optimizer, e.g. adamw")] = None
    weight_decay: Annotated[float | None, typer.Option(help="weight decay")] = None
    sched: Annotated[str | None, typer.Option(metavar="NAME", help="timm schedule, e.g. cosine")] = None
    seed: Annotated[int | None, typer.Option(min=0, help="seed of everything random")] = None


@app.command(epilog="Example: nas-prune timm benchmark --model local-dir:runs/quickstart/finetuned --batch-size 64")
@wraps(Benchmark)
def benchmark(**options: Any) -> None:
    """Run ``nas-prune timm benchmark``: print throughput and latency."""
    asked = Benchmark(**options)
    tokens = _tokens(asked)
    from nas_prune.cli.timm import recipe as timm_recipe
    from nas_prune.cli.timm import scripts

    figures(scripts.benchmark(timm_recipe.recipe_for(asked.model, tokens)))


@app.command(epilog="Example: nas-prune timm validate --model local-dir:runs/quickstart/finetuned --dataset digits")
@wraps(Validate)
def validate(**options: Any) -> None:
    """Run ``nas-prune timm validate``: print accuracy and loss."""
    asked = Validate(**options)
    tokens = _tokens(asked)
    from nas_prune.cli.timm import recipe as timm_recipe
    from nas_prune.cli.timm import scripts

    figures(scripts.validate(timm_recipe.recipe_for(asked.model, tokens)))


@app.command(
    epilog="Example: nas-prune timm train --model local-dir:runs/quickstart/finetuned --data-dir flowers/ --epochs 10 "
    "--lr 0.01 data.hflip=0.5"
)
@wraps(Train)
def train(**options: Any) -> None:
    """Run ``nas-prune timm train``: fine-tune, save and print what came of it."""
    asked = Train(**options)
    tokens = _tokens(asked)
    from nas_prune.cli.timm import recipe as timm_recipe
    from nas_prune.cli.timm import scripts

    figures(scripts.train(timm_recipe.recipe_for(asked.model, tokens), asked.output))
    typer.echo(f"artefact: {asked.output / 'finetuned'}")


def _tokens(asked: Benchmark) -> list[str]:
    """The options as overrides of a recipe's keys."""
    given = {name: value for name, value in asdict(asked).items() if value is not None}
    words = asked.settings or []
    for word in words:
        if "=" not in word:
            raise RecipeError(f"cannot read {word!r}; a key of a recipe is set by key=value, such as data.hflip=0.5")
    if isinstance(asked, Validate) and asked.dataset is None and not any(w.startswith("data.name=") for w in words):
        if asked.data_dir is None:
            raise DataError("which images? Name them: --dataset digits, or --data-dir FOLDER with train/ and val/")
        given["dataset"] = "folder"
    tokens = [f"--{key}={given[name]}" for name, keys in KEYS.items() if name in given for key in keys]
    return [*tokens, *(["--precision=bf16"] if asked.amp else []), *words]

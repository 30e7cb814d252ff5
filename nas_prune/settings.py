"""What a recipe may hold, section by section. Each section is handed to the one file that owns it.

Field descriptions are the help text: ``nas-prune run --help`` and the JSON schema for editors are made from them.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from nas_prune.axes import Kind

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Triple = Annotated[tuple[float, float, float], Field(strict=False)]  # YAML has lists

Spread = Annotated[tuple[PositiveFloat, PositiveFloat, PositiveFloat], Field(strict=False)]


class Settings(BaseModel):
    """One section of a recipe: immutable, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class ModelSettings(Settings):
    """The timm backbone."""

    name: str = Field(description="timm model name, e.g. resnet18; `timm.list_models()` lists them")
    pretrained: bool = Field(False, description="start from timm's published weights (needs a network or a cache)")
    checkpoint: str | None = Field(
        None, description="start from this file of weights instead: .safetensors, or .pth and .pt of torch.save"
    )
    checkpoint_head: Literal["fresh", "error"] = Field(
        "fresh", description="a classifier of another size in the checkpoint: leave its fresh values, or refuse"
    )
    kwargs: dict[str, Any] = Field({}, description="further arguments of timm.create_model")


class DataSettings(Settings):
    """The dataset, its image size and its augmentation."""

    name: str = Field(
        "digits",
        description="digits, fashion_mnist, generated, folder, or a timm dataset (torch/..., hfds/..., wds/...)",
    )
    root: str | None = Field(None, description="folder that holds the data")
    image_size: PositiveInt = Field(
        32,
        description="height and width that the model sees, in pixels; left out for a model that starts from trained "
        "weights, it is theirs, and so are mean, std, crop_pct and interpolation",
    )
    batch_size: PositiveInt = Field(64, description="images in a training step")
    eval_batch_size: PositiveInt = Field(256, description="images in an evaluation step")
    workers: int = Field(0, ge=0, description="processes that load data; 0 loads in the main process")
    classes: PositiveInt | None = Field(None, description="number of classes, for a timm dataset that does not tell")
    mean: Triple | None = Field(None, description="mean of R, G, B in files; null: ImageNet's")
    std: Spread | None = Field(None, description="spread of R, G, B in files; null: ImageNet's")
    crop_pct: Share = Field(0.875, gt=0.0, description="share of the shorter side that evaluation keeps (image files)")
    interpolation: Literal["bilinear", "bicubic"] = Field("bicubic", description="how image files are resized")
    unreadable: Literal["error", "skip"] = Field(
        "error", description="image files that cannot be read: refuse the data, naming them, or leave them out"
    )
    train_images: PositiveInt | None = Field(None, description="use only so many training images")
    hflip: Share = Field(0.0, description="probability of a horizontal flip")
    crop_scale: tuple[Share, Share] = Field(
        (1.0, 1.0), strict=False, description="share of the area that a random resized crop keeps; (1, 1) crops nothing"
    )
    shift: int = Field(0, ge=0, description="random shift by up to so many pixels (pad, then crop)")
    auto_augment: str | None = Field(None, description="timm auto-augment policy, e.g. rand-m9-mstd0.5-inc1")
    random_erasing: Share = Field(0.0, description="probability of random erasing")
    mixup: float = Field(0.0, ge=0.0, description="mixup alpha; 0 is off")
    cutmix: float = Field(0.0, ge=0.0, description="cutmix alpha; 0 is off")


class OptimSettings(Settings):
    """With which timm optimizer and schedule a stage trains."""

    optimizer: str = Field("sgd", description="timm optimizer, e.g. sgd, adamw, lamb")
    lr: PositiveFloat = Field(0.1, description="peak learning rate")
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="momentum (or Adam's beta 1)")
    weight_decay: float = Field(5e-4, ge=0.0, description="weight decay (not on biases and norms)")
    scheduler: str = Field("cosine", description="timm schedule: cosine, step, poly, ...")
    warmup_epochs: float = Field(0.0, ge=0.0, description="epochs of linear warm-up")
    label_smoothing: Share = Field(0.0, description="label smoothing")
    clip_grad: PositiveFloat | None = Field(None, description="clip the gradient's norm to this")
    ema_decay: Share | None = Field(
        None, description="keep an exponential moving average of the weights and evaluate it"
    )
    max_steps: PositiveInt | None = Field(None, description="stop every epoch after so many steps (for smoke runs)")


class TrainSettings(OptimSettings):
    """One stage of training."""

    epochs: int = Field(0, ge=0, description="epochs of this stage; 0 skips it")


class DenseSettings(TrainSettings):
    """Training of the dense model before the search; 0 epochs if it starts from given weights."""

    baseline: bool = Field(
        True,
        description="train the dense model on for as many epochs as search and fine-tuning take: "
        "a fair comparison, and a better teacher (only if dense.epochs > 0)",
    )


class KindSettings(Settings):
    """Which gate decides about one kind of axis, and the gate's own options."""

    name: str = Field(description="weight (W-Gates), sigmoid, hard_concrete, mask, softmax, skeleton")
    options: dict[str, Any] = Field({}, description="the gate's keyword options")


class GateSettings(Settings):
    """Which gate decides, and the gate's own options."""

    name: str = Field("weight", description="weight (W-Gates), sigmoid, hard_concrete, mask, softmax, skeleton")
    options: dict[str, Any] = Field({}, description="the gate's keyword options; `nas-prune list gates` shows them")
    kinds: dict[Kind, KindSettings] = Field(
        {}, description="other gates for some kinds of axis, e.g. {operation: {name: softmax}}"
    )


class BudgetSettings(Settings):
    """The limits that the derived model is measured against."""

    target: str = Field("0.5x", description="0.5x of the dense latency, or an absolute figure such as 4.0ms")
    cost: Literal["latency", "macs", "params", "memory"] = Field("latency", description="what is limited")
    limits: dict[Literal["latency", "macs", "params", "memory"], str] = Field(
        {}, description="further limits that must hold as well, e.g. {params: 0.5x, memory: 40M}"
    )
    rounds: PositiveInt = Field(
        12, description="at most so many derive-and-measure rounds until the measurement meets the target"
    )


class LatencySettings(Settings):
    """How latency is measured and how the predictor is trained."""

    runtime: Literal["eager", "compile", "onnxruntime", "openvino", "tensorrt"] = Field(
        "eager", description="what runs the model when it is timed"
    )
    batch_size: PositiveInt = Field(32, description="images in a timed call")
    threads: PositiveInt | None = Field(None, description="CPU threads; the default of torch if left out")
    precision: Literal["float32", "bfloat16", "float16"] = Field("float32", description="numbers of the timed model")
    channels_last: bool = Field(False, description="time images and weights with their channels last")
    samples: PositiveInt = Field(60, ge=12, description="sub-networks that are derived and timed")
    seconds: PositiveFloat = Field(0.2, description="time spent on timing each of them")
    jitter: float = Field(0.2, ge=0.0, description="mean spread of the axes around a sample's global ratio")
    predictor: Literal["best", "lpnet", "monotone", "additive"] = Field(
        "best", description="what learns from the timings; best: whatever cross-validation says"
    )
    operators: bool = Field(False, description="time every operator alone, too, for the additive predictor")
    staircase: bool = Field(
        False, description="find the width steps of this device and allow these widths, instead of the space's divisors"
    )
    calibration: str | None = Field(None, description="use this file that `nas-prune calibrate` made")
    trust_calibration: bool = Field(False, description="use it even if it is of another device or other versions")
    cache: bool = Field(True, description="keep calibrations for later runs ($NAS_PRUNE_CACHE, or ~/.cache/nas_prune)")


class PenaltySettings(Settings):
    """One term added to the task loss while gates and weights are trained together."""

    name: str = Field("budget", description="budget")
    options: dict[str, Any] = Field({}, description="the penalty's keyword options")


class ShapleySettings(Settings):
    """Shapley-NAS: how gates called ``shapley`` are moved, before each epoch of joint training from ``start`` on."""

    start: Share = Field(0.5, description="share of the joint epochs that pass before the first step")
    evaluations: PositiveInt = Field(500, description="forward passes per estimate, beyond those of the first walks")
    batches: PositiveInt = Field(1, description="training batches that are held fixed in one estimate")
    objective: Literal["loss", "accuracy"] = Field("loss", description="what a network is worth: -loss, or accuracy")
    mu: Share = Field(0.8, description="momentum of the steps")
    xi: PositiveFloat = Field(0.1, description="length of a step")
    paper_mode: bool = Field(False, description="estimate as the public code does, its truncation bias included")
    permutations: PositiveInt = Field(10, description="permutations per estimate in paper_mode, a batch for each")


class SearchSettings(OptimSettings):
    """Joint training of weights and gates: warm-up (gates only), joint, freeze (chosen gates stay, weights settle)."""

    warmup: int = Field(1, ge=0, description="epochs in which only the gates learn")
    joint: int = Field(3, ge=0, description="epochs in which weights and gates learn together")
    freeze: int = Field(1, ge=0, description="epochs with the chosen architecture fixed, so that statistics settle")
    gate_lr: PositiveFloat = Field(1e-3, description="learning rate of the gates (Adam, no weight decay)")
    penalties: list[PenaltySettings] = Field([PenaltySettings()], description="terms added to the task loss")
    shapley: ShapleySettings = Field(ShapleySettings(), description="how gates called shapley are moved")
    selector: str | None = Field(
        None,
        description="how scores become an architecture that meets the budget; left out: price for those that gates "
        "have learnt, optimal for those of a criterion",
    )
    criterion: str | None = Field(
        None, description="score units by this criterion, e.g. taylor, instead of learning gates (one shot)"
    )
    criterion_batches: PositiveInt = Field(20, description="training batches that the criterion looks at")

    @property
    def fitting_selector(self) -> str:
        """The selector that was asked for, or the one that fits where the scores come from."""
        return self.selector or ("optimal" if self.criterion else "price")

    @property
    def epochs(self) -> int:
        """Epochs of the three phases together; a criterion scores in one shot, and only the last phase trains."""
        return self.freeze if self.criterion else self.warmup + self.joint + self.freeze


class FinetuneSettings(TrainSettings):
    """Training of the derived model, by default with the dense parent as its teacher."""

    epochs: int = Field(1, ge=0, description="epochs of this stage; 0 skips it")
    from_scratch: bool = Field(
        False, description="forget the weights of the search: train the derived architecture anew"
    )
    distill: Share = Field(
        0.5, description="share of the loss that imitates the dense parent; 0 switches the teacher off"
    )
    temperature: PositiveFloat = Field(2.0, description="temperature of the distillation")
    recalibrate_batches: int = Field(
        50, ge=0, description="training batches that re-estimate BatchNorm statistics after derive"
    )


class TrackSettings(Settings):
    """Where progress is recorded; metrics.jsonl is written always."""

    wandb: Literal["auto", "online", "offline", "disabled"] = Field(
        "auto", description="auto: online when logged in, offline otherwise"
    )
    project: str = Field("nas_prune", description="Weights & Biases project")

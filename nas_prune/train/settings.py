"""Sections of a recipe about training: optimizers, stages, the search, fine-tuning, the record."""

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from nas_prune.base.settings import Betas, PartSettings, Settings, Share


class LossSettings(PartSettings):
    """What a stage descends, beside penalties and the teacher's share."""

    name: str = Field("cross_entropy", description="a loss, as `nas-prune list losses` shows them")


class OptimSettings(Settings):
    """With which timm optimizer and schedule a stage trains."""

    optimizer: str = Field("sgd", description="timm optimizer, e.g. sgd, adamw, lamb")
    lr: PositiveFloat = Field(0.1, description="peak learning rate")
    momentum: float = Field(0.9, ge=0.0, lt=1.0, description="momentum (or Adam's beta 1)")
    weight_decay: float = Field(5e-4, ge=0.0, description="weight decay (not on biases and norms)")
    scheduler: str = Field("cosine", description="timm schedule: cosine, step, poly, ...")
    warmup_epochs: float = Field(0.0, ge=0.0, description="epochs of linear warm-up")
    decay_epochs: PositiveFloat | None = Field(
        None, description="scheduler step: epochs from one decay to the next; a third of them all if left out"
    )
    decay_milestones: list[Share] = Field(
        [0.5, 0.75], description="scheduler multistep: the decays, as shares of the epochs"
    )
    decay_rate: Share = Field(0.1, description="step, multistep: what a decay multiplies the rate by; poly: the power")
    loss: LossSettings = Field(LossSettings(), description="what the stage descends")
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
        "a fair comparison, and a better teacher (only if dense.epochs > 0, or search.once from random weights)",
    )


class PenaltySettings(PartSettings):
    """One term added to the task loss while gates and weights are trained together."""

    name: str = Field("budget", description="a penalty, as `nas-prune list penalties` shows them")


class CriterionSettings(PartSettings):
    """What scores units in one shot, instead of gates that learn."""

    name: str | None = Field(None, description="a criterion (`nas-prune list criteria`); null: gates learn instead")


class MoverSettings(PartSettings):
    """What moves gates or weights in joint training, beside the optimizers."""

    name: str | None = Field(None, description="a mover, as `nas-prune list movers` shows them; null: none")


class ScheduleSettings(PartSettings):
    """How much a mover closes, and how firmly, epoch by epoch."""

    name: str = Field("ghfp", description="a schedule, as `nas-prune list schedules` shows them")


class SelectorSettings(PartSettings):
    """How scores become an architecture that meets the budget."""

    name: str | None = Field(
        None,
        description="a selector, as `nas-prune list selectors` shows them; null: price for scores that gates have "
        "learnt, optimal for those of a criterion",
    )


class CompensationSettings(PartSettings):
    """How the units that stay make up for those that go, in closed form, as soon as it is decided."""

    name: str | None = Field(
        None, description="a compensation, as `nas-prune list compensations` shows them; null: none"
    )


class ShapleySettings(Settings):
    """Shapley-NAS: how gates called ``shapley`` are moved, before each epoch of joint training from ``start`` on."""

    start: Share = Field(0.5, description="share of the joint epochs that pass before the first step")
    evaluations: PositiveInt = Field(500, description="forward passes per estimate, beyond those of the first walks")
    batches: PositiveInt = Field(1, description="batches that are held fixed in one estimate; others in the next")
    objective: Literal["loss", "accuracy"] = Field("loss", description="what a network is worth: -loss, or accuracy")
    mu: Share = Field(0.8, description="momentum of the steps")
    xi: PositiveFloat = Field(0.1, description="length of a step")
    paper_mode: bool = Field(False, description="estimate as the public code does, its truncation bias included")
    permutations: PositiveInt = Field(10, description="permutations per estimate in paper_mode, a batch for each")


class SearchSettings(OptimSettings):
    """Joint training of weights and gates: warm-up (gates only), joint, freeze (chosen gates stay, weights settle)."""

    warmup: int = Field(1, ge=0, description="epochs in which only the gates learn")
    joint: int = Field(3, ge=0, description="epochs in which weights and gates learn together")
    rounds: PositiveInt = Field(
        1, description="rounds of the joint epochs; what each has closed, as search.schedule says, is removed for good"
    )
    once: bool = Field(
        False,
        description="joint and freeze are one training: one schedule and one optimizer, nothing begins anew, and the "
        "limit slides from the cost of the dense model to the budget, as search.schedule says",
    )
    distill: Share = Field(
        0.0, description="share of the loss that imitates the network that the search begins with; it must be trained"
    )
    temperature: PositiveFloat = Field(2.0, description="temperature of that distillation")
    freeze: int = Field(1, ge=0, description="epochs with the chosen architecture fixed, so that statistics settle")
    gate_lr: PositiveFloat | None = Field(
        1e-3,
        description="learning rate of the gates (Adam); null: they are trained as weights are, by the same optimizer, "
        "schedule and weight decay",
    )
    gate_betas: Betas = Field((0.9, 0.999), description="betas of that Adam; DARTS has 0.5 and 0.999")
    gate_weight_decay: float = Field(0.0, ge=0.0, description="weight decay of the gates; DARTS has 1e-3")
    bilevel: bool = Field(
        False, description="gates learn from images which weights are not trained on, in turn with these (DARTS)"
    )
    holdout: Share = Field(
        0.5,
        description="share of the training images that gates are moved by, and weights are not trained on, for gates "
        "called shapley and bilevel search; 0: weights are trained on all, and gates moved by the same",
    )
    penalties: list[PenaltySettings] = Field([PenaltySettings()], description="terms added to the task loss")
    shapley: ShapleySettings = Field(ShapleySettings(), description="how gates called shapley are moved")
    selector: SelectorSettings = Field(SelectorSettings(), description="how scores become an architecture")
    compensation: CompensationSettings = Field(
        CompensationSettings(), description="how the units that stay make up for those that go, on criterion_batches"
    )
    mover: MoverSettings = Field(MoverSettings(), description="what moves gates or weights beside the optimizers")
    schedule: ScheduleSettings = Field(ScheduleSettings(), description="how much is closed, epoch by epoch")
    criterion: CriterionSettings = Field(CriterionSettings(), description="what scores units in one shot")
    further: list[CriterionSettings] = Field(
        [], description="criteria whose scores the selector is told besides, as selector combined asks for"
    )
    criterion_batches: PositiveInt = Field(20, description="training batches that a criterion looks at")

    @property
    def fitting_selector(self) -> SelectorSettings:
        """The selector that was asked for, or the one that fits where the scores come from."""
        fitting = "optimal" if self.criterion.name else "price"
        return self.selector if self.selector.name else SelectorSettings(name=fitting)

    @property
    def epochs(self) -> int:
        """Epochs of the three phases together; those that are learnt in are left out where a criterion scores alone."""
        return self.warmup * self.learns + self.joint * self.learns + self.freeze

    @property
    def learns(self) -> bool:
        """Whether there is joint training: not where a criterion scores in one shot, and nothing is moved, nor
        penalised but for what it costs."""
        return self.learns_if(any(each.name != "budget" for each in self.penalties))

    def learns_if(self, penalised: bool) -> bool:
        """The same, where it is said whether anything is penalised but for what it costs."""
        return self.criterion.name is None or self.mover.name is not None or penalised or self.rounds > 1


class FinetuneSettings(TrainSettings):
    """Training of the derived model, by default with the dense parent as its teacher."""

    epochs: int = Field(1, ge=0, description="epochs of this stage; 0 skips it")
    from_scratch: bool = Field(
        False, description="forget the weights of the search: train the derived architecture anew"
    )
    distill: Share = Field(
        0.5,
        description="share of the loss that imitates what the dense parent says, if that has learnt anything; 0 asks "
        "for none of it",
    )
    distill_features: NonNegativeFloat = Field(
        0.0,
        description="weight of how far what the classifier reads is from what that of the dense parent reads in the "
        "same units, as a share of its square; 0 asks for none of it",
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
    preemptible: bool = Field(
        False, description="a run that is stopped by a signal will be started again; on by itself in a Slurm job"
    )

"""A stage of training: its name, how long and how it trains; and stages that are one training, a chain."""

from dataclasses import dataclass, field

from nas_prune.train.average import Average
from nas_prune.train.data.settings import DataSettings
from nas_prune.train.settings import OptimSettings


@dataclass
class Chain:
    """Stages that are one training of so many ``epochs``: one schedule, one optimizer, one average of the weights."""

    epochs: int
    average: Average | None = None


@dataclass(frozen=True)
class Stage:
    """One stage: its name, how long and how it trains; in a chain, ``first`` epochs came before it."""

    name: str
    epochs: int
    settings: OptimSettings
    images: DataSettings = field(default_factory=DataSettings)
    first: int = 0
    chain: Chain | None = None

    @property
    def goes_on(self) -> bool:
        """Whether the next stage goes on with the optimizers and the average of this one."""
        return self.chain is not None and self.first + self.epochs < self.chain.epochs

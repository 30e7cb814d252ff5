"""What a penalty is: a term added to the task loss. A module, so that its state is saved with a checkpoint."""

from torch import nn

from nas_prune.base.registry import Registry

penalties: Registry[type[nn.Module]] = Registry("penalty", __package__)

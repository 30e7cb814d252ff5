"""What these tests need before any other test has run."""

import torch

# The first backward pass starts a thread per kind of device that is known by then, and torch.export makes more known:
# a process that has such threads cannot be forked. On the CPU there are none if this pass is the first one.
torch.ones(1, requires_grad=True).backward()

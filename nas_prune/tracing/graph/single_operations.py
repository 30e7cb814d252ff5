"""Kernels of torch that do one thing each: what torch.utils.flop_counter can count."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel


@contextmanager
def single_operations() -> Iterator[None]:
    """No kernel that does the work of many: the counter knows matrix products and convolutions, and takes for nothing
    the kernels of attention (on CPUs before torch 2.15), of transformer layers and of recurrent networks.
    """
    mha, mkldnn, cudnn = torch.backends.mha, torch.backends.mkldnn, torch.backends.cudnn
    former = bool(mha.get_fastpath_enabled()), bool(mkldnn.enabled), bool(cudnn.enabled)
    _allow(False, False, False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        _allow(*former)


def _allow(transformer: bool, cpu: bool, gpu: bool) -> None:
    """Let torch use fused kernels, or not."""
    torch.backends.mha.set_fastpath_enabled(transformer)
    torch.backends.mkldnn.enabled = cpu  # type: ignore[assignment]
    torch.backends.cudnn.enabled = gpu

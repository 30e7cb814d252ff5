"""Centred kernel alignment: how alike two layers see the same images, whatever basis each has for it.

Kornblith et al., "Similarity of Neural Network Representations Revisited" (arXiv 1905.00414, section 3), linear:

    CKA(X, Y) = HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L)),   HSIC(K, L) = tr(K H L H) / (n - 1)^2

with K = X X', L = Y Y' and H = I - 11'/n. It is 1 for features that differ by an orthogonal map, a factor and a shift.
Centred before they are multiplied, features give H K H at once, and the (n - 1)^2 goes out. The estimate is biased
upwards where images are few beside features: take a hundred or more.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def centred_gram(features: Tensor) -> Tensor:
    """Of features (n ...) of n images, the Gram matrix H X X' H (n n), in float64."""
    rows = features.detach().flatten(1).double()
    rows = rows - rows.mean(0)
    return rows @ rows.T


def cka(grams: Sequence[Tensor]) -> Tensor:
    """How alike each two of m layers are (m m), from their centred Gram matrices (n n) of the same images.

    A layer that says the same of all images is like itself alone.
    """
    rows = torch.stack([gram.flatten() for gram in grams])
    rows = rows / rows.norm(dim=1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    alike: Tensor = rows @ rows.T
    return alike.fill_diagonal_(1.0)

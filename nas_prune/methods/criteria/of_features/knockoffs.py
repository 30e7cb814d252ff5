"""Knockoff images: they look like the data up to second moments, and say no more about the label than the data does.

Candes et al., "Panning for Gold: Model-X Knockoffs" (arXiv 1610.02351, section 3.1): of Gaussian coordinates of mean m
and covariance S, and for s of diag(s) <= 2 S,

    x~ | x  ~  N(x - diag(s) S^-1 (x - m), 2 diag(s) - diag(s) S^-1 diag(s))

is a knockoff: any coordinates of x and x~ may change places and all means and covariances stay. SCOP (arXiv 2010.10732)
trains a generator for them; this is for where there is none, and needs no training. Ours: coordinates are the principal
components of the images, S is that of the images themselves, diagonal with entries l, and s is ``distance`` times l. So

    x~ - m = (1 - distance) (x - m) + sqrt(distance (2 - distance)) e,   e ~ N(0, S)

and neither components nor S have to be computed: a sum of centred images with normal weights has exactly the covariance
S, divided by the root of how many there are. At distance 1, x~ is drawn without a look at x (the generator of the
authors' code does so, too); near 0 it is x, and shows the label.
"""

from math import sqrt

from torch import Tensor


def knockoffs(x: Tensor, images: Tensor, noise: Tensor, distance: float = 1.0) -> Tensor:
    """Knockoffs (b ...) of x (b ...), whose mean and covariance are those of ``images`` (n ...).

    ``noise`` (b n): standard normal numbers; ``distance``: how little of x is left, from 0 (x itself) to 1 (nothing).
    """
    weights = (noise - noise.mean(1, keepdim=True)) * sqrt(distance * (2 - distance) / len(images))  # centres images
    return x + distance * (images.mean(0) - x) + (weights @ images.flatten(1)).reshape(x.shape)

"""Groups of units whose pictures are alike: k-means, with as many groups as separate best (silhouette).

Of Qin et al. (arXiv 1810.07322): k-means per layer, the number of groups searched up to half of the units. Ours: not
every number is tried, but ``TRIED`` of them on a geometric scale, half of the units always among them; distances are
taken in the principal components that hold 99.9 % of the variance.
"""

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score
from torch import Tensor

TRIED = 10
VARIANCE = 0.999
STARTS = 4


def groups(pictures: Tensor, seed: int = 0) -> Tensor:
    """The number of the group of each picture (c); each of fewer than four is a group of its own."""
    points = _components(pictures)
    half = len(points) // 2
    distinct = len(np.unique(points.round(9), axis=0))
    best, labels = -1.0, np.arange(len(points)) if distinct > 1 else np.zeros(len(points), int)
    for count in _numbers(min(half, distinct)):
        found = KMeans(count, n_init=STARTS, random_state=seed).fit_predict(points)
        score = float(silhouette_score(points, found))
        if score > best:
            best, labels = score, found
    return torch.from_numpy(labels.astype(np.int64))


def _numbers(most: int) -> list[int]:
    """Which numbers of groups are tried, from two to ``most``."""
    if most < 2:
        return []
    return sorted({round(each) for each in np.geomspace(2, most, TRIED)})


def _components(pictures: Tensor) -> np.ndarray:
    """The pictures as points (c n) that are as far from each other, but for what is hardly there."""
    rows = pictures.detach().cpu().double().flatten(1)
    left, sizes, _ = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    held = sizes.square().cumsum(0) / sizes.square().sum().clamp(min=torch.finfo(rows.dtype).tiny)
    count = int((held < VARIANCE).sum()) + 1
    points: np.ndarray = (left[:, :count] * sizes[:count]).numpy()
    return points

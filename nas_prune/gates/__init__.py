"""Gates: how one keep value per unit comes about. One file per gate; the registry ``gates`` knows their names."""

from nas_prune.gates import contribution, hard_concrete, mask, sigmoid, skeleton, softmax, weight
from nas_prune.gates.gate import Gate, gates

__all__ = ["Gate", "contribution", "gates", "hard_concrete", "mask", "sigmoid", "skeleton", "softmax", "weight"]

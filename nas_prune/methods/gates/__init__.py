"""Gates: how one keep value per unit comes about. One file per gate; the registry ``gates`` knows their names."""

from nas_prune.methods.gates.gate import Gate, gates

__all__ = ["Gate", "gates"]

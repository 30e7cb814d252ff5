"""Which machine a timing is true of."""

import pytest
import torch

from nas_prune.base.fingerprint import fingerprint


def test_what_was_timed_on_the_processor_says_nothing_of_the_gpu_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    processor, card = (fingerprint(torch.device(place)) for place in ("cpu", "cuda"))
    assert "accelerator" not in processor
    assert card == fingerprint() == processor | {"accelerator": "a card"}

"""W-Gates on digits against a MACs budget, from Python: search, derive, fine-tune."""

import timm
import torch
from accelerate import Accelerator

import nas_prune as npr
from nas_prune.costs import Macs
from nas_prune.settings import DataSettings, FinetuneSettings, SearchSettings
from nas_prune.train import Run
from nas_prune.train.data import loaders as data
from nas_prune.train.evaluate import top1
from nas_prune.train.finetune import finetune

digits = data.load(DataSettings(name="digits", image_size=32, shift=2), seed=0)
model = timm.create_model("test_resnet", num_classes=10, in_chans=1)
axes = npr.trace(model, torch.randn(1, 1, 32, 32))
space = npr.SearchSpace.read("channels", axes)
gated = npr.GatedModel(model, space, gate="weight")

run = Run(Accelerator(cpu=True))
settings = SearchSettings(warmup=0, joint=8, freeze=2, lr=0.05, gate_lr=5e-3)
arch = npr.search(gated, digits, budget=npr.Budget("0.4x", cost=Macs(axes)), settings=settings, run=run)

small = npr.derive(model, axes, arch)
finetune(small, None, digits, settings=FinetuneSettings(epochs=5, lr=0.05), run=run)
share = npr.count(small, torch.randn(1, 1, 32, 32)).macs / float(Macs(axes)({}))
print(f"{share:.2f}x of the MACs, top-1 {top1(small, digits, run.accelerator):.1f} %")

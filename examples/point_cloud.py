"""Point clouds with missing parts: a network of points learns by hierarchical self-distillation, and is halved."""

import torch
from accelerate import Accelerator
from networks.point_network import PointNetwork
from networks.shapes import CLASSES, shapes
from torch.utils.data import DataLoader, TensorDataset

import nas_prune as npr
from nas_prune.costs import Macs
from nas_prune.settings import FinetuneSettings, SearchSettings
from nas_prune.train import Run
from nas_prune.train.data.loaders import from_loaders
from nas_prune.train.evaluate import top1
from nas_prune.train.finetune import finetune

torch.manual_seed(0)
loss = {"name": "hierarchical_distillation", "options": {"warmup": 32}}
how = {"optimizer": "adamw", "lr": 2e-3, "loss": loss}
run = Run(Accelerator(cpu=True))
train, held_out = (TensorDataset(*shapes(count, 128, seed=seed)) for seed, count in enumerate((1000, 500)))
loader = DataLoader(train, batch_size=32, shuffle=True, drop_last=True)
data = from_loaders(loader, DataLoader(held_out, batch_size=100), classes=len(CLASSES))

net = PointNetwork(len(CLASSES), widths=(16, 32, 64), anchors=(64, 32, 16))
example = held_out[0][0][None]
axes = npr.trace(net, example, leaves=net.left)  # neighbours depend on coordinates alone
gated = npr.GatedModel(net, npr.SearchSpace.read("channels", axes), gate="weight")
settings = SearchSettings.model_validate({**how, "warmup": 0, "joint": 4, "freeze": 1, "gate_lr": 1e-2})
arch = npr.search(gated, data, budget=npr.Budget("0.5x", Macs(axes)), settings=settings, run=run)

small = npr.derive(net, axes, arch)
finetune(small, None, data, settings=FinetuneSettings.model_validate({**how, "epochs": 4, "distill": 0.0}), run=run)
share = npr.count(small, example).macs / npr.count(net, example).macs
print(f"{share:.2f}x of the MACs, top-1 {top1(small, data, run.accelerator):.1f} % of clouds with missing parts")

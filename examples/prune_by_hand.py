"""Trace a timm model, drop a random half of every axis, prove it, save it, load it: no recipe, no training."""

import sys

import timm
import torch

import nas_prune as npr

model = timm.create_model(sys.argv[1] if len(sys.argv) > 1 else "resnet18").eval()
x = torch.randn(1, 3, 64, 64)

axes = npr.trace(model, x)
space = npr.SearchSpace.read("channels", axes)
arch = npr.Arch.random(space.axes, keep=0.5, generator=torch.Generator().manual_seed(0))

proof = npr.verify(model, axes, arch, x)
small = npr.derive(model, axes, arch)
npr.save(small, "half")
again = npr.load("half")

with torch.no_grad():
    assert torch.equal(again(x), small(x))
before, after = npr.count(model, x), npr.count(small, x)
print(
    f"{len(axes.free)} axes; MACs {before.macs:,} -> {after.macs:,}; parameters {before.params:,} -> {after.params:,}"
)
print(f"latency {npr.measure(model, x).median_ms:.2f} -> {npr.measure(small, x).median_ms:.2f} ms, saved in half/")
print(f"gated against derived: {proof.max_abs_error:.1e}; worst of {proof.nodes} nodes: {proof.worst_node_error:.1e}")

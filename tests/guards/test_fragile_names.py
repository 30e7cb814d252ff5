"""Private names of torch and timm that the package leans on: each is in this list, is there, and says what breaks.

A release may rename any of them without a word. So they are few, known, and tried one by one: where one has gone, the
name of the failing test says which, and the list says what to mend.
"""

import ast
import re
from importlib import import_module
from pathlib import Path

import pytest
from torch import nn

PACKAGE = Path(__file__).parents[2] / "nas_prune"
IMPORTED = {  # module.name -> what needs it
    "timm.models._builder": "artefacts are built the way timm builds its own models (artifact/timm_build.py)",
    "timm.models._features.feature_take_indices": "networks of cells answer forward_intermediates",
    "torch._dynamo.OptimizedModule": "a model wrapped by torch.compile is taken out",
    "torch._export.utils._collect_all_valid_cia_ops": "operators that torch composes come as those it is made of",
    "torch._export.utils._get_decomp_for_cia": "the same",
    "torch._ops.OpOverload": "the type of an operator, for the table of decompositions",
    "torch._subclasses.fake_tensor.FakeTensor": "tensors without numbers are told apart",
    "torch._subclasses.fake_tensor.FakeTensorMode": "a smaller model is tried without numbers",
    "torch.utils._python_dispatch.TorchDispatchMode": "memory of a step is counted before the first one",
    "torch.utils._pytree.TreeSpec": "what a leaf of the graph gives is taken apart",
    "torch.utils._pytree.register_pytree_node": "inputs by keyword are exported",
    "torch.utils._pytree.tree_flatten": "the same",
    "torch.utils._pytree.tree_unflatten": "and put together again",
    "torch.utils._pytree.tree_leaves": "tensors are found in nested outputs",
    "torch.utils._pytree.tree_map_only": "and replaced there",
}
LOOKED_UP = {  # attribute -> (an object that has it, as code; what needs it)
    "_C": ("torch._C._current_graph_task_id", "gates know a backward pass that computes a forward pass again"),
    "_ConvNd": ("torch.nn.modules.conv._ConvNd", "integers of convolutions are set"),
    "_NormBase": ("torch.nn.modules.batchnorm._NormBase", "integers of norms are set"),
    "_BatchNorm": ("torch.nn.modules.batchnorm._BatchNorm", "statistics are estimated again"),
    "_dynamo": ("torch._dynamo.config", "many models are compiled in one process"),
    "_current_graph_task_id": ("torch._C._current_graph_task_id", "see _C"),
    "_parameters": ("torch.nn.Linear(1, 1)._parameters", "tensors are replaced by what is left of them"),
    "_buffers": ("torch.nn.Linear(1, 1)._buffers", "the same"),
    "_apply": ("torch.nn.Module._apply", "buffers that a module makes anew when it is cast stay whole"),
    "_modules": ("torch.nn.Linear(1, 1)._modules", "operations take the place of modules"),
    "_forward_hooks": ("torch.nn.Linear(1, 1)._forward_hooks", "a plain copy has no hooks of ours"),
    "_forward_hooks_always_called": ("torch.nn.Linear(1, 1)._forward_hooks_always_called", "the same"),
    "_forward_pre_hooks": ("torch.nn.Linear(1, 1)._forward_pre_hooks", "spectral norm is taken out of a copy"),
    "_load_state_dict_pre_hooks": ("torch.nn.Linear(1, 1)._load_state_dict_pre_hooks", "the same"),
    "_compiled_call_impl": ("torch.nn.Linear(1, 1)._compiled_call_impl", "module.compile() is undone for the export"),
    "_orig_mod": ("torch.compile(torch.nn.Linear(1, 1))._orig_mod", "a model wrapped by torch.compile is taken out"),
    "_qkv_same_embed_dim": ("torch.nn.MultiheadAttention(2, 1)._qkv_same_embed_dim", "attention is written out"),
    "_reset_state": ("accelerate.state.AcceleratorState._reset_state", "a process runs recipes of other precisions"),
    "_cdata": ("torch.zeros(1).untyped_storage()._cdata", "memory is counted once per storage"),
}
FOREIGN = re.compile(r"torch|timm|torchvision|accelerate|wandb")
OURS = {"_filled", "_fixed", "_packed", "_projections", "_exit"}  # os._exit, and objects of our own


def imported() -> set[str]:
    """Names that are imported from private modules, or private names that are imported."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module and FOREIGN.match(node.module):
                names = (f"{node.module}.{alias.name}" for alias in node.names)
                found |= {name for name in names if re.search(r"\.__?[a-zA-Z]", name)}
    return found


def looked_up() -> set[str]:
    """Private attributes of anything but ``self``."""
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and re.match(r"_[a-zA-Z]", node.attr):
                own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
                found |= set() if own else {node.attr}
    return found - OURS


def test_every_private_name_is_in_the_list_and_every_entry_is_needed() -> None:
    assert imported() == set(IMPORTED)
    assert looked_up() == set(LOOKED_UP)


@pytest.mark.parametrize("name", IMPORTED)
def test_a_private_name_is_still_there(name: str) -> None:
    module, _, attribute = name.rpartition(".")
    assert hasattr(import_module(module), attribute), f"{name} is gone: {IMPORTED[name]}"


@pytest.mark.parametrize("attribute", LOOKED_UP)
def test_a_private_attribute_is_still_there(attribute: str) -> None:
    code, why = LOOKED_UP[attribute]
    owner, _, name = code.rpartition(".")
    known = {package: import_module(package) for package in ("torch", "accelerate")}
    assert hasattr(eval(owner, {**known, "nn": nn}), name), f"{code} is gone: {why}"

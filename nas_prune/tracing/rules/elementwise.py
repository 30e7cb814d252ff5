"""Operators that act on each entry alone: the output means what the inputs mean, after broadcasting."""

from torch.fx import Node

from nas_prune.tracing.ruled import rule
from nas_prune.tracing.terms import Dims, Fix
from nas_prune.tracing.walk import Walk


@rule(
    *("relu.default", "gelu.default", "silu.default", "sigmoid.default", "tanh.default", "mish.default", "elu.default"),
    *("hardsigmoid.default", "hardswish.default", "hardtanh.default", "leaky_relu.default", "relu6.default"),
    *("exp.default", "log.default", "neg.default", "sqrt.default", "rsqrt.default", "abs.default", "softplus.default"),
    *("sin.default", "cos.default", "reciprocal.default", "erf.default", "square.default", "rsub.Scalar"),
    *("pow.Tensor_Scalar", "clamp.default", "clamp_min.default", "clamp_max.default", "dropout.default"),
    *("clone.default", "alias.default", "_to_copy.default", "detach.default", "contiguous.default", "to.dtype"),
    *("add.Scalar", "sub.Scalar", "mul.Scalar", "div.Scalar", "bitwise_not.default", "logical_not.default"),
    *("selu.default", "celu.default", "log_sigmoid.default", "log1p.default", "expm1.default", "tan.default"),
    *("floor.default", "ceil.default", "round.default", "sign.default", "threshold.default", "hardshrink.default"),
    *("eq.Scalar", "ne.Scalar", "lt.Scalar", "gt.Scalar", "le.Scalar", "ge.Scalar", "remainder.Scalar"),
    *("atan.default", "asin.default", "acos.default", "sinh.default", "cosh.default", "asinh.default", "acosh.default"),
    *(
        "atanh.default",
        "erfc.default",
        "exp2.default",
        "log2.default",
        "log10.default",
        "trunc.default",
        "frac.default",
    ),
    *("isnan.default", "isinf.default", "sgn.default", "logit.default", "softshrink.default", "lgamma.default"),
    *("fmod.Scalar", "bitwise_and.Scalar", "bitwise_or.Scalar", "digamma.default", "sinc.default", "i0.default"),
    *("type_as.default", "to.device", "to.dtype_layout", "nan_to_num.default", "floor_divide.Scalar"),
    *("zeros_like.default", "ones_like.default", "empty_like.default", "full_like.default"),
)
def same(walk: Walk, node: Node) -> Dims:
    """The output is the input, entry by entry."""
    return walk.of(node.args[0])


@rule(
    *("add.Tensor", "sub.Tensor", "mul.Tensor", "div.Tensor", "maximum.default", "minimum.default"),
    *(
        "pow.Tensor_Tensor",
        "pow.Scalar",
        "addcmul.default",
        "where.self",
        "clamp.Tensor",
        "rsub.Tensor",
        "lerp.Tensor",
    ),
    *("eq.Tensor", "ne.Tensor", "lt.Tensor", "gt.Tensor", "le.Tensor", "ge.Tensor", "where.ScalarOther"),
    *("logical_xor.default", "bitwise_xor.Tensor", "fmod.Tensor", "fmax.default", "fmin.default", "hypot.default"),
    *("copysign.Tensor", "logaddexp.default", "logaddexp2.default", "xlogy.Tensor", "addcdiv.default", "lerp.Scalar"),
    *("logical_and.default", "logical_or.default", "bitwise_and.Tensor", "bitwise_or.Tensor", "where.ScalarSelf"),
    *(
        "masked_fill.Scalar",
        "masked_fill.Tensor",
        "div.Tensor_mode",
        "floor_divide.default",
        "remainder.Tensor",
        "atan2.default",
        "where.Scalar",
    ),
)
def broadcast(walk: Walk, node: Node) -> Dims:
    """Operands are aligned from the right, and dimensions that meet mean the same units."""
    return walk.broadcast(node, *(walk.of(argument) for argument in node.args))


@rule("prelu.default")
def prelu(walk: Walk, node: Node) -> Dims:
    """x (b c ...), a slope for each of c, or one for all."""
    x, slope = walk.of(node.args[0]), walk.of(node.args[1])
    if slope[0].size > 1:
        walk.tie(node, x[1], slope[0])
    return x


@rule("new_zeros.default", "new_ones.default", "new_full.default", "new_empty.default")
def fresh(walk: Walk, node: Node) -> Dims:
    """A tensor of the same kind, of which nothing is read."""
    return tuple(Fix(size) for size in walk.shape(node))


@rule("native_dropout.default")
def dropout(walk: Walk, node: Node) -> list[Dims]:
    """A dropout that is left on in evaluation: what it leaves, and where."""
    return [walk.of(node.args[0])] * 2


@rule("copy.default")
def copy(walk: Walk, node: Node) -> Dims:
    """The first operand takes the values of the second."""
    return walk.broadcast(node, walk.of(node.args[0]), walk.of(node.args[1]))


@rule(
    "_assert_tensor_metadata.default", "_assert_scalar.default", "sym_size.int", "sym_constrain_range_for_size.default"
)
def nothing(walk: Walk, node: Node) -> Dims:  # noqa: ARG001
    """A check that export left behind: no output, no effect."""
    return ()

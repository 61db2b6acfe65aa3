"""Floating-point operations of a program as it is written, whatever it is compiled for.

What compilers count leaves out what a GPU's libraries compute, nearly all of a network, and takes the body of a loop
once.
"""

import math
from typing import Any

import jax
from jax.extend import core


def counted(traced: jax.stages.Traced) -> float:
    """Operations of the matrix products and convolutions of `jax.jit(f).trace(...)`, 2 for each multiplication with its
    addition, on all devices together.

    A loop's body counts as often as it runs, but once where only running it tells; of the branches of a condition the
    longest. What is computed twice to save memory counts twice. Kernels that are no JAX are not seen: trace without.
    """
    return _of(traced.jaxpr.jaxpr)


def _of(jaxpr: core.Jaxpr) -> float:
    return sum(map(_of_equation, jaxpr.eqns))


def _of_equation(equation: Any) -> float:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel, outputs = equation.invars[1].aval.shape, params["dimension_numbers"].rhs_spec[0]
        # Zeros between the inputs, as in the gradient of a strided convolution, are no work.
        return (
            2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel)
            / (kernel[outputs] * math.prod(params["lhs_dilation"]))
        )  # fmt: skip
    inner = [_of(jaxpr) for value in params.values() for jaxpr in _programs(value)]
    if name == "cond":
        return max(inner)
    return sum(inner) * (params["length"] if name == "scan" else 1)


def _programs(value: Any) -> list[core.Jaxpr]:
    """Those that a parameter of an equation holds."""
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    if isinstance(value, core.Jaxpr):
        return [value]
    return [found for item in value for found in _programs(item)] if isinstance(value, tuple | list) else []

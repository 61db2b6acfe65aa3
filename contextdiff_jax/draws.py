"""Many small random draws of one program as a few large ones, bit for bit the same.

The parameters of a network are a hundred draws, each of which hashes the numbers of its elements under its key, in a
loop of its own: on a CPU such a loop takes up to half a second to compile, whatever its size. The hash of an element
depends on nothing but the key and the element's number, so that a draw is the beginning of any larger one of its key.
"""

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend import core
from jax.extend.core import primitives

from contextdiff_jax.types import Array

LARGEST = 2**18  # elements; larger draws are left alone: there are few of them, and they may be split over devices
_IMPLEMENTATION = "threefry2x32"


@dataclass(frozen=True)
class _Step:
    """An operation of a program on numbered values."""

    equation: core.JaxprEqn
    operands: tuple[Any, ...]  # numbers, or literals
    results: list[int]


def in_few(f: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """A function of a typed PRNG key that gives what `f` gives, with its draws together; to be compiled."""

    def run(key: Array) -> Any:
        if str(jax.random.key_impl(key)) != _IMPLEMENTATION or not jax.config.jax_threefry_partitionable:
            return f(key)
        closed, shape = jax.make_jaxpr(f, return_shape=True)(jax.ShapeDtypeStruct(key.shape, key.dtype))
        return jax.tree.unflatten(jax.tree.structure(shape), _Evaluation().of(closed, key))

    return run


class _Evaluation:
    """A program's operations, its calls inlined, and the values that are known so far, by number."""

    def __init__(self) -> None:
        self._numbers, self._known = itertools.count(), {}
        self._steps: list[_Step] = []

    def of(self, closed: core.ClosedJaxpr, key: Array) -> list[Any]:
        """The outputs: what can be computed is, and the rest waits for the hashes, all that there are by then."""
        outputs = self._inline(closed, [self._numbered(key)])
        todo = self._needed(outputs)
        while todo:
            later, hashes = [], []
            for step in todo:
                if not all(isinstance(a, core.Literal) or a in self._known for a in step.operands):
                    later.append(step)
                elif step.equation.primitive in (primitives.random_bits_p, primitives.random_fold_in_p):
                    hashes.append(step)
                else:
                    self._evaluate(step)
            self._hash(hashes)
            todo = later
        return [self._value(a) for a in outputs]

    def _numbered(self, value: Any) -> int:
        number = next(self._numbers)
        self._known[number] = value
        return number

    def _inline(self, closed: core.ClosedJaxpr, inputs: Sequence[Any]) -> list[Any]:
        """Notes the operations of a program, those of the programs that it calls in their place; its outputs."""
        program = closed.jaxpr
        names = dict(zip(program.invars, inputs, strict=True))
        names |= {v: self._numbered(c) for v, c in zip(program.constvars, closed.consts, strict=True)}
        atom = lambda a: a if isinstance(a, core.Literal) else names[a]
        for equation in program.eqns:
            operands = tuple(map(atom, equation.invars))
            if equation.primitive is primitives.jit_p:
                results = self._inline(equation.params["jaxpr"], operands)
            else:
                results = [next(self._numbers) for _ in equation.outvars]
                self._steps.append(_Step(equation, operands, results))
            names |= zip(equation.outvars, results, strict=True)
        return [atom(v) for v in program.outvars]

    def _needed(self, outputs: Sequence[Any]) -> list[_Step]:
        """Those on which the outputs depend, in their order."""
        wanted, kept = {a for a in outputs if not isinstance(a, core.Literal)}, []
        for step in reversed(self._steps):
            if wanted.intersection(step.results):
                kept.append(step)
                wanted |= {a for a in step.operands if not isinstance(a, core.Literal)}
        return kept[::-1]

    def _value(self, a: Any) -> Any:
        return a.val if isinstance(a, core.Literal) else self._known[a]

    def _evaluate(self, step: _Step) -> None:
        primitive = step.equation.primitive
        params = primitive.get_bind_params(step.equation.params)
        found = primitive.bind(*map(self._value, step.operands), **params)
        self._known |= zip(step.results, found if primitive.multiple_results else [found], strict=True)

    def _hash(self, steps: Sequence[_Step]) -> None:
        """Folds keys, all at once, and draws bits, those of about the same number together."""
        groups = defaultdict(list)
        for step in steps:
            groups[_group(step)].append(step)
        for group, members in groups.items():
            if group is None or len(members) == 1:
                for step in members:
                    self._evaluate(step)
                continue
            keys = jnp.stack([self._value(step.operands[0]) for step in members])
            if group == "fold":
                data = jnp.stack([jnp.asarray(self._value(step.operands[1])) for step in members])
                values = list(jax.vmap(jax.random.fold_in)(keys, data))
            else:
                bits = jax.vmap(lambda key, size=group: jax.random.bits(key, (size,)))(keys)
                shapes = [step.equation.params["shape"] for step in members]
                values = [of[: math.prod(shape)].reshape(shape) for of, shape in zip(bits, shapes, strict=True)]
            self._known |= {step.results[0]: value for step, value in zip(members, values, strict=True)}


def _group(step: _Step) -> Any:
    """What can be hashed together: "fold", or the number of bits to draw; None stays alone."""
    equation = step.equation
    key, *others = (v.aval for v in equation.invars)
    if key.shape:
        return None
    if equation.primitive is primitives.random_fold_in_p:
        return "fold" if others[0].dtype == jnp.uint32 and not others[0].shape else None
    size = math.prod(equation.params["shape"])
    return 1 << (size - 1).bit_length() if equation.params["bit_width"] == 32 and 0 < size <= LARGEST else None

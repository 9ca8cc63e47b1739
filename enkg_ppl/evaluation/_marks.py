"""Which results a failed simulation had a part in, followed through a JAX program.

A failed simulation is NaN, and a NaN finds its own way to the likelihood; but whole numbers and truth values cannot
hold one, and ``simulate(x) > 3`` is False for it. So the program is run equation by equation with a mark beside every
array: whether a failure went into it. Branches that were not taken leave no mark, and neither do questions that are
asked about NaN itself (`jnp.isnan`, `jnp.isfinite`): a model that answers them decides for itself what a failure means.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import ClosedJaxpr, Jaxpr, Literal, jaxpr_as_fun
from jaxtyping import Bool

from enkg_ppl.evaluation._host_call import host_call_p
from enkg_ppl.types import AnyArray

# Names of equations that are a program of their own, run once.
_CALLS = (
    *("jit", "pjit", "closed_call", "core_call", "checkpoint", "remat2"),
    *("custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr", "custom_vmap_call"),
)

Failed = Bool[AnyArray, ""]
Mark = Failed | None  # None: no failure can have gone into it


def with_failures(function: Callable) -> Callable[..., tuple[Any, Failed]]:
    """``function(*args)``, and whether a failure went into any of it that its NaNs may not show."""

    def run(*args):
        values, marks, structure = _run(function, args)
        return jax.tree.unflatten(structure, values), _any(marks)

    return run


def poisoned(function: Callable) -> Callable:
    """``function(*args)`` with NaN in every float that a failure went into."""

    def run(*args):
        values, marks, structure = _run(function, args)
        pairs = zip(values, marks, strict=True)
        return jax.tree.unflatten(structure, [_poison(value, mark) for value, mark in pairs])

    return run


def _poison(value, mark: Mark):
    return value if mark is None or not _holds_nan(value) else jnp.where(mark, jnp.asarray(jnp.nan, value.dtype), value)


def _run(function, args):
    # JAX keeps what it traced as long as the function that it traced, so it gets one of its own.
    program, shapes = jax.make_jaxpr(lambda *args: function(*args), return_shape=True)(*args)
    leaves, structure = jax.tree.leaves(args), jax.tree.structure(shapes)
    if not _may_lose(program.jaxpr, [False] * len(program.jaxpr.invars))[0]:
        values = jaxpr_as_fun(program)(*leaves)  # as it is: other programs round otherwise
        return values, [None] * len(values), structure
    return *_evaluate(program.jaxpr, program.consts, leaves, [None] * len(leaves)), structure


# -- what a program may do, told from its equations alone -------------------------------------------------------------


def _may_lose(program: Jaxpr, marked: Sequence[bool]) -> tuple[bool, list[bool]]:
    """Whether a failure may go into something that cannot hold NaN, and which results it may go into."""
    found = dict(zip(program.invars, marked, strict=True))
    lost = False
    for eqn in program.eqns:
        into = any(not isinstance(v, Literal) and found.get(v, False) for v in eqn.invars)
        if is_source(eqn):
            out = [True] * (len(eqn.outvars) - 1) + [False]
        elif _asks_for_nan(eqn):
            out = [False]
        else:
            inner = list(_programs_in(eqn.params))
            is_call = eqn.primitive.name in _CALLS
            given = [not isinstance(v, Literal) and found.get(v, False) for v in eqn.invars]
            inside = [_may_lose(p, given if is_call else [into] * len(p.invars)) for p in inner]
            lost |= any(loses for loses, _ in inside)
            if is_call:
                out = inside[0][1]
            else:
                out = [into or any(any(results) for _, results in inside)] * len(eqn.outvars)
        lost |= any(m and not _holds_nan(v.aval) for m, v in zip(out, eqn.outvars, strict=True))
        found.update(zip(eqn.outvars, out, strict=True))
    return lost, [not isinstance(v, Literal) and found.get(v, False) for v in program.outvars]


def is_source(eqn) -> bool:
    """Whether an equation is a black box, whose last result says if it failed."""
    return eqn.primitive is host_call_p and eqn.params["flagged"]


def _asks_for_nan(eqn) -> bool:
    name, v = eqn.primitive.name, eqn.invars
    return name == "is_finite" or (name in ("ne", "eq") and v[0] is v[1])  # x != x is how isnan is written


def _programs_in(params) -> Iterator[Jaxpr]:
    for value in params.values():
        for part in value if isinstance(value, tuple | list) else (value,):
            if isinstance(part, ClosedJaxpr):
                yield part.jaxpr
            elif isinstance(part, Jaxpr):
                yield part


def _holds_source(program: Jaxpr) -> bool:
    return any(is_source(eqn) or any(map(_holds_source, _programs_in(eqn.params))) for eqn in program.eqns)


def _holds_nan(array) -> bool:
    return jnp.issubdtype(array.dtype, jnp.inexact)


# -- running it with marks --------------------------------------------------------------------------------------------


def _evaluate(program: Jaxpr, consts, args, marks: Sequence[Mark]) -> tuple[list[Any], list[Mark]]:
    """Results of a program, and their marks."""
    values = dict(zip(program.constvars, consts, strict=True)) | dict(zip(program.invars, args, strict=True))
    found = dict(zip(program.invars, marks, strict=True))

    def value(v):
        return v.val if isinstance(v, Literal) else values[v]

    def mark(v) -> Mark:
        return None if isinstance(v, Literal) else found.get(v)

    for eqn in program.eqns:
        inputs, into = [value(v) for v in eqn.invars], [mark(v) for v in eqn.invars]
        inner = any(map(_holds_source, _programs_in(eqn.params)))
        if not (inner or is_source(eqn) or any(m is not None for m in into)):
            out, out_marks = _bind(eqn, inputs), [None] * len(eqn.outvars)
        else:
            out, out_marks = _RULES.get(eqn.primitive.name, _plain)(eqn, inputs, into)
        values.update(zip(eqn.outvars, out, strict=True))
        found.update(zip(eqn.outvars, out_marks, strict=True))
    return [value(v) for v in program.outvars], [mark(v) for v in program.outvars]


def _bind(eqn, inputs) -> list[Any]:
    params = eqn.primitive.get_bind_params(eqn.params)
    functions, params = params if isinstance(params, tuple) else ((), params)  # as JAX before 0.10 has it
    out = eqn.primitive.bind(*functions, *inputs, **params)
    return list(out) if eqn.primitive.multiple_results else [out]


def _any(marks: Sequence[Mark]) -> Failed:
    return functools.reduce(jnp.logical_or, [m for m in marks if m is not None], jnp.zeros((), bool))


def _arrays(marks: Sequence[Mark]) -> list[Failed]:
    return [_any([m]) for m in marks]


def _plain(eqn, inputs, into):
    """Whatever goes in goes into all that comes out."""
    out = _bind(eqn, inputs)
    return out, [None if _asks_for_nan(eqn) else _any(into)] * len(out)


def _host_call(eqn, inputs, into):
    out = _bind(eqn, inputs)
    mark = _any([*into, jnp.any(out[-1])]) if is_source(eqn) else _any(into)
    return out, [mark] * len(out)


def _select(eqn, inputs, into):
    """Only what is selected counts."""
    which, cases = inputs[0], [jnp.broadcast_to(m, jnp.shape(inputs[0])) for m in _arrays(into[1:])]
    return _bind(eqn, inputs), [_any([into[0], jnp.any(jax.lax.select_n(which, *cases))])]


def _call(eqn, inputs, into):
    inner = next(eqn.params[name] for name in ("jaxpr", "call_jaxpr", "fun_jaxpr", "call") if name in eqn.params)
    program, consts = (inner.jaxpr, inner.consts) if isinstance(inner, ClosedJaxpr) else (inner, ())
    return _evaluate(program, consts, inputs, into)


def _cond(eqn, inputs, into):
    def branch(closed):
        def run(inputs, into):
            out, marks = _evaluate(closed.jaxpr, closed.consts, inputs, into)
            return out, _arrays(marks)

        return run

    branches = [branch(closed) for closed in eqn.params["branches"]]
    out, marks = jax.lax.switch(inputs[0], branches, inputs[1:], _arrays(into[1:]))
    return out, [_any([into[0], m]) for m in marks]


def _scan(eqn, inputs, into):
    body, (start, end) = eqn.params["jaxpr"], _parts_of_scan(eqn.params)
    into = _arrays(into)

    def step(carry, xs):
        values, marks = carry
        out, out_marks = _evaluate(
            body.jaxpr, body.consts, [*inputs[:start], *values, *xs], [*into[:start], *marks, *into[end:]]
        )
        out_marks = _arrays(out_marks)
        return (out[: end - start], out_marks[: end - start]), (out[end - start :], out_marks[end - start :])

    options = {name: eqn.params[name] for name in ("length", "reverse", "unroll")}
    (carry, marks), (ys, each) = jax.lax.scan(step, (inputs[start:end], into[start:end]), inputs[end:], **options)
    return [*carry, *ys], [*marks, *map(jnp.any, each)]


def _parts_of_scan(params) -> tuple[int, int]:
    """Where the carried values begin and end among the inputs; JAX 0.12 has trees where 0.10 has numbers."""
    if "num_consts" in params:
        return params["num_consts"], params["num_consts"] + params["num_carry"]
    constants, carried, _ = params["ft_in"].unpack()
    return len(constants), len(constants) + len(carried)


def _while(eqn, inputs, into):
    """How often it turns is decided by the condition, so a failure in that goes into everything."""
    test, body = eqn.params["cond_jaxpr"], eqn.params["body_jaxpr"]
    first = eqn.params["cond_nconsts"]
    start = first + eqn.params["body_nconsts"]
    into = _arrays(into)

    def tested(values, marks):
        out, out_marks = _evaluate(test.jaxpr, test.consts, [*inputs[:first], *values], [*into[:first], *marks])
        return out[0], _any(out_marks)

    def step(carry):
        values, marks, turning = carry
        turning = turning | tested(values, marks)[1]
        return *_step(values, marks), turning

    def _step(values, marks):
        out, out_marks = _evaluate(
            body.jaxpr, body.consts, [*inputs[first:start], *values], [*into[first:start], *marks]
        )
        return out, _arrays(out_marks)

    carry = (inputs[start:], into[start:], jnp.zeros((), bool))
    values, marks, turning = jax.lax.while_loop(lambda carry: tested(*carry[:2])[0], step, carry)
    turning = turning | tested(values, marks)[1]
    return values, [m | turning for m in marks]


_RULES = {host_call_p.name: _host_call, "select_n": _select, "cond": _cond, "scan": _scan, "while": _while}
_RULES |= dict.fromkeys(_CALLS, _call)

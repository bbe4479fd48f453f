"""An operation of kernels and its gradient, written once and called in two ways.

Outside of the compiler a plain `torch.autograd.Function` calls the kernels; where PyTorch traces or transforms, it
sees a pair of operators of `torch.library`, made of the same functions. Operators alone would be less, but one of them
costs several times what a direct call does, which shows on small layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import new_class
from typing import Any, NoReturn

import torch
from torch import Tensor

from regrow.ops import remade
from regrow.ops.layout import batch_last, to_batch_last, way_back

__all__ = ["Differentiable", "direct", "refuse_double_backward", "without_derivative"]


def direct(*tensors: Tensor | None) -> bool:
    """Return whether kernels may be called directly: nothing traces, transforms or stands in for these tensors."""
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._are_functorch_transforms_active()
    ):
        return False
    for tensor in tensors:
        if tensor is not None and (type(tensor) not in _PLAIN or tensor.is_neg() or tensor._is_zerotensor()):
            return False
    return True


_PLAIN = (Tensor, torch.nn.Parameter)


class Differentiable:
    """An operation whose first input and output are activations, batch-last.

    Called directly, it takes an input of any layout and gives the gradient of one that is contiguous or channels-last
    the same layout.

    A *plan* is what it is told beside tensors. `wanted` says of each input that can have a gradient whether one is
    asked for.

    Args:
        run: `(plan, wanted, *inputs)` to the output, or a tuple of it and of tensors without a gradient.
        keep: `(wanted, inputs, outputs)` to the tensors that the gradients take; what none of them needs is None.
        gradients: `(plan, input shape, wanted, gradient of the output, *kept)` to the gradients that are wanted.
        inputs: how many tensors it takes.
        differentiable: how many of these, the first, can have a gradient.
        making: `(plan, *kept)` to what makes the output again of what is kept, or to None where that cannot be.
        remakes: whether its input, the first that it keeps, may be made again instead, and the gradients be given it
            as `remade.Unmade`.
    """

    def __init__(
        self,
        run: Callable[..., Any],
        keep: Callable[[Sequence[bool], Sequence[Tensor | None], Any], tuple[Tensor | None, ...]],
        gradients: Callable[..., list[Tensor]],
        *,
        inputs: int,
        differentiable: int,
        making: Callable[..., remade.Make | None] | None = None,
        remakes: bool = False,
    ) -> None:
        self._keep, self._inputs, self._differentiable = keep, inputs, differentiable
        self._function = _direct_function(run, keep, gradients, inputs, differentiable, making, remakes)
        self._operator: Any = None

    def __call__(self, plan: object, *inputs: Tensor | None) -> Any:
        """Compute directly."""
        return self._function.apply(plan, *inputs)  # type: ignore[no-untyped-call]

    def traced(self, x: Tensor, *arguments: Any) -> Any:
        """Compute by operators; arguments as those take them."""
        return self._operator(batch_last(x), *arguments)

    def operators(
        self,
        name: str,
        operator: Callable[..., Any],
        gradient: Callable[..., list[Tensor]],
        fake: Callable[..., Any],
        gradient_fake: Callable[..., list[Tensor]],
    ) -> tuple[Any, Any]:
        """Make the operators `regrow::NAME` and `regrow::NAME_gradient`; return them.

        They check what they are given: it may come from anywhere.

        Args:
            name: of the operator.
            operator: takes the tensors, then what makes the plan, lists of tensors among it.
            gradient: takes the gradient of the output, what was kept, what makes the plan, the shape of the first
                input, and what is wanted.
            fake: returns an output of the right shape; arguments as for `operator`.
            gradient_fake: returns gradients of the right shapes; arguments as for `gradient`.
        """
        forward: Any = torch.library.custom_op(f"regrow::{name}", operator, mutates_args=(), device_types="cpu")
        backward: Any = torch.library.custom_op(
            f"regrow::{name}_gradient", gradient, mutates_args=(), device_types="cpu"
        )
        forward.register_fake(fake)
        backward.register_fake(gradient_fake)
        count, differentiable, keep = self._inputs, self._differentiable, self._keep

        def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            tensors, others = inputs[:count], inputs[count:]
            ctx.wanted = list(ctx.needs_input_grad[:differentiable])
            ctx.input_shape = tensors[0].shape
            ctx.set_materialize_grads(False)
            if isinstance(output, tuple):
                ctx.mark_non_differentiable(*output[1:])
            kept = keep(ctx.wanted, tensors, output)
            lists = [other for other in others if _holds_tensors(other)]
            ctx.others = [len(other) if _holds_tensors(other) else [other] for other in others]
            ctx.kept = len(kept)
            ctx.save_for_backward(*kept, *(tensor for tensors in lists for tensor in tensors))

        def differentiate(ctx: Any, given: Tensor | None, *_: object) -> tuple[Any, ...]:
            saved = list(ctx.saved_tensors)
            kept, rest = saved[: ctx.kept], iter(saved[ctx.kept :])
            nothing = [[None] * other if isinstance(other, int) else None for other in ctx.others]
            if given is None:
                return (*[None] * count, *nothing)
            others = [
                [next(rest) for _ in range(other)] if isinstance(other, int) else other[0] for other in ctx.others
            ]
            made = iter(backward(batch_last(given), *kept, *others, list(ctx.input_shape), ctx.wanted))
            of_inputs = [next(made) if wants else None for wants in ctx.wanted]
            return (*of_inputs, *[None] * (count - differentiable), *nothing)

        forward.register_autograd(differentiate, setup_context=setup)
        backward.register_autograd(refuse_double_backward)
        self._operator = forward
        return forward, backward


def _direct_function(
    run: Callable[..., Any],
    keep: Callable[..., Any],
    gradients: Callable[..., Any],
    inputs: int,
    differentiable: int,
    making: Callable[..., remade.Make | None] | None,
    remakes: bool,
) -> type[torch.autograd.Function]:
    rest = (None,) * (inputs - differentiable)
    last = 1 + differentiable

    class Direct:
        @staticmethod
        def forward(ctx: Any, plan: object, x: Tensor, *others: Tensor | None) -> Any:
            ctx.plan, ctx.input_shape = plan, x.shape
            ctx.wanted = wanted = ctx.needs_input_grad[1:last]
            ctx.set_materialize_grads(False)
            given, x = x, to_batch_last(x)
            ctx.way_back = None if x is given or not wanted[0] else way_back(given)
            output = run(plan, wanted, x, *others)
            if type(output) is tuple:
                ctx.mark_non_differentiable(*output[1:])
            kept = keep(wanted, (x, *others), output)
            if making is not None and any(wanted) and (make := making(plan, *kept)) is not None:
                remade.note(ctx, output[0] if type(output) is tuple else output, make, kept)
            if remakes:
                remade.keep(ctx, kept[0], given, kept[1:])
            else:
                ctx.save_for_backward(*kept)
            return output

        @staticmethod
        def backward(ctx: Any, *given: Tensor | None) -> Any:
            gradient, wanted = given[0], ctx.wanted
            if gradient is None:
                return (None,) * (1 + inputs)
            saved = ctx.saved_tensors
            if torch.is_grad_enabled():
                with torch.no_grad():
                    made = Direct.compute(ctx, gradient, saved)
                depends_on = [tensor for tensor in (gradient, *saved) if tensor is not None]
                made = [without_derivative(each, *depends_on) for each in made]
            else:
                made = Direct.compute(ctx, gradient, saved)
            if len(made) == differentiable:
                return (None, *made, *rest)
            left = iter(made)
            return (None, *[next(left) if wants else None for wants in wanted], *rest)

        @staticmethod
        def compute(ctx: Any, gradient: Tensor, saved: Sequence[Tensor | None]) -> Any:
            kept = remade.kept(ctx, saved, by_kernels=True) if remakes else saved
            made = gradients(ctx.plan, ctx.input_shape, ctx.wanted, to_batch_last(gradient), *kept)
            if ctx.way_back is not None:
                # PyTorch's operations on tensors of two layouts take several times as long as our copy.
                made[0] = ctx.way_back(made[0])
            return made

    # A profile shows the operation by the name of its folder.
    name = "_" + run.__module__.split(".")[-2]
    parts = {"forward": staticmethod(Direct.forward), "backward": staticmethod(Direct.backward)}
    return new_class(name, (torch.autograd.Function,), exec_body=lambda body: body.update(parts))


def _holds_tensors(argument: object) -> bool:
    return isinstance(argument, list | tuple) and all(isinstance(each, Tensor) for each in argument)


def refuse_double_backward(*_: Any) -> NoReturn:
    """Refuse a gradient of a gradient.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError(
        "sparse layers have no second derivatives: call backward without create_graph, or use masked storage"
    )


class _Refuse(torch.autograd.Function):
    @staticmethod
    def forward(_: Any, gradient: Tensor, *__: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(*_: Any) -> NoReturn:
        refuse_double_backward()


def without_derivative(gradient: Tensor | None, *depends_on: Tensor) -> Tensor | None:
    """Return a gradient as it is, but so that its own gradient is refused where someone would ask for it."""
    if gradient is None or not torch.is_grad_enabled() or not any(tensor.requires_grad for tensor in depends_on):
        return gradient
    refused: Tensor = _Refuse.apply(gradient, *depends_on)  # type: ignore[no-untyped-call]
    return refused

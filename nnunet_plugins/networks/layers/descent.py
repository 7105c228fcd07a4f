"""Gradient descent as a function: Adam steps through which a gradient may pass.

Source: Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization" (arXiv:1412.6980), algorithm 1.
"""

from collections.abc import Callable, Sequence

import torch

BETAS = (0.9, 0.999)
EPSILON = 1e-8

SMALLEST = 1e-12
"""Least second moment, corrected for its start at 0, where a gradient passes through the step: the root has an infinite
slope at 0, and 0 * inf is nan."""

Weights = list[torch.Tensor]


def descend(
    loss: Callable[[Weights], torch.Tensor],
    weights: Sequence[torch.Tensor],
    steps: int,
    learning_rate: float,
    *,
    epsilon: float = EPSILON,
    differentiable: bool = False,
) -> tuple[Weights, torch.Tensor]:
    """Take Adam steps with fresh moments.

    Args:
        loss: of the weights, a scalar; called once a step.
        weights: to start from; they stay as they are.
        steps: how many.
        learning_rate: of Adam.
        epsilon: of Adam. Slopes well below it move a weight in proportion; all others move it by the learning rate in
            the first step, whatever their size.
        differentiable: whether a gradient passes from what is returned to the first weights, by way of every step.

    Returns:
        the weights after the steps, and the loss before each step, `(steps,)`, without gradient.
    """
    now: Weights = list(weights)
    first: Weights = [torch.zeros_like(weight) for weight in now]
    second: Weights = [torch.zeros_like(weight) for weight in now]
    losses = []
    for step in range(1, steps + 1):
        with torch.enable_grad():
            if not differentiable:
                now = [weight.detach().requires_grad_() for weight in now]
            value = loss(now)
            gradients = torch.autograd.grad(value, now, create_graph=differentiable)
        losses.append(value.detach())
        with torch.set_grad_enabled(differentiable):
            beta1, beta2 = BETAS
            first = [torch.lerp(m, g, 1 - beta1) for m, g in zip(first, gradients, strict=True)]
            second = [(beta2 * v).addcmul(g, g, value=1 - beta2) for v, g in zip(second, gradients, strict=True)]
            size, correction = learning_rate / (1 - beta1**step), (1 - beta2**step) ** 0.5
            least = SMALLEST * correction**2
            roots = [(v.clamp(min=least) if differentiable else v).sqrt() / correction + epsilon for v in second]
            now = [w - size * m / root for w, m, root in zip(now, first, roots, strict=True)]
    return now, torch.stack(losses) if losses else torch.zeros(0)

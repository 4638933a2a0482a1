"""AdamW that needs the least memory beside a model held in bfloat16: float32 masters, one parameter at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch
from torch import nn


class LeanAdamW:
    """AdamW (Loshchilov and Hutter, 2019) on float32 masters of ``parameters``, then rounded back to their dtype.

    Gradients stay in the parameters' dtype; each is widened alone, when its parameter is stepped, so no second set of
    gradients ever lives. ``moments``: the dtype in which the moments are stored; they are computed with in float32.
    Bytes per bfloat16 parameter: 2 weight, 2 gradient, 4 master, and 8 (float32) or 4 (bfloat16) moments.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        moments: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        self.parameters = [p for p in parameters if p.requires_grad]
        self.masters = [p if p.dtype.itemsize >= 4 else p.detach().float() for p in self.parameters]
        kind = getattr(torch, moments)
        self.first = [torch.zeros_like(p, dtype=kind) for p in self.parameters]
        self.second = [torch.zeros_like(p, dtype=kind) for p in self.parameters]
        self.lr, self.betas, self.eps, self.steps = lr, betas, eps, 0

    @torch.no_grad()
    def step(self, max_norm: float = 1.0) -> float:
        """Clip by the global norm, step, drop the gradients; returns the norm before clipping."""
        norms = [torch.linalg.vector_norm(p.grad, dtype=torch.float32) for p in self.parameters if p.grad is not None]
        norm = torch.linalg.vector_norm(torch.stack(norms))
        shrink = (max_norm / (norm + 1e-6)).clamp(max=1.0)
        self.steps += 1
        low, high = (1 - beta**self.steps for beta in self.betas)
        for p, master, first, second in zip(self.parameters, self.masters, self.first, self.second, strict=True):
            if p.grad is None:
                continue
            grad = p.grad.to(master.dtype) * shrink
            p.grad = None
            mean = first.to(master.dtype).lerp_(grad, 1 - self.betas[0])
            square = second.to(master.dtype).mul_(self.betas[1]).addcmul_(grad, grad, value=1 - self.betas[1])
            first.copy_(mean)
            second.copy_(square)
            master.addcdiv_(mean, (square / high).sqrt_().add_(self.eps), value=-self.lr / low)
            if master is not p:
                p.copy_(master)
        return float(norm)

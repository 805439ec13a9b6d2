"""A user's torch module with the way of calling that networks here have."""

from __future__ import annotations

from torch import Tensor, nn

from retarget.agents.neural import Hook


class Adapted(nn.Module):
    """`module(x)` as `(x, carry) -> (scores, None)`; its own parameters are called `net.…`.

    Args:
        net: the module.
        hooks: where vectors can be added.
        flops: operations of one forward pass.
    """

    recurrent = False

    def __init__(self, net: nn.Module, hooks: tuple[Hook, ...], flops: float) -> None:
        super().__init__()
        self.net, self.hooks, self.flops = net, hooks, flops
        self.precision = next(net.parameters()).dtype

    def forward(self, x: Tensor, carry: object = None) -> tuple[Tensor, object]:
        return self.net(x), None

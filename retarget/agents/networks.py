"""The networks themselves, as torch modules.

Every module takes `(x, carry)` and returns `(scores, carry)`, and declares `recurrent`, `hooks` (where a vector can be
added: see `retarget.agents.neural.Hook`) and `flops` of one forward pass of one observation. Without memory, x is
`[B, ...]` and scores `[B, A]`; with memory, x is `[B, T, ...]` and scores `[B, T, A]`. Operations are those of matrix
products and convolutions, two for each multiplication with an addition; what is done element by element is left out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from retarget.agents.neural import Hook
from retarget.errors import AgentError

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU}


def activation(name: str) -> nn.Module:
    """Raises AgentError for an unknown activation."""
    if name not in ACTIVATIONS:
        raise AgentError(f"unknown activation {name!r}; known: {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]()


class MLP(nn.Module):
    """Linear layers with an activation after each but the last: `[B, inputs]` to `[B, outputs]`.

    Operations: two for each weight matrix's entry.

    Args:
        inputs: numbers it is given.
        outputs: numbers it returns.
        hidden: width of each hidden layer; none for a linear policy.
        act: `relu`, `tanh`, `gelu` or `silu`.
        squash: put the outputs through tanh, times `scale`, for continuous actions.
        bias: whether layers have one.
    """

    recurrent = False

    def __init__(
        self,
        *,
        inputs: int,
        outputs: int,
        hidden: Sequence[int] = (64, 64),
        act: str = "relu",
        squash: bool = False,
        scale: float = 1.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        widths = [inputs, *hidden]
        self.hidden = nn.ModuleList(
            nn.Sequential(nn.Linear(a, b, bias=bias), activation(act)) for a, b in pairwise(widths)
        )
        self.out = nn.Linear(widths[-1], outputs, bias=bias)
        self.squash, self.scale = squash, scale
        self.hooks = tuple(Hook(f"hidden.{i}", width) for i, width in enumerate(hidden))
        self.flops = 2.0 * sum(a * b for a, b in zip(widths, [*hidden, outputs], strict=True))

    def forward(self, x: Tensor, carry: object = None) -> tuple[Tensor, object]:
        x = x.to(self.out.weight.dtype)
        for layer in self.hidden:
            x = layer(x)
        x = self.out(x)
        return (torch.tanh(x) * self.scale if self.squash else x), None


class CNN(nn.Module):
    """Convolutions that keep the image's size, then a hidden layer: `[B, channels, H, W]` to `[B, outputs]`.

    Operations: for each convolution 2 · kernel² · channels in · channels out · H · W; for the layers behind, two for
    each weight matrix's entry.

    Args:
        channels: planes of the image.
        height, width: its size, H and W.
        outputs: numbers it returns.
        convs: planes after each convolution.
        hidden: width of the hidden layer.
        kernel: side of the convolutions, odd.
        act: see `ACTIVATIONS`.
    """

    recurrent = False

    def __init__(
        self,
        *,
        channels: int,
        height: int,
        width: int,
        outputs: int,
        convs: Sequence[int] = (16, 16),
        hidden: int = 64,
        kernel: int = 3,
        act: str = "relu",
    ) -> None:
        super().__init__()
        _odd(kernel)
        planes = [channels, *convs]
        pairs = list(pairwise(planes))
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, kernel, padding=kernel // 2), activation(act)) for a, b in pairs
        )
        flat = planes[-1] * height * width
        self.hidden = nn.Sequential(nn.Linear(flat, hidden), activation(act))
        self.out = nn.Linear(hidden, outputs)
        self.hooks = (*(Hook(f"convs.{i}", n, axis=1) for i, n in enumerate(convs)), Hook("hidden", hidden))
        self.flops = 2.0 * (
            sum(kernel**2 * a * b * height * width for a, b in pairs) + flat * hidden + hidden * outputs
        )

    def forward(self, x: Tensor, carry: object = None) -> tuple[Tensor, object]:
        x = x.to(self.out.weight.dtype)
        for layer in self.convs:
            x = layer(x)
        return self.out(self.hidden(x.flatten(1))), None


class GRU(nn.Module):
    """Gated recurrent units (Cho et al. 2014, eq. 5-8, with the reset gate behind the product, as in cuDNN), then a
    linear layer: `[B, T, inputs]` to `[B, T, outputs]`; the memory is `[B, hidden]`, zero at first.

    With gates r and z, `n = tanh(W_n x + b_n + r (U_n h + c_n))` and the next memory is `(1 - z) n + z h`.
    A vector added at `memory` is seen by the output layer; what is remembered is not changed.

    Operations: 2 · 3 · hidden · (inputs + hidden) + 2 · hidden · outputs a step.

    Args:
        inputs: numbers it is given at each step.
        outputs: numbers it returns.
        hidden: size of the memory.
        squash, scale: see `MLP`.
    """

    recurrent = True

    def __init__(
        self, *, inputs: int, outputs: int, hidden: int = 64, squash: bool = False, scale: float = 1.0
    ) -> None:
        super().__init__()
        # written out: torch's own module keeps a flat copy of its weights, which does not go with weights handed in
        self.gates_in = nn.Linear(inputs, 3 * hidden)
        self.gates_memory = nn.Linear(hidden, 3 * hidden)
        self.memory = nn.Identity()
        self.out = nn.Linear(hidden, outputs)
        bound = 1.0 / math.sqrt(hidden)
        for p in (*self.gates_in.parameters(), *self.gates_memory.parameters()):
            nn.init.uniform_(p, -bound, bound)
        self.width, self.squash, self.scale = hidden, squash, scale
        self.hooks = (Hook("memory", hidden),)
        self.flops = 2.0 * (3 * hidden * (inputs + hidden) + hidden * outputs)

    def forward(self, x: Tensor, carry: object = None) -> tuple[Tensor, object]:
        x = x.to(self.out.weight.dtype)
        h = carry if isinstance(carry, Tensor) else x.new_zeros(len(x), self.width)
        seen = []
        for into in self.gates_in(x).unbind(1):
            r_in, z_in, n_in = into.chunk(3, dim=-1)
            r_mem, z_mem, n_mem = self.gates_memory(h).chunk(3, dim=-1)
            r, z = torch.sigmoid(r_in + r_mem), torch.sigmoid(z_in + z_mem)
            h = (1 - z) * torch.tanh(n_in + r * n_mem) + z * h
            seen.append(h)
        out = self.out(self.memory(torch.stack(seen, dim=1)))
        return (torch.tanh(out) * self.scale if self.squash else out), h


class VIN(nn.Module):
    """A value iteration network (Tamar et al. 2016): it plans on a map of rewards that it reads off the image.

    `[B, channels, H, W]` to `[B, outputs]`. Plane 0 says where the agent is; the others (walls, flags, the goal) give a
    map of rewards R through two convolutions. Then, from V = 0, `Q = conv(R, V)`, a plane for each of `inner` actions,
    and `V = max Q`, as often as `iterations` says; last, Q where the agent stands goes through a linear layer.

    Operations: 2 · H · W · (kernel² · (channels - 1) · hidden + hidden + iterations · kernel² · 2 · inner)
    + 2 · H · W · inner + 2 · inner · outputs.

    Args:
        channels: planes of the image, the agent's included.
        height, width: its size, H and W.
        outputs: numbers it returns.
        iterations: number of backups; what is further away than that is not seen.
        hidden: planes between the image and the map of rewards.
        inner: actions that it plans with.
        kernel: side of the convolutions, odd.
        own_map: add a learned map of rewards, for images that do not show the goal.
    """

    recurrent = False

    def __init__(
        self,
        *,
        channels: int,
        height: int,
        width: int,
        outputs: int,
        iterations: int = 20,
        hidden: int = 16,
        inner: int = 8,
        kernel: int = 3,
        own_map: bool = False,
    ) -> None:
        super().__init__()
        _odd(kernel)
        if channels < 2 or iterations < 1:
            raise AgentError(
                f"a value iteration network needs 2 planes (agent, walls) and 1 iteration at least, "
                f"got {channels} and {iterations}"
            )
        self.look = nn.Conv2d(channels - 1, hidden, kernel, padding=kernel // 2)
        self.reward = nn.Conv2d(hidden, 1, 1, bias=False)
        self.own_map = nn.Parameter(torch.zeros(height, width)) if own_map else None
        self.backup = nn.Conv2d(2, inner, kernel, padding=kernel // 2, bias=False)
        self.out = nn.Linear(inner, outputs)
        self.values = nn.Identity()
        self.iterations = iterations
        self.hooks = (Hook("look", hidden, axis=1), Hook("backup", inner, axis=1), Hook("values", inner))
        cells = height * width
        self.flops = 2.0 * cells * (kernel**2 * (channels - 1) * hidden + hidden + iterations * kernel**2 * 2 * inner)
        self.flops += 2.0 * cells * inner + 2.0 * inner * outputs

    def forward(self, x: Tensor, carry: object = None) -> tuple[Tensor, object]:
        x = x.to(self.out.weight.dtype)
        agent = x[:, 0].flatten(1).unsqueeze(2)
        reward = self.reward(torch.relu(self.look(x[:, 1:])))
        if self.own_map is not None:
            reward = reward + self.own_map
        value = torch.zeros_like(reward)
        q = value
        for _ in range(self.iterations):
            q = self.backup(torch.cat([reward, value], dim=1))
            value = q.amax(dim=1, keepdim=True)
        here = torch.bmm(q.flatten(2), agent).squeeze(2)
        return self.out(self.values(here)), None


def _odd(kernel: int) -> None:
    if kernel < 1 or kernel % 2 == 0:
        raise AgentError(f"a kernel needs an odd side, so that images keep their size; got {kernel}")

"""What tests of several modules use: seeded numbers."""
from __future__ import annotations

import torch
from torch import Tensor


def rng(seed: int = 0) -> torch.Generator:
    """A generator on the CPU."""
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers, the same for the same shape and seed."""
    return torch.randn(*shape, generator=rng(seed), dtype=dtype)


def uniform(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Numbers uniform in [0, 1), the same for the same shape and seed."""
    return torch.rand(*shape, generator=rng(seed), dtype=dtype)

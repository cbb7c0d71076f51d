"""Answers to exercises, by hand: right ones in other words than the reference, and wrong ones that passed once."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch.distributions import Independent, Normal


def _four(c):
    return c.reshape(-1, 1, 1, 1)


def _mixture_log_prob(x, means, stds, weights):
    parts = Normal(means, stds[:, None]).log_prob(x[:, None]).sum(-1) + weights.log()
    most = parts.amax(1, keepdim=True)
    return (most + (parts - most).exp().sum(1, keepdim=True).log())[:, 0]


def _energy(x, y):
    def mean(a, b):
        return (a[:, None] - b[None]).square().sum(-1).sqrt().mean()

    return 2 * mean(x, y) - mean(x, x) - mean(y, y)


def _ddpm_levels(betas):
    bar, alpha, sigma = 1.0, [], []
    for beta in betas:
        bar = bar * (1 - beta)
        alpha.append(bar**0.5)
        sigma.append((1 - bar) ** 0.5)
    return torch.stack(alpha), torch.stack(sigma)


def _order(n_steps, errors):
    x, y = torch.log(1 / n_steps), torch.log(errors)
    return float(((x - x.mean()) * (y - y.mean())).mean() / x.var(unbiased=False))


def _euler_sampler(u, x, n):
    ts = torch.linspace(0, 1, n + 1, dtype=x.dtype)
    for t, s in zip(ts[:-1], ts[1:], strict=True):
        x = x + (s - t) * u(x, t.expand(len(x)))
    return x


def _training_step(W, x1, eps, t, lr):
    x = torch.lerp(eps, x1, t[:, None])
    given = torch.cat((x, t[:, None]), dim=-1)
    error = given @ W - (x1 - eps)
    return W - lr * 2 * given.T @ error / error.numel(), error.pow(2).mean()


def _moving_average(weights, decay):
    powers = decay ** torch.arange(len(weights) - 1, -1, -1, dtype=weights.dtype)
    return (powers[:, None] * weights).sum(0) / powers.sum()


def _group_norm(x, groups):
    return F.group_norm(x, groups)


def _to_patches(x, p):
    return F.pixel_unshuffle(x, p)


def _ask_words(q, k, v, mask):
    return F.scaled_dot_product_attention(q, k, v, mask[:, None])


def _classifier_push(x, y, W, b):
    x = x.clone().requires_grad_()
    loss = F.cross_entropy(x @ W.T + b, y, reduction="sum")
    return -torch.autograd.grad(loss, x)[0]


def _spectral(x, power, t):
    transformed = torch.fft.fft2(x, norm="ortho")
    return torch.fft.ifft2(transformed * (t * power) / ((t * t) * power + (1 - t) ** 2), norm="ortho").real


def _clipped(a, b, longest):
    norm = torch.linalg.vector_norm(torch.cat([a.flatten(), b.flatten()]))
    factor = torch.clamp(longest / norm, max=1)
    return [a * factor, b * factor]


def _loss_by_time(error, t, parts):
    each = error.pow(2).mean(dim=(1, 2, 3))
    part = torch.floor(t * parts).clamp(0, parts - 1)
    return torch.stack([each[part == k].mean() for k in range(parts)])


def _uniform_loss(losses, t):
    density = torch.exp(Normal(0.0, 1.0).log_prob(torch.log(t / (1 - t)))) / t / (1 - t)
    weights = 1 / density
    return (weights * losses).sum() / weights.sum()


def _linear_posterior(W, s, x):
    precision = torch.eye(W.shape[1], dtype=W.dtype) + W.T @ W / s**2
    return torch.linalg.solve(precision, W.T @ x.T / s**2).T, precision.inverse()


def _safe_pixels(changed, side, reach):
    h, w = changed.shape
    safe = torch.ones(h * side, w * side, dtype=torch.bool)
    for i, j in changed.nonzero().tolist():
        safe[
            max(i * side - reach, 0) : (i + 1) * side + reach, max(j * side - reach, 0) : (j + 1) * side + reach
        ] = False
    return safe


def _count_nfe(ts, w, lo, hi):
    calls = [float(t) for t, s in zip(ts[:-1], ts[1:], strict=True) for t in (t, s)]
    return sum(2 if w not in (0, 1) and lo <= t <= hi else 1 for t in calls)


RIGHT = {
    "distributions.gaussian_log_prob": [
        lambda x, mean, std: Independent(Normal(mean, std), 1).log_prob(x),
        lambda x, mean, std: Normal(mean, std).log_prob(x).sum(-1),
    ],
    "distributions.mixture_log_prob": [_mixture_log_prob],
    "distributions.energy_distance": [_energy],
    "solvers.order": [_order],
    "schedules.ddpm_levels": [_ddpm_levels],
    "schedules.mix_pictures": [
        lambda x1, eps, alpha: torch.einsum("b,bchw->bchw", alpha, x1) + _four((1 - alpha.square()).sqrt()) * eps
    ],
    "schedules.cosine_time": [lambda t: torch.atan2(t, 1 - t) / (math.pi / 2)],
    "matching.euler_sampler": [_euler_sampler],
    "matching.training_step": [_training_step],
    "matching.moving_average": [_moving_average],
    "guidance.classifier_push": [_classifier_push],
    "edm.final_spread": [lambda s, m: 1 / (1 / s**2 + 1 / m**2).sqrt()],
    "images.loss_by_time": [_loss_by_time],
    "images.spectral_denoiser": [_spectral],
    "unet.group_norm": [_group_norm],
    "unet.to_patches": [_to_patches],
    "unet.ask_words": [_ask_words],
    "training.clipped": [_clipped],
    "training.uniform_loss": [_uniform_loss],
    "training.keep_for": [lambda k, b, n: (b * math.log2(0.5) / math.log2(k), math.exp(n / b * math.log(k)))],
    "generation.count_nfe": [_count_nfe],
    "evaluation.diagonal_frechet": [lambda m, s, n, r: torch.cat([m - n, s - r]).pow(2).sum()],
    "vae.tighter_bound": [lambda a, b, c: torch.logsumexp(a + b - c - math.log(len(c)), 0)],
    "vae.linear_posterior": [_linear_posterior],
    "vae.same_time": [lambda t, c: 1 / (1 + (1 - t) / t / c)],
    "inpainting.safe_pixels": [_safe_pixels],
    "cold.end_of_walk": [lambda guesses, ts: torch.einsum("t,tbd->bd", ts.diff(), guesses)],
    "cold.reveal": [lambda x, guess, mask, later: x - mask * guess + later * guess],
}


def _blind_patches(x, p):
    B, C, H, W = x.shape
    return x.reshape(B, C, p, H // p, p, W // p).permute(0, 1, 2, 4, 3, 5).reshape(B, C * p * p, H // p, W // p)


def _overflowing_push(x, y, W, b):
    p = (x @ W.mT + b).exp()
    return W[y] - p / p.sum(1, keepdim=True) @ W


WRONG = {
    "unet.to_patches": [_blind_patches],
    "images.standardised_to_bytes": [
        lambda x, m, s: (255 * (x * s[:, None, None] + m[:, None, None])).round().clamp(0, 255)
    ],
    "latent.known_places": [lambda known, f: 1 - F.max_pool2d((~known).double(), f)],
    "inpainting.safe_pixels": [lambda *args: _safe_pixels(*args).float()],
    "guidance.classifier_push": [_overflowing_push],
    "predictions.velocity_error": [lambda a, b, al, s, da, ds: (al * ds - s * da).abs() / (al * b - s * a)],
}

"""Answers to exercises, by hand: right ones in other words than the reference, and wrong ones that passed once."""

from __future__ import annotations

import math
import statistics

import numpy as np
import torch
import torch.nn.functional as F
from torch.distributions import Independent, Normal


def _four(c):
    return c.reshape(-1, 1, 1, 1)


def _mixture_log_prob(x, means, stds, weights):
    parts = Normal(means, stds).log_prob(x[:, None]).sum(-1) + weights.log()
    most = parts.amax(1, keepdim=True)
    return (most + (parts - most).exp().sum(1, keepdim=True).log())[:, 0]


def _floor(distance, pairs, level):
    first, second = pairs.unbind(1)
    found = [float(distance(a, b)) for a, b in zip(first, second, strict=True)]
    return sum(found) / len(found), np.quantile(found, level)


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


def _variations(u, x, z, w, n):
    ts = torch.linspace(0, 1, n + 1, dtype=x.dtype)
    for t, s in zip(ts.flip(0)[:-1], ts.flip(0)[1:], strict=True):
        x = x + (s - t) * u(x, t.expand(len(x)))
    x = torch.cos(torch.tensor(w).sqrt().asin()) * x + torch.tensor(w).sqrt() * z
    for t, s in zip(ts[:-1], ts[1:], strict=True):
        x = x + (s - t) * u(x, t.expand(len(x)))
    return x


def _train(W, batches, lr):
    losses = []
    for x1, eps, t in batches:
        given = torch.cat((torch.lerp(eps, x1, t[:, None]), t[:, None]), dim=-1)
        error = given @ W - (x1 - eps)
        losses.append(error.pow(2).mean().item())
        W = W - lr * 2 * given.T @ error / error.numel()
    return W, losses


def _train_in_place(W, batches, lr):
    W = torch.nn.Parameter(W.clone())
    optimizer = torch.optim.SGD([W], lr)
    losses = []
    for x1, eps, t in batches:
        x = t[:, None] * x1 + (1 - t[:, None]) * eps
        loss = (torch.cat([x, t[:, None]], 1) @ W - (x1 - eps)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return W.detach(), losses


def _sample_by_data(predict, x, ts):
    half_pi = math.pi / 2
    for t, h in zip(ts.tolist(), ts.diff().tolist(), strict=False):
        a, s = math.sin(half_pi * t), math.cos(half_pi * t)
        x = x + h * half_pi * (predict(x, t) - a * x) / s
    return x


def _velocity_from_sd3(net, x, alpha, sigma, d_alpha, d_sigma):
    alpha, sigma, d_alpha, d_sigma = (c.view(-1, *[1] * (x.ndim - 1)) for c in (alpha, sigma, d_alpha, d_sigma))
    s = 1 / (1 + alpha / sigma)
    v = net(x / (alpha + sigma), s.flatten())
    return (d_alpha + d_sigma) * x / (alpha + sigma) + ((1 - s) * d_sigma - s * d_alpha) * v


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


def _block_distance(kernel, a, b, B):
    estimates = []
    for k in range(len(a) // B):
        x, y = (v[k * B:(k + 1) * B] for v in (a, b))
        both = torch.cat([x, y])
        signs = torch.cat([torch.ones(B), -torch.ones(B)]).double()
        gram = kernel(both, both) * torch.outer(signs, signs)
        gram.fill_diagonal_(0)
        within, across = (gram[:B, :B].sum() + gram[B:, B:].sum()) / (B * (B - 1)), 2 * gram[:B, B:].sum() / B**2
        estimates.append(float(within + across))
    return statistics.mean(estimates), statistics.stdev(estimates) / math.sqrt(len(estimates))


def _accumulated_step(loss, W, b, mean_W, mean_b, pieces, lr, longest, k):
    weights = [torch.nn.Parameter(W.clone()), torch.nn.Parameter(b.clone())]
    optimizer = torch.optim.SGD(weights, lr=lr)
    for x, y in pieces: (loss(*weights, x, y) * len(x)).backward()
    for w in weights: w.grad /= sum(len(y) for _, y in pieces)
    torch.nn.utils.clip_grad_norm_(weights, longest)
    optimizer.step()
    new = [w.detach() for w in weights]
    return *new, *(torch.lerp(w, mean, k) for w, mean in zip(new, (mean_W, mean_b), strict=True))


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


def _gated_block(x, e, W, kernel):
    C = x.shape[1]
    given = (e / (1 + torch.exp(-e))) @ W
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    normed = (x - mean) / (x.var(dim=(1, 2, 3), keepdim=True, unbiased=False) + 1e-5).sqrt()
    h = normed + given[:, :C].reshape(-1, C, 1, 1) * normed + given[:, C : 2 * C].reshape(-1, C, 1, 1)
    h = F.pad(h * h.sigmoid(), (1, 1, 1, 1))
    return given[:, 2 * C :].reshape(-1, C, 1, 1) * F.conv2d(h, kernel) + x


def _unet_forward(x, e, down, middle, up):
    if not down:
        return middle(x, e)
    skip = down[0](x, e)
    coarse = (skip[:, :, ::2, ::2] + skip[:, :, 1::2, ::2] + skip[:, :, ::2, 1::2] + skip[:, :, 1::2, 1::2]) / 4
    h = _unet_forward(coarse, e, down[1:], middle, up[:-1])
    return up[-1](torch.cat((h.repeat_interleave(2, -1).repeat_interleave(2, -2), skip), dim=1), e)


def _denoiser_step(K, V, waves, x1, eps, t, lr):
    x = torch.lerp(eps, x1, _four(t))
    K.requires_grad_()
    V.requires_grad_()
    loss = F.mse_loss(F.conv2d(x, K, padding="same") + _four_axes(waves(t) @ V), x1)
    loss.backward()
    with torch.no_grad():
        return K - lr * K.grad, V - lr * V.grad, loss.item()


def _four_axes(v):
    return v.unsqueeze(-1).unsqueeze(-1)


def _heun_images(predict, x0, n):
    ts = torch.linspace(0, 1, n + 1, dtype=torch.float64).tolist()
    x = x0.clone()
    for i, (t, s) in enumerate(zip(ts[:-1], ts[1:], strict=True)):
        guess = predict(x, torch.full((len(x),), t, dtype=x.dtype)).clip(-1, 1)
        if i == n - 1:
            return guess
        u = (guess - x) / (1 - t)
        y = x + (s - t) * u
        v = (predict(y, torch.full((len(x),), s, dtype=x.dtype)).clip(-1, 1) - y) / (1 - s)
        x += (s - t) * 0.5 * (u + v)
    return x


def _latent_step(W, mean, std, shift, scale, eta, eps, t, lr):
    z1 = (mean + std * eta - shift.reshape(1, -1, 1, 1)) / scale.reshape(1, -1, 1, 1)
    z = torch.lerp(eps, z1, _four(t))
    given = torch.cat([z.movedim(1, -1), _four(t).expand(len(z), *z.shape[2:], 1)], dim=-1)
    given = given.reshape(-1, W.shape[1])
    error = given @ W.T - (z1 - eps).movedim(1, -1).reshape(-1, W.shape[0])
    return W - lr * 2 * error.T @ given / error.numel()


def _redraw(encode, decode, u0, u1, x, eps, factor, start, n, w):
    z = torch.lerp(eps, factor * encode(x), start)
    ts = torch.linspace(start, 1, n + 1, dtype=torch.float64)
    for t, s in zip(ts[:-1].tolist(), ts[1:].tolist(), strict=True):
        at = torch.full((len(z),), t, dtype=z.dtype)
        with_label, without = u1(z, at), u0(z, at)
        z = z + (s - t) * (w * with_label + (1 - w) * without)
    return decode(z * (1 / factor))


def _repaint(predict, x, x1, known, alpha, sigma, ts, jump, repeats, z):
    used = 0
    k = 0
    walked = 1
    while k < len(ts) - 1:
        guess = predict(x, ts[k])
        x = alpha(ts[k + 1]) * guess + sigma(ts[k + 1]) * (x - alpha(ts[k]) * guess) / sigma(ts[k])
        x[:, known] = (alpha(ts[k + 1]) * x1 + sigma(ts[k + 1]) * z[used])[:, known]
        used += 1
        k += 1
        if k % jump:
            continue
        if walked == repeats:
            walked = 1
            continue
        kept = alpha(ts[k - jump]) / alpha(ts[k])
        x = kept * x + math.sqrt(sigma(ts[k - jump]) ** 2 - (kept * sigma(ts[k])) ** 2) * z[used]
        used += 1
        walked += 1
        k -= jump
    return x


def _particle_step(mean, std, pull, strength, z, twist, old, log_w, u):
    x = mean + std * (z + strength * std * pull)
    p = Independent(Normal(mean, std), 1).log_prob(x)
    q = Independent(Normal(mean + strength * std**2 * pull, std), 1).log_prob(x)
    log_w = log_w + twist(x) + p - q - old
    w = torch.exp(log_w - torch.logsumexp(log_w, 0))
    n = len(w)
    if torch.sum(w**2) * n <= 2:
        return x, log_w
    chosen, end, i = [], w[0].item(), 0
    for k in range(n):
        while (k + u) / n > end:
            i += 1
            end += w[i].item()
        chosen.append(i)
    return x[chosen], torch.zeros(n, dtype=w.dtype)


def _sharpen_all(restore, x, block):
    def squares(v, b):
        B, C, H, W = v.shape
        parts = v.reshape(B, C, H // b, b, W // b, b)
        return parts.mean(dim=(3, 5), keepdim=True).expand_as(parts).reshape(v.shape)

    for b in (2**k for k in range(round(math.log2(block)), 0, -1)):
        guess = torch.clip(restore(x, b), -1, 1)
        x = x - squares(guess, b) + squares(guess, b // 2)
    return x


def _restorer_step(K, x1, mask, little, lr):
    K = K.detach().requires_grad_()
    x = x1 * mask
    correction = F.conv2d(x, K, padding=1)
    total = 0.0
    for n in range(len(x1)):
        damage = (x[n] - x1[n]).norm()
        total = total + (x[n] + correction[n] - x1[n]).norm() / (damage + little)
    loss = total / len(x1)
    loss.backward()
    return (K - lr * K.grad).detach(), loss.detach()


def _multistep(f, x, sigmas, sigma_min, z):
    for k in range(len(sigmas)):
        if k:
            x = x + torch.sqrt((sigmas[k] - sigma_min) * (sigmas[k] + sigma_min)) * z[k - 1]
        x = f(x, sigmas[k])
    return x


def _consistency_step(W, average, u, x1, eps, t, h, lr, decay):
    c, s = t.reshape(-1, 1), (t + h).reshape(-1, 1)
    x = eps + c * (x1 - eps)
    a = u(x, t)
    b = u(x + h * a, t + h)
    y = x + h * (a + b) / 2
    goal = y + (1 - s) * (y @ average[:-1] + s * average[-1])
    given = torch.cat((x, c), dim=1)
    error = x + (1 - c) * (given @ W) - goal
    new = W - lr * 2 * given.T @ ((1 - c) * error) / error.numel()
    return new, average + (1 - decay) * (new - average)


def _reflow_step(W, u, x0, t, n, lr):
    x = x0.clone()
    for time in torch.linspace(0, 1, n + 1, dtype=x.dtype)[:-1]:
        x += u(x, time.expand(len(x))) / n
    given = torch.cat((torch.lerp(x0, x, t[:, None]), t[:, None]), dim=1)
    error = given @ W + x0 - x
    return W - lr * 2 * given.T @ error / error.numel()


def _stochastic_run(D, x, n, high, low, rho, s_churn, window, a, z):
    sigmas = torch.linspace(high ** (1 / rho), low ** (1 / rho), n, dtype=torch.float64).pow(rho)
    sigmas = torch.cat([sigmas, sigmas.new_zeros(1)]).tolist()
    for now, after, noise in zip(sigmas[:-1], sigmas[1:], z, strict=True):
        gamma = min(s_churn / n, math.sqrt(2) - 1) if window[0] <= now <= window[1] else 0.0
        hat = now + gamma * now
        x = x + math.sqrt(hat**2 - now**2) * noise
        d = (x - D(x, hat)) / hat
        middle = (1 - a) * hat + a * after
        y = x + (middle - hat) * d
        d2 = (y - D(y, middle)) / middle
        x = x + (after - hat) * (d + (d2 - d) / (2 * a))
    return x


RIGHT = {
    "distributions.gaussian_log_prob": [
        lambda x, mean, std: Independent(Normal(mean, std), 1).log_prob(x),
        lambda x, mean, std: Normal(mean, std).log_prob(x).sum(-1),
    ],
    "distributions.mixture_log_prob": [_mixture_log_prob],
    "distributions.floor_of": [_floor],
    "solvers.order": [_order],
    "schedules.ddpm_levels": [_ddpm_levels],
    "schedules.mix_pictures": [
        lambda x1, eps, alpha: torch.einsum("b,bchw->bchw", alpha, x1) + _four((1 - alpha.square()).sqrt()) * eps
    ],
    "schedules.cosine_time": [lambda t: torch.atan2(t, 1 - t) / (math.pi / 2)],
    "predictions.sample_by_data": [_sample_by_data],
    "predictions.velocity_from_sd3": [_velocity_from_sd3],
    "matching.variations": [_variations],
    "matching.train": [_train, _train_in_place],
    "matching.moving_average": [_moving_average],
    "guidance.classifier_push": [_classifier_push],
    "edm.final_spread": [lambda s, m: 1 / (1 / s**2 + 1 / m**2).sqrt()],
    "images.loss_by_time": [_loss_by_time],
    "images.spectral_denoiser": [_spectral],
    "unet.group_norm": [_group_norm],
    "unet.to_patches": [_to_patches],
    "unet.ask_words": [_ask_words],
    "training.accumulated_step": [_accumulated_step],
    "training.uniform_loss": [_uniform_loss],
    "training.keep_for": [
        lambda k, b, n: (b * math.log2(0.5) / math.log2(k), math.exp(n / b * math.log(k))),
        lambda k, b, n: [b * math.log(0.5) / math.log(k), k ** (n / b)],
        lambda k, b, n: (b * math.log(0.5) / torch.tensor(k).log(), torch.tensor(k) ** (n / b)),
    ],
    "generation.count_nfe": [_count_nfe],
    "evaluation.diagonal_frechet": [lambda m, s, n, r: torch.cat([m - n, s - r]).pow(2).sum()],
    "evaluation.block_distance": [_block_distance],
    "vae.tighter_bound": [lambda a, b, c: torch.logsumexp(a + b - c - math.log(len(c)), 0)],
    "vae.linear_posterior": [_linear_posterior],
    "vae.same_time": [lambda t, c: 1 / (1 + (1 - t) / t / c)],
    "inpainting.safe_pixels": [_safe_pixels],
    "cold.end_of_walk": [lambda guesses, ts: torch.einsum("t,tbd->bd", ts.diff(), guesses)],
    "cold.reveal": [lambda x, guess, mask, later: x - mask * guess + later * guess],
    "unet.gated_block": [_gated_block],
    "unet.unet_forward": [_unet_forward],
    "images.denoiser_step": [_denoiser_step],
    "images.heun_images": [_heun_images],
    "latent.latent_step": [_latent_step],
    "latent.redraw": [_redraw],
    "inpainting.repaint": [_repaint],
    "inpainting.particle_step": [_particle_step],
    "cold.sharpen_all": [_sharpen_all],
    "cold.restorer_step": [_restorer_step],
    "few_step.multistep": [_multistep],
    "few_step.consistency_step": [_consistency_step],
    "couplings.reflow_step": [_reflow_step],
    "edm.stochastic_run": [_stochastic_run],
}


def _blind_patches(x, p):
    B, C, H, W = x.shape
    return x.reshape(B, C, p, H // p, p, W // p).permute(0, 1, 2, 4, 3, 5).reshape(B, C * p * p, H // p, W // p)


def _overflowing_push(x, y, W, b):
    p = (x @ W.mT + b).exp()
    return W[y] - p / p.sum(1, keepdim=True) @ W


def _loss_by_time_too_short(error, t, parts):
    part = (t * parts).long().clamp(max=parts - 1)
    return torch.bincount(part, error.square().flatten(1).mean(1)) / torch.bincount(part)


WRONG = {
    "images.loss_by_time": [_loss_by_time_too_short],
    "unet.to_patches": [_blind_patches],
    "images.standardised_to_bytes": [
        lambda x, m, s: (255 * (x * s[:, None, None] + m[:, None, None])).round().clamp(0, 255)
    ],
    "latent.known_places": [lambda known, f: 1 - F.max_pool2d((~known).double(), f)],
    "inpainting.safe_pixels": [lambda *args: _safe_pixels(*args).float()],
    "guidance.classifier_push": [_overflowing_push],
    "predictions.velocity_error": [lambda a, b, al, s, da, ds: (al * ds - s * da).abs() / (al * b - s * a)],
}

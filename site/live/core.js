// What a page needs to sample: a loop over given times, four ways to step, and two models of the plane.
//
// No formula of a path is here: tables made by Python (live.py) say what alpha, sigma and their derivatives a and b
// are at each time. Points are Float32Arrays; a model is (x, row) -> prediction, or a promise of one.

const lin = (p, x, q, y) => {
  const out = new Float32Array(x.length);
  for (let i = 0; i < out.length; i++) out[i] = p * x[i] + q * y[i];
  return out;
};
const row = (table, k) => ({ t: table.t[k], alpha: table.alpha[k], sigma: table.sigma[k], a: table.a[k], b: table.b[k] });

// ---- predictions -------------------------------------------------------------------------------------------------

// What a network says that was trained for a x1 + b eps, at x = alpha x1 + sigma eps.
function solved(x, velocity, at) {
  const D = at.alpha * at.b - at.sigma * at.a;
  return { x, at, velocity, x1: lin(at.b / D, x, -at.sigma / D, velocity), eps: lin(at.alpha / D, velocity, -at.a / D, x) };
}

const known = (x, x1, eps, at) => ({ x, at, x1, eps, velocity: lin(at.a, x1, at.b, eps) });

// (1 - w) p + w q: guidance, with p of no label and q of one.
const guided = (p, q, w) => known(p.x, lin(1 - w, p.x1, w, q.x1), lin(1 - w, p.eps, w, q.eps), p.at);

// ---- steps -------------------------------------------------------------------------------------------------------

// step(p, to, before, noise): from a prediction p to the row `to`; `before` is the prediction of the step before.
const STEPS = {
  euler: (p, to) => lin(1, p.x, to.t - p.at.t, p.velocity),
  ddim: (p, to) => lin(to.alpha, p.x1, to.sigma, p.eps),
  // DPM-Solver++(2M): the predicted x1, extrapolated along a line in lambda = log(alpha / sigma).
  dpmpp_2m(p, to, before) {
    const lambda = ({ alpha, sigma }) => Math.log(alpha / sigma), h = lambda(to) - lambda(p.at), plain = STEPS.ddim(p, to);
    if (!before || !Number.isFinite(h)) return plain;
    const c = -to.alpha * Math.expm1(-h) * h / (2 * (lambda(p.at) - lambda(before.at)));
    return lin(1, plain, c, lin(1, p.x1, -1, before.x1));
  },
};

// Euler-Maruyama along dx = (velocity + g^2/2 score) dt + g dW with g^2 = churn 2 sigma (sigma a - alpha b).
const churned = (churn) => (p, to, before, noise) => {
  if (to.sigma === 0) return p.x1;
  const rate = churn * (p.at.sigma * p.at.a - p.at.alpha * p.at.b), h = to.t - p.at.t;
  const drifted = lin(1, p.x, h, lin(1, p.velocity, -rate, p.eps));
  return churn ? lin(1, drifted, Math.sqrt(2 * p.at.sigma * rate * h), noise(p.x.length)) : drifted;
};

// All iterates, one after the other: { k, x, x1 } with x at the k-th time and the data predicted in the step to it.
async function* walk(model, x, table, step, noise) {
  let before = null;
  for (let k = 1; k < table.t.length; k++) {
    const p = await model(x, row(table, k - 1));
    x = step(p, row(table, k), before, noise);
    before = p;
    yield { k, x, x1: p.x1 };
  }
}

// ---- random numbers ----------------------------------------------------------------------------------------------

// Standard normal numbers of a seed: mulberry32 and the polar method of Marsaglia. They are not those of torch.
function normals(seed) {
  let state = seed >>> 0;
  const uniform = () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let z = Math.imul(state ^ state >>> 15, state | 1);
    z ^= z + Math.imul(z ^ z >>> 7, z | 61);
    return ((z ^ z >>> 14) >>> 0) / 4294967296;
  };
  return (n) => {
    const out = new Float32Array(n);
    for (let i = 0; i < n; i += 2) {
      let u, v, s;
      do { u = 2 * uniform() - 1; v = 2 * uniform() - 1; s = u * u + v * v; } while (s >= 1 || s === 0);
      const r = Math.sqrt(-2 * Math.log(s) / s);
      out[i] = u * r;
      if (i + 1 < n) out[i + 1] = v * r;
    }
    return out;
  };
}

// ---- models of the plane -----------------------------------------------------------------------------------------

// The components of a mixture that have the label, or all; weights add up to 1.
function components(mixture, label = null) {
  const kept = mixture.stds.map((_, k) => k).filter((k) => label === null || mixture.labels[k] === label);
  const total = kept.reduce((sum, k) => sum + mixture.weights[k], 0);
  return kept.map((k) => ({ x: mixture.means[2 * k], y: mixture.means[2 * k + 1], std: mixture.stds[k], weight: mixture.weights[k] / total }));
}

// The perfect model: E[x1 | x] and E[eps | x] in closed form.
const exact = (mixture, label = null) => {
  const parts = components(mixture, label), K = parts.length, share = new Float64Array(K);
  return (x, at) => {
    const { alpha, sigma } = at, x1 = new Float32Array(x.length), eps = new Float32Array(x.length);
    const variance = parts.map((c) => alpha * alpha * c.std * c.std + sigma * sigma);
    const height = parts.map((c, k) => Math.log(c.weight) - Math.log(variance[k]));
    for (let i = 0; i < x.length; i += 2) {
      let top = -Infinity, total = 0;
      for (let k = 0; k < K; k++) {
        const dx = x[i] - alpha * parts[k].x, dy = x[i + 1] - alpha * parts[k].y;
        share[k] = height[k] - (dx * dx + dy * dy) / (2 * variance[k]);
        top = Math.max(top, share[k]);
      }
      for (let k = 0; k < K; k++) total += share[k] = Math.exp(share[k] - top);
      let u = 0, v = 0, ex = 0, ey = 0;
      for (let k = 0; k < K; k++) {
        const c = parts[k], w = share[k] / total, rx = (x[i] - alpha * c.x) / variance[k], ry = (x[i + 1] - alpha * c.y) / variance[k];
        const gain = alpha * c.std * c.std;
        u += w * (c.x + gain * rx); v += w * (c.y + gain * ry); ex += w * sigma * rx; ey += w * sigma * ry;
      }
      x1[i] = u; x1[i + 1] = v; eps[i] = ex; eps[i + 1] = ey;
    }
    return known(x, x1, eps, at);
  };
};

// log p_t at points, with alpha = 1 and sigma = 0 for the data themselves.
function logDensity(mixture, x, { alpha, sigma }, label = null) {
  const parts = components(mixture, label), out = new Float64Array(x.length / 2);
  for (let i = 0; i < out.length; i++) {
    let top = -Infinity, total = 0;
    const terms = parts.map((c) => {
      const variance = alpha * alpha * c.std * c.std + sigma * sigma, dx = x[2 * i] - alpha * c.x, dy = x[2 * i + 1] - alpha * c.y;
      const term = Math.log(c.weight / (2 * Math.PI * variance)) - (dx * dx + dy * dy) / (2 * variance);
      top = Math.max(top, term);
      return term;
    });
    for (const term of terms) total += Math.exp(term - top);
    out[i] = top + Math.log(total);
  }
  return out;
}

// The small network of lesson 5: waves of x and t, residual layers, and the label's vector added after the first.
function network(data) {
  const read = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0)), flat = new Float32Array(read(data.weights).buffer);
  const part = (name) => { const [at, ...shape] = data.places[name]; return flat.subarray(at, at + shape.reduce((p, q) => p * q, 1)); };
  const names = Object.keys(data.places).filter((name) => /weight$/.test(name) && !/^embed/.test(name)).map((name) => name.slice(0, -7));
  // weights as (inputs, outputs), with zeros up to a multiple of four outputs
  const stack = names.map((name) => {
    const [, outputs, inputs] = data.places[`${name}.weight`], own = part(`${name}.weight`), wide = fours(outputs);
    const weights = new Float32Array(inputs * wide), bias = new Float32Array(wide);
    for (let j = 0; j < outputs; j++) for (let k = 0; k < inputs; k++) weights[k * wide + j] = own[j * inputs + k];
    bias.set(part(`${name}.bias`));
    return { inputs, outputs: wide, weights, bias };
  });
  const xWaves = part("x_waves"), tWaves = part("t_waves"), embed = part("embed_y.weight"), [, labels, width] = data.places["embed_y.weight"];
  const W = xWaves.length, T = tWaves.length, inputs = stack[0].inputs, spaces = new Map();
  let loops = null;
  try { loops = new WebAssembly.Module(read(data.loops)); } catch { /* a browser without: the same loops, more slowly */ }

  return (label = null) => (x, at) => {
    const n = x.length / 2;
    if (!spaces.has(n)) spaces.set(n, workspace(stack, n, loops));
    const { layers: [first, ...hidden], f, h, active, more, product, silu } = spaces.get(n), last = hidden.pop();
    for (let i = 0; i < n; i++) {
      const o = i * inputs;
      f[o] = x[2 * i]; f[o + 1] = x[2 * i + 1]; f[o + 2] = at.t;
      for (let d = 0; d < 2; d++) for (let k = 0; k < W; k++) {
        const angle = x[2 * i + d] * xWaves[k];
        f[o + 3 + d * W + k] = Math.sin(angle); f[o + 3 + (2 + d) * W + k] = Math.cos(angle);
      }
    }
    for (let k = 0; k < T; k++) for (let i = 0, s = Math.sin(at.t * tWaves[k]), c = Math.cos(at.t * tWaves[k]), o = 3 + 4 * W + k; i < n; i++, o += inputs) {
      f[o] = s; f[o + T] = c;
    }
    const row = (label ?? labels - 1) * width;
    product(f, first, h);
    for (let i = 0; i < h.length; i++) h[i] += embed[row + i % width];
    for (const layer of hidden) {
      silu(h, active); product(active, layer, more);
      for (let i = 0; i < h.length; i++) h[i] += more[i];
    }
    silu(h, active); product(active, last, more);
    return solved(x, Float32Array.from(x, (_, i) => more[(i >> 1) * last.outputs + i % 2]), at);
  };
}

const fours = (n) => 4 * Math.ceil(n / 4);

// What a network needs for n points, in one memory, and the two loops over it: those of layers.wat, or of this page.
function workspace(stack, n, loops) {
  const rows = fours(n), width = stack[0].outputs, sizes = [rows * stack[0].inputs, ...Array(3).fill(rows * width), ...stack.flatMap((l) => [l.weights.length, l.bias.length])];
  const bytes = 4 * sizes.reduce((sum, size) => sum + fours(size), 0), memory = loops ? new WebAssembly.Memory({ initial: Math.ceil(bytes / 65536) }) : { buffer: new ArrayBuffer(bytes) };
  let place = 0;
  const [f, h, active, more, ...held] = sizes.map((size) => { const view = new Float32Array(memory.buffer, place, size); place += 4 * fours(size); return view; });
  const layers = stack.map((layer, k) => {
    const [weights, bias] = [held[2 * k], held[2 * k + 1]];
    weights.set(layer.weights); bias.set(layer.bias);
    return { ...layer, weights, bias };
  });
  if (!loops) return { layers, f, h, active, more, silu, product: (x, layer, out) => product(x, layer, out, rows) };
  const own = new WebAssembly.Instance(loops, { page: { memory } }).exports, at = (view) => view.byteOffset;
  return { layers, f, h, active, more, silu: (x, out) => own.silu(at(x), at(out), x.length),
    product: (x, l, out) => own.product(at(x), at(l.weights), at(l.bias), at(out), rows, l.inputs, l.outputs) };
}

function silu(x, out) { for (let i = 0; i < x.length; i++) out[i] = x[i] / (1 + Math.exp(-x[i])); }

// out (rows, outputs) = x (rows, inputs) times weights (inputs, outputs), plus a bias.
function product(x, { weights, bias, inputs, outputs }, out, rows) {
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < outputs; j++) out[i * outputs + j] = bias[j];
    for (let k = 0; k < inputs; k++) {
      const a = x[i * inputs + k];
      for (let j = 0, w = k * outputs, o = i * outputs; j < outputs; j++) out[o + j] += a * weights[w + j];
    }
  }
}

// Plays paths on canvases: the one implementation, run by anywidget in a live notebook (`render`) and
// inlined by player.py into static pages (`boot`). It needs no library and no network.
//
// Positions arrive as int16 in units of the view: 32767 is REACH half-widths from its centre, -32768 is "not a number".
const REACH = 8, HOLD = 800, EXACT = [0, 114, 178], DATA = "#009E73", FAINT = "#868e96";
const TYPES = { int16: Int16Array, uint8: Uint8Array, int8: Int8Array };
const SPEEDS = [0.25, 0.5, 1, 2, 4];
const KEYS = { ArrowLeft: -20, ArrowDown: -20, ArrowRight: 20, ArrowUp: 20, PageDown: -100, PageUp: 100 };  // thousandths of the clock

const CSS = `
.dc-player { --dc-plate: #fff; --dc-ink: #333; --dc-soft: #f4f6f8; --dc-rim: #d5d8dc; --dc-blue: #0072b2; color-scheme: light;
  box-sizing: border-box; max-width: 100%; padding: 8px 10px; margin: 2px 0; background: var(--dc-plate); color: var(--dc-ink);
  border: 1px solid var(--dc-rim); border-radius: 6px; font: 13px/1.35 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
[data-jp-theme-light="false"] .dc-player, .vscode-dark .dc-player, html[theme="dark"] .dc-player {
  --dc-plate: #1e2226; --dc-ink: #e9ecef; --dc-soft: #343a40; --dc-rim: #495057; --dc-blue: #56b4e9; color-scheme: dark; }
.dc-player *, .dc-player *::before { box-sizing: border-box; }
.dc-player:focus-visible { outline: 2px solid var(--dc-blue); outline-offset: 1px; }
.dc-panes { display: flex; flex-wrap: wrap; justify-content: center; gap: 8px 12px; }
.dc-pane { min-width: 0; margin: 0; }
.dc-title { text-align: center; font-weight: 600; padding-bottom: 4px; overflow-wrap: anywhere; }
.dc-canvas { display: block; width: 100%; border: 1px solid #e1e4e8; border-radius: 3px; background: #fff; }
[data-jp-theme-light="false"] .dc-canvas, .vscode-dark .dc-canvas { filter: brightness(0.92); }
.dc-bar { display: flex; flex-wrap: wrap; align-items: center; gap: 4px 8px; padding-top: 7px; }
.dc-bar input[type=range] { accent-color: var(--dc-blue); height: 24px; min-width: 0; margin: 0; padding: 0; cursor: pointer; }
.dc-play, .dc-step { flex: none; width: 30px; height: 26px; padding: 0; display: grid; place-items: center; cursor: pointer; color: var(--dc-ink);
  background: var(--dc-soft); border: 1px solid var(--dc-rim); border-radius: 4px; }
.dc-step { width: 24px; }
.dc-step + .dc-step { margin-left: -5px; }
.dc-play:hover, .dc-step:hover { border-color: var(--dc-blue); }
.dc-play svg, .dc-step svg { width: 12px; height: 12px; fill: currentColor; }
.dc-bar .dc-scrub { flex: 1 1 100%; }
.dc-clock { flex: none; min-width: 56px; font-size: 12px; font-variant-numeric: tabular-nums; white-space: nowrap; }
.dc-speed { flex: none; font: inherit; font-size: 12px; color: var(--dc-ink); background: var(--dc-soft); border: 1px solid var(--dc-rim); border-radius: 4px; padding: 2px 0 2px 2px; width: 60px; margin: 0; }
.dc-tail-label { flex: none; display: flex; align-items: center; gap: 5px; font-size: 12px; }
.dc-bar .dc-tail { width: 72px; }
.dc-legend { display: flex; flex-wrap: wrap; justify-content: center; gap: 0 14px; padding-top: 5px; font-size: 12px; }
.dc-legend span { display: inline-flex; align-items: center; gap: 5px; }
.dc-legend i { flex: none; font-style: normal; width: 9px; height: 9px; border-radius: 50%; background: var(--mark); }
.dc-legend .dc-shade { border-radius: 2px; width: 13px; height: 11px; background: color-mix(in srgb, var(--mark) 35%, #fff); }
.dc-legend .dc-arrow { width: auto; height: auto; background: none; line-height: 1; }
.dc-player [hidden] { display: none; }
`;
const ICONS = { play: '<svg viewBox="0 0 12 12"><path d="M2 0.5 L11 6 L2 11.5Z"/></svg>',
  pause: '<svg viewBox="0 0 12 12"><path d="M1.5 0.5h3v11h-3z M7.5 0.5h3v11h-3z"/></svg>',
  back: '<svg viewBox="0 0 12 12"><path d="M9 1 L3.5 6 L9 11Z M1.5 1h1.5v10h-1.5z"/></svg>',
  on: '<svg viewBox="0 0 12 12"><path d="M3 1 L8.5 6 L3 11Z M9 1h1.5v10h-1.5z"/></svg>' };

// ---- data ----------------------------------------------------------------------------------------------------------

function unpack(meta, buffer) {
  const read = (block) => block && new TYPES[block.type](buffer, block.at, block.shape.reduce((a, b) => a * b, 1));
  const panes = meta.panes.map((pane) => {
    const [frames, n, dim] = pane.paths.shape, ids = read(pane.ids), groups = pane.palette.map(() => []);
    ids.forEach((k, i) => groups[k].push(i));
    return { ...pane, frames, n, dim, groups, xs: decode(read(pane.paths)), static: decode(read(pane.targets)), shades: read(pane.density),
      arrows: read(pane.field), shadeShape: pane.density?.shape, arrowShape: pane.field?.shape };
  });
  return { ...meta, panes };
}

function decode(q) {
  if (!q) return null;
  const x = new Float32Array(q.length);
  for (let i = 0; i < q.length; i++) x[i] = q[i] === -32768 ? NaN : q[i] * REACH / 32767;
  return x;
}

// The interval k of the pane's times that holds t, and how far into it t is.
function locate(ts, t) {
  let lo = 0, hi = ts.length - 1;
  if (hi === 0 || t <= ts[0]) return [0, 0];
  if (t >= ts[hi]) return [hi - 1, 1];
  while (hi - lo > 1) { const mid = (lo + hi) >> 1; if (ts[mid] <= t) lo = mid; else hi = mid; }
  return [lo, (t - ts[lo]) / (ts[hi] - ts[lo])];
}

// Positions (n * dim) at time t on the polygon through the iterates.
function positions(pane, t) {
  const [k, f] = locate(pane.ts, t), m = pane.n * pane.dim, a = k * m;
  if (f === 0) return pane.xs.subarray(a, a + m);
  if (f === 1) return pane.xs.subarray(a + m, a + 2 * m);
  const out = new Float32Array(m), xs = pane.xs;
  for (let i = 0; i < m; i++) out[i] = xs[a + i] + (xs[a + m + i] - xs[a + i]) * f;
  return out;
}

// ---- drawing: the plane ----------------------------------------------------------------------------------------------

const SHADES = (() => {
  const lut = new Uint32Array(256), bands = 8;
  for (let v = 0; v < 256; v++) {
    const a = 0.4 * Math.min(1, Math.floor(v / 255 * bands + 0.15) / bands + 0.1 * v / 255);
    const [r, g, b] = EXACT.map((c) => Math.round(255 + (c - 255) * a));
    lut[v] = (255 << 24 | b << 16 | g << 8 | r) >>> 0;
  }
  return lut;
})();

// The density at a position between its frames, interpolated before it is cut into bands: contours move, not cross-fade.
function shade(pane, u) {
  const [frames, h, w] = pane.shadeShape, at = Math.round(u * (frames - 1) * 8) / 8;
  if (pane.shadeAt === at) return pane.shadeCanvas;
  const k = Math.min(Math.floor(at), frames - 1), f = at - k, a = k * h * w, b = Math.min(k + 1, frames - 1) * h * w;
  const grid = new Float32Array(h * w), up = Math.max(1, Math.round(240 / w));
  for (let i = 0; i < grid.length; i++) grid[i] = pane.shades[a + i] + (pane.shades[b + i] - pane.shades[a + i]) * f;
  const canvas = pane.shadeCanvas ?? document.createElement("canvas");
  canvas.width = w * up; canvas.height = h * up;
  const ctx = canvas.getContext("2d"), image = ctx.createImageData(w * up, h * up);
  upsample(grid, h, w, up, new Uint32Array(image.data.buffer));
  ctx.putImageData(image, 0, 0);
  return Object.assign(pane, { shadeAt: at, shadeCanvas: canvas }).shadeCanvas;
}

function upsample(grid, h, w, up, pixels) {
  for (let row = 0; row < h * up; row++) {
    const y = Math.min(Math.max((h * up - 1 - row + 0.5) / up - 0.5, 0), h - 1), j = Math.min(Math.floor(y), Math.max(h - 2, 0)), fy = y - j;
    const top = j * w, next = h > 1 ? top + w : top;
    for (let col = 0; col < w * up; col++) {
      const x = Math.min(Math.max((col + 0.5) / up - 0.5, 0), w - 1), i = Math.min(Math.floor(x), Math.max(w - 2, 0)), fx = x - i, s = w > 1 ? 1 : 0;
      const p = grid[top + i] + (grid[top + i + s] - grid[top + i]) * fx, q = grid[next + i] + (grid[next + i + s] - grid[next + i]) * fx;
      pixels[row * w * up + col] = SHADES[(p + (q - p) * fy + 0.5) | 0];
    }
  }
}

function drawArrows(ctx, pane, u, W, H) {
  const [frames, g] = pane.arrowShape, at = u * (frames - 1), k = Math.min(Math.floor(at), frames - 1), f = at - k;
  const a = k * g * g * 2, b = Math.min(k + 1, frames - 1) * g * g * 2, v = pane.arrows, cell = W / g, unit = cell * 1.4 / 127;
  ctx.beginPath();
  for (let i = 0; i < g * g; i++) {
    const dx = (v[a + 2 * i] * (1 - f) + v[b + 2 * i] * f) * unit, dy = -(v[a + 2 * i + 1] * (1 - f) + v[b + 2 * i + 1] * f) * unit;
    if (Math.abs(dx) + Math.abs(dy) < 1) continue;
    const x = (i % g + 0.5) * cell + dx / 2, y = H - (Math.floor(i / g) + 0.5) * cell + dy / 2;
    ctx.moveTo(x - dx, y - dy); ctx.lineTo(x, y);
    ctx.moveTo(x - 0.32 * dx + 0.18 * dy, y - 0.32 * dy - 0.18 * dx); ctx.lineTo(x, y);
    ctx.lineTo(x - 0.32 * dx - 0.18 * dy, y - 0.32 * dy + 0.18 * dx);
  }
  ctx.strokeStyle = "rgba(125, 135, 146, 0.6)"; ctx.lineWidth = 1; ctx.stroke();
}

// One pre-rendered dot per colour: copying it is several times cheaper than filling an arc for every point.
function sprite(color, radius, dpr) {
  const canvas = document.createElement("canvas"), ctx = canvas.getContext("2d"), width = Math.ceil((2 * radius + 2) * dpr);
  canvas.width = canvas.height = width;
  ctx.arc(width / 2, width / 2, radius * dpr, 0, 2 * Math.PI);
  ctx.globalAlpha = 0.85; ctx.fillStyle = color; ctx.fill();
  if (radius > 2) { ctx.globalAlpha = 0.7; ctx.strokeStyle = "#fff"; ctx.lineWidth = 0.6 * dpr; ctx.stroke(); }
  return canvas;
}

function drawDots(ctx, pane, x, groups, palette, radius, W, H, alpha = 1) {
  const dpr = ctx.getTransform().a;
  ctx.globalAlpha = alpha;
  groups.forEach((group, k) => {
    const key = palette[k] + radius + "@" + dpr, dot = (pane.sprites[key] ??= sprite(palette[k], radius, dpr)), size = dot.width / dpr;
    for (const i of group) {
      const a = x[2 * i], b = x[2 * i + 1];
      if (a > -1.1 && a < 1.1 && b > -1.1 && b < 1.1) ctx.drawImage(dot, (a + 1) * W / 2 - size / 2, (1 - b) * H / 2 - size / 2, size, size);
    }
  });
  ctx.globalAlpha = 1;
}

// The stretch of path behind each point. Many points get fewer pieces each, so that the cost stays bounded.
function drawTails(ctx, pane, from, to, W, H) {
  const most = Math.max(3, Math.min(48, Math.floor(9000 / pane.n))), ts = [from, ...pane.ts.filter((t) => t > from && t < to), to];
  const cut = (m) => Array.from({ length: m + 1 }, (_, j) => from + (to - from) * j / m);
  // a long straight step is cut as well, so that it fades like the others
  const at = ts.length - 1 > most ? cut(most) : ts.length > 6 ? ts : [...ts, ...cut(Math.min(6, most)).slice(1, -1)].sort((a, b) => a - b);
  const xs = at.map((t) => positions(pane, t)), pieces = at.length - 1, buckets = Math.min(6, pieces);
  const sx = W / 2, sy = H / 2, dpr = ctx.getTransform().a;
  ctx.lineWidth = pane.n > 250 ? 1 / dpr : 1.3; ctx.lineJoin = "round";
  pane.groups.forEach((group, c) => {
    ctx.strokeStyle = pane.palette[c];
    for (let b = 0; b < buckets; b++) {
      const first = Math.floor(b * pieces / buckets), last = Math.floor((b + 1) * pieces / buckets);
      ctx.globalAlpha = Math.min(1, 0.62 * pane.fade * Math.pow((b + 0.7) / buckets, 1.4));
      ctx.beginPath();
      for (const i of group) {
        let pen = false;
        for (let j = first; j <= last; j++) {
          const x = xs[j][2 * i], y = xs[j][2 * i + 1];
          if (x !== x || y !== y) { pen = false; continue; }
          if (pen) ctx.lineTo((1 + x) * sx, (1 - y) * sy); else ctx.moveTo((1 + x) * sx, (1 - y) * sy);
          pen = true;
        }
      }
      ctx.stroke();
    }
  });
  ctx.globalAlpha = 1;
}

function text(ctx, s, x, y, align, baseline, color = FAINT) {
  ctx.font = "10.5px system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif";
  ctx.textAlign = align; ctx.textBaseline = baseline; ctx.fillStyle = color;
  ctx.strokeStyle = "rgba(255, 255, 255, 0.8)"; ctx.lineWidth = 3; ctx.lineJoin = "round"; ctx.strokeText(s, x, y);
  ctx.fillText(s, x, y);
}

const short = (v) => String(Math.round(v * 1000) / 1000).replace("-", "\u2212");

// Where a point is on the canvas at time t; null where it isn't drawn.
function place(pane, x, i, t, W, H) {
  const [a, b] = pane.dim === 2 ? [x[2 * i], x[2 * i + 1]] : [0, x[i]];
  if (!(Math.abs(a) < 1.1 && Math.abs(b) < 1.1) || (pane.dim === 1 && i >= pane.lines)) return null;
  return pane.dim === 2 ? [(a + 1) * W / 2, (1 - b) * H / 2] : [along(pane, t, W), (1 - b) * (H - 17) / 2];
}

function ring(ctx, [x, y]) {
  for (const [color, width] of [["#fff", 4.5], ["#111", 2]]) {
    ctx.beginPath(); ctx.arc(x, y, 8, 0, 2 * Math.PI);
    ctx.strokeStyle = color; ctx.lineWidth = width; ctx.stroke();
  }
}

function drawPlane(ctx, pane, t, u, tail, W, H) {
  const scale = Math.min(1.25, Math.max(0.75, W / 340)), zero = (pane.view[0] + pane.view[1]) / (pane.view[0] - pane.view[1]);
  if (pane.shades) ctx.drawImage(shade(pane, u), 0, 0, W, H);
  if (Math.abs(zero) < 1) {
    ctx.fillStyle = "rgba(0, 0, 0, 0.06)"; ctx.fillRect((1 + zero) * W / 2 - 0.5, 0, 1, H); ctx.fillRect(0, (1 - zero) * H / 2 - 0.5, W, 1);
  }
  if (pane.arrows) drawArrows(ctx, pane, u, W, H);
  if (pane.static) drawDots(ctx, pane, pane.static, [Array.from({ length: pane.static.length / 2 }, (_, i) => i)], [DATA], 1.8 * scale, W, H, 0.55);
  const span = pane.clock[1] - pane.clock[0], from = Math.max(t - tail * span, pane.ts[0]), to = Math.min(t, pane.ts[pane.frames - 1]);
  if (to > from) drawTails(ctx, pane, from, to, W, H);
  drawDots(ctx, pane, positions(pane, t), pane.groups, pane.palette, pane.radius * scale, W, H);
  text(ctx, short(pane.view[0]), 4, H - 4, "left", "alphabetic"); text(ctx, short(pane.view[1]), W - 4, H - 4, "right", "alphabetic");
  text(ctx, short(pane.view[1]), 4, 4, "left", "top");
}

// ---- drawing: values against time ----------------------------------------------------------------------------------

// Finished stretches are kept on a layer of their own, so that a frame only draws what is new.
function drawLines(ctx, pane, t, W, H, X, Y) {
  const dpr = ctx.getTransform().a, [k, f] = locate(pane.ts, t), done = f === 1 ? k + 1 : k, alpha = 0.25 + 0.5 * Math.min(1, 12 / pane.lines);
  let layer = pane.layer;
  if (!layer || layer.done > done || layer.canvas.width !== ctx.canvas.width || layer.canvas.height !== ctx.canvas.height) {
    layer = pane.layer = { canvas: document.createElement("canvas"), done: 0 };
    layer.canvas.width = ctx.canvas.width; layer.canvas.height = ctx.canvas.height;
    layer.canvas.getContext("2d").setTransform(dpr, 0, 0, dpr, 0, 0);
  }
  strokes(layer.canvas.getContext("2d"), pane, layer.done, done, (j, i) => [X(pane.ts[j]), Y(pane.xs[j * pane.n + i])], alpha);
  layer.done = done;
  ctx.drawImage(layer.canvas, 0, 0, W, H);
  const now = positions(pane, t);
  if (f > 0 && f < 1) strokes(ctx, pane, 0, 1, (j, i) => j ? [X(t), Y(now[i])] : [X(pane.ts[k]), Y(pane.xs[k * pane.n + i])], alpha);
  return now;
}

function strokes(ctx, pane, first, last, point, alpha) {
  if (last <= first) return;
  ctx.globalAlpha = alpha; ctx.lineWidth = 1; ctx.lineJoin = "round";
  pane.groups.forEach((group, c) => {
    ctx.strokeStyle = pane.palette[c]; ctx.beginPath();
    for (const i of group) {
      if (i >= pane.lines) break;
      let pen = false;
      for (let j = first; j <= last; j++) {
        const [x, y] = point(j, i);
        if (y !== y) { pen = false; continue; }
        if (pen) ctx.lineTo(x, y); else ctx.moveTo(x, y);
        pen = true;
      }
    }
    ctx.stroke();
  });
  ctx.globalAlpha = 1;
}

// Bars of the current values, stacked by colour, with the exact density over them; `peak` fills the panel.
function drawHistogram(ctx, pane, now, u, left, width, height) {
  const bins = pane.bins, bar = height / bins, unit = width * bins / (pane.n * (pane.view[1] - pane.view[0]) * pane.peak), start = new Float32Array(bins).fill(left);
  ctx.save(); ctx.beginPath(); ctx.rect(left, 0, width, height); ctx.clip();
  pane.groups.forEach((group, c) => {
    const counts = new Uint32Array(bins);
    for (const i of group) { const b = Math.floor((1 - now[i]) / 2 * bins); if (b >= 0 && b < bins) counts[b]++; }
    ctx.fillStyle = pane.palette[c]; ctx.globalAlpha = 0.5;
    counts.forEach((m, b) => { if (m) { ctx.fillRect(start[b], b * bar + 0.5, m * unit, bar - 1); start[b] += m * unit; } });
  });
  if (pane.shades) drawCurve(ctx, pane, u, left, width, height);
  const outside = now.reduce((sum, v) => sum + !(v >= -1 && v <= 1), 0);
  if (outside) text(ctx, `${outside} outside`, left + width - 4, 4, "right", "top", "#b3261e");
  ctx.restore();
}

function drawCurve(ctx, pane, u, left, width, height) {
  const [frames, m] = pane.shadeShape, at = u * (frames - 1), k = Math.min(Math.floor(at), frames - 1), f = at - k, next = Math.min(k + 1, frames - 1);
  ctx.beginPath(); ctx.moveTo(left, height);
  for (let i = 0; i < m; i++) {
    const p = pane.shades[k * m + i] * (1 - f) + pane.shades[next * m + i] * f;
    ctx.lineTo(left + p / 255 * width, height * (1 - (i + 0.5) / m));
  }
  ctx.lineTo(left, 0);
  const color = `rgb(${EXACT.join()})`;
  ctx.globalAlpha = 0.14; ctx.fillStyle = color; ctx.fill();
  ctx.globalAlpha = 1; ctx.strokeStyle = color; ctx.lineWidth = 1.6; ctx.stroke();
}

// Paths take three quarters of the width, and a histogram of the present values the rest.
const pathsWidth = (W) => Math.round(W * 0.76);
const along = (pane, t, W) => 5 + (pathsWidth(W) - 14) * (t - pane.clock[0]) / (pane.clock[1] - pane.clock[0]);

function drawValues(ctx, pane, t, u, W, H) {
  const side = pathsWidth(W), width = W - side - 1, height = H - 17, [t0, t1] = pane.clock;
  const X = (s) => along(pane, s, W), Y = (v) => (1 - v) * height / 2, zero = (pane.view[0] + pane.view[1]) / (pane.view[0] - pane.view[1]);
  if (Math.abs(zero) < 1) { ctx.fillStyle = "rgba(0, 0, 0, 0.07)"; ctx.fillRect(0, Y(zero) - 0.5, W, 1); }
  ctx.fillStyle = "#e1e4e8"; ctx.fillRect(0, height, W, 1); ctx.fillRect(side, 0, 1, height);
  ctx.save(); ctx.beginPath(); ctx.rect(0, 0, side, height); ctx.clip();
  const now = drawLines(ctx, pane, t, W, H, X, Y), radius = pane.lines > 60 ? 2 : 2.8;
  pane.groups.forEach((group, c) => {
    ctx.fillStyle = pane.palette[c]; ctx.beginPath();
    for (const i of group) {
      if (i >= pane.lines) break;
      if (Math.abs(now[i]) < 1.1) { ctx.moveTo(X(t) + radius, Y(now[i])); ctx.arc(X(t), Y(now[i]), radius, 0, 2 * Math.PI); }
    }
    ctx.globalAlpha = 0.9; ctx.fill(); ctx.globalAlpha = 1;
  });
  ctx.restore();
  drawHistogram(ctx, pane, now, u, side + 1, width, height);
  text(ctx, short(pane.view[1]), 4, 4, "left", "top"); text(ctx, short(pane.view[0]), 4, height - 4, "left", "alphabetic");
  text(ctx, short(t0), 5, H - 4, "left", "alphabetic"); text(ctx, "t", side / 2, H - 4, "center", "alphabetic");
  text(ctx, short(t1), side - 6, H - 4, "right", "alphabetic"); text(ctx, "density", side + 1 + width / 2, H - 4, "center", "alphabetic");
}

// ---- the player ------------------------------------------------------------------------------------------------------

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

function build() {
  const ui = {
    panes: element("div", { class: "dc-panes" }), legend: element("div", { class: "dc-legend" }), play: element("button", { class: "dc-play", type: "button", "aria-label": "play" }),
    scrub: element("input", { class: "dc-scrub", type: "range", min: 0, max: 1000, step: 1, value: 0, "aria-label": "time" }),
    clock: element("span", { class: "dc-clock" }, "t = 0.00"),
    back: element("button", { class: "dc-step", type: "button", "aria-label": "one iterate back", "aria-keyshortcuts": ",", title: "One iterate back (key: comma)" }),
    on: element("button", { class: "dc-step", type: "button", "aria-label": "one iterate on", "aria-keyshortcuts": ".", title: "One iterate on (key: full stop)" }),
    speed: element("select", { class: "dc-speed", "aria-label": "speed" }, ...SPEEDS.map((s) => element("option", { value: s }, `${s}\u00d7`))),
    tail: element("input", { class: "dc-tail", type: "range", min: 0, max: 100, step: 1, "aria-label": "length of the tails" }),
  };
  ui.tailLabel = element("label", { class: "dc-tail-label" }, "tail", ui.tail);
  ui.bar = element("div", { class: "dc-bar" }, ui.scrub, ui.play, ui.back, ui.on, ui.clock, ui.speed, ui.tailLabel);
  ui.root = element("div", { class: "dc-player", tabindex: 0, role: "group", "aria-label": "trajectory player" }, element("style", {}, CSS), ui.panes, ui.legend, ui.bar);
  // JupyterLab would otherwise take space and the arrow keys for itself; it looks at the focused element first
  for (const node of [ui.root, ui.play, ui.back, ui.on, ui.scrub, ui.speed, ui.tail]) node.setAttribute("data-lm-suppress-shortcuts", "true");
  ui.speed.value = 1; ui.back.innerHTML = ICONS.back; ui.on.innerHTML = ICONS.on;
  return ui;
}

function mount(host, meta, buffer) {
  const ui = build(), { root } = ui, quiet = matchMedia("(prefers-reduced-motion: reduce)").matches;
  const state = { u: quiet ? 1 : 0, playing: false, held: 0, last: 0, frame: 0, visible: true, draws: 0, revision: 0, ringed: null };
  let scene = null;

  function adopt(meta, buffer) {
    const next = unpack(meta, buffer), shape = (s) => s && JSON.stringify([s.size, s.panes.map((p) => [!p.title, p.dim])]);
    next.panes.forEach((pane) => {
      pane.clock = next.clock; pane.sprites = {}; pane.lines = pane.n > 200 ? 60 : pane.n;
      pane.radius = Math.min(3.8, Math.max(1.3, 4.6 - 1.1 * Math.log10(pane.n / 10))); pane.fade = Math.min(1.6, Math.max(0.6, 1.5 - 0.3 * Math.log10(pane.n / 10)));
    });
    if (shape(scene) !== shape(next)) layout(next);
    else next.panes.forEach((pane, k) => { pane.canvas = scene.panes[k].canvas; });
    next.panes.forEach(name);
    explain(next);
    scene = next;
    root.dataset.points = scene.panes.reduce((sum, pane) => sum + pane.n, 0);
    ui.tailLabel.hidden = scene.panes.every((pane) => pane.dim === 1);
    state.fresh = true;
    if (state.ringed && !scene.panes.some((pane) => pane.n === state.ringed.n)) state.ringed = null;
    draw();
  }

  // The nearest point that is drawn within a few pixels of the pointer is ringed, with those of its number in panes of as many.
  function hover(event) {
    const at = scene.panes.findIndex((pane) => pane.canvas === event.currentTarget), pane = scene.panes[at];
    const { clientWidth: W, clientHeight: H } = pane.canvas, t = time(), x = positions(pane, t);
    let best = 14, ringed = null;
    for (let i = 0; i < pane.n && event.type !== "pointerleave"; i++) {
      const here = place(pane, x, i, t, W, H), away = here ? Math.hypot(here[0] - event.offsetX, here[1] - event.offsetY) : Infinity;
      if (away < best) { best = away; ringed = { i, n: pane.n }; }
    }
    if (ringed?.i === state.ringed?.i && ringed?.n === state.ringed?.n) return;
    state.ringed = ringed; root.dataset.ringed = ringed?.i ?? "";
    draw();
  }

  function name(pane) {
    pane.canvas.setAttribute("aria-label", `${pane.title || "paths"}: ${pane.n} points that move from noise to data`);
    const title = pane.canvas.parentElement.querySelector(".dc-title");
    if (title && title.textContent !== pane.title) title.textContent = pane.title;
  }

  // What the marks are, once for all panes.
  function explain(next) {
    const entries = new Map(next.panes.flatMap((pane) => pane.legend ?? []).map((entry) => [entry.join(), entry]));
    ui.legend.hidden = !entries.size;
    ui.legend.replaceChildren(...[...entries.values()].map(([kind, color, words]) => {
      const mark = element("i", { class: `dc-${kind}`, style: `--mark: ${color}`, "aria-hidden": "true" }, kind === "arrow" ? "\u2192" : "");
      return element("span", {}, mark, words);
    }));
  }

  function layout(next) {
    ui.panes.replaceChildren();
    let total = 0;
    for (const pane of next.panes) {
      const width = Math.round(pane.dim === 1 ? next.size * 1.5 : next.size), ratio = pane.dim === 1 ? 1.5 / 0.8 : 1;
      pane.canvas = element("canvas", { class: "dc-canvas", role: "img", style: `aspect-ratio: ${ratio}` });
      pane.canvas.onpointermove = pane.canvas.onpointerdown = hover;
      pane.canvas.onpointerleave = (event) => { if (event.pointerType !== "touch") hover(event); };  // after a tap it stays
      const figure = element("div", { class: "dc-pane", style: `flex: 1 1 ${Math.min(width, 190 * (pane.dim === 1 ? 1.4 : 1))}px; max-width: ${width}px` }, pane.canvas);
      if (pane.title) figure.prepend(element("div", { class: "dc-title" }));
      ui.panes.append(figure);
      total += width + 12;
    }
    root.style.width = `${Math.max(total - 12, 260) + 22}px`;
    sizes.disconnect();
    next.panes.forEach((pane) => sizes.observe(pane.canvas));
  }

  const time = () => scene.clock[0] + state.u * (scene.clock[1] - scene.clock[0]);

  function draw() {
    const u = state.u, t = time(), dpr = Math.min(window.devicePixelRatio || 1, 3);
    const shown = scene.falling ? scene.clock[0] + scene.clock[1] - t : t;
    ui.clock.textContent = `${scene.time ?? "t"} = ${shown.toFixed(2)}`;
    ui.scrub.setAttribute("aria-valuetext", ui.clock.textContent);
    if (document.activeElement !== ui.scrub || state.playing) ui.scrub.value = Math.round(1000 * u);
    let drawn = 0;
    for (const pane of scene.panes) {
      const canvas = pane.canvas, W = canvas.clientWidth, H = canvas.clientHeight;
      if (!W || !H) continue;
      const w = Math.round(W * dpr), h = Math.round(H * dpr);
      if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
      const ctx = canvas.getContext("2d");
      ctx.setTransform(dpr, 0, 0, dpr, 0, 0);
      ctx.globalAlpha = 1; ctx.fillStyle = "#fff"; ctx.fillRect(0, 0, W, H);
      if (pane.dim === 2) drawPlane(ctx, pane, t, u, ui.tail.value / 100, W, H); else drawValues(ctx, pane, t, u, W, H);
      const ringed = state.ringed?.n === pane.n ? place(pane, positions(pane, t), state.ringed.i, t, W, H) : null;
      if (ringed) ring(ctx, ringed);
      drawn++;
    }
    if (!drawn) return;
    root.dataset.draws = ++state.draws;
    if (state.fresh) { root.dataset.revision = ++state.revision; state.fresh = false; }
  }

  function step(now) {
    state.frame = 0;
    if (!state.playing || !state.visible || !root.isConnected) return;
    const past = Math.max(0, Math.min(now - state.last, 100)) * ui.speed.value;  // a frame may be stamped earlier than the start
    state.last = now;
    if (state.u < 1) {
      state.u = Math.min(1, state.u + past / (1000 * scene.seconds)); state.held = 0;
      draw();
    } else if (!scene.loop) return play(false);
    else if ((state.held += past / ui.speed.value) > HOLD) state.u = 0;
    schedule();
  }

  function schedule() {
    if (!state.frame && state.playing && state.visible) state.frame = requestAnimationFrame(step);
  }

  function play(on) {
    if (on && state.u >= 1) state.u = 0;
    state.playing = on; state.last = performance.now();
    root.dataset.playing = on; ui.play.innerHTML = on ? ICONS.pause : ICONS.play; ui.play.setAttribute("aria-label", on ? "pause" : "play");
    schedule();
  }

  // To the next time at which some pane has an iterate.
  function iterate(way) {
    const [t0, t1] = scene.clock, us = scene.panes.flatMap((pane) => [...pane.ts].map((t) => (t - t0) / (t1 - t0)));
    const next = us.filter((u) => u >= 0 && u <= 1 && way * (u - state.u) > 1e-6);
    play(false);
    if (!next.length) return;
    state.u = way > 0 ? Math.min(...next) : Math.max(...next); state.held = 0;
    ui.scrub.value = Math.round(1000 * state.u);
    draw();
  }

  const sizes = new ResizeObserver(() => draw());
  const sight = new IntersectionObserver((entries) => {
    state.visible = entries[entries.length - 1].isIntersecting; state.last = performance.now();
    schedule();
  });
  ui.play.onclick = () => play(!state.playing);
  ui.scrub.oninput = () => { state.u = ui.scrub.value / 1000; state.held = 0; draw(); };
  ui.scrub.onkeydown = (event) => {
    if (!(event.key in KEYS) || event.ctrlKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    ui.scrub.value = Math.round(1000 * state.u) + KEYS[event.key];
    ui.scrub.oninput();
  };
  ui.tail.oninput = () => draw();
  ui.back.onclick = () => iterate(-1);
  ui.on.onclick = () => iterate(1);
  root.onkeydown = (event) => {
    if (event.ctrlKey || event.altKey || event.metaKey) return;
    if (event.key === "," || event.key === ".") { event.preventDefault(); return iterate(event.key === "." ? 1 : -1); }
    if (event.key !== " " || event.target.tagName === "BUTTON" || event.target === ui.speed) return;
    event.preventDefault(); play(!state.playing);
  };
  ui.tail.value = Math.round(100 * meta.tail);
  host.append(root);
  adopt(meta, buffer);
  sight.observe(root);
  play(meta.autoplay && !quiet);
  return { update: adopt, dispose() { play(false); cancelAnimationFrame(state.frame); sizes.disconnect(); sight.disconnect(); root.remove(); } };
}

// A live notebook: one message brings `_meta`, `_data` and a new `_revision`.
function render({ model, el }) {
  const bytes = () => { const view = model.get("_data"); return view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength); };
  const player = mount(el, model.get("_meta"), bytes()), change = () => player.update(model.get("_meta"), bytes());
  model.on("change:_revision", change);
  return () => { model.off("change:_revision", change); player.dispose(); };
}

// A static page: fill every host with this id that is still empty (an output may be shown twice), once it is in the document.
function boot(id, meta, base64, tries = 50) {
  const hosts = document.querySelectorAll(`[data-dc="${id}"]:not([data-dc-ready])`);
  if (!hosts.length && tries) return void setTimeout(() => boot(id, meta, base64, tries - 1), 40);
  const buffer = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0)).buffer;
  hosts.forEach((host) => {
    host.dataset.dcReady = "";
    const still = host.querySelector("img");
    mount(host, meta, buffer);
    still?.remove();
  });
}

export default { render };

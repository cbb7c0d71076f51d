// The plane, live: the exact model of a mixture beside a network that learned it, from the same noise.
//
// Points, fields and densities are computed here and handed to the player of the notebooks, which draws them.
(() => {
  const root = document.querySelector(".plane");
  if (!root) return;
  const get = (name) => root.querySelector(`[name="${name}"]`), out = (name) => root.querySelector(`[data-out="${name}"]`);
  const [path, sampler, steps, churn, label, guidance, behind, seed] =
    ["path", "sampler", "steps", "churn", "label", "guidance", "behind", "seed"].map(get);
  const VIEW = 3, N = 500, CELLS = 48, ARROWS = 17, learned = network(PLANE.network), status = root.querySelector(".status");
  const original = structuredClone(PLANE.mixture), mixture = structuredClone(PLANE.mixture), kept = new Map();
  const address = addressed("plane", [path, sampler, steps, churn, label, guidance, behind, seed]);
  const places = (means) => means.map((v) => v.toFixed(2)).join(" ");
  let player = null, waiting = 0, revision = 0;

  // ---- what is asked ---------------------------------------------------------------------------------------------

  const asked = () => ({ path: path.value, sampler: sampler.value, steps: TABLES.steps[steps.value], churn: Number(churn.value),
    label: label.value === "none" ? null : Number(label.value), w: Number(guidance.value), behind: behind.value, seed: Number(seed.value) || 0 });

  function describe(q) {
    out("steps").textContent = q.steps; steps.setAttribute("aria-valuetext", `${q.steps} steps`);
    out("churn").textContent = q.sampler === "churned" ? q.churn.toFixed(2) : "not used";
    out("guidance").textContent = q.label === null ? "not used" : q.w.toFixed(1);
    churn.disabled = q.sampler !== "churned";
    guidance.disabled = q.label === null;
    behind.querySelector('[value="tilted"]').disabled = q.label === null;
    if (q.label === null && behind.value === "tilted") behind.value = q.behind = "density";
  }

  // A model with guidance: that of no label where none is chosen.
  function model(of, { label, w }) {
    if (label === null || w === 0) return of(null);
    const own = of(label), none = of(null);
    return w === 1 ? own : (x, at) => guided(none(x, at), own(x, at), w);
  }

  const steppers = (q) => q.sampler === "churned" ? churned(q.churn) : STEPS[q.sampler];

  async function iterates(of, q) {
    const draw = normals(q.seed), table = TABLES.grids[q.path][q.steps];
    let x = draw(2 * N).map((z) => z * table.sigma[0]);
    const xs = [x];
    for await (const step of walk(model(of, q), x, table, steppers(q), draw)) xs.push(step.x);
    return xs;
  }

  // ---- what is behind the points ---------------------------------------------------------------------------------

  const lattice = (cells) => Float32Array.from({ length: 2 * cells * cells }, (_, i) => {
    const k = i % 2 ? Math.floor(i / 2 / cells) : Math.floor(i / 2) % cells;
    return VIEW * (2 * (k + 0.5) / cells - 1);
  });
  const GRID = lattice(CELLS), PLACES = lattice(ARROWS);
  const frames = (q) => { const table = PLANE.frames[q.path]; return table.t.map((_, k) => row(table, k)); };

  // Densities at some times, 255 at the highest place of each; with guidance at the end, what it is said to sample.
  function densities(q) {
    if (q.behind === "field") return null;
    const last = { alpha: 1, sigma: 0 };
    const logs = q.behind === "tilted"
      ? [lin64(1 - q.w, logDensity(mixture, GRID, last), q.w, logDensity(mixture, GRID, last, q.label))]
      : frames(q).map((at) => logDensity(mixture, GRID, at, q.label !== null && q.w === 1 ? q.label : null));
    const bytes = new Uint8Array(logs.length * CELLS * CELLS);
    logs.forEach((log, f) => {
      const top = log.reduce((a, b) => Math.max(a, b));
      log.forEach((value, i) => { bytes[f * log.length + i] = Math.round(255 * Math.exp((value - top) / 2)); });
    });
    return { data: bytes, shape: [logs.length, CELLS, CELLS] };
  }

  const lin64 = (p, x, q, y) => x.map((value, i) => p * value + q * y[i]);

  // The velocity at some times: 95 % of the arrows are at most a cell long.
  async function field(of, q) {
    if (q.behind !== "field") return null;
    const m = model(of, q), all = [];
    for (const at of frames(q)) all.push((await m(PLACES, at)).velocity);
    const lengths = all.flatMap((v) => Array.from({ length: v.length / 2 }, (_, i) => Math.hypot(v[2 * i], v[2 * i + 1]))).sort((a, b) => a - b);
    const unit = lengths[Math.floor(0.95 * lengths.length)] || 1, bytes = new Int8Array(all.length * PLACES.length);
    all.forEach((v, f) => {
      for (let i = 0; i < v.length; i += 2) {
        const scale = 127 / 1.4 / unit / Math.max(1, Math.hypot(v[i], v[i + 1]) / unit / 1.4);
        bytes[f * v.length + i] = Math.round(v[i] * scale); bytes[f * v.length + i + 1] = Math.round(v[i + 1] * scale);
      }
    });
    return { data: bytes, shape: [all.length, ARROWS, ARROWS, 2] };
  }

  // ---- the scene, as player.js reads it --------------------------------------------------------------------------

  const quantised = (xs) => {
    const flat = new Int16Array(xs.length * 2 * N);
    xs.forEach((x, k) => x.forEach((v, i) => { flat[k * 2 * N + i] = Math.round(Math.max(-8, Math.min(8, v / VIEW)) * 32767 / 8); }));
    return { data: flat, shape: [xs.length, N, 2] };
  };

  function packed(q, panes) {
    const blocks = [];
    let size = 0;
    const put = (block) => {
      if (!block) return null;
      const { data, shape } = block, at = size;
      blocks.push([at, data]);
      size += Math.ceil(data.byteLength / 4) * 4;
      return { at, type: data.constructor.name.replace("Array", "").toLowerCase(), shape };
    };
    const meta = { clock: [0, 1], seconds: 3, tail: 0.25, loop: true, size: 340, autoplay: true, panes: panes.map((pane) => ({
      title: pane.title, ts: TABLES.grids[q.path][q.steps].t, view: [-VIEW, VIEW], palette: [pane.color], peak: 1, bins: 36,
      legend: [["dot", pane.color, pane.name], ...(pane.density ? [["shade", PLANE.colors.exact, q.behind === "tilted" ? "what guidance aims at" : "density at this time"]] : []),
        ...(pane.field ? [["arrow", "#7d8792", "velocity"]] : [])],
      paths: put(quantised(pane.xs)), ids: put({ data: new Uint8Array(N), shape: [N] }), density: put(pane.density), field: put(pane.field), targets: null })) };
    const buffer = new ArrayBuffer(size), bytes = new Uint8Array(buffer);
    for (const [at, data] of blocks) bytes.set(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), at);
    return [meta, buffer];
  }

  // What the network says does not depend on where the centres are: it is kept while they are dragged.
  async function keptFor(q) {
    const key = JSON.stringify({ ...q, behind: q.behind === "field" });
    if (!kept.has(key)) { kept.clear(); kept.set(key, { xs: await iterates(learned, q), field: await field(learned, q) }); }
    return kept.get(key);
  }

  async function draw() {
    const q = asked(), mine = ++revision, began = performance.now(), perfect = (y) => exact(mixture, y);
    describe(q);
    address.write({ centres: places(mixture.means) === places(original.means) ? "" : places(mixture.means) });
    const density = densities(q);
    const panes = [{ title: "exact model", name: "exact", color: PLANE.colors.exact, xs: await iterates(perfect, q), density, field: await field(perfect, q) }];
    if (q.path === "linear") panes.push({ title: "network that learned it", name: "learned", color: PLANE.colors.learned, density, ...await keptFor(q) });
    if (mine !== revision) return;
    const ms = performance.now() - began;
    const [meta, buffer] = packed(q, panes);
    if (player) player.update(meta, buffer); else player = diffusionPlayer(root.querySelector(".stage"), meta, buffer);
    placeHandles();
    const calls = q.steps * (q.label !== null && q.w !== 0 && q.w !== 1 ? 2 : 1);
    status.textContent = `${N} points, ${q.steps} ${q.steps === 1 ? "step" : "steps"}, ${calls} ${calls === 1 ? "evaluation" : "evaluations"} each: ${Math.round(ms)} ms`;
    root.dataset.milliseconds = ms; root.dataset.revision = revision;
    // where the points end, for whoever wants to look
    root.points = panes.map((pane) => pane.xs.at(-1));
  }

  function changed() { cancelAnimationFrame(waiting); waiting = requestAnimationFrame(draw); }

  // ---- centres that can be dragged -------------------------------------------------------------------------------

  const layer = document.createElement("div");
  layer.className = "centres";
  const handles = mixture.stds.map((_, k) => {
    const handle = document.createElement("button");
    handle.type = "button";
    handle.onpointerdown = (event) => { handle.setPointerCapture(event.pointerId); event.preventDefault(); handle.focus(); };
    handle.onpointermove = (event) => {
      if (!handle.hasPointerCapture(event.pointerId)) return;
      const box = layer.getBoundingClientRect();
      move(k, VIEW * (2 * (event.clientX - box.left) / box.width - 1), VIEW * (1 - 2 * (event.clientY - box.top) / box.height));
    };
    handle.onkeydown = (event) => {
      const step = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, 0.1], ArrowDown: [0, -0.1] }[event.key];
      if (!step) return;
      event.preventDefault(); event.stopPropagation();
      move(k, mixture.means[2 * k] + step[0], mixture.means[2 * k + 1] + step[1]);
    };
    layer.append(handle);
    return handle;
  });

  const inside = (v) => Math.round(100 * Math.max(-VIEW + 0.1, Math.min(VIEW - 0.1, v))) / 100;

  function move(k, x, y) {
    mixture.means[2 * k] = inside(x); mixture.means[2 * k + 1] = inside(y);
    changed();
  }

  function placeHandles() {
    const pane = root.querySelector(".dc-canvas").parentElement;
    if (layer.parentElement !== pane) { pane.style.position = "relative"; pane.append(layer); }
    handles.forEach((handle, k) => {
      const [x, y] = [mixture.means[2 * k], mixture.means[2 * k + 1]];
      handle.style.left = `${50 * (1 + x / VIEW)}%`; handle.style.top = `${50 * (1 - y / VIEW)}%`;
      handle.setAttribute("aria-label", `centre ${k + 1} of label ${mixture.labels[k]}, at ${x.toFixed(2)}, ${y.toFixed(2)}; arrow keys move it`);
    });
  }

  // ---- beginning -------------------------------------------------------------------------------------------------

  for (const control of [path, sampler, steps, churn, label, guidance, behind, seed]) control.addEventListener("input", changed);
  root.querySelector(".again").addEventListener("click", () => { seed.value = Number(seed.value) + 1; changed(); });
  root.querySelector(".back").addEventListener("click", () => { mixture.means = [...original.means]; changed(); });
  const wanted = address.asked("centres")?.split(" ").map(Number) ?? [];
  if (wanted.length === mixture.means.length && wanted.every(Number.isFinite)) mixture.means = wanted.map(inside);
  root.hidden = false;
  draw();
})();

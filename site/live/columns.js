// The same noise in every column, carried to images in more and more steps.
(() => {
  const root = document.querySelector(".columns"), here = new URL(".", document.currentScript.src);
  if (!root) return;
  const COLUMNS = [1, 2, 4, 8, 16, 32], ROWS = 4, status = root.querySelector(".status"), go = root.querySelector(".go");
  const get = (name) => root.querySelector(`[name="${name}"]`), [label, sampler, guidance, seed] = ["label", "sampler", "guidance", "seed"].map(get);
  const grid = root.querySelector(".pictures"), canvases = COLUMNS.map(() => []);
  const address = addressed("columns", [label, sampler, guidance, seed]);
  let worker = null, id = 0, waiting = 0;

  for (const n of COLUMNS) grid.append(Object.assign(document.createElement("span"), { textContent: n === 1 ? "1 step" : n }));
  for (let i = 0; i < ROWS; i++) COLUMNS.forEach((n, k) => {
    const canvas = Object.assign(document.createElement("canvas"), { width: 32, height: 32 });
    canvas.setAttribute("role", "img"); canvas.setAttribute("aria-label", `image ${i + 1} in ${n} ${n === 1 ? "step" : "steps"}, not drawn yet`);
    canvases[k].push(canvas); grid.append(canvas);
  });

  const say = (text, state) => { status.textContent = text; root.dataset.state = state; root.setAttribute("aria-busy", state === "busy"); };
  const describe = () => { root.querySelector('[data-out="guidance"]').textContent = Number(guidance.value).toFixed(1); };

  function show(k, rgba) {
    canvases[k].forEach((canvas, i) => {
      canvas.getContext("2d").putImageData(new ImageData(rgba.slice(i * 4096, (i + 1) * 4096), 32, 32), 0, 0);
      canvas.setAttribute("aria-label", `${TABLES.labels[label.value]} ${i + 1} in ${COLUMNS[k]} ${COLUMNS[k] === 1 ? "step" : "steps"}`);
    });
  }

  // One column after the other: the answer to one question asks the next.
  function ask(k) {
    const mine = ++id;
    worker.onmessage = ({ data }) => {
      if (data.type === "loading") return say(`Fetching runtime and weights: ${(data.here / 1e6).toFixed(1)} of ${(data.total / 1e6).toFixed(1)} MB`, "busy");
      if (data.id !== mine) return;
      if (data.type === "failed") return say(`This did not work: ${data.why}`, "failed");
      show(k, data.rgba);
      if (data.type === "picture") return say(`${COLUMNS[k]} steps: ${data.step} done`, "busy");
      if (k + 1 < COLUMNS.length) ask(k + 1); else say("Every column began with the same noise.", "done");
    };
    worker.postMessage({ id: mine, model: "cifar10-latent", steps: COLUMNS[k], sampler: sampler.value, guidance: Number(guidance.value),
      labels: Array(ROWS).fill(Number(label.value)), seed: Number(seed.value) || 0, previews: 4 });
  }

  function draw() {
    worker ??= new Worker(new URL("worker.js", here));
    worker.onerror = (event) => { worker = null; say(`This did not work: ${event.message || "the worker did not start"}`, "failed"); };
    say("Drawing \u2026", "busy");
    ask(0);
  }

  const changed = () => { describe(); address.write(); clearTimeout(waiting); if (worker) waiting = setTimeout(draw, 150); };
  for (const control of [label, sampler, guidance, seed]) control.addEventListener("input", changed);
  root.querySelector(".again").addEventListener("click", () => { seed.value = Number(seed.value) + 1; changed(); });
  go.addEventListener("click", draw);
  describe();
  root.hidden = false;
  const able = TABLES.files["ort.mjs"] && location.protocol !== "file:" && typeof WebAssembly === "object";
  say(able ? "" : "Drawing images needs a server, and a site that was built with ONNX Runtime Web.", able ? "ready" : "unable");
  if (!able) root.querySelectorAll("select, input, button").forEach((node) => { node.disabled = true; });
})();

// The controls around worker.js: what is asked, and what is shown while it comes.
(() => {
  const root = document.querySelector(".draw"), here = new URL(".", document.currentScript.src);
  if (!root) return;
  const get = (name) => root.querySelector(`[name="${name}"]`), out = (name) => root.querySelector(`[data-out="${name}"]`);
  const [label, model, steps, guidance, sampler, seed] = ["label", "model", "steps", "guidance", "sampler", "seed"].map(get);
  const go = root.querySelector(".go"), bar = root.querySelector("progress"), status = root.querySelector(".status");
  const canvases = [...root.querySelectorAll("canvas")], names = [...root.querySelectorAll(".pictures span")];
  const N = TABLES.pictures, STUDENT = "few-step", loaded = new Set();
  const address = addressed("draw", [label, model, steps, guidance, sampler, seed]);
  let worker = null, asked = 0, waiting = 0, drawing = null;
  root.dataset.state = "ready";

  // ---- what a reader chooses -------------------------------------------------------------------------------------

  const labels = () => Array.from({ length: N }, (_, i) => label.value === "all" ? i % TABLES.labels.length : Number(label.value));
  const student = () => model.value === STUDENT;
  const count = () => TABLES.steps[steps.value];

  function missing() {
    const names = student() || model.value === "cifar10-latent" ? [model.value, "decoder"] : [model.value];
    const files = names.filter((name) => !loaded.has(name)).map((name) => `${name}.onnx`);
    if (!loaded.size) files.push("ort.wasm.gz");
    return files.reduce((sum, name) => sum + TABLES.files[name][1], 0);
  }

  function describe() {
    out("steps").textContent = count();
    steps.setAttribute("aria-valuetext", `${count()} steps`);
    out("guidance").textContent = student() ? "2, built in" : Number(guidance.value).toFixed(1);
    guidance.disabled = sampler.disabled = student() || root.dataset.state === "unable";
    if (student()) sampler.value = "euler";
    const bytes = missing();
    go.textContent = bytes ? `Draw (fetches ${Math.round(bytes / 1e6)} MB once)` : "Draw";
    root.querySelector(".hint").textContent = HINTS[student() ? STUDENT : sampler.value];
    labels().forEach((y, i) => { names[i].textContent = TABLES.labels[y]; });
  }

  const HINTS = {
    [STUDENT]: "The student was taught by the guided latent flow to reach the end of a path in one or two steps of Euler.",
    euler: "Euler follows the velocity in straight steps: one or two evaluations of the network each.",
    ddim: "On this model\u2019s straight path a step of DDIM is a step of Euler, so both draw the same images.",
    dpmpp_2m: "DPM-Solver++(2M) remembers the step before, and needs fewer steps for the same image.",
  };

  // ---- what is shown ---------------------------------------------------------------------------------------------

  function show(rgba, about) {
    const ys = labels();
    canvases.forEach((canvas, i) => {
      canvas.getContext("2d").putImageData(new ImageData(rgba.slice(i * 4096, (i + 1) * 4096), 32, 32), 0, 0);
      canvas.setAttribute("aria-label", `${TABLES.labels[ys[i]]}, ${about}`);
    });
  }

  function showNoise() {
    const z = normals(1)(N * 3072), rgba = new Uint8ClampedArray(N * 4096).fill(255);
    for (let i = 0; i < z.length; i++) rgba[Math.floor(i / 3) * 4 + i % 3] = 127.5 + 45 * z[i];
    show(rgba, "noise, before anything is drawn");
  }

  function say(text, state) { status.textContent = text; root.dataset.state = state; root.setAttribute("aria-busy", state === "busy"); }

  const seconds = (ms) => `${(ms / 1000).toFixed(ms < 9950 ? 2 : 0)} s`;

  function answered({ data }) {
    if (data.type === "loading") {
      bar.hidden = data.here >= data.total; bar.max = data.total; bar.value = data.here;
      return say(`Fetching runtime and weights: ${(data.here / 1e6).toFixed(1)} of ${(data.total / 1e6).toFixed(1)} MB`, "busy");
    }
    if (data.id !== asked) return;
    bar.hidden = true;
    if (data.type === "failed") { worker.terminate(); worker = null; loaded.clear(); describe(); return say(`This did not work: ${data.why}`, "failed"); }
    for (const name of student() ? [STUDENT, "decoder"] : [drawing.model, "decoder"]) loaded.add(name);
    const { steps: n, guidance: w } = drawing, calls = n * (w === 0 || w === 1 ? 1 : 2);
    const done = data.type === "done";
    show(data.rgba, done ? `drawn with seed ${drawing.seed}` : `predicted at step ${data.step} of ${n}`);
    root.dataset.seconds = data.ms / 1000;
    say(done ? `${N} images in ${seconds(data.ms)}: ${n} ${n === 1 ? "step" : "steps"}, ${calls} ${calls === 1 ? "evaluation" : "evaluations"} of the network for each`
      : `What the images would be, predicted at step ${data.step} of ${n}`, done ? "done" : "busy");
    if (done) describe();
  }

  function draw() {
    clearTimeout(waiting);
    if (!worker) {
      worker = new Worker(new URL("worker.js", here));
      worker.onmessage = answered;
      worker.onerror = (event) => answered({ data: { id: asked, type: "failed", why: event.message || "the worker did not start" } });
    }
    drawing = { id: ++asked, model: model.value, steps: count(), sampler: sampler.value, guidance: student() ? 1 : Number(guidance.value),
      labels: labels(), seed: Math.max(0, Math.floor(Number(seed.value) || 0)) };
    say("Drawing \u2026", "busy");
    worker.postMessage(drawing);
  }

  // A control that moves draws again, unless that would fetch something: for that the button is pressed.
  function changed() {
    describe();
    address.write();
    clearTimeout(waiting);
    if (worker && !missing()) waiting = setTimeout(draw, 120);
  }

  // ---- where it cannot be ----------------------------------------------------------------------------------------

  function hindrance() {
    if (location.protocol === "file:") return "Drawing needs a server, for a page that was opened as a file may not fetch others: `python -m http.server` in this folder is one.";
    if (typeof WebAssembly !== "object") return "Drawing needs WebAssembly, which this browser lacks or has switched off.";
    if (typeof Worker !== "function" || typeof DecompressionStream !== "function") return "Drawing needs a browser of 2023 or later.";
    return "";
  }

  root.hidden = false;
  model.addEventListener("change", () => {
    steps.value = TABLES.steps.indexOf(student() ? 2 : 10);
    if (!student()) sampler.value = "dpmpp_2m";
    changed();
  });
  for (const control of [label, steps, guidance, sampler, seed]) control.addEventListener("input", changed);
  root.querySelector(".again").addEventListener("click", () => { seed.value = Number(seed.value) + 1; changed(); if (root.dataset.state !== "busy") draw(); });
  go.addEventListener("click", draw);
  describe();
  showNoise();
  const why = hindrance();
  if (why) { root.querySelectorAll("select, input, button").forEach((node) => { node.disabled = true; }); say(why, "unable"); }
})();

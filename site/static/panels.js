// Panels of the lessons: each shows what was computed ahead, for the settings that its controls snap to.
(() => {
const held = {}, waiting = {};

function element(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// Results come as scripts, because a page that was opened as a file may not fetch others.
function load(id, address) {
  held[id] ??= new Promise((resolve, reject) => {
    waiting[id] = resolve;
    const script = element("script", { src: address });
    script.onerror = () => reject(new Error(`${address} could not be loaded`));
    document.head.append(script);
  });
  return held[id];
}
window.dcPanels = { take(id, data) { data.bytes = []; data.addresses = []; waiting[id]?.(data); } };

const decoded = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

function picture(data, k, kind) {
  return data.addresses[k] ??= URL.createObjectURL(new Blob([decoded(data.blobs[k])], { type: `image/${kind}` }));
}

function inflated(data, k) {
  return data.bytes[k] ??= new Response(
    new Blob([decoded(data.blobs[k])]).stream().pipeThrough(new DecompressionStream("deflate"))).arrayBuffer();
}

// Steps in time, low bytes before high ones, back to positions.
function positions(bytes, shape) {
  const n = bytes.length / 2, row = n / shape[0], out = new Int16Array(n);
  for (let i = 0; i < n; i++) {
    const step = ((bytes[i] | (bytes[n + i] << 8)) << 16) >> 16;
    out[i] = i < row ? step * 16 : out[i - row] + step * 16;
  }
  return new Uint8Array(out.buffer);
}

async function scene(data, packed) {
  const meta = structuredClone(packed), chunks = [];
  let size = 0;
  for (const pane of meta.panes) {
    for (const name of ["paths", "ids", "density", "field", "targets"]) {
      const array = pane[name];
      if (!array) continue;
      const raw = new Uint8Array(await inflated(data, array.blob));
      const bytes = name === "paths" ? positions(raw, array.shape) : raw;
      array.at = size;
      chunks.push([size, bytes]);
      size += bytes.length + (-bytes.length & 3);
    }
  }
  const buffer = new Uint8Array(size);
  for (const [at, bytes] of chunks) buffer.set(bytes, at);
  return [meta, buffer.buffer];
}

// A part of the same kind keeps its place; only what it shows changes.
const makers = {
  text: () => { const node = element("div", { class: "ahead-text" }); return { node, show: (_, text) => () => { node.innerHTML = text; } }; },
  image: () => {
    const node = element("img", { class: "ahead-image" });
    return { node, async show(data, k, width, height, kind, words) {
      const next = new Image();
      next.src = picture(data, k, kind);
      await next.decode();
      return () => { Object.assign(node, { width, height, alt: words, src: next.src }); };
    } };
  },
  scene: () => {
    const node = element("div", { class: "ahead-scene" });
    let player = null;
    return { node, async show(data, _words, packed) {
      const [meta, buffer] = await scene(data, packed);
      return () => { if (player) player.update(meta, buffer); else player = window.diffusionPlayer(node, meta, buffer); };
    }, close() { player?.dispose(); } };
  },
};

class Panel {
  constructor(root) {
    this.root = root;
    this.entry = JSON.parse(root.querySelector("script").textContent);
    this.setting = this.entry.controls.map((control) => control.start);
    this.parts = [];
    this.views = root.querySelector(".ahead-parts");
    this.note = element("span", { class: "ahead-note", role: "status" });
    const reset = element("button", { type: "button", class: "ahead-reset" }, "Reset");
    reset.onclick = () => { this.setting = this.entry.controls.map((c) => c.start); this.note.textContent = ""; this.changed(); };
    const row = element("div", { class: "ahead-controls" });
    this.controls = this.entry.controls.map((control, k) => {
      const made = this.control(control, k);
      row.append(made.node);
      return made;
    });
    root.prepend(row);
    root.append(element("div", { class: "ahead-foot" }, reset, this.note));
    this.reflect();
  }

  control(control, k) {
    const id = `${this.root.dataset.panel}-${k}`, last = control.values.length - 1;
    const label = element("label", { for: id }, control.label);
    const back = () => this.move(k, control.start);
    if (control.kind === "toggle") {
      const input = element("input", { type: "checkbox", id });
      input.onchange = () => this.move(k, +input.checked);
      return { node: element("div", { class: "ahead-control" }, label, input), show: (at) => { input.checked = at === 1; } };
    }
    if (control.kind === "choice") {
      const options = control.shown.map((name, at) => element("option", { value: at }, name));
      const input = element("select", { id }, ...options);
      input.onchange = () => this.move(k, +input.value);
      return { node: element("div", { class: "ahead-control" }, label, input), show: (at) => { input.value = at; } };
    }
    const ticks = element("datalist", { id: `${id}-ticks` }, ...control.values.map((_, at) => element("option", { value: at })));
    const input = element("input", { type: "range", id, min: 0, max: last, step: 1, list: ticks.id });
    const shown = element("output", { for: id });
    input.title = `${control.shown[0]} to ${control.shown[last]}; a double-click goes back to ${control.shown[control.start]}`;
    input.oninput = () => this.move(k, +input.value);
    input.ondblclick = back;
    return { node: element("div", { class: "ahead-control" }, label, input, ticks, shown), show: (at) => {
      input.value = at;
      input.setAttribute("aria-valuetext", control.shown[at]);
      shown.textContent = control.shown[at];
    } };
  }

  reflect() { this.controls.forEach((control, k) => control.show(this.setting[k])); }

  async move(k, at) {
    this.setting = this.setting.with(k, at);
    this.note.textContent = "";
    this.reflect();
    const data = await this.data();
    if (this.setting.join() in data.results || this.setting[k] !== at) return this.changed();
    // Not every combination was computed: go to the nearest that has the value asked for, and say so.
    const far = (s) => s.reduce((sum, v, j) => sum + (v !== this.setting[j]) * 100 + Math.abs(v - this.setting[j]), 0);
    const known = Object.keys(data.results).map((key) => key.split(",").map(Number)).filter((s) => s[k] === at);
    const near = known.reduce((best, s) => (far(s) < far(best) ? s : best));
    const moved = this.entry.controls.filter((_, j) => near[j] !== this.setting[j]).map((control) => control.label);
    this.setting = near;
    this.note.textContent = `Computed ahead for some combinations only: ${moved.join(", ")} moved too.`;
    this.changed();
  }

  data() { return load(this.root.dataset.panel, this.root.dataset.source); }

  async changed() {
    this.reflect();
    const key = this.setting.join();
    this.root.setAttribute("aria-busy", "true");
    try {
      const data = await this.data(), parts = data.results[key];
      const kinds = parts.map((part) => part[0]).join();
      const same = kinds === this.kinds, next = same ? this.parts : parts.map((part) => makers[part[0]]());
      const words = this.entry.controls.map((c, k) => `${c.label} = ${c.shown[this.setting[k]]}`).join(", ");
      const shows = await Promise.all(parts.map(([kind, ...rest], k) => next[k].show(data, ...rest, ...(kind === "image" ? [words] : []))));
      if (key !== this.setting.join()) return;  // moved on meanwhile
      if (!same) {
        this.parts.forEach((part) => part.close?.());
        this.views.replaceChildren(...next.map((part) => part.node));
        this.parts = next;
        this.kinds = kinds;
      }
      shows.forEach((show) => show());
      this.root.dataset.setting = key;
      this.root.removeAttribute("aria-busy");
    } catch (error) {
      this.note.textContent = `${error.message}.`;
      this.root.removeAttribute("aria-busy");
    }
  }
}

const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    panels.get(target).changed();
  }
}, { rootMargin: "400px" });
const panels = new Map();
document.querySelectorAll(".ahead").forEach((root) => { panels.set(root, new Panel(root)); near.observe(root); });
})();

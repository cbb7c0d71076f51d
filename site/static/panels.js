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
    script.onerror = () => { delete held[id]; reject(new Error(`${address} could not be loaded`)); };
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

// The page's address names what was moved, as "panel.control=value", so that a link shows what its sender saw.
const later = {};
function remember(root, moved) {
  const id = root.dataset.panel;
  clearTimeout(later[id]);
  later[id] = setTimeout(() => {
    const address = new URL(location.href), asked = address.searchParams;
    for (const name of [...asked.keys()]) if (name.startsWith(`${id}.`)) asked.delete(name);
    for (const [name, value] of moved) asked.set(`${id}.${name}`, value);
    if (moved.length) address.hash = root.id; else if (address.hash === `#${root.id}`) address.hash = "";
    try { history.replaceState(history.state, "", address); } catch { /* some browsers refuse it in files */ }
  }, 250);
}

function remembered(id, controls) {
  const asked = new URLSearchParams(location.search);
  return controls.map((control) => {
    const at = control.shown.indexOf(asked.get(`${id}.${control.name}`));
    return at < 0 ? control.start : at;
  });
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
    this.starts = this.entry.controls.map((control) => control.start);
    this.setting = this.starts;
    this.parts = [];
    this.views = root.querySelector(".ahead-parts");
    this.kept = element("figure", { class: "ahead-kept" });
    this.kept.hidden = true;
    const both = element("div", { class: "ahead-both" });
    this.views.replaceWith(both);
    both.append(this.views, this.kept);
    this.note = element("span", { class: "ahead-note", role: "status" });
    this.fault = element("span", { class: "ahead-fault", role: "alert" });
    const reset = element("button", { type: "button", class: "ahead-reset" }, "Reset");
    reset.onclick = () => { this.setting = this.starts; this.note.textContent = ""; this.changed(); };
    this.keeping = element("button", { type: "button", class: "ahead-keep", title: "Keep what is shown, to compare it with what comes" }, "Keep");
    this.keeping.onclick = () => this.keep();
    const row = element("div", { class: "ahead-controls" });
    this.controls = this.entry.controls.map((control, k) => {
      const made = this.control(control, k);
      row.append(made.node);
      return made;
    });
    root.prepend(row);
    root.append(element("div", { class: "ahead-foot" }, reset, this.keeping, this.note, this.fault));
    this.reflect();
  }

  // At first: what the page's address asks for, where it was computed or near it.
  async begin() {
    const asked = remembered(this.root.dataset.panel, this.entry.controls);
    if (asked.join() !== this.starts.join()) await this.go(asked, asked.findIndex((at, k) => at !== this.starts[k]));
    else await this.changed();
  }

  control(control, k) {
    const id = `${this.root.dataset.panel}-${k}`, last = control.values.length - 1;
    const label = element("label", { for: id }, control.label), help = element("span", { class: "ahead-help", id: `${id}-help`, role: "tooltip" });
    const node = element("div", { class: "ahead-control" }, label), back = () => { if (!node.classList.contains("ahead-off")) this.move(k, control.start); };
    label.ondblclick = back;
    // Where it makes no difference it is greyed, and says so.
    const grey = (input, off) => {
      node.classList.toggle("ahead-off", off);
      input.disabled = off;
      help.textContent = [control.help, off && "Makes no difference at these settings."].filter(Boolean).join(" ");
      if (help.textContent) input.setAttribute("aria-describedby", help.id); else input.removeAttribute("aria-describedby");
    };
    if (control.kind === "toggle") {
      const input = element("input", { type: "checkbox", id });
      input.onchange = () => this.move(k, +input.checked);
      node.append(input, help);
      return { node, show: (at, off) => { input.checked = at === 1; grey(input, off); } };
    }
    if (control.kind === "choice") {
      const options = control.shown.map((name, at) => element("option", { value: at }, name));
      const input = element("select", { id }, ...options);
      input.onchange = () => this.move(k, +input.value);
      node.append(input, help);
      return { node, show: (at, off) => { input.value = at; grey(input, off); } };
    }
    const ticks = element("datalist", { id: `${id}-ticks` }, ...control.values.map((_, at) => element("option", { value: at })));
    const input = element("input", { type: "range", id, min: 0, max: last, step: 1, list: ticks.id });
    const shown = element("output", { for: id }), mark = element("span", { class: "ahead-default", style: `--at: ${control.start / last}` });
    input.title = `${control.shown[0]} to ${control.shown[last]}; a double-click goes back to ${control.shown[control.start]}`;
    input.oninput = () => this.move(k, +input.value);
    input.ondblclick = back;
    node.append(element("span", { class: "ahead-track" }, mark, input), ticks, shown, help);
    return { node, show: (at, off) => {
      input.value = at;
      grey(input, off);
      input.setAttribute("aria-valuetext", control.shown[at]);
      shown.textContent = control.shown[at];
    } };
  }

  off(setting) { return this.entry.off?.[setting.join()] ?? []; }

  reflect() {
    const off = this.off(this.setting);
    this.controls.forEach((control, k) => control.show(this.setting[k], off.includes(k)));
  }

  // The values of the controls that make a difference.
  words() {
    const off = this.off(this.setting), all = this.entry.controls.map((c, k) => `${c.label} = ${c.shown[this.setting[k]]}`);
    return all.filter((_, k) => !off.includes(k)).join(", ");
  }

  move(k, at) { return this.go(this.setting.with(k, at), k); }

  // To a setting; `k` is the control that is to have its value there.
  async go(setting, k) {
    this.setting = setting;
    this.note.textContent = "";
    this.reflect();
    let data = null;
    try { data = await this.data(); } catch { return this.changed(); }
    if (setting.join() in data.results || this.setting !== setting) return this.changed();
    // Not every combination was computed: go to the nearest that has the value asked for, and say so.
    const far = (s) => s.reduce((sum, v, j) => sum + (v !== setting[j]) * 100 + Math.abs(v - setting[j]), 0);
    const known = Object.keys(data.results).map((key) => key.split(",").map(Number)).filter((s) => s[k] === setting[k]);
    this.setting = known.reduce((best, s) => (far(s) < far(best) ? s : best));
    const off = this.off(this.setting);
    const moved = this.entry.controls.filter((_, j) => this.setting[j] !== setting[j] && !off.includes(j)).map((control) => control.label);
    if (moved.length) this.note.textContent = `Computed ahead for some combinations only: ${moved.join(", ")} moved too.`;
    return this.changed();
  }

  // A copy of what is shown stays beside what comes; a player's is a still.
  keep() {
    const copy = this.views.cloneNode(true), drawn = this.views.querySelectorAll("canvas");
    copy.querySelectorAll("canvas").forEach((canvas, k) => canvas.replaceWith(element("img", {
      class: "ahead-image", src: drawn[k].toDataURL(), width: drawn[k].clientWidth, height: drawn[k].clientHeight, alt: drawn[k].ariaLabel ?? "" })));
    copy.querySelectorAll(".dc-bar").forEach((bar) => bar.replaceWith(bar.querySelector(".dc-clock")));
    copy.querySelectorAll("[tabindex]").forEach((node) => node.removeAttribute("tabindex"));
    const close = element("button", { type: "button", class: "ahead-close" }, "Close");
    close.onclick = () => { this.kept.hidden = true; this.kept.replaceChildren(); this.keeping.focus(); };
    this.kept.replaceChildren(copy, element("figcaption", {}, `Kept: ${this.words()} `, close));
    this.kept.hidden = false;
  }

  data() { return load(this.root.dataset.panel, this.root.dataset.source); }

  async changed() {
    this.reflect();
    const key = this.setting.join();
    this.root.setAttribute("aria-busy", "true");
    try {
      const data = await this.data(), parts = data.results[key];
      const kinds = parts.map((part) => part[0]).join();
      const same = kinds === this.kinds, next = same ? this.parts : parts.map((part) => makers[part[0]]()), words = this.words();
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
      this.failed("");
      const moved = this.entry.controls.map((c, k) => [c.name, c.shown[this.setting[k]], this.setting[k] !== c.start]);
      remember(this.root, moved.filter(([, , differs]) => differs));
    } catch (error) {
      if (key === this.setting.join()) this.failed(`${error.message}.`);
    }
  }

  // What is seen is not of these values until the next result.
  failed(why) {
    this.fault.textContent = why;
    this.root.classList.toggle("ahead-old", why !== "");
    this.root.removeAttribute("aria-busy");
  }
}

const near = new IntersectionObserver((entries) => {
  for (const { isIntersecting, target } of entries) {
    if (!isIntersecting) continue;
    near.unobserve(target);
    panels.get(target).begin();
  }
}, { rootMargin: "400px" });
const panels = new Map();
document.querySelectorAll(".ahead").forEach((root) => { panels.set(root, new Panel(root)); near.observe(root); });
})();

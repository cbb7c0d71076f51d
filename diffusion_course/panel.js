// What a panel needs beside its widgets, run by anywidget in a live notebook: names and help for screen readers and keyboards,
// a mark at each slider's first value, a grid, and signs for "busy" and "not of these values". It needs no library and no network.

const CSS = `
.dc-panel { --dc-blue: #0072b2; --dc-on-blue: #fff; --dc-plate: #eceff1; --dc-ink: #212529; --dc-line: #aeb4ba; --dc-label: 6em; max-width: 100%; box-sizing: border-box; }
[data-jp-theme-light="false"] .dc-panel, .vscode-dark .dc-panel, html[theme="dark"] .dc-panel {
  --dc-blue: #56b4e9; --dc-on-blue: #111; --dc-plate: #3a3f44; --dc-ink: #f1f3f5; --dc-line: #868e96; }
.dc-panel, .dc-panel .dc-head, .dc-panel .dc-controls, .dc-panel .dc-controls > *, .dc-panel .dc-pictures { overflow: visible; }
.dc-panel .dc-head { display: flex; flex-flow: row wrap; align-items: flex-end; gap: 0 12px; margin: 0; width: 100%;
  max-width: calc(2 * var(--dc-label) + 720px); }
.dc-panel .dc-controls { flex: 1 1 0; min-width: min(100%, 260px); display: grid; gap: 0 24px; margin: 0;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, calc(var(--dc-label) + 300px)), max-content)); }
.dc-panel .dc-controls > * { position: relative; display: grid; grid-template-columns: var(--dc-label) minmax(90px, 1fr) 56px;
  align-items: center; width: auto !important; min-width: 0; min-height: 30px; height: auto; margin: 0; }
.dc-panel .dc-controls .widget-label { width: auto; max-width: 100%; margin: 0 8px 0 0; padding: 0; text-align: left; white-space: normal;
  line-height: 1.2; height: auto; color: var(--dc-ink); overflow: visible; }
.dc-panel .dc-controls .slider-container { margin: 0 12px; min-width: 0; }
.dc-panel .dc-controls .widget-readout { min-width: 0; max-width: none; margin: 0; padding: 0 2px; text-align: right; color: var(--dc-ink);
  font-variant-numeric: tabular-nums; }
.dc-panel .dc-controls .widget-checkbox { grid-template-columns: 1fr; padding-left: calc(var(--dc-label) + 2px); }
.dc-panel .dc-controls .widget-checkbox .widget-label-basic { width: auto; display: flex; align-items: center; gap: 6px; color: var(--dc-ink); }
.dc-panel .dc-controls .widget-checkbox input { flex: none; width: 18px; height: 18px; margin: 3px; accent-color: var(--dc-blue); }
.dc-panel .dc-controls .widget-toggle-buttons, .dc-panel .dc-controls .widget-dropdown select, .dc-panel .dc-controls .widget-combobox input { grid-column: 2 / -1; width: auto; margin: 0; min-width: 0; }
.dc-panel .dc-controls .widget-toggle-buttons { display: block; height: auto; overflow: visible; }
.dc-panel .dc-controls .widget-toggle-buttons > div { display: flex; flex-wrap: wrap; gap: 2px; }
.dc-panel .widget-toggle-button { margin: 1px; padding: 0 9px; color: var(--dc-ink); background: var(--dc-plate); border: 1px solid var(--dc-line); box-shadow: none; }
.dc-panel .widget-toggle-button.mod-active { color: var(--dc-on-blue); background: var(--dc-blue); border-color: var(--dc-blue); font-weight: 600; box-shadow: none; }
.dc-panel .widget-dropdown select, .dc-panel .widget-combobox input { color: var(--dc-ink); border-color: var(--dc-line); }

.dc-panel .noUi-target { --jp-widgets-slider-handle-size: 24px; background: var(--dc-line); border-color: var(--dc-line); border-radius: 2px; }
.dc-panel .noUi-connect { background: var(--dc-blue); }
.dc-panel .noUi-handle, .dc-panel .noUi-target:not([disabled]) .noUi-handle:hover { background: none; border: none; cursor: grab; }
.dc-panel .noUi-handle::before { content: "" !important; display: block !important; position: absolute; inset: 4px; left: 4px; top: 4px; width: 16px; height: 16px;
  box-sizing: border-box; border-radius: 50%; background: var(--dc-blue); border: 2px solid var(--jp-layout-color0, #fff); box-shadow: 0 0 0 1px var(--dc-blue); }
.dc-panel .noUi-handle:focus-visible::before { box-shadow: 0 0 0 3px var(--dc-blue); }
.dc-panel .dc-default { position: absolute; top: -3px; width: 2px; height: 10px; margin-left: -1px; background: var(--dc-ink); opacity: 0.55; pointer-events: none; }
.dc-panel .dc-off > :not(.dc-help) { opacity: 0.42; }
.dc-panel .dc-off .noUi-handle { cursor: not-allowed; }
.dc-panel .dc-help { display: none; position: absolute; z-index: 20; left: 0; top: 100%; max-width: 340px; padding: 4px 8px; pointer-events: none; border-radius: 4px;
  font-size: 12px; line-height: 1.35; color: #fff; background: #343a40; box-shadow: 0 2px 8px rgba(0, 0, 0, 0.35); }
.dc-panel .widget-label:hover ~ .dc-help, .dc-panel .dc-controls > .widget-checkbox:hover > .dc-help,
.dc-panel .dc-controls > :has(:focus-visible) > .dc-help { display: block; }
.dc-panel .dc-controls > * > .dc-help:empty { display: none; }
.dc-panel .dc-reset { width: auto; margin: 2px; padding: 0 10px; color: var(--dc-ink); background: transparent; border: 1px solid var(--dc-line); box-shadow: none; }
.dc-panel .dc-reset:disabled { opacity: 0.42; }
.dc-panel button:focus-visible, .dc-panel select:focus-visible, .dc-panel input:focus-visible { outline: 2px solid var(--dc-blue); outline-offset: 1px; }

.dc-panel .dc-pictures { position: relative; margin: 4px 0 0; gap: 0; }
.dc-panel .dc-pictures > * { transition: opacity 0.1s; }
.dc-panel .dc-picture { margin: 0; min-width: 0; height: auto; background: #fff; }
[data-jp-theme-light="false"] .dc-panel .dc-picture, .vscode-dark .dc-panel .dc-picture, html[theme="dark"] .dc-panel .dc-picture {
  background: #e9ebee; filter: brightness(0.92); }
.dc-panel .dc-text { color: var(--jp-content-font-color1, var(--dc-ink)); flex: 0 1 auto; min-width: 0; height: auto; overflow: visible; }
.dc-panel.dc-old .dc-pictures > * { opacity: 0.45; }
.dc-panel.dc-old.dc-busy .dc-pictures > * { transition-delay: 0.15s; }
.dc-panel .dc-pictures::before { content: ""; position: absolute; z-index: 5; left: 0; top: 0; width: 100%; height: 3px; opacity: 0; pointer-events: none;
  background: linear-gradient(90deg, transparent, var(--dc-blue), transparent) 0 0 / 40% 100% repeat-x; }
.dc-panel.dc-busy .dc-pictures::before { opacity: 1; transition: opacity 0s 0.15s; animation: dc-run 1.1s linear infinite; }
@keyframes dc-run { to { background-position-x: 166.7%; } }
@media (prefers-reduced-motion: reduce) { .dc-panel.dc-busy .dc-pictures::before { animation: none; background: var(--dc-blue); } }
.dc-panel .dc-message { min-height: 28px; height: auto; margin: 0; overflow: visible; }
`;

let count = 0;  // of bubbles with help, which need names

function set(node, name, value) {
  if (node && node.getAttribute(name) !== value) node.setAttribute(name, value);
}

// A control's name, help, first value and whether it makes a difference, on the elements that ipywidgets has made.
function dressControl(row, about, panel) {
  const handle = row.querySelector(".noUi-handle"), track = row.querySelector(".noUi-base"), readout = row.querySelector(".widget-readout");
  const buttons = row.querySelectorAll(".widget-toggle-button"), field = row.querySelector("select, input[type=checkbox], .widget-combobox input"), label = row.querySelector(".widget-label");
  const off = panel.dataset.off?.split(" ").includes(about.key) ?? false;
  row.classList.toggle("dc-off", off);
  let bubble = row.querySelector(".dc-help");
  if (!bubble) {
    bubble = document.createElement("div");
    Object.assign(bubble, { className: "dc-help", id: `dc-help-${++count}` });
    set(bubble, "role", "tooltip");
    row.append(bubble);
  }
  const help = [about.help, off && "Makes no difference at these settings."].filter(Boolean).join(" ");
  if (bubble.textContent !== help) bubble.textContent = help;
  if (label) set(label, "title", "");
  const main = handle ?? field ?? row.querySelector(".widget-toggle-buttons");
  set(main, "aria-label", about.name);
  if (help) set(main, "aria-describedby", bubble.id); else main?.removeAttribute("aria-describedby");
  if (handle) {
    set(handle, "aria-valuetext", readout?.textContent ?? "");
    if (readout?.isContentEditable) { set(readout, "role", "textbox"); set(readout, "aria-label", `${about.name}, typed`); }
    if (about.mark !== null && track && !track.querySelector(".dc-default")) {
      const mark = document.createElement("span");
      mark.className = "dc-default"; mark.style.left = `${100 * about.mark}%`;
      track.prepend(mark);
    }
  }
  if (buttons.length) { set(main, "role", "group"); buttons.forEach((b) => { set(b, "aria-pressed", String(b.classList.contains("mod-active"))); set(b, "title", ""); }); }
}

// The column of names is as wide as the longest of them.
function measure(panel, rows) {
  const names = rows.map((row) => row.querySelector(".widget-label")).filter((label) => label?.parentElement.offsetWidth);
  if (!names.length || panel.dcMeasured === names.length) return;
  const range = document.createRange(), width = (label) => { range.selectNodeContents(label); return range.getBoundingClientRect().width; };
  panel.style.setProperty("--dc-label", "180px");  // room for each on one line, while they are measured
  panel.style.setProperty("--dc-label", `${Math.ceil(Math.min(180, Math.max(40, ...names.map(width)) + 10))}px`);
  panel.dcMeasured = names.length;
}

function dress(panel, model) {
  const rows = [...(panel.querySelector(".dc-controls")?.children ?? [])], controls = model.get("controls");
  panel.dataset.off = model.get("off").join(" ");
  rows.forEach((row, k) => controls[k] && dressControl(row, controls[k], panel));
  measure(panel, rows);
  panel.querySelectorAll("img.dc-picture").forEach((img, k) => set(img, "alt", model.get("alts")[k] ?? ""));
  set(panel, "aria-busy", String(panel.classList.contains("dc-busy")));
  set(panel, "role", "group"); set(panel, "data-lm-suppress-shortcuts", "true");
}

function render({ model, el }) {
  let watch = null, panel = null;
  const again = () => panel && dress(panel, model);
  const twice = (event) => {
    const row = event.target.closest(".dc-controls > *"), at = [...(row?.parentElement.children ?? [])].indexOf(row);
    if (!row || row.classList.contains("dc-off") || event.target.closest(".widget-readout")) return;
    // A slider anywhere; elsewhere two clicks choose twice, and the name is what stands for the control.
    if (row.querySelector(".noUi-handle") || event.target.closest(".widget-label, .widget-label-basic")) model.send({ reset: at });
  };
  const start = (tries) => {
    panel = el.closest(".dc-panel");
    if (!panel) return void (tries && setTimeout(start, 40, tries - 1));
    const style = document.createElement("style");
    style.textContent = CSS;
    el.append(style);
    const ours = (node) => !(node.nodeType === 1 ? node : node.parentElement)?.closest(".dc-player");
    watch = new MutationObserver((changes) => { if (changes.some((c) => ours(c.target))) again(); });
    watch.observe(panel, { subtree: true, childList: true, characterData: true, attributes: true, attributeFilter: ["class", "disabled", "aria-valuetext"] });
    panel.addEventListener("dblclick", twice);
    model.on("change:controls change:off change:alts", again);
    again();
  };
  start(250);
  return () => { watch?.disconnect(); panel?.removeEventListener("dblclick", twice); model.off("change:controls change:off change:alts", again); };
}

export default { render };

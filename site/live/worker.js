// Draws images beside the page: fetches runtime and networks when they are first wanted, keeps them, and samples.
//
// Asked { id, model, steps, sampler, guidance, labels, seed } it answers with messages of the same id: "loading"
// (bytes), "picture" (what the images would be, after a step), "done", or "failed". A later question ends an earlier one.
// Once it has drawn it starts further workers of this file, which take their share of each batch: plain hosts don't send
// the headers that threads need. They take networks out of the browser's store, so without a store there are none.
importScripts("tables.js", "core.js");

const LATENT = ["few-step", "cifar10-latent"], KEPT = "diffusion-course";
const NONE = TABLES.labels.length;  // the label that says "no label"
const sessions = new Map();
let runtime = null, latest = 0, shares = 1;  // workers that took part in the last evaluation

// ---- what is fetched ---------------------------------------------------------------------------------------------

// A file, out of the browser's store where it has been fetched before. Its address tells its contents.
async function fetched(name, count) {
  const [version, size] = TABLES.files[name], address = new URL(`${name}?v=${version}`, location).href;
  const store = await self.caches?.open(KEPT).catch(() => null), found = await store?.match(address);
  if (found) { count(size); return found.arrayBuffer(); }
  const response = await fetch(address);
  if (!response.ok) throw new Error(`${name}: the server answered ${response.status}`);
  const parts = [], reader = response.body.getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value); count(value.length);
  }
  const blob = new Blob(parts);
  if (store) await keep(store, address, name, blob);
  return blob.arrayBuffer();
}

// Older versions of the file go. A store that is full or forbidden is done without.
async function keep(store, address, name, blob) {
  try {
    const path = new URL(name, location).pathname;
    for (const request of await store.keys()) if (new URL(request.url).pathname === path) await store.delete(request);
    await store.put(address, new Response(blob));
  } catch { /* the next visit fetches it again */ }
}

async function unpacked(buffer) {
  const [a, b] = new Uint8Array(buffer, 0, 2);
  if (a !== 0x1f || b !== 0x8b) return buffer;  // a server may have told the browser to unpack it
  return new Response(new Blob([buffer]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();
}

const needed = (model) => LATENT.includes(model) ? [model, "decoder"] : [model];

// Everything a model needs, fetched side by side; `say` is told how many bytes of how many are here.
async function prepare(model, say) {
  const noise = `${model === "cifar10" ? 3 : 4}.noise`, missing = needed(model).filter((name) => !sessions.has(name));
  const names = [...missing.map((name) => `${name}.onnx`), ...runtime ? [] : ["ort.wasm.gz"], ...sessions.has(noise) ? [] : [noise]];
  const total = names.reduce((sum, name) => sum + TABLES.files[name][1], 0);
  let here = 0;
  const count = (bytes) => say((here += bytes), total), buffers = {};
  await Promise.all(names.map(async (name) => {
    buffers[name] = await fetched(name, count);
    if (name === "ort.wasm.gz") runtime = await start(buffers[name]);  // while weights are still on their way
  }));
  for (const name of missing) sessions.set(name, await runtime.InferenceSession.create(new Uint8Array(buffers[`${name}.onnx`])));
  if (buffers[noise]) sessions.set(noise, new Float32Array(buffers[noise]));
  return sessions.get(noise);
}

async function start(binary) {
  const version = TABLES.files["ort.mjs"][0], ort = await import(new URL(`ort.mjs?v=${version}`, location).href);
  ort.env.wasm.numThreads = 1;
  ort.env.wasm.wasmBinary = await unpacked(binary);
  return ort;
}

// ---- sampling ----------------------------------------------------------------------------------------------------

async function alone(name, inputs) {
  const feeds = Object.fromEntries(Object.entries(inputs).map(([key, [type, data, dims]]) => [key, new runtime.Tensor(type, data, dims)]));
  return (await sessions.get(name).run(feeds)).out.data;
}

// A network's answer to a batch, of which each helper that has the network takes a part.
async function run(name, inputs) {
  const entries = Object.entries(inputs), B = entries[0][1][2][0], able = helpers.filter((helper) => helper.nets.has(name)).slice(0, Math.max(0, B - 1));
  shares = able.length + 1;
  if (shares === 1) return alone(name, inputs);
  const cuts = Array.from({ length: shares + 1 }, (_, k) => Math.round(B * k / shares));
  const part = (k) => Object.fromEntries(entries.map(([key, [type, data, dims]]) => {
    const each = data.length / B;
    return [key, [type, data.slice(cuts[k] * each, cuts[k + 1] * each), [cuts[k + 1] - cuts[k], ...dims.slice(1)]]];
  }));
  const answers = await Promise.all([...able.map((helper, k) => helper.ask({ name, inputs: part(k + 1) }).catch(() => alone(name, part(k + 1)))), alone(name, part(0))]);
  const all = [answers.pop(), ...answers], out = new Float32Array(all.reduce((sum, a) => sum + a.length, 0));
  all.reduce((place, a) => { out.set(a, place); return place + a.length; }, 0);
  return out;
}

// ---- helpers -----------------------------------------------------------------------------------------------------

const HELPS = self.name === "helper", MOST = HELPS || !self.caches || !self.Worker ? 0 : Math.min(4, navigator.hardwareConcurrency || 1) - 1;
const helpers = [];

function helper() {
  const worker = new Worker(location.href, { name: "helper" }), asked = new Map(), nets = new Set();
  let tickets = 0;
  const ask = (what) => new Promise((resolve, reject) => { asked.set(++tickets, [resolve, reject]); worker.postMessage({ ...what, ticket: tickets }); });
  const leave = () => { nets.clear(); for (const [, reject] of asked.values()) reject(new Error("a helper left")); };
  worker.onmessage = ({ data: { ticket, out, why } }) => {
    const [resolve, reject] = asked.get(ticket);
    asked.delete(ticket);
    if (why) reject(new Error(why)); else resolve(out);
  };
  worker.onerror = leave;
  return { nets, ask };
}

// Helpers learn the networks of a model that has just drawn.
function enlist(model) {
  while (helpers.length < MOST) helpers.push(helper());
  for (const { nets, ask } of helpers) if (!nets.has(model)) ask({ model }).then((names) => names.forEach((name) => nets.add(name)), () => {});
}

// A helper's answer: which networks it has for a model now, or what one of them says.
async function help({ ticket, model, name, inputs }) {
  try {
    if (model) await prepare(model, () => {});
    self.postMessage({ ticket, out: model ? needed(model) : await alone(name, inputs) });
  } catch (error) { self.postMessage({ ticket, why: String(error.message ?? error) }); }
}

// ---- drawing -----------------------------------------------------------------------------------------------------

// A network of images as a model; with guidance both labels go through it in one batch.
function pictured(name, labels, w) {
  const shape = name === "cifar10" ? [3, 32, 32] : [4, 8, 8], n = labels.length;
  const asked = w === 0 ? labels.map(() => NONE) : labels, both = w !== 0 && w !== 1;
  return async (x, at) => {
    const B = both ? 2 * n : n, points = new Float32Array(B * x.length / n);
    points.set(x);
    if (both) points.set(x, x.length);
    const y = BigInt64Array.from([...asked, ...both ? labels.map(() => NONE) : []], BigInt);
    const out = await run(name, { x: ["float32", points, [B, ...shape]], t: ["float32", new Float32Array(B).fill(at.t), [B]], y: ["int64", y, [B]] });
    const p = solved(x, out.slice(0, x.length), at);
    return both ? guided(solved(x, out.slice(x.length), at), p, w) : p;
  };
}

const images = (name, x, n) => LATENT.includes(name) ? run("decoder", { z: ["float32", x, [n, 4, 8, 8]] }) : x;

// Numbers of [-1, 1] as pixels, for a canvas.
function pixels(data, n) {
  const out = new Uint8ClampedArray(n * 4096).fill(255);
  for (let i = 0; i < n; i++) for (let c = 0; c < 3; c++) for (let p = 0; p < 1024; p++) {
    out[i * 4096 + 4 * p + c] = 127.5 * (data[i * 3072 + c * 1024 + p] + 1);
  }
  return out;
}

// The noise of a seed: that of Python for the seeds it has shipped.
function begin(kept, seed, n, size) {
  const at = seed * TABLES.pictures * size;
  return n <= TABLES.pictures && at < kept.length ? kept.slice(at, at + n * size) : normals(seed)(n * size);
}

async function draw({ id, model, steps, sampler, guidance, labels, seed, noise, previews = 8, keepNumbers = false }) {
  const say = (type, more, moved = []) => self.postMessage({ id, type, ...more }, moved);
  const kept = await prepare(model, (here, total) => say("loading", { here, total }));
  const n = labels.length, x0 = noise ?? begin(kept, seed, n, model === "cifar10" ? 3072 : 256), table = TABLES.grids.linear[steps], every = Math.ceil(steps / previews), began = performance.now();
  for await (const { k, x, x1 } of walk(pictured(model, labels, guidance), x0, table, STEPS[sampler])) {
    await new Promise((resolve) => setTimeout(resolve));  // hear whether another question has come
    if (latest !== id) return;
    if (k < steps && k % every) continue;
    const shown = await images(model, k < steps ? x1 : x, n), rgba = pixels(shown, n);
    const numbers = keepNumbers ? { x: Float32Array.from(x), images: Float32Array.from(shown) } : {};
    if (k === steps) enlist(model);
    say(k < steps ? "picture" : "done", { step: k, t: table.t[k], rgba, shares, ms: performance.now() - began, ...numbers }, [rgba.buffer]);
  }
}

// One at a time; of several that wait the last is drawn.
let queue = Promise.resolve();
self.onmessage = ({ data }) => {
  if (HELPS) return void help(data);
  latest = data.id;
  queue = queue.then(() => latest === data.id && draw(data))
    .catch((error) => self.postMessage({ id: data.id, type: "failed", why: String(error.message ?? error) }));
};

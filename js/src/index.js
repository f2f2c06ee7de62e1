/**
 * Opens bundles that tfm-export packed, in browsers and under Node. Every file is compared with its digest before
 * onnxruntime sees any, the manifest with its owner's signature where a public key is given, and `checkGolden()` runs
 * again, where the app runs, what was proved at export.
 *
 *     import { load } from "tfm-runtime";
 *     const model = await load("models/minilm");
 *     const [vector] = await model.embed("A man eats pasta.");
 */

import { Encoder } from "./encoder.js";
import { Graph, checkVersion, findOrt } from "./engine.js";
import { BundleError, InputError, brief, refuseUnknown } from "./errors.js";
import { Generator } from "./generator.js";
import { hasGolden } from "./golden.js";
import { checkSizes, readManifest, readProved } from "./manifest.js";
import { Model } from "./model.js";
import { checkSignature } from "./proof.js";
import { isNode, openSource } from "./source.js";

export { BundleError, Encoder, Generator, InputError, Model };
export { TfmError } from "./errors.js";

/**
 * @typedef {import("./engine.js").Provider} Provider
 * @typedef {import("./golden.js").Gate} Gate
 * @typedef {import("./manifest.js").Manifest} Manifest
 * @typedef {import("./source.js").Source} Source
 * @typedef {object} LoadOptions
 * @property {any} [ort] The module onnxruntime-web or onnxruntime-node; left out, it is imported by that name.
 * @property {string} [precision] One that the bundle has; "auto": int8 where there is one, else fp32.
 * @property {Provider | "auto"} [provider] "cpu" under Node; "wasm" or "webgpu" in a browser. "auto": WebGPU for an
 *   encoder's floats where there is one and the goldens hold there, else "wasm"; `skipped` says why not.
 * @property {string} [publicKey] Ed25519, in PEM: a bundle that its owner did not sign is refused.
 * @property {typeof fetch} [fetch] What files are fetched by, such as one that keeps them.
 * @property {(progress: {loaded: number, total: number}) => void} [onProgress] Told of bytes while files are read.
 * @property {Record<string, unknown>} [sessionOptions] More of onnxruntime's options.
 */

const OPTIONS = ["ort", "precision", "provider", "publicKey", "fetch", "onProgress", "sessionOptions"];

/**
 * Open a bundle.
 * @param {string | URL} place Its URL; under Node a folder too.
 * @param {LoadOptions} [options]
 * @returns {Promise<any>} An `Encoder`, a `Generator`, or of anything else a `Model` that has `run`.
 */
export async function load(place, options = {}) {
  refuseUnknown("option", options, OPTIONS);
  const source = await openSource(place, options.fetch);
  const { manifest, bytes } = await readManifest(source);
  await checkSizes(source, manifest);
  if (options.publicKey !== undefined) await checkSignature(source, bytes, options.publicKey);
  const precision = choosePrecision(source, manifest, options.precision ?? "auto");
  const files = await readFiles(source, manifest, precision, options.onProgress);
  const ort = await findOrt(options.ort);
  /** @param {Provider} provider */
  const open = async (provider) => {
    const graphs = await openGraphs(ort, source, manifest, precision, files, provider, options.sessionOptions ?? {});
    return makeModel({ source, manifest, precision, provider, graphs, companions: files, skipped: {} });
  };
  const asked = options.provider ?? "auto";
  const skipped = asked === "auto" && !isNode ? {} : null;
  const model = (skipped && (await tryWebGpu(manifest, precision, open, skipped))) ?? (await open(plain(asked)));
  Object.assign(model.skipped, skipped);
  // onnxruntime has made its own of the graphs.
  for (const name of [...files.keys()]) if (!name.endsWith(".json")) files.delete(name);
  return model;
}

/**
 * Compare what every precision of a bundle computes here with what eager PyTorch computed at export.
 * @param {string | URL} place
 * @param {Omit<LoadOptions, "precision">} [options]
 * @returns {Promise<Gate[]>}
 */
export async function checkGolden(place, options = {}) {
  const source = await openSource(place, options.fetch);
  const { manifest } = await readManifest(source);
  const gates = [];
  for (const precision of Object.keys(manifest.graphs)) {
    const model = await load(place, { ...options, precision });
    gates.push(...(await model.checkGolden()));
    await model.close();
  }
  return gates;
}

/**
 * @param {Source} source
 * @param {Manifest} manifest
 * @param {string} asked
 */
function choosePrecision(source, manifest, asked) {
  const known = Object.keys(manifest.graphs);
  if (asked === "auto") return ["int8", "fp32", ...known].find((name) => known.includes(name)) ?? known[0];
  if (!known.includes(asked)) {
    throw new BundleError(`${source.place} has no ${brief(asked)} graph; it has: ${known.join(", ")}`);
  }
  return asked;
}

/**
 * Read and prove every file of the manifest but the graphs of other precisions: of an altered bundle nothing runs.
 * @param {Source} source
 * @param {Manifest} manifest
 * @param {string} precision
 * @param {LoadOptions["onProgress"]} onProgress
 * @returns {Promise<Map<string, Uint8Array>>} What is needed of them.
 */
async function readFiles(source, manifest, precision, onProgress) {
  const own = Object.values(manifest.graphs[precision]);
  const graphs = [...Object.values(manifest.graphs), manifest.merged?.graphs ?? {}].flatMap((one) => Object.values(one));
  const others = graphs.filter((path) => !own.includes(path));
  const names = Object.keys(manifest.files).filter((name) => !others.some((path) => isOf(path, name)));
  const progress = { loaded: 0, total: names.reduce((sum, name) => sum + manifest.files[name].size, 0) };
  let over = false;
  /** @param {number} bytes */
  const tell = (bytes) => {
    progress.loaded += bytes;
    // Files that are still on their way when another is refused are no progress any more.
    if (!over) onProgress?.({ ...progress });
  };
  const files = new Map();
  try {
    await Promise.all(
      names.map(async (name) => {
        const content = await readProved(source, manifest, name, tell);
        if (name.endsWith(".json") || own.some((path) => isOf(path, name))) files.set(name, content);
      }),
    );
  } finally {
    over = true;
  }
  return files;
}

/** Whether a file is a graph, or has its weights. @param {string} path @param {string} name */
const isOf = (path, name) => name === path || name === `${path}_data` || name === `${path}.data`;

/**
 * @param {any} ort
 * @param {Source} source
 * @param {Manifest} manifest
 * @param {string} precision
 * @param {Map<string, Uint8Array>} files
 * @param {Provider} provider
 * @param {Record<string, unknown>} more
 */
async function openGraphs(ort, source, manifest, precision, files, provider, more) {
  /** @type {Record<string, Graph>} */
  const graphs = {};
  const options = { ...(await exactProducts(precision)), ...more };
  for (const [role, path] of Object.entries(manifest.graphs[precision])) {
    const shown = `${source.place}/${path}`;
    checkVersion(ort, shown, manifest.requires?.onnxruntime?.[precision]?.[role]);
    const weights = [...files]
      .filter(([name]) => name !== path && isOf(path, name))
      .map(([name, data]) => ({ path: name.slice(name.lastIndexOf("/") + 1), data }));
    const content = /** @type {Uint8Array} */ (files.get(path));
    graphs[role] = await Graph.open(ort, shown, content, weights, manifest.signature[role], provider, options);
  }
  return graphs;
}

/**
 * On x86 without VNNI onnxruntime's fastest 8-bit products saturate, unless it is told not to.
 * @param {string} precision
 * @returns {Promise<Record<string, unknown>>}
 */
async function exactProducts(precision) {
  if (!isNode || process.arch !== "x64" || ["fp32", "fp16"].includes(precision)) return {};
  const { readFile } = await import("node:fs/promises");
  const about = await readFile("/proc/cpuinfo", "utf8").catch(() => "");
  return /\bavx(512)?_vnni\b/.test(about) ? {} : { extra: { session: { x64quantprecision: "1" } } };
}

/**
 * @param {Provider | "auto"} asked
 * @returns {Provider}
 */
function plain(asked) {
  const known = isNode ? ["cpu"] : ["wasm", "webgpu"];
  if (asked !== "auto" && !known.includes(asked)) {
    throw new InputError(`provider must be one of auto, ${known.join(", ")} here, but is ${brief(asked)}`);
  }
  return asked === "auto" ? (isNode ? "cpu" : "wasm") : asked;
}

/**
 * Open a bundle on WebGPU, if there is one and the goldens hold there.
 * @param {Manifest} manifest
 * @param {string} precision
 * @param {(provider: Provider) => Promise<Model>} open
 * @param {Record<string, string>} skipped Gets why not.
 * @returns {Promise<Model | null>}
 */
async function tryWebGpu(manifest, precision, open, skipped) {
  if (!["fp32", "fp16"].includes(precision) || !["encoder", "module"].includes(manifest.kind)) return null;
  const gpu = /** @type {any} */ (globalThis.navigator)?.gpu;
  if (!gpu || !(await gpu.requestAdapter())) {
    skipped.webgpu = "there is none here";
    return null;
  }
  if (!hasGolden(manifest)) {
    skipped.webgpu = "the bundle was packed without goldens, so nothing says that it is right there";
    return null;
  }
  try {
    const model = await open("webgpu");
    const wrong = (await model.checkGolden()).find((gate) => !gate.passed);
    if (!wrong) return model;
    skipped.webgpu = wrong.reason;
    await model.close();
  } catch (error) {
    skipped.webgpu = String(error instanceof Error ? error.message : error);
  }
  return null;
}

/**
 * @param {import("./model.js").Opened} opened
 * @returns {Model}
 */
function makeModel(opened) {
  const { kind } = opened.manifest;
  if (kind === "decoder" || kind === "encoder-decoder") return new Generator(opened);
  const takesTexts = opened.manifest.signature.model.inputs.some((spec) => spec.name === "input_ids");
  return takesTexts ? new Encoder(opened) : new Model(opened);
}

/** onnxruntime, whichever of its packages the app has: opened graphs, and tensors in and out. */

import { BundleError, InputError } from "./errors.js";
import { said } from "./manifest.js";
import { isNode } from "./source.js";

/**
 * @typedef {any} Ort The module onnxruntime-web or onnxruntime-node.
 * @typedef {import("./npy.js").NpyArray} NpyArray
 * @typedef {{type: string, dims: readonly number[], data: any}} TensorLike
 * @typedef {import("./manifest.js").Signature} Signature
 * @typedef {"cpu" | "wasm" | "webgpu"} Provider
 */

const KEEP = "num_logits_to_keep";

/**
 * Give the module that an app passed, or import it by its name.
 * @param {Ort} [given]
 * @returns {Promise<Ort>}
 */
export async function findOrt(given) {
  const found = given ? (given.InferenceSession ? given : given.default) : await importOrt();
  if (!found?.InferenceSession) {
    throw new InputError("ort must be the module onnxruntime-web or onnxruntime-node, which has an InferenceSession");
  }
  return found;
}

/** @returns {Promise<Ort>} */
async function importOrt() {
  // Not as literals: a bundler for browsers must not look for Node's, nor Node's for that of browsers.
  const name = isNode ? "onnxruntime-node" : "onnxruntime-web";
  try {
    const module = await import(/* @vite-ignore */ /* webpackIgnore: true */ name);
    return module.InferenceSession ? module : module.default;
  } catch (error) {
    throw new InputError(
      `${name} cannot be imported: ${said(error)}; npm install ${name}, or import it and pass it as ort`,
      { cause: error },
    );
  }
}

/**
 * @param {Ort} ort
 * @returns {string} Its version, "" where it tells none.
 */
export function versionOf(ort) {
  const versions = ort.env?.versions ?? {};
  return versions.node ?? versions.web ?? versions.common ?? "";
}

/**
 * Refuse graphs for which this onnxruntime is too old.
 * @param {Ort} ort
 * @param {string} path Of the graph, for the error.
 * @param {string | undefined} lowest
 */
export function checkVersion(ort, path, lowest) {
  const version = versionOf(ort);
  if (!lowest || !version) return;
  const [found, wanted] = [version, lowest].map((text) => text.split(/[.-]/).slice(0, 3).map(Number));
  const place = wanted.findIndex((part, i) => part !== found[i]);
  if (place >= 0 && found[place] < wanted[place]) {
    const name = ort.env.versions.node ? "onnxruntime-node" : "onnxruntime-web";
    throw new BundleError(`${path} needs onnxruntime >= ${lowest}, and this is ${version}: npm install ${name}@latest`);
  }
}

/** A graph that is open. */
export class Graph {
  /** @type {any} */ #session;
  /** @type {Ort} */ #ort;
  /** @type {Set<string>} */ #takes;

  /**
   * @param {Ort} ort
   * @param {any} session
   * @param {Signature} signature
   * @param {Provider} provider
   */
  constructor(ort, session, signature, provider) {
    this.#ort = ort;
    this.#session = session;
    this.#takes = new Set(session.inputNames);
    this.signature = signature;
    this.provider = provider;
  }

  /**
   * @param {Ort} ort
   * @param {string} path What errors call it.
   * @param {Uint8Array} bytes The graph, proved.
   * @param {{path: string, data: Uint8Array}[]} weights Files beside it, proved.
   * @param {Signature} signature
   * @param {Provider} provider
   * @param {Record<string, unknown>} options More of onnxruntime's session options.
   */
  static async open(ort, path, bytes, weights, signature, provider, options) {
    let session;
    try {
      session = await ort.InferenceSession.create(bytes, {
        executionProviders: [provider],
        // What it warns of, such as inputs that have defaults, is as it should be.
        logSeverityLevel: 3,
        ...(weights.length ? { externalData: weights } : {}),
        ...options,
      });
    } catch (error) {
      throw new BundleError(`${path} cannot be opened by onnxruntime ${versionOf(ort)} on ${provider}: ${said(error)}`, {
        cause: error,
      });
    }
    const missing = signature.inputs.filter((spec) => spec.default === undefined && !session.inputNames.includes(spec.name));
    const unknown = session.inputNames.filter((/** @type {string} */ name) => !signature.inputs.some((spec) => spec.name === name));
    const absent = signature.outputs.filter((spec) => !session.outputNames.includes(spec.name));
    if (missing.length || unknown.length || absent.length) {
      throw new BundleError(
        `${path} takes ${session.inputNames.join(", ")} and gives ${session.outputNames.join(", ")}, but the manifest ` +
          "says otherwise; export it again",
      );
    }
    return new Graph(ort, session, signature, provider);
  }

  /** Whether an input with a default can be given; onnxruntime's JavaScript has none of them so far. @param {string} name */
  takes(name) {
    return this.#takes.has(name);
  }

  /**
   * @param {Record<string, TensorLike>} feeds
   * @param {readonly string[]} [outputs] Which; all of them by default.
   * @returns {Promise<Record<string, any>>} onnxruntime's tensors.
   */
  async run(feeds, outputs) {
    /** @type {Record<string, any>} */
    const tensors = {};
    for (const [name, value] of Object.entries(feeds)) {
      if (!this.#takes.has(name)) continue;
      tensors[name] = value instanceof this.#ort.Tensor ? value : this.#tensor(value);
    }
    return await this.#session.run(tensors, outputs ?? this.signature.outputs.map((spec) => spec.name));
  }

  /**
   * Run with every input of the signature, as a golden case has them.
   * @param {Record<string, NpyArray>} feeds
   * @returns {Promise<Record<string, any>>}
   */
  async runWhole(feeds) {
    const found = await this.run(feeds);
    // Where an engine does not take the input, it gives the logits after every token: the last ones are those.
    const keep = KEEP in feeds && !this.takes(KEEP) ? Number(feeds[KEEP].data[0]) : 0;
    return keep && found.logits ? { ...found, logits: lastRows(found.logits, keep) } : found;
  }

  /** @param {TensorLike} value */
  #tensor({ type, dims, data }) {
    const Half = /** @type {any} */ (globalThis).Float16Array;
    // Engines that have Float16Array want it, and others the bits.
    const given = type === "float16" && Half && data instanceof Uint16Array ? new Half(data.buffer) : data;
    return new this.#ort.Tensor(type, given, dims);
  }

  async close() {
    await this.#session.release();
  }
}

/**
 * @param {TensorLike} tensor (B, S, V)
 * @param {number} keep
 * @returns {TensorLike} (B, keep, V)
 */
function lastRows({ type, dims: [B, S, V], data }, keep) {
  const kept = new data.constructor(B * keep * V);
  for (let b = 0; b < B; b++) kept.set(data.subarray((b * S + S - keep) * V, (b + 1) * S * V), b * keep * V);
  return { type, dims: [B, keep, V], data: kept };
}

/**
 * @param {readonly number[]} values
 * @param {number[]} dims
 * @returns {TensorLike}
 */
export function int64(values, dims) {
  return { type: "int64", dims, data: BigInt64Array.from(values, BigInt) };
}

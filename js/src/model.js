/** What all bundles that are open have in common. */

import { InputError } from "./errors.js";
import { judgeGraph, readGolden } from "./golden.js";
import { parseJson } from "./manifest.js";
import { TextReader } from "./text.js";

/**
 * @typedef {import("./engine.js").Graph} Graph
 * @typedef {import("./engine.js").Provider} Provider
 * @typedef {import("./golden.js").Gate} Gate
 * @typedef {import("./manifest.js").Manifest} Manifest
 * @typedef {import("./source.js").Source} Source
 * @typedef {object} Opened A bundle whose files were proved, and whose graphs are open.
 * @property {Source} source
 * @property {Manifest} manifest
 * @property {string} precision
 * @property {Provider} provider
 * @property {Record<string, Graph>} graphs By role.
 * @property {Map<string, Uint8Array>} companions Small files beside the graphs, proved.
 * @property {Record<string, string>} skipped
 */

/** An open bundle; `run` takes and gives tensors. */
export class Model {
  /** @type {TextReader | undefined} */ #reader;

  /** @param {Opened} opened */
  constructor(opened) {
    this.opened = opened;
    this.manifest = opened.manifest;
    /** Of the graphs that are open, e.g. "int8". */
    this.precision = opened.precision;
    /** Where they run: "cpu" (Node), "wasm" or "webgpu". */
    this.provider = opened.provider;
    /** Provider that was to be preferred, and is not used → why not. */
    this.skipped = opened.skipped;
  }

  /** Names of the methods that the bundle is for. @returns {string[]} */
  get tasks() {
    return [];
  }

  /**
   * Run the graph on tensors of any onnxruntime, or objects {type, dims, data}.
   * @param {Record<string, {type: string, dims: readonly number[], data: any}>} feeds
   * @param {string} [role] Of the graph, where there are several.
   * @returns {Promise<Record<string, any>>}
   */
  async run(feeds, role = "model") {
    const graph = this.opened.graphs[role];
    if (!graph) throw new InputError(`there is no graph '${role}' (known: ${Object.keys(this.opened.graphs).join(", ")})`);
    return await graph.run(feeds);
  }

  /**
   * Compare what the open graphs compute here with what eager PyTorch computed at export.
   * @returns {Promise<Gate[]>} One for each graph; the bundle is right here where all have passed.
   */
  async checkGolden() {
    const { source, manifest, graphs, precision } = this.opened;
    const golden = await readGolden(source, manifest);
    const gates = [];
    for (const [role, graph] of Object.entries(graphs)) {
      gates.push(await judgeGraph(golden, manifest, precision, role, (feeds) => graph.runWhole(feeds)));
    }
    return gates;
  }

  /**
   * Turn texts into token ids as the tasks do.
   * @param {string | string[]} texts
   * @returns {number[][]}
   */
  tokenize(texts) {
    return asList(texts).map((text) => this.reader.encode(/** @type {string} */ (text)).ids);
  }

  /** Let go of the graphs. */
  async close() {
    await Promise.all(Object.values(this.opened.graphs).map((graph) => graph.close()));
  }

  /** How many tokens texts are cut to; null: none are. @returns {number | null} */
  get maxTextTokens() {
    return null;
  }

  /** @returns {TextReader} */
  get reader() {
    if (!this.#reader) {
      const { manifest, source } = this.opened;
      const content = this.json("tokenizer.json");
      if (!content) {
        throw new InputError(`${source.place} has no tokenizer.json, so it takes no texts; pass token ids`);
      }
      this.#reader = new TextReader(`${source.place}/tokenizer.json`, content, {
        maxTokens: this.maxTextTokens,
        // A tokenizer by character knows all that its model was trained on.
        refuseUnknown: Boolean(manifest.generation?.split_on_whitespace),
        side: manifest.text?.truncation_side ?? "right",
        lowerCase: manifest.text?.lower_case ?? false,
      });
    }
    return this.#reader;
  }

  /**
   * A JSON file of the bundle; null: it has none of that name.
   * @param {string} name
   * @returns {any}
   */
  json(name) {
    const bytes = this.opened.companions.get(name);
    return bytes ? parseJson(`${this.opened.source.place}/${name}`, bytes) : null;
  }
}

/**
 * List inputs; one text is a list of one.
 * @template T
 * @param {T | T[]} inputs
 * @returns {T[]}
 */
export function asList(inputs) {
  return Array.isArray(inputs) ? inputs : [inputs];
}

/**
 * How many tokens one sequence may have, those of the past included; null: any number.
 * @param {import("./manifest.js").Signature} signature
 */
export function lengthLimit(signature) {
  const limits = Object.entries(signature.max_length)
    .filter(([key]) => key.split(" + ").includes("sequence"))
    .map(([, most]) => most);
  return limits.length ? Math.min(...limits) : null;
}

/**
 * Check a row of ids before onnxruntime sees it, which takes a negative id or too long a row without a word.
 * @param {number} place
 * @param {readonly number[]} row
 * @param {import("./manifest.js").Signature} signature
 */
export function checkRow(place, row, signature) {
  if (!row.length) throw new InputError(`inputs[${place}] has no tokens; leave it out`);
  const most = lengthLimit(signature);
  if (most !== null && row.length > most) {
    throw new InputError(
      `inputs[${place}] has ${row.length} tokens, but this model takes at most ${most}; shorten it`,
    );
  }
  const below = signature.inputs.find((spec) => spec.name === "input_ids")?.below ?? Number.MAX_SAFE_INTEGER;
  const bad = row.findIndex((id) => !Number.isInteger(id) || id < 0 || id >= below);
  if (bad >= 0) throw new InputError(`inputs[${place}][${bad}] is ${row[bad]}; ids must be in [0, ${below})`);
}

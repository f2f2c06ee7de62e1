/** Encoders: embeddings, labels of texts, and which documents answer a query. Each input runs alone, as int8 wants it. */

import { BundleError, InputError, refuseUnknown } from "./errors.js";
import { int64 } from "./engine.js";
import { Model, checkRow, lengthLimit } from "./model.js";
import { toDoubles } from "./npy.js";

/**
 * @typedef {string | [string, string] | number[]} Input A text, two that are read together, or token ids.
 * @typedef {{prompt?: string, signal?: AbortSignal}} EmbedOptions
 * @typedef {{label: string, score: number}} Label
 * @typedef {"softmax" | "sigmoid" | "none"} Squash
 */

/** @type {Record<string, string>} */
const HEADS = { sequence: "classify", ForSequenceClassification: "classify" };

/** @type {Record<string, (a: Float32Array, b: Float32Array) => number>} */
const SIMILARITIES = {
  cosine: (a, b) => dot(a, b) / (norm(a) * norm(b)),
  dot: (a, b) => dot(a, b),
  euclidean: (a, b) => -Math.sqrt(a.reduce((sum, x, i) => sum + (x - b[i]) ** 2, 0)),
  manhattan: (a, b) => -a.reduce((sum, x, i) => sum + Math.abs(x - b[i]), 0),
};

export class Encoder extends Model {
  get tasks() {
    const outputs = new Map(this.signature.outputs.map((spec) => [spec.name, spec.shape]));
    const found = outputs.has("sentence_embedding") ? ["embed", "similarity"] : [];
    const { head, architectures } = this.manifest.config;
    const named = head ?? /For[A-Z]\w+$/.exec(architectures?.[0] ?? "")?.[0];
    const logits = outputs.get("logits");
    if (logits?.length === 2 && (named ? HEADS[named] : this.manifest.kind === "encoder" && "classify")) {
      found.push("classify", ...(logits[1] === 1 ? ["rank"] : []));
    }
    return found;
  }

  /** @returns {import("./manifest.js").Signature} */
  get signature() {
    return this.manifest.signature.model;
  }

  get maxTextTokens() {
    const limits = [this.manifest.max_text_tokens, lengthLimit(this.signature)].filter((limit) => limit !== null);
    return limits.length ? Math.min(...limits) : null;
  }

  /**
   * Embed texts or rows of ids.
   * @param {Input | Input[]} inputs One text is as a list of one.
   * @param {EmbedOptions} [options] `prompt`: the name of one of the bundle's prompts, or what goes in front of texts;
   *   left out, the one that the checkpoint names as its default. `signal` ends it early.
   * @returns {Promise<Float32Array[]>} One for each input.
   */
  async embed(inputs, options = {}) {
    refuseUnknown("option", options, ["prompt", "signal"]);
    this.#require("embed", "it has no sentence_embedding, since its checkpoint does not say how to pool");
    const rows = await this.#each(inputs, "sentence_embedding", options.signal, options.prompt ?? null);
    return rows.map((tensor) => Float32Array.from(toDoubles(tensor)));
  }

  /**
   * How near each of some texts or embeddings is to each of others, by the measure that the checkpoint names.
   * @param {Input | (Input | Float32Array)[]} a
   * @param {Input | (Input | Float32Array)[]} b
   * @returns {Promise<number[][]>} The greater, the nearer.
   */
  async similarity(a, b) {
    const measure = this.json("config_sentence_transformers.json")?.similarity_fn_name ?? "cosine";
    const compare = SIMILARITIES[measure];
    if (!compare) throw new BundleError(`${this.opened.source.place}: the similarity '${measure}' is not known here`);
    const [one, other] = [await this.#embedded(a), await this.#embedded(b)];
    return one.map((x) => other.map((y) => compare(x, y)));
  }

  /**
   * Label texts, pairs of texts or rows of ids.
   * @param {Input | Input[]} inputs
   * @param {{top_k?: number | null, signal?: AbortSignal}} [options] `top_k`: how many labels; null: all.
   * @returns {Promise<Label[][]>} The likeliest first.
   */
  async classify(inputs, options = {}) {
    refuseUnknown("option", options, ["top_k", "signal"]);
    this.#require("classify", "it has no labels for texts");
    const { top_k = 1, signal } = options;
    const labels = this.#labels();
    const problem = this.json("config.json")?.problem_type;
    const several = problem === "multi_label_classification" || labels.length === 1;
    const squash = problem === "regression" ? "none" : several ? "sigmoid" : "softmax";
    const rows = await this.#each(inputs, "logits", signal, null);
    return rows.map((tensor) => {
      const scores = scoresOf(toDoubles(tensor), squash);
      const found = labels.map((label, i) => ({ label, score: scores[i] }));
      return found.sort((one, other) => other.score - one.score).slice(0, top_k ?? undefined);
    });
  }

  /**
   * Find which documents answer a query, by a cross-encoder's scores.
   * @param {string} query
   * @param {string[]} documents
   * @param {{top_k?: number, signal?: AbortSignal}} [options]
   * @returns {Promise<{index: number, score: number, text: string}[]>} The best first.
   */
  async rank(query, documents, options = {}) {
    refuseUnknown("option", options, ["top_k", "signal"]);
    this.#require("rank", "it has no labels for pairs of texts, or several, and no one score");
    const squash = this.#scoring();
    /** @type {[string, string][]} */
    const pairs = documents.map((text) => [query, text]);
    const rows = await this.#each(pairs, "logits", options.signal, null);
    const scored = rows.map((tensor, index) => ({
      index,
      score: scoresOf(toDoubles(tensor), squash)[0],
      text: documents[index],
    }));
    return scored.sort((one, other) => other.score - one.score).slice(0, options.top_k);
  }

  /**
   * @param {Input | Input[]} inputs
   * @param {string} output
   * @param {AbortSignal | undefined} signal
   * @param {string | null} prompt
   */
  async #each(inputs, output, signal, prompt) {
    const list = isInput(inputs) ? [inputs] : /** @type {Input[]} */ (inputs);
    if (prompt !== null || output === "sentence_embedding") prompt = this.#promptOf(prompt);
    // All are checked before the first is run.
    const rows = list.map((input, place) => this.#row(place, input, prompt ?? ""));
    const found = [];
    for (const { ids, types } of rows) {
      signal?.throwIfAborted();
      const dims = [1, ids.length];
      const feeds = {
        input_ids: int64(ids, dims),
        attention_mask: int64(ids.map(() => 1), dims),
        token_type_ids: int64(types, dims),
      }; // prettier-ignore
      found.push((await this.opened.graphs.model.run(feeds, [output]))[output]);
    }
    return found;
  }

  /**
   * @param {number} place
   * @param {Input} input
   * @param {string} prompt
   */
  #row(place, input, prompt) {
    let row = { ids: /** @type {number[]} */ (input), types: [0] };
    if (typeof input === "string") row = this.reader.encode(prompt + input);
    else if (isPair(input)) row = this.reader.encode(prompt + input[0], input[1]);
    checkRow(place, row.ids, this.signature);
    // transformers' tokenizers give no types where this does not name them, whatever their template says.
    const names = this.json("tokenizer_config.json")?.model_input_names;
    const typed = isPair(input) && (names?.includes("token_type_ids") ?? true);
    return { ids: row.ids, types: typed ? row.types : row.ids.map(() => 0) };
  }

  /** @param {string | null} prompt */
  #promptOf(prompt) {
    const { prompts = {}, default_prompt: usual = null } = this.manifest.text ?? {};
    const name = prompt ?? usual ?? "";
    return Object.hasOwn(prompts, name) ? prompts[name] : name;
  }

  /** @param {Input | (Input | Float32Array)[]} side */
  async #embedded(side) {
    const list = isInput(side) ? [side] : /** @type {(Input | Float32Array)[]} */ (side);
    if (list.every((item) => item instanceof Float32Array)) return /** @type {Float32Array[]} */ (list);
    return await this.embed(/** @type {Input[]} */ (list));
  }

  /** @returns {string[]} */
  #labels() {
    const { labels, id2label } = this.manifest.config;
    const count = Number(this.signature.outputs.find((spec) => spec.name === "logits")?.shape[1]);
    const names = labels ?? (id2label ? Object.keys(id2label).map((i) => id2label[i]) : null);
    if (names && names.length !== count) {
      throw new BundleError(
        `${this.opened.source.place}/manifest.json: config names ${names.length} labels, but there are ${count} logits; ` +
          "export the bundle again",
      );
    }
    return names ?? Array.from({ length: count }, (_, i) => `LABEL_${i}`);
  }

  /** @returns {Squash} */
  #scoring() {
    const config = this.json("config.json") ?? {};
    const named =
      this.json("config_sentence_transformers.json")?.activation_fn ??
      config.sentence_transformers?.activation_fn ??
      config.sbert_ce_default_activation_function ??
      "Sigmoid";
    const name = named.split(".").at(-1);
    if (name !== "Sigmoid" && name !== "Identity") {
      throw new BundleError(
        `${this.opened.source.place}: the activation ${name} is not known here (Sigmoid, Identity are); run() gives logits`,
      );
    }
    return name === "Sigmoid" ? "sigmoid" : "none";
  }

  /**
   * @param {string} task
   * @param {string} why
   */
  #require(task, why) {
    if (this.tasks.includes(task)) return;
    const has = this.tasks.length ? `it has ${this.tasks.join(", ")}, and run()` : "run() gives what it has";
    throw new InputError(`${this.opened.source.place} has no task '${task}': ${why}; ${has}`);
  }
}

/**
 * @param {unknown} item
 * @returns {item is [string, string]}
 */
function isPair(item) {
  return Array.isArray(item) && item.length === 2 && item.every((part) => typeof part === "string");
}

/**
 * Whether this is one text or one row of ids, and no list of inputs. Two texts are two inputs, not a pair.
 * @param {unknown} inputs
 * @returns {inputs is Input}
 */
function isInput(inputs) {
  return typeof inputs === "string" || (Array.isArray(inputs) && inputs.length > 0 && typeof inputs[0] === "number");
}

/**
 * @param {Float64Array} logits
 * @param {Squash} squash
 */
function scoresOf(logits, squash) {
  if (squash === "none") return logits;
  if (squash === "sigmoid") return logits.map((z) => (z < 0 ? Math.exp(z) / (1 + Math.exp(z)) : 1 / (1 + Math.exp(-z))));
  const greatest = logits.reduce((most, z) => Math.max(most, z), -Infinity);
  const powers = logits.map((z) => Math.exp(z - greatest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

/** @param {Float32Array} a @param {Float32Array} b */
function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** @param {Float32Array} a */
const norm = (a) => Math.max(Math.sqrt(dot(a, a)), 1e-12);


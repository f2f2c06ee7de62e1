/** Decoders and encoder-decoders: they write, the likeliest token after the other. */

import { BundleError, InputError, brief } from "./errors.js";
import { int64 } from "./engine.js";
import { Model, asList, checkRow, lengthLimit } from "./model.js";
import { toDoubles } from "./npy.js";
import { mergeSettings, processorsOf } from "./settings.js";
import { StopText, TextStream } from "./text.js";

/**
 * @typedef {import("./engine.js").Graph} Graph
 * @typedef {import("./engine.js").TensorLike} TensorLike
 * @typedef {import("./settings.js").Settings} Settings
 * @typedef {Settings & {signal?: AbortSignal}} GenerateOptions
 * @typedef {string | number[]} Prompt A text, or token ids.
 */

export class Generator extends Model {
  get tasks() {
    return this.manifest.kind === "encoder-decoder" ? ["generate", "stream", "translate"] : ["generate", "stream"];
  }

  /**
   * Generate what follows each prompt, or what each source becomes: the likeliest token, one after the other.
   * @template {Prompt} P
   * @param {P | P[]} inputs One text is as a list of one.
   * @param {GenerateOptions} [options] What they leave out is as the bundle says.
   * @returns {Promise<P[]>} For each a text where it is one, else ids.
   */
  async generate(inputs, options = {}) {
    const list = isIds(inputs) ? [inputs] : asList(/** @type {P | P[]} */ (inputs));
    const found = [];
    for (const input of list) {
      const texts = typeof input === "string";
      /** @type {any[]} */
      const parts = [];
      const settings = this.#settings(options);
      // Text is made token by token only to find stop strings in it.
      const asText = texts && [settings.stop ?? []].flat().length > 0;
      for await (const part of this.#write(/** @type {Prompt} */ (input), settings, options.signal, asText)) parts.push(part);
      found.push(asText ? parts.join("") : texts ? this.reader.decode(parts) : parts);
    }
    return /** @type {P[]} */ (found);
  }

  /**
   * Do what `generate` does.
   * @param {string | string[]} texts
   * @param {GenerateOptions} [options]
   */
  async translate(texts, options = {}) {
    return await this.generate(texts, options);
  }

  /**
   * Generate for one text or one row of ids, and give out what there is while it is made.
   * @param {Prompt} input
   * @param {GenerateOptions} [options]
   * @returns {AsyncGenerator<any, void, void>} Parts of the text, none of them empty, which together are what
   *   `generate` gives; or ids.
   */
  async *stream(input, options = {}) {
    yield* this.#write(input, this.#settings(options), options.signal, typeof input === "string");
  }

  /** @returns {Graph} */
  get #decoder() {
    return this.opened.graphs.decoder ?? this.opened.graphs.model;
  }

  /** @returns {import("./manifest.js").Generation} */
  get #generation() {
    const { generation } = this.manifest;
    if (!generation) {
      throw new BundleError(
        `${this.opened.source.place} does not say how to generate (generation is null in its manifest.json); export it ` +
          "again with a generation_config.json beside the checkpoint",
      );
    }
    if (generation.short_length) {
      throw new BundleError(
        `${this.opened.source.place} reads texts beyond ${generation.short_length} tokens in another way (LongRoPE), which ` +
          "is not done in JavaScript; generate in Python",
      );
    }
    return generation;
  }

  /** @param {GenerateOptions} options */
  #settings({ signal, ...asked }) {
    return mergeSettings(this.#generation.defaults ?? {}, asked);
  }

  /**
   * @param {Prompt} input
   * @param {Settings} settings
   * @param {AbortSignal | undefined} signal
   * @param {boolean} asText
   * @returns {AsyncGenerator<any, void, void>}
   */
  async *#write(input, settings, signal, asText) {
    const generation = this.#generation;
    const source = this.#row(input);
    const { state, tokens } = await this.#begin(source, generation);
    const ends = new Set([[generation.eos_token_id ?? []].flat(), settings.stop_token_ids ?? []].flat());
    const limit = this.#limit(settings, generation, tokens.length);
    const processors = processorsOf(settings, { prompt: tokens.length, limit, ends });
    const text = asText ? new TextStream((ids) => this.reader.decode(ids), this.reader.byteTokens) : null;
    const stop = new StopText([settings.stop ?? []].flat());
    let next = [...tokens];
    for (let count = 1; ; count++) {
      signal?.throwIfAborted();
      const logits = await state.read(next);
      for (const process of processors) process(tokens, logits);
      const token = likeliest(logits);
      tokens.push(token);
      next = [token];
      const ended = ends.has(token);
      if (text) {
        let part = ended ? "" : stop.push(text.push(token));
        if (ended || count === limit) part += stop.push(text.end()) + stop.end();
        if (part) yield part;
      } else if (!ended) {
        yield token;
      }
      if (ended || count === limit || stop.stopped) return;
    }
  }

  /**
   * @param {Prompt} input
   * @returns {number[]}
   */
  #row(input) {
    const reads = (this.opened.graphs.encoder ?? this.#decoder).signature;
    if (typeof input !== "string") {
      checkRow(0, input, reads);
      return input;
    }
    const { ids } = this.reader.encode(input);
    const most = lengthLimit(reads);
    if (most !== null && ids.length > most) {
      throw new InputError(
        `the text ${brief(input)} has more tokens than the ${most} that this model takes at most; shorten it`,
      );
    }
    return ids;
  }

  /**
   * @param {number[]} ids
   * @param {import("./manifest.js").Generation} generation
   */
  async #begin(ids, generation) {
    const encoder = this.opened.graphs.encoder;
    if (!encoder) return { state: new DecoderState(this.#decoder, {}), tokens: [...ids] };
    const mask = int64(ids.map(() => 1), [1, ids.length]);
    const found = await encoder.run({ input_ids: int64(ids, [1, ids.length]), attention_mask: mask });
    /** @type {Record<string, TensorLike>} */
    const context = { encoder_attention_mask: mask };
    for (const [name, tensor] of Object.entries(found)) {
      // The cross-attention's keys and values: computed once, and read in every step. The states themselves are taken
      // by decoders in the form of other readers.
      context[name === "last_hidden_state" ? "encoder_hidden_states" : name.replace("present.", "past_key_values.")] = tensor;
    }
    return { state: new DecoderState(this.#decoder, context), tokens: [generation.bos_token_id ?? 0] };
  }

  /**
   * How many new tokens a text may get.
   * @param {Settings} settings
   * @param {import("./manifest.js").Generation} generation
   * @param {number} length Of its prompt.
   */
  #limit({ max_new_tokens: asked }, generation, length) {
    const whole = asked === undefined ? (generation.max_length ?? null) : null;
    if (whole !== null && length >= whole) {
      throw new InputError(
        `prompt 0 has ${length} tokens, and this bundle's texts end at ${whole}, their prompt included (max_length of its ` +
          "generation_config.json); pass max_new_tokens",
      );
    }
    const longest = lengthLimit(this.#decoder.signature);
    const first = whole === null ? (asked ?? generation.max_new_tokens) : whole - length;
    // The last token is not read, so it needs no place.
    return longest === null ? first : Math.min(first, longest - length + 1);
  }
}

/** What a decoder has read of one text: its caches, which grow with every run. */
class DecoderState {
  #length = 0;
  /** @type {Record<string, TensorLike>} */ #caches = {};

  /**
   * @param {Graph} graph
   * @param {Record<string, TensorLike>} context What it needs of a source, the same in every step.
   */
  constructor(graph, context) {
    this.graph = graph;
    this.context = context;
    const { inputs, outputs } = graph.signature;
    this.names = new Set(inputs.map((spec) => spec.name));
    for (const { name, dtype, shape } of inputs) {
      if (!shape.includes("past_sequence") || name in context) continue;
      const dims = shape.map((dim) => (typeof dim === "number" ? dim : dim === "batch" ? 1 : 0));
      this.#caches[name] = { type: dtype, dims, data: dtype === "float16" ? new Uint16Array(0) : new Float32Array(0) };
    }
    this.outputs = outputs.map((spec) => spec.name).filter((name) => name === "logits" || pastOf(name) in this.#caches);
  }

  /**
   * Read tokens.
   * @param {readonly number[]} ids
   * @returns {Promise<Float32Array>} Logits of the token that follows, the caller's to overwrite.
   */
  async read(ids) {
    const total = this.#length + ids.length;
    const ones = int64(new Array(total).fill(1), [1, total]);
    const most = lengthLimit(this.graph.signature) ?? Infinity;
    /** @type {Record<string, TensorLike>} */
    const known = {
      input_ids: int64(ids, [1, ids.length]),
      attention_mask: ones,
      decoder_attention_mask: ones,
      position_ids: int64(ids.map((_, i) => Math.min(this.#length + i, most - 1)), [1, ids.length]),
      num_logits_to_keep: int64([1], []),
      use_cache_branch: { type: "bool", dims: [1], data: Uint8Array.of(1) },
      ...this.context,
      ...this.#caches,
    }; // prettier-ignore
    const feeds = Object.fromEntries(Object.entries(known).filter(([name]) => this.names.has(name)));
    const { logits, ...presents } = await this.graph.run(feeds, this.outputs);
    this.#length = total;
    for (const [name, tensor] of Object.entries(presents)) this.#caches[pastOf(name)] = tensor;
    const width = logits.dims.at(-1);
    const last = { type: logits.type, data: logits.data.slice(-width) };
    return last.data instanceof Float32Array ? last.data : Float32Array.from(toDoubles(last));
  }
}

/** @param {string} name Of an output. */
const pastOf = (name) => name.replace("present.", "past_key_values.");

/** @param {Float32Array} logits */
function likeliest(logits) {
  let best = 0;
  for (let i = 1; i < logits.length; i++) if (logits[i] > logits[best]) best = i;
  return best;
}

/** @param {unknown} inputs */
function isIds(inputs) {
  return Array.isArray(inputs) && inputs.length > 0 && typeof inputs[0] === "number";
}

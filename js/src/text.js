/** A bundle's tokenizer.json, by @huggingface/tokenizers: from texts to ids and back, and back while they arrive. */

import { Tokenizer } from "@huggingface/tokenizers";
import { BundleError, InputError, brief } from "./errors.js";
import { said } from "./manifest.js";

/** @typedef {{ids: number[], types: number[], cut: boolean}} Row */

export class TextReader {
  /** @type {Tokenizer} */ #tokenizer;
  /** @type {number | undefined} */ #unknown;
  /** @type {TextReaderOptions} */ #options;

  /**
   * @typedef {object} TextReaderOptions
   * @property {number | null} maxTokens Texts are cut to so many, special ones included; null: never.
   * @property {boolean} refuseUnknown Whether a character that is not in the vocabulary is an error.
   * @property {"left" | "right"} side Where texts are cut.
   * @property {boolean} lowerCase Whether they are lower-cased first.
   *
   * @param {string} path What errors call the file.
   * @param {any} content Of tokenizer.json.
   * @param {TextReaderOptions} options
   */
  constructor(path, content, options) {
    try {
      // What is no part of tokenizer.json changes nothing in Python either.
      this.#tokenizer = new Tokenizer(content, { clean_up_tokenization_spaces: false });
    } catch (error) {
      throw new BundleError(`${path} is not a tokenizer that @huggingface/tokenizers reads: ${said(error)}`, {
        cause: error,
      });
    }
    const unknown = content.model?.unk_token;
    this.#unknown = unknown ? this.#tokenizer.token_to_id(unknown) : undefined;
    this.#options = options;
  }

  /**
   * Tokenize a text, or two that are read together; what is too long is cut.
   * @param {string} text
   * @param {string | null} [second]
   * @returns {Row}
   */
  encode(text, second = null) {
    const { maxTokens, refuseUnknown, side } = this.#options;
    const texts = second === null ? [text] : [text, second];
    const parts = texts.map((part) => {
      if (!part.isWellFormed?.() && /[\ud800-\udfff]/.test(part) && hasHalf(part)) {
        throw new InputError(`the text ${brief(part)} is not valid Unicode: it has half of a character`);
      }
      return this.#tokenizer.tokenize(this.#options.lowerCase ? part.toLowerCase() : part);
    });
    const special = this.#finish(parts.map(() => [])).ids.length;
    let cut = false;
    if (maxTokens !== null && special + sum(parts) > maxTokens) {
      const room = Math.max(maxTokens - special, 0);
      const keep = parts.length === 1 ? [room] : shares(parts[0].length, parts[1].length, room);
      parts.forEach((tokens, i) => (parts[i] = side === "left" ? tokens.slice(tokens.length - keep[i]) : tokens.slice(0, keep[i])));
      cut = true;
    }
    const { ids, types } = this.#finish(parts);
    if (!ids.length) throw new InputError(`the text ${brief(text)} has no tokens; leave it out`);
    if (refuseUnknown && ids.includes(/** @type {number} */ (this.#unknown))) {
      const place = [...text].findIndex((letter) => this.#tokenizer.token_to_id(letter) === undefined);
      const where = place < 0 ? "a part of the text" : `${brief([...text][place])} in the text`;
      const at = place < 0 ? "" : ` (at ${place})`;
      throw new InputError(`${where} ${brief(text)}${at} is not in the model's vocabulary; replace it`);
    }
    return { ids, types, cut };
  }

  /**
   * Put special tokens around, and look ids up.
   * @param {string[][]} parts
   */
  #finish(parts) {
    const process = this.#tokenizer.post_processor;
    /** @type {{tokens: string[], token_type_ids?: number[]}} */
    const { tokens, token_type_ids: types } = process
      ? process(parts[0], parts[1] ?? null, true)
      : { tokens: parts.flat() };
    const ids = tokens.map((token) => this.#tokenizer.token_to_id(token) ?? this.#unknown);
    const lost = ids.indexOf(undefined);
    if (lost >= 0) throw new InputError(`${brief(tokens[lost])} has no id, and the tokenizer has no token for unknown ones`);
    return { ids: /** @type {number[]} */ (ids), types: types ?? ids.map(() => 0) };
  }

  /** @param {readonly number[]} ids */
  decode(ids) {
    // Ids that the vocabulary lacks, as where it was rounded up, have no text.
    const known = ids.filter((id) => this.#tokenizer.id_to_token(id) !== undefined);
    return known.length
      ? this.#tokenizer.decode(known, { skip_special_tokens: true, clean_up_tokenization_spaces: false })
      : "";
  }

  /** Ids that stand for a byte each, "<0x00>" to "<0xFF>". @returns {Set<number>} */
  get byteTokens() {
    const found = [...this.#tokenizer.get_vocab()].filter(([name]) => /^<0x[0-9A-F]{2}>$/.test(name));
    return new Set(found.map(([, id]) => id));
  }
}

/** @param {string[][]} parts */
const sum = (parts) => parts.reduce((total, part) => total + part.length, 0);

/** @param {string} text */
const hasHalf = (text) => [...text].some((letter) => letter.length === 1 && /[\ud800-\udfff]/.test(letter));

/**
 * How many tokens of each text of a pair are kept: the longer one is cut first, as tokenizers does it.
 * @param {number} first
 * @param {number} second
 * @param {number} room
 */
function shares(first, second, room) {
  const swap = first > second;
  let [short, long] = swap ? [second, first] : [first, second];
  long = short > room ? short : Math.max(short, room - short);
  if (short + long > room) [short, long] = [Math.floor(room / 2), Math.floor(room / 2) + (room % 2)];
  return swap ? [long, short] : [short, long];
}

const WINDOW = 32;
const CONTEXT = 16;
const UNALIGNED = 3;

/**
 * Text while its tokens arrive, at a cost that does not grow with it: what is given out is never taken back, and the
 * parts together are what all tokens at once give.
 */
export class TextStream {
  /** @type {number[]} */ #window = [];
  #given = 0;
  #inRun = false;

  /**
   * @param {(ids: number[]) => string} decode
   * @param {Set<number>} byteTokens Text waits until a run of them has ended.
   */
  constructor(decode, byteTokens) {
    this.decode = decode;
    this.byteTokens = byteTokens;
  }

  /** @param {number} token */
  push(token) {
    this.#window.push(token);
    this.#inRun = this.byteTokens.has(token) || (this.#inRun && !this.decode([token]));
    if (this.#inRun) return "";
    const text = this.decode(this.#window);
    // At most three: that is how many bytes of a character in UTF-8 there may be before its last.
    const stable = text.length - Math.min(text.length - text.replace(/\ufffd+$/, "").length, 3);
    const part = text.slice(this.#given, stable);
    this.#given = Math.max(this.#given, stable);
    if (this.#window.length > WINDOW) this.#shorten(text);
    return part;
  }

  end() {
    const text = this.#window.length ? this.decode(this.#window).slice(this.#given) : "";
    [this.#window, this.#given, this.#inRun] = [[], 0, false];
    return text;
  }

  /** Let the window begin later, if its text then ends in the same way. @param {string} text */
  #shorten(text) {
    const later = this.#window.slice(-CONTEXT);
    const laterText = this.decode(later);
    const [same, waiting] = [laterText.length - UNALIGNED, text.length - this.#given];
    if (same > waiting && text.endsWith(laterText.slice(-same))) {
      [this.#window, this.#given] = [later, laterText.length - waiting];
    }
  }
}

/** Looks for stop strings in a text that arrives in parts; the text ends before the one that is complete first. */
export class StopText {
  #held = "";
  stopped = false;

  /** @param {readonly string[]} stop */
  constructor(stop) {
    this.stop = stop;
  }

  /** @param {string} part */
  push(part) {
    if (this.stopped) return "";
    const text = this.#held + part;
    const found = this.stop
      .map((stop) => [text.indexOf(stop), stop.length])
      .filter(([place]) => place >= 0)
      .sort((a, b) => a[0] + a[1] - (b[0] + b[1]) || a[0] - b[0]);
    if (found.length) {
      [this.stopped, this.#held] = [true, ""];
      return text.slice(0, found[0][0]);
    }
    let begun = Math.min(Math.max(1, ...this.stop.map((stop) => stop.length)) - 1, text.length);
    while (begun && !this.stop.some((stop) => stop.startsWith(text.slice(-begun)))) begun--;
    this.#held = text.slice(text.length - begun);
    return text.slice(0, text.length - begun);
  }

  end() {
    const held = this.#held;
    this.#held = "";
    return held;
  }
}

/** How to generate: Hugging Face's names and meanings, the bundle's defaults, and what is not done here, by name. */

import { InputError, brief, refuseUnknown } from "./errors.js";

/**
 * @typedef {object} Settings
 * @property {number} [max_new_tokens] At most so many; left out: as the bundle says.
 * @property {number} [min_new_tokens] No end token before so many.
 * @property {number} [min_length] No end token before so many, those of the prompt included.
 * @property {number} [repetition_penalty]
 * @property {number} [no_repeat_ngram_size]
 * @property {number[][]} [bad_words_ids]
 * @property {number[]} [suppress_tokens]
 * @property {number[]} [begin_suppress_tokens]
 * @property {number | null} [forced_bos_token_id]
 * @property {number | number[] | null} [forced_eos_token_id]
 * @property {string | string[]} [stop] The text ends before one of these.
 * @property {number[]} [stop_token_ids] More ids that end it.
 * @property {boolean} [do_sample] false alone: sampling is not done here.
 * @property {number} [num_beams] 1 alone: beams are not searched here.
 */

const DONE = [
  "max_new_tokens", "min_new_tokens", "min_length", "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids",
  "suppress_tokens", "begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "stop", "stop_token_ids",
]; // prettier-ignore

/** What would change nothing without sampling or without beams. */
const IDLE = ["temperature", "top_k", "top_p", "min_p", "seed", "length_penalty", "early_stopping"];

/**
 * What is not done here → the only value that is taken.
 * @type {Record<string, unknown>}
 */
const NOT_DONE = { do_sample: false, num_beams: 1, num_return_sequences: 1, prompt_lookup_num_tokens: 0 };

/**
 * Put together what is asked for, and the bundle's defaults for the rest.
 * @param {Record<string, any>} defaults
 * @param {Record<string, any>} asked
 * @returns {Settings}
 */
export function mergeSettings(defaults, asked) {
  refuseUnknown("setting", asked, [...DONE, ...IDLE, ...Object.keys(NOT_DONE)]);
  for (const [name, only] of Object.entries(NOT_DONE)) {
    for (const [value, whose] of [[asked[name], "asked for"], [defaults[name], "a default of this bundle"]]) {
      const overruled = whose !== "asked for" && name in asked;
      if (value !== undefined && value !== null && value !== only && !overruled) {
        throw new InputError(
          `${name}=${brief(value)} is ${whose}, and is not done in JavaScript; pass ${name}: ${JSON.stringify(only)}, or ` +
            "generate in Python",
        );
      }
    } // prettier-ignore
  }
  for (const name of IDLE) {
    if (name in asked) throw new InputError(`${name} is of sampling or beams, which are not done in JavaScript; leave it out`);
  }
  const merged = { ...defaults, ...asked };
  // transformers minds only one of the two.
  if ("min_new_tokens" in asked && !("min_length" in asked)) delete merged.min_length;
  if (!("min_new_tokens" in asked) && "min_new_tokens" in merged && "max_new_tokens" in asked) {
    merged.min_new_tokens = Math.min(merged.min_new_tokens, asked.max_new_tokens);
  }
  for (const [name, least] of [["max_new_tokens", 1], ["min_new_tokens", 0], ["min_length", 0], ["no_repeat_ngram_size", 0]]) {
    const value = merged[name];
    if (value !== undefined && value !== null && !(Number.isInteger(value) && value >= least)) {
      throw new InputError(`${name} must be an integer of at least ${least}, but is ${brief(value)}`);
    }
  } // prettier-ignore
  const penalty = merged.repetition_penalty ?? 1;
  if (!(typeof penalty === "number" && penalty >= 1e-3 && penalty <= 1e3)) {
    throw new InputError(`repetition_penalty must be a number in [0.001, 1000], but is ${brief(penalty)}`);
  }
  return merged;
}

/**
 * @typedef {(tokens: readonly number[], logits: Float32Array) => void} Processor Overwrites the logits.
 *
 * @param {Settings} settings
 * @param {{prompt: number, limit: number, ends: Set<number>}} about Length of the prompt, new tokens at most, and end
 *   tokens.
 * @returns {Processor[]} In transformers' order.
 */
export function processorsOf(settings, { prompt, limit, ends }) {
  /** @type {Processor[]} */
  const made = [];
  const { repetition_penalty: penalty = 1, no_repeat_ngram_size: size = 0, bad_words_ids: bad = [] } = settings;
  if (penalty !== 1) {
    made.push((tokens, logits) => {
      for (const id of new Set(tokens)) {
        if (id < logits.length) logits[id] = logits[id] < 0 ? logits[id] * penalty : logits[id] / penalty;
      }
    });
  }
  if (size) made.push((tokens, logits) => forbid(logits, completing(tokens, size)));
  if (bad.length) made.push(noBadWords(bad, ends));
  const least = Math.max(settings.min_length ?? 0, settings.min_new_tokens ? prompt + settings.min_new_tokens : 0);
  if (ends.size && least) made.push((tokens, logits) => tokens.length < least && forbid(logits, ends));
  const first = settings.forced_bos_token_id ?? null;
  if (first !== null) made.push(forced(1, [first]));
  const last = settings.forced_eos_token_id ?? null;
  if (last !== null) made.push(forced(prompt + limit - 1, Array.isArray(last) ? last : [last]));
  const { suppress_tokens: never = [], begin_suppress_tokens: notFirst = [] } = settings;
  if (never.length) made.push((_, logits) => forbid(logits, never));
  if (notFirst.length) {
    const at = prompt + (prompt === 1 && first !== null ? 1 : 0);
    made.push((tokens, logits) => tokens.length === at && forbid(logits, notFirst));
  }
  return made;
}

/**
 * @param {Float32Array} logits
 * @param {Iterable<number>} ids
 */
function forbid(logits, ids) {
  for (const id of ids) if (id < logits.length) logits[id] = -Infinity;
}

/**
 * What would complete `size` tokens that were there before in this order.
 * @param {readonly number[]} tokens
 * @param {number} size
 */
function* completing(tokens, size) {
  const end = tokens.slice(tokens.length - size + 1);
  for (let start = 0; start + size <= tokens.length; start++) {
    if (end.every((token, i) => tokens[start + i] === token)) yield tokens[start + size - 1];
  }
}

/**
 * @param {number[][]} words
 * @param {Set<number>} ends
 * @returns {Processor}
 */
function noBadWords(words, ends) {
  return (tokens, logits) => {
    for (const word of words) {
      const before = word.slice(0, -1);
      if (!before.length && ends.has(word[0])) continue;
      const start = tokens.length - before.length;
      if (start >= 0 && before.every((token, i) => tokens[start + i] === token)) forbid(logits, word.slice(-1));
    }
  };
}

/**
 * @param {number} length
 * @param {number[]} ids
 * @returns {Processor}
 */
function forced(length, ids) {
  return (tokens, logits) => {
    if (tokens.length !== length) return;
    logits.fill(-Infinity);
    for (const id of ids) logits[id] = 0;
  };
}

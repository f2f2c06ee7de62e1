/**
 * What is thrown. A message says what is wrong, where, what was expected, and what to do; those of damaged bundles are
 * the sentences of the Python runtime.
 */

/** Every error of this package. */
export class TfmError extends Error {
  /**
   * @param {string} message
   * @param {{cause?: unknown}} [options]
   */
  constructor(message, options) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** It is no bundle, or was altered, is incomplete, or is not signed by who should have. */
export class BundleError extends TfmError {}

/** An argument that the model must not see. */
export class InputError extends TfmError {}

/**
 * Show the beginning of a value as Python would.
 * @param {unknown} value
 * @returns {string}
 */
export function brief(value) {
  if (value === null || value === undefined) return "None";
  if (typeof value === "boolean") return value ? "True" : "False";
  const shown = typeof value === "string" ? `'${value}'` : (JSON.stringify(value) ?? String(value));
  return shown.length <= 60 ? shown : `${shown.slice(0, 57)}...`;
}

/**
 * Refuse a name that is none of those that are known.
 * @param {string} what
 * @param {Record<string, unknown>} given
 * @param {readonly string[]} known
 */
export function refuseUnknown(what, given, known) {
  for (const name of Object.keys(given)) {
    if (!known.includes(name)) {
      throw new InputError(`there is no ${what} '${name}' (known: ${[...known].sort().join(", ")})`);
    }
  }
}

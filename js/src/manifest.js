/** manifest.json: what is in a bundle, what its graphs take and give, and the digests that prove it. */

import { BundleError } from "./errors.js";
import { sha256, toHex } from "./proof.js";
import { MANIFEST } from "./source.js";

/**
 * @typedef {import("./source.js").Source} Source
 * @typedef {{name: string, dtype: string, shape: (number | string)[], below?: number, default?: number}} TensorSpec
 * @typedef {{inputs: TensorSpec[], outputs: TensorSpec[], max_length: Record<string, number>}} Signature
 * @typedef {object} Generation
 * @property {number | null} pad_token_id
 * @property {number | null} bos_token_id
 * @property {number | number[] | null} eos_token_id
 * @property {number} max_new_tokens
 * @property {number | null} [max_length]
 * @property {number | null} [short_length]
 * @property {boolean} split_on_whitespace
 * @property {Record<string, any>} [defaults]
 * @typedef {object} TextSettings
 * @property {"left" | "right"} truncation_side
 * @property {boolean} lower_case
 * @property {Record<string, string>} prompts
 * @property {string | null} default_prompt
 * @typedef {object} Manifest
 * @property {number} schema
 * @property {"encoder" | "decoder" | "encoder-decoder" | "module"} kind
 * @property {string} family
 * @property {Record<string, any>} config
 * @property {Record<string, Record<string, string>>} graphs Precision → role → path.
 * @property {Record<string, Signature>} signature By role.
 * @property {{graphs: Record<string, string>, signature: Signature} | null} [merged]
 * @property {Generation | null} generation
 * @property {number | null} max_text_tokens
 * @property {TextSettings} [text]
 * @property {Record<string, {size: number, sha256: string}>} files
 * @property {{onnxruntime: Record<string, Record<string, string>>}} [requires]
 */

const SCHEMA = 1;
const LARGEST_MANIFEST = 1 << 26;
/** @type {Record<string, string[]>} */
const ROLES = {
  encoder: ["model"],
  decoder: ["model"],
  "encoder-decoder": ["encoder", "decoder"],
  module: ["model"],
};

/**
 * Read and check a manifest; that its files are there is for `readProved` to see.
 * @param {Source} source
 * @returns {Promise<{manifest: Manifest, bytes: Uint8Array}>}
 */
export async function readManifest(source) {
  const path = `${source.place}/${MANIFEST}`;
  let bytes;
  try {
    bytes = await source.read(MANIFEST, LARGEST_MANIFEST);
  } catch (error) {
    throw new BundleError(`${path} cannot be read: ${said(error)}; copy the bundle again`, { cause: error });
  }
  if (!bytes) {
    throw new BundleError(
      `${source.place} is not a bundle: it holds no manifest.json; export one with tfm-export`,
    );
  }
  return { manifest: checkManifest(path, parseJson(path, bytes)), bytes };
}

/**
 * @param {string} path
 * @param {Uint8Array} bytes
 * @returns {any}
 */
export function parseJson(path, bytes) {
  try {
    return JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch (error) {
    throw new BundleError(`${path} cannot be read as JSON: ${said(error)}; export the bundle again`, { cause: error });
  }
}

/**
 * @param {string} path
 * @param {any} top
 * @returns {Manifest}
 */
function checkManifest(path, top) {
  object(path, top, "it");
  if (required(path, top, "schema") !== SCHEMA) {
    throw new BundleError(
      `${path}: its schema is ${JSON.stringify(top.schema)}, but this tfm-export reads ${SCHEMA}; ` +
        "upgrade tfm-export, or export the bundle again with this one",
    );
  }
  const kinds = Object.keys(ROLES);
  if (!kinds.includes(required(path, top, "kind"))) throw wrong(path, "kind", `one of ${kinds.join(", ")}`, top.kind);
  for (const [name, file] of Object.entries(object(path, required(path, top, "files"), "files"))) {
    inside(path, name);
    if (!Number.isInteger(file?.size) || file.size < 0) {
      throw wrong(path, `files.${name}.size`, "an integer of at least 0", file?.size);
    }
    if (!/^[0-9a-f]{64}$/.test(file.sha256)) {
      throw wrong(path, `files.${name}.sha256`, "64 lower-case hexadecimal digits", file.sha256);
    }
  }
  const precisions = Object.entries(object(path, required(path, top, "graphs"), "graphs"));
  if (!precisions.length) throw wrong(path, "graphs", "at least one precision", top.graphs);
  object(path, required(path, top, "signature"), "signature");
  for (const role of ROLES[top.kind]) {
    for (const [precision, graph] of precisions) {
      const listed = required(path, object(path, graph, `graphs.${precision}`), role, `graphs.${precision}`);
      if (!(listed in top.files)) throw wrong(path, `graphs.${precision}.${role}`, "one of the paths in files", listed);
    }
    checkSignatureOf(path, role, required(path, top.signature, role, "signature"), top.kind);
  }
  for (const key of ["generation", "max_text_tokens", "config"]) required(path, top, key);
  return top;
}

/**
 * @param {string} path
 * @param {string} role
 * @param {any} signature
 * @param {string} kind
 */
function checkSignatureOf(path, role, signature, kind) {
  const place = `signature.${role}`;
  const specs = [...required(path, signature, "inputs", place), ...required(path, signature, "outputs", place)];
  for (const spec of specs) {
    if (typeof spec?.name !== "string" || !Array.isArray(spec.shape)) {
      throw wrong(path, place, "inputs and outputs with names and shapes", spec);
    }
  }
  const names = new Set(specs.map((spec) => spec.name));
  const cached = specs.some((spec) => spec.name.startsWith("past_key_values."));
  const masks = ["attention_mask", "decoder_attention_mask", "use_cache_branch"];
  if (kind !== "module" && cached && !(masks.some((mask) => names.has(mask)) && names.has("num_logits_to_keep"))) {
    throw new BundleError(
      `${path}: ${place} takes its cache in the form of older versions, not in Hugging Face's; export it again`,
    );
  }
}

/**
 * Check that a name leads to no place outside the bundle.
 * @param {string} path
 * @param {string} name
 */
function inside(path, name) {
  if (/[\\:\0]/.test(name) || name.split("/").some((part) => part === "" || part === "." || part === "..")) {
    throw new BundleError(`${path}: '${name}' is not a path inside the bundle; export the bundle again`);
  }
}

/**
 * @param {string} path
 * @param {any} value
 * @param {string} place
 * @returns {any}
 */
function object(path, value, place) {
  if (typeof value !== "object" || value === null || Array.isArray(value)) throw wrong(path, place, "an object", value);
  return value;
}

/**
 * @param {string} path
 * @param {any} value
 * @param {string} key
 * @param {string} [place]
 * @returns {any}
 */
function required(path, value, key, place) {
  if (!Object.hasOwn(value, key)) {
    throw new BundleError(`${path}: '${key}' is missing${place ? ` in ${place}` : ""}; export the bundle again`);
  }
  return value[key];
}

/**
 * @param {string} path
 * @param {string} place
 * @param {string} expected
 * @param {unknown} value
 */
function wrong(path, place, expected, value) {
  const found = JSON.stringify(value) ?? "nothing";
  const shown = found.length <= 40 ? found : `${found.slice(0, 37)}...`;
  return new BundleError(`${path}: ${place} must be ${expected}, but is ${shown}; export the bundle again`);
}

/**
 * Read a listed file, and compare what was read with its size and digest: nothing else of it is ever used.
 * @param {Source} source
 * @param {Manifest} manifest
 * @param {string} name
 * @param {(bytes: number) => void} [onBytes]
 * @returns {Promise<Uint8Array>}
 */
export async function readProved(source, manifest, name, onBytes) {
  const { size, sha256: expected } = manifest.files[name];
  let content;
  try {
    content = await source.read(name, size, onBytes);
  } catch (error) {
    throw new BundleError(`${source.place}: ${name} cannot be read: ${said(error)}; copy the bundle again`, {
      cause: error,
    });
  }
  checkSize(source, name, content ? content.length : null, size);
  if (toHex(await sha256(/** @type {Uint8Array} */ (content))) !== expected) {
    throw new BundleError(
      `${source.place}: ${name} was altered: its SHA-256 is not the manifest's; copy the bundle again`,
    );
  }
  return /** @type {Uint8Array} */ (content);
}

/**
 * @param {Source} source
 * @param {string} name
 * @param {number | null} found
 * @param {number} size
 */
function checkSize(source, name, found, size) {
  if (found === null) {
    throw new BundleError(`${source.place}: ${name} is missing, though the manifest lists it; copy the bundle again`);
  }
  if (found !== size) {
    throw new BundleError(
      `${source.place}: ${name} was altered: it has ${found} bytes, not ${size} as in the manifest; copy it again`,
    );
  }
}

/**
 * Check, where that can be told, that every file is there and has its size, as Python does before it reads any.
 * @param {Source} source
 * @param {Manifest} manifest
 */
export async function checkSizes(source, manifest) {
  for (const [name, { size }] of Object.entries(manifest.files)) {
    const found = await source.size(name);
    if (found !== undefined) checkSize(source, name, found, size);
  }
}

/**
 * @param {unknown} error
 * @returns {string}
 */
export function said(error) {
  return error instanceof Error ? error.message : String(error);
}

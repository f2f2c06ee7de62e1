/** Digests and signatures, by WebCrypto: SHA-256, and Ed25519 (RFC 8032) over manifest.json. */

import { BundleError } from "./errors.js";

/** @typedef {import("./source.js").Source} Source */

export const SIGNATURE = "manifest.json.sig";

/** Bytes of a signature's file at most. */
const MOST = 1 << 16;

/** 1.3.101.112, id-Ed25519, as DER has it (RFC 8410). */
const ED25519 = "06032b6570";

/**
 * @param {Uint8Array} bytes
 * @returns {Promise<Uint8Array>}
 */
export async function sha256(bytes) {
  return new Uint8Array(await subtle().digest("SHA-256", /** @type {BufferSource} */ (bytes)));
}

/**
 * @param {Uint8Array} bytes
 * @returns {string}
 */
export function toHex(bytes) {
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

/**
 * Check that whoever has the private key signed this manifest.
 * @param {Source} source
 * @param {Uint8Array} manifest Its bytes, those that were read.
 * @param {string} publicKey In PEM.
 */
export async function checkSignature(source, manifest, publicKey) {
  const key = await readKey(publicKey);
  const foreign = new BundleError(
    `${source.place} is not signed by this key; take the bundle from who signed it, and copy all of it`,
  );
  const content = await source.read(SIGNATURE, MOST).catch(() => null);
  const signature = content && fromBase64(new TextDecoder().decode(content));
  if (!signature) throw foreign;
  const data = /** @type {BufferSource} */ (manifest);
  if (!(await subtle().verify("Ed25519", key, /** @type {BufferSource} */ (signature), data))) throw foreign;
}

/**
 * @param {string} pem
 * @returns {Promise<CryptoKey>}
 */
async function readKey(pem) {
  const found = /-----BEGIN PUBLIC KEY-----([^-]*)-----END PUBLIC KEY-----/.exec(pem);
  const der = found && fromBase64(found[1]);
  if (!der) throw new BundleError("the public key cannot be read as PEM: there is no block of a PUBLIC KEY in it");
  if (!toHex(der).includes(ED25519)) throw new BundleError("the public key is no Ed25519 key");
  try {
    return await subtle().importKey("spki", /** @type {BufferSource} */ (der), "Ed25519", false, ["verify"]);
  } catch (error) {
    if (error instanceof Error && error.name === "NotSupportedError") {
      throw new BundleError(
        "signatures cannot be checked here: this browser's WebCrypto has no Ed25519; use a newer one, or load without " +
          "a publicKey",
        { cause: error },
      );
    }
    throw new BundleError(`the public key cannot be read as PEM: ${error}`, { cause: error });
  }
}

/**
 * @param {string} text
 * @returns {Uint8Array | null} null: it is none.
 */
function fromBase64(text) {
  try {
    return Uint8Array.from(atob(text.replace(/[^A-Za-z0-9+/=]/g, "")), (character) => character.charCodeAt(0));
  } catch {
    return null;
  }
}

/** @returns {SubtleCrypto} */
function subtle() {
  if (!globalThis.crypto?.subtle) {
    throw new BundleError("digests cannot be checked here: WebCrypto is there over https and on localhost alone");
  }
  return globalThis.crypto.subtle;
}

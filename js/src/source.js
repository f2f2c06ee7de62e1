/** Where the files of a bundle come from: a folder under Node, a URL anywhere. */

import { BundleError } from "./errors.js";

export const MANIFEST = "manifest.json";

/**
 * @typedef {(bytes: number) => void} OnBytes Told how many bytes arrived since it was told last.
 * @typedef {object} Source
 * @property {string} place What errors call the bundle: an absolute path, or a URL.
 * @property {(name: string, most: number, onBytes?: OnBytes) => Promise<Uint8Array | null>} read A file; null: it is
 *   missing. No more than `most` bytes and one are read.
 * @property {(name: string) => Promise<number | null | undefined>} size Of a file that is not read; null: it is
 *   missing; undefined: nobody can tell.
 */

/** Whether this is Node, or has its modules. */
export const isNode = typeof process !== "undefined" && Boolean(process.versions?.node);

/**
 * @param {string | URL} place
 * @param {typeof fetch} [fetcher]
 * @returns {Promise<Source>}
 */
export async function openSource(place, fetcher) {
  const text = String(place);
  if (text.endsWith(".zip")) {
    throw new BundleError(`${text} is a .zip, which is opened in Python alone; unpack it`);
  }
  if (isNode && !/^(https?|blob|data):/.test(text)) {
    return folderSource(text.startsWith("file:") ? (await import("node:url")).fileURLToPath(text) : text);
  }
  const base = new URL(text, globalThis.document?.baseURI ?? globalThis.location?.href);
  return urlSource(base.href.replace(/\/+$/, ""), fetcher ?? globalThis.fetch.bind(globalThis));
}

/**
 * @param {string} folder
 * @returns {Promise<Source>}
 */
async function folderSource(folder) {
  const [{ open, stat }, path] = await Promise.all([import("node:fs/promises"), import("node:path")]);
  const place = path.resolve(folder);
  const found = await stat(place).catch(() => null);
  if (!found?.isDirectory()) {
    const state = found ? "a file, not a folder" : "not there";
    throw new BundleError(`${place} is ${state}; a bundle is the folder that tfm-export wrote`);
  }
  return {
    place,
    async read(name, most, onBytes) {
      let file;
      try {
        file = await open(path.join(place, name), "r");
      } catch (error) {
        if (/** @type {NodeJS.ErrnoException} */ (error).code === "ENOENT") return null;
        throw error;
      }
      try {
        const { size } = await file.stat();
        const content = new Uint8Array(Math.min(size, most + 1));
        for (let at = 0; at < content.length; ) {
          const { bytesRead } = await file.read(content, at, Math.min(content.length - at, 1 << 24), at);
          if (!bytesRead) return content.subarray(0, at);
          at += bytesRead;
          onBytes?.(bytesRead);
        }
        return content;
      } finally {
        await file.close();
      }
    },
    async size(name) {
      const found = await stat(path.join(place, name)).catch(() => null);
      return found?.isFile() ? found.size : null;
    },
  };
}

/**
 * @param {string} place
 * @param {typeof fetch} fetcher
 * @returns {Source}
 */
function urlSource(place, fetcher) {
  return {
    place,
    async read(name, most, onBytes) {
      const answer = await fetcher(`${place}/${name.split("/").map(encodeURIComponent).join("/")}`);
      if (answer.status === 404 || answer.status === 410) return null;
      if (!answer.ok) throw new Error(`the server answered ${answer.status} ${answer.statusText}`.trim());
      if (!answer.body) return new Uint8Array(await answer.arrayBuffer());
      const parts = [];
      let length = 0;
      const reader = answer.body.getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        parts.push(part.value);
        length += part.value.length;
        onBytes?.(part.value.length);
        if (length > most) {
          await reader.cancel();
          break;
        }
      }
      const content = new Uint8Array(length);
      let at = 0;
      for (const part of parts) {
        content.set(part, at);
        at += part.length;
      }
      return content;
    },
    async size() {
      return undefined;
    },
  };
}

/** Arrays as numpy writes them: .npz, a ZIP archive of .npy files. */

/**
 * @typedef {BigInt64Array | Float32Array | Float64Array | Int32Array | Uint8Array | Int8Array | Uint16Array |
 *   Int16Array | Uint32Array | BigUint64Array} Numbers
 * @typedef {{type: string, dims: number[], data: Numbers}} NpyArray With onnxruntime's name of the type.
 */

/** @type {Record<string, [string, new (buffer: ArrayBuffer) => Numbers]>} */
const TYPES = {
  "<f2": ["float16", Uint16Array],
  "<f4": ["float32", Float32Array],
  "<f8": ["float64", Float64Array],
  "<i2": ["int16", Int16Array],
  "<i4": ["int32", Int32Array],
  "<i8": ["int64", BigInt64Array],
  "<u2": ["uint16", Uint16Array],
  "<u4": ["uint32", Uint32Array],
  "<u8": ["uint64", BigUint64Array],
  "|b1": ["bool", Uint8Array],
  "|i1": ["int8", Int8Array],
  "|u1": ["uint8", Uint8Array],
};

/** Bytes of all arrays at most; goldens are a few samples of one model. */
const MOST = 1 << 30;

/**
 * @param {Uint8Array} bytes Of a .npz.
 * @returns {Promise<Map<string, NpyArray>>} By name, without ".npy".
 */
export async function readNpz(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  let end = bytes.length - 22;
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new Error("it is no ZIP archive");
  const count = view.getUint16(end + 10, true);
  const arrays = new Map();
  let [at, whole] = [view.getUint32(end + 16, true), 0];
  for (let entry = 0; entry < count; entry++) {
    if (view.getUint32(at, true) !== 0x02014b50) throw new Error("its ZIP directory is damaged");
    const method = view.getUint16(at + 10, true);
    const [packed, size] = [view.getUint32(at + 20, true), view.getUint32(at + 24, true)];
    const nameLength = view.getUint16(at + 28, true);
    const name = new TextDecoder().decode(bytes.subarray(at + 46, at + 46 + nameLength));
    const local = view.getUint32(at + 42, true);
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    whole += size;
    if (whole > MOST) throw new Error(`its arrays have more than ${MOST} bytes`);
    const content = bytes.subarray(start, start + packed);
    arrays.set(name.replace(/\.npy$/, ""), readNpy(method === 0 ? content : await inflate(content, size)));
    at += 46 + nameLength + view.getUint16(at + 30, true) + view.getUint16(at + 32, true);
  }
  return arrays;
}

/**
 * @param {Uint8Array} bytes
 * @param {number} size Of what is in them.
 * @returns {Promise<Uint8Array>}
 */
async function inflate(bytes, size) {
  const stream = new Blob([/** @type {BlobPart} */ (bytes)]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const content = new Uint8Array(await new Response(stream).arrayBuffer());
  if (content.length !== size) throw new Error("an entry is not as long as its ZIP directory says");
  return content;
}

/**
 * @param {Uint8Array} bytes Of a .npy.
 * @returns {NpyArray}
 */
function readNpy(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  if (view.getUint32(0) !== 0x934e554d) throw new Error("an entry is no .npy");
  const long = bytes[6] > 1;
  const start = long ? 12 : 10;
  const length = long ? view.getUint32(8, true) : view.getUint16(8, true);
  const header = new TextDecoder("latin1").decode(bytes.subarray(start, start + length));
  const [, descr, fortran, shape] =
    /'descr': '([^']*)', 'fortran_order': (\w+), 'shape': \(([^)]*)\)/.exec(header) ?? [];
  const known = TYPES[descr];
  if (!known) throw new Error(`an array is of the type ${descr}, which is not read`);
  const dims = shape.split(",").map((part) => part.trim()).filter(Boolean).map(Number);
  if (fortran !== "False" && dims.length > 1) throw new Error("an array is in Fortran's order, which is not read");
  const data = new known[1](bytes.slice(start + length).buffer);
  if (data.length !== dims.reduce((product, dim) => product * dim, 1)) throw new Error("an array is cut short");
  return { type: known[0], dims, data };
}

/**
 * Give numbers as float64.
 * @param {{type: string, data: any}} array
 * @returns {Float64Array}
 */
export function toDoubles({ type, data }) {
  // Float16Array is there in new engines alone; in others float16 comes as its bits.
  if (type === "float16" && data instanceof Uint16Array) return Float64Array.from(data, fromHalf);
  return Float64Array.from(data, Number);
}

/**
 * @param {number} bits Of an IEEE 754 binary16.
 * @returns {number}
 */
function fromHalf(bits) {
  const sign = bits & 0x8000 ? -1 : 1;
  const [exponent, fraction] = [(bits >> 10) & 31, bits & 0x3ff];
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

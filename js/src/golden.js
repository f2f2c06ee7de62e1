/**
 * The golden check, where the app runs: whether graphs compute here what eager PyTorch computed at export.
 *
 * golden.npz has ROLE/CASE/inputs/NAME and ROLE/CASE/outputs/NAME, golden.json the limits of each precision: an fp32
 * output may differ by atol + rtol × its largest value; of any other precision the NMSE may be `nmse_factor` times that
 * of the exporting machine, and `nmse_floor` more.
 */

import { BundleError } from "./errors.js";
import { parseJson, readProved, said } from "./manifest.js";
import { readNpz, toDoubles } from "./npy.js";

/**
 * @typedef {import("./manifest.js").Manifest} Manifest
 * @typedef {import("./source.js").Source} Source
 * @typedef {import("./npy.js").NpyArray} NpyArray
 * @typedef {object} Gate A gate as Python's: what was held to what, by how much it passed or failed, and why.
 * @property {string} name
 * @property {"golden"} stage
 * @property {string} precision
 * @property {string} [op] The output that is off, or else is nearest to its limit.
 * @property {boolean} passed
 * @property {number | null} figure
 * @property {number | null} limit
 * @property {string} reason Why it failed, "" where it passed.
 * @typedef {object} Limits
 * @property {"max_abs" | "nmse"} measure
 * @property {number} factor
 * @property {number} floor
 * @property {Record<string, Record<string, number | null>>} nmse
 * @typedef {(feeds: Record<string, NpyArray>) => Promise<Record<string, NpyArray>>} Run
 */

const [ARRAYS, LIMITS] = ["golden.npz", "golden.json"];

/** Whether a bundle was packed with its goldens. @param {Manifest} manifest */
export const hasGolden = (manifest) => ARRAYS in manifest.files && LIMITS in manifest.files;

/**
 * @param {Source} source
 * @param {Manifest} manifest
 */
export async function readGolden(source, manifest) {
  for (const name of [ARRAYS, LIMITS]) {
    if (!(name in manifest.files)) {
      throw new BundleError(
        `${source.place} holds no ${name}: an older tfm-export made it, and stored no outputs to compare with; ` +
          "export it again",
      );
    }
  }
  const limits = parseJson(`${source.place}/${LIMITS}`, await readProved(source, manifest, LIMITS));
  let arrays;
  try {
    arrays = await readNpz(await readProved(source, manifest, ARRAYS));
  } catch (error) {
    if (error instanceof BundleError) throw error;
    throw new BundleError(`${source.place}/${ARRAYS} cannot be read: ${said(error)}; export the bundle again`, {
      cause: error,
    });
  }
  return { counts: limits.cases, precisions: limits.precisions, arrays };
}

/**
 * @param {any} value Of golden.json's precisions.
 * @returns {Limits}
 */
function limitsOf(value) {
  const measure = "nmse_factor" in value ? "nmse" : "max_abs";
  const [factor, floor] = measure === "nmse" ? ["nmse_factor", "nmse_floor"] : ["rtol", "atol"];
  return { measure, factor: value[factor], floor: value[floor], nmse: value.nmse };
}

/**
 * Run a graph on its golden cases, and judge what it gives.
 * @param {Awaited<ReturnType<typeof readGolden>>} golden
 * @param {Manifest} manifest
 * @param {string} precision
 * @param {string} role
 * @param {Run} run
 * @returns {Promise<Gate>}
 */
export async function judgeGraph(golden, manifest, precision, role, run) {
  const { inputs, outputs } = manifest.signature[role];
  const limits = limitsOf(golden.precisions[precision]);
  const name = `${precision} ${role}`;
  const figures = outputs.map((spec) => ({ name: spec.name, stats: new ErrorStats() }));
  /** @param {string} fault @returns {Gate} */
  const failed = (fault) => ({
    name, stage: "golden", precision, passed: false, figure: null, limit: null, reason: `${name}: ${fault}`,
  }); // prettier-ignore
  try {
    for (let number = 0; number < golden.counts[role]; number++) {
      /** @param {string} side @param {{name: string}} spec */
      const at = (side, spec) => {
        const key = `${role}/${number}/${side}/${spec.name}`;
        const array = golden.arrays.get(key);
        if (!array) throw new Error(`golden.npz holds no '${key}'; export the bundle again`);
        return array;
      };
      const feeds = Object.fromEntries(inputs.map((spec) => [spec.name, at("inputs", spec)]));
      const found = await run(feeds);
      for (const { name: output, stats } of figures) {
        stats.add(found[output], at("outputs", { name: output }), `${output} of golden case ${number}: `);
      }
    }
  } catch (error) {
    return failed(said(error).split("\n")[0]);
  }
  const judged = figures.map(({ name: output, stats }) => judge(role, output, stats, limits));
  const faults = judged.filter(({ fault }) => fault);
  const shown = judged.reduce((worst, one) => (isWorse(one, worst) ? one : worst));
  const more = faults.length > 1 ? ` (and ${faults.length - 1} more of its ${judged.length} outputs)` : "";
  return {
    name,
    stage: "golden",
    precision,
    op: shown.name,
    passed: !faults.length,
    figure: shown.figure,
    limit: shown.limit,
    reason: faults.length ? `${name}: ${faults[0].name} ${faults[0].fault}${more}` : "",
  };
}

/**
 * @typedef {{name: string, figure: number, limit: number | null, fault: string}} Verdict
 * @param {Verdict} one
 * @param {Verdict} other
 */
function isWorse(one, other) {
  if (Boolean(one.fault) !== Boolean(other.fault)) return Boolean(one.fault);
  /** @param {Verdict} verdict */
  const nearness = ({ figure, limit }) => (limit ? figure / limit : 0);
  return nearness(one) > nearness(other);
}

/**
 * @param {string} role
 * @param {string} name
 * @param {ErrorStats} stats
 * @param {Limits} limits
 * @returns {Verdict}
 */
function judge(role, name, stats, { measure, factor, floor, nmse }) {
  const of = measure === "max_abs" ? stats.scale : nmse[role][name];
  const limit = of === null ? null : floor + factor * of;
  const figure = measure === "max_abs" ? stats.maxAbs : stats.nmse;
  let fault = "";
  if (!stats.count) fault = "was compared with nothing";
  else if (stats.maxAbs === Infinity) {
    fault = "is NaN or infinity where eager PyTorch gave another value, or the other way round";
  } else if (limit !== null && !(figure <= limit)) {
    fault = `is off by ${scientific(stats.maxAbs)}, more than ${scientific(limit)}`;
    if (measure === "nmse") {
      fault = `has NMSE ${scientific(figure)}, more than ${scientific(limit)}; where it was exported, ${scientific(of ?? 0)}`;
    }
  }
  return { name, figure, limit, fault };
}

/** As Python's ".1e". @param {number} value */
function scientific(value) {
  return value.toExponential(1).replace(/e([+-])(\d)$/, "e$10$2");
}

/** The distance of what was computed from what was expected: NaN equals NaN alone, an infinity itself alone. */
class ErrorStats {
  count = 0;
  maxAbs = 0;
  scale = 0;
  #noise = 0;
  #expected = 0;

  /**
   * @param {NpyArray | undefined} actual
   * @param {NpyArray} expected
   * @param {string} of What the error is to begin with.
   */
  add(actual, expected, of) {
    if (!actual || String(actual.dims) !== String(expected.dims)) {
      const found = actual ? `(${actual.dims.join(", ")}) was computed` : "nothing was computed";
      throw new Error(`${of}shapes differ: ${found}, (${expected.dims.join(", ")}) expected`);
    }
    const [found, wanted] = [toDoubles(actual), toDoubles(expected)];
    this.count += found.length;
    for (let i = 0; i < found.length; i++) {
      const [a, e] = [found[i], wanted[i]];
      if (Number.isFinite(a) && Number.isFinite(e)) {
        const difference = a - e;
        this.maxAbs = Math.max(this.maxAbs, Math.abs(difference));
        this.scale = Math.max(this.scale, Math.abs(e));
        this.#noise += difference * difference;
        this.#expected += e * e;
      } else if (!Object.is(a, e)) {
        this.maxAbs = Infinity;
      }
    }
  }

  get nmse() {
    if (this.maxAbs === Infinity) return Infinity;
    return this.#expected ? this.#noise / this.#expected : this.#noise ? Infinity : 0;
  }
}

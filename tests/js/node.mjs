// node node.mjs TASKS: what `driver.mjs` makes of them, on stdout. Runs where node_modules is.
import { readFileSync } from "node:fs";
import { perform, performOther } from "./driver.mjs";

const { tasks, others, root } = JSON.parse(readFileSync(process.argv[2], "utf8"));
const found = others
  ? await performOther(await import("@huggingface/transformers"), root, others)
  : await perform(await import("tfm-runtime"), undefined, tasks);
process.stdout.write(JSON.stringify(found));

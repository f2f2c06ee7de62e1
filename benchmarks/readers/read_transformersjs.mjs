// transformers.js opens the bundles of checkpoints.py and sequences.py as they are: its tokens are transformers' own.
//
//     node benchmarks/readers/read_transformersjs.mjs DIR, where @huggingface/transformers is installed

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { resolve } from "node:path";
import { pathToFileURL } from "node:url";

const require = createRequire(pathToFileURL(resolve(process.cwd(), "package.json")));
const { AutoModelForCausalLM, AutoModelForSeq2SeqLM, Tensor, env } = await import(
  pathToFileURL(require.resolve("@huggingface/transformers")).href
);

const folder = resolve(process.argv[2]);
const [expected, sequences] = ["expected", "sequences"].map((name) =>
  JSON.parse(readFileSync(`${folder}/${name}.json`, "utf-8")),
);
env.allowRemoteModels = false;
env.localModelPath = folder;

const tensor = (rows) =>
  new Tensor("int64", BigInt64Array.from(rows.flat().map(BigInt)), [rows.length, rows[0].length]);
// Readers fill up what is behind the end token each in their own way.
const untilTheEnd = (row, end) => (row.includes(end) ? row.slice(0, row.indexOf(end)) : row);

let wrong = 0;
const compare = async (model, { name, precision, batches }, start) => {
  for (const [kind, batch] of Object.entries(batches)) {
    const output = await model.generate({
      input_ids: tensor(batch.ids),
      attention_mask: tensor(batch.mask),
      max_new_tokens: expected.new_tokens,
      do_sample: false,
    });
    const found = output.tolist().map((row) => untilTheEnd(row.slice(start(batch)).map(Number), batch.end));
    const same = JSON.stringify(found) === JSON.stringify(batch.new.map((row) => untilTheEnd(row, batch.end)));
    wrong += !same;
    console.log(`transformers.js ${name} ${precision}, ${kind}: ${same ? "equal" : "DIFFERENT"}`);
  }
};

for (const one of expected.models) {
  const model = await AutoModelForCausalLM.from_pretrained(`${one.name}.tfm`, { dtype: one.precision });
  await compare(model, one, (batch) => batch.ids[0].length);
}
for (const one of sequences.models) {
  const model = await AutoModelForSeq2SeqLM.from_pretrained(one.bundle, { dtype: one.dtype });
  await compare(model, one, () => 1); // behind the token that targets start with
}
process.exit(wrong);

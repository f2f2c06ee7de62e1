// Does with bundles what a test asks for, under Node and in a browser alike, and gives what came out as JSON values.
//
// A task is {bundle, options, calls: [[method, ...arguments], ...]}; of it comes {results} or {error}.

/** Infinity and NaN, which JSON lacks, are strings; typed arrays are lists. */
function plain(value) {
  if (ArrayBuffer.isView(value)) return Array.from(value, plain);
  if (typeof value === "bigint") return Number(value);
  if (typeof value === "number" && !Number.isFinite(value)) return String(value);
  if (Array.isArray(value)) return value.map(plain);
  if (value && typeof value === "object") {
    return Object.fromEntries(Object.entries(value).map(([key, one]) => [key, plain(one)]));
  }
  return value ?? null;
}

async function call(model, [method, ...given]) {
  try {
    if (method === "stream") {
      const parts = [];
      for await (const part of model.stream(...given)) parts.push(part);
      return parts;
    }
    if (method === "about") return { tasks: model.tasks, precision: model.precision, provider: model.provider, skipped: model.skipped };
    return plain(await model[method](...given));
  } catch (error) {
    return { error: error.message, name: error.name };
  }
}

export async function perform(tfm, ort, tasks) {
  const done = [];
  for (const { bundle, options = {}, calls } of tasks) {
    try {
      const model = await tfm.load(bundle, { ort, ...options });
      const results = [];
      for (const one of calls) results.push(await call(model, one));
      await model.close();
      done.push({ results });
    } catch (error) {
      done.push({ error: error.message, name: error.name });
    }
  }
  return done;
}

// transformers.js as it is: a task is {bundle, kind, dtype, inputs, config}.
export async function performOther(transformers, root, tasks) {
  const { AutoModel, AutoModelForCausalLM, AutoModelForSeq2SeqLM, PretrainedConfig, Tensor, env, pipeline } = transformers;
  env.allowRemoteModels = false;
  env.allowLocalModels = true;
  env.localModelPath = root;
  const tensor = ({ dims, data }) => new Tensor("int64", BigInt64Array.from(data.map(BigInt)), dims);
  const done = [];
  for (const { bundle, kind, dtype, inputs, texts, config, settings } of tasks) {
    const options = { dtype, ...(config ? { config: new PretrainedConfig(config) } : {}) };
    try {
      if (kind === "embed") {
        const embed = await pipeline("feature-extraction", bundle, options);
        done.push({ results: (await embed(texts, { pooling: "mean", normalize: true })).tolist() });
      } else if (kind === "run") {
        const model = await AutoModel.from_pretrained(bundle, options);
        const found = await model(Object.fromEntries(Object.entries(inputs).map(([name, one]) => [name, tensor(one)])));
        done.push({ results: plain(Object.fromEntries(Object.entries(found).map(([name, one]) => [name, one.data]))) });
      } else {
        const Class = kind === "seq2seq" ? AutoModelForSeq2SeqLM : AutoModelForCausalLM;
        const model = await Class.from_pretrained(bundle, options);
        const ids = tensor({ dims: [1, inputs.length], data: inputs });
        const mask = tensor({ dims: [1, inputs.length], data: inputs.map(() => 1) });
        const found = await model.generate({ input_ids: ids, attention_mask: mask, do_sample: false, ...settings });
        done.push({ results: found.tolist()[0].map(Number) });
      }
    } catch (error) {
      done.push({ error: String(error.message ?? error) });
    }
  }
  return done;
}

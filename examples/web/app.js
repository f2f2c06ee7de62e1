// Semantic search and g2p in a page without a build step. Models lie in models/, packed by `tfm pack --for web`.

import { load } from "tfm-runtime";

const hasGpu = Boolean(await navigator.gpu?.requestAdapter());
const ort = await import(hasGpu ? "onnxruntime-web/webgpu" : "onnxruntime-web");
// More threads need a page that is isolated from others (the headers COOP and COEP).
if (!globalThis.crossOriginIsolated) ort.env.wasm.numThreads = 1;

/** Open a model, show how that goes, and prove it here before anybody types. */
async function open(card, place) {
  const [status, bar] = [card.querySelector(".status"), card.querySelector("progress")];
  const say = (text, wrong) => {
    status.textContent = text;
    status.classList.toggle("wrong", Boolean(wrong));
  };
  try {
    const onProgress = ({ loaded, total }) => {
      [bar.value, bar.max] = [loaded, total];
      say(`${(loaded / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB`);
    };
    const model = await load(place, { ort, onProgress });
    say("comparing with what was computed at export");
    const gates = await model.checkGolden();
    const failed = gates.find((gate) => !gate.passed);
    if (failed) throw new Error(`not the same as when it was exported: ${failed.reason}`);
    say(`${model.precision} on ${model.provider}; as it was exported (${gates.map((gate) => gate.name).join(", ")})`);
    card.classList.add("ready");
    return model;
  } catch (error) {
    say(error.message, true);
    return null;
  }
}

/** Call a function after each input, one call at a time, and the last one always. */
function whenTyped(elements, act) {
  let [running, again] = [false, false];
  const run = async () => {
    again = true;
    if (running) return;
    running = true;
    while (again) {
      again = false;
      await act(() => again);
    }
    running = false;
  };
  for (const element of elements) {
    element.disabled = false;
    element.addEventListener("input", run);
  }
  return run();
}

function element(name, text, className = "") {
  const made = Object.assign(document.createElement(name), { className });
  made.textContent = text;
  return made;
}

async function search() {
  const card = document.querySelector("#search");
  const model = await open(card, "models/minilm");
  if (!model) return;
  const [query, documents, list] = ["#query", "#documents", ".found"].map((name) => card.querySelector(name));
  const vectors = new Map(); // of each sentence, embedded once
  await whenTyped([query, documents], async (isOld) => {
    const lines = [...new Set(documents.value.split("\n").map((line) => line.trim()).filter(Boolean))];
    for (const line of lines) {
      if (!vectors.has(line)) vectors.set(line, (await model.embed(line))[0]);
    }
    if (isOld()) return;
    if (!query.value.trim() || !lines.length) return list.replaceChildren();
    const [scores] = await model.similarity(query.value, lines.map((line) => vectors.get(line)));
    const found = lines.map((line, i) => ({ line, score: scores[i] })).sort((a, b) => b.score - a.score);
    list.replaceChildren(
      ...found.slice(0, 5).map(({ line, score }) => {
        const item = element("li", "");
        item.style.setProperty("--share", `${Math.max(0, 100 * score).toFixed(0)}%`);
        item.append(element("span", line), element("span", score.toFixed(2), "score"));
        return item;
      }),
    );
  });
}

async function speak() {
  const card = document.querySelector("#speech");
  const model = await open(card, "models/g2p");
  if (!model) return;
  const [words, list] = [card.querySelector("#words"), card.querySelector(".found")];
  await whenTyped([words], async (isOld) => {
    list.replaceChildren();
    for (const word of words.value.split(/\s+/).filter(Boolean)) {
      const sounds = element("dd", "");
      list.append(element("dt", word), sounds);
      try {
        for await (const part of model.stream(word)) {
          if (isOld()) return;
          sounds.append(element("span", part.trim()));
        }
      } catch (error) {
        sounds.append(error.message);
        sounds.classList.add("wrong");
      }
    }
  });
}

// One after the other: the small one is there while the large one comes.
await speak();
await search();

// node search.mjs MODEL QUERY [DOCUMENT ...]: the documents, the nearest to the query first.
import { load } from "tfm-runtime";

const [place, query, ...documents] = process.argv.slice(2);
const model = await load(place);
const wrong = (await model.checkGolden()).filter((gate) => !gate.passed);
if (wrong.length) throw new Error(wrong.map((gate) => gate.reason).join("\n"));
const [scores] = await model.similarity(query, documents);
const found = documents.map((text, i) => ({ text, score: scores[i] })).sort((a, b) => b.score - a.score);
for (const { text, score } of found) console.log(score.toFixed(3), text);

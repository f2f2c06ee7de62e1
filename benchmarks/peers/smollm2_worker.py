"""One engine that continues text; run by `decoders.py` in an environment that has it.

    python smollm2_worker.py '{"engine": …, "model": …, "prompts": …, "windows": …, "reference": …, "threads": …}'

Opens `model` with one of `ENGINES` and answers these lines:

- "continue LENGTH COUNT" reads the prompt of LENGTH ids in `prompts` (JSON, {length: ids}) and takes the likeliest next
  token COUNT times: "first", the seconds until the first token is there, "seconds", those from then until the last is,
  and "tokens";
- "write" stores the logits after every token of each row of `windows` (JSON) in the file `reference`;
- "compare" gives sums over all of their positions, against that file: "kl", "agree", "surprise" and "exact_surprise",
  with their count in "positions".

Shapes: W windows, S tokens of a window, V vocabulary.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from serving import serve

Continue = Callable[[list[int], int], tuple[list[int], list[float]]]
"""From a prompt and a count to the new tokens, and when each was there."""

Logits = Callable[[list[int]], Any]
"""From ids to the logits after each of them, float32 (S, V)."""


def tfm(job: dict[str, Any]) -> tuple[Continue, Logits]:
    """Our bundle, by our runtime."""
    from tfm.runtime import load
    from tfm.runtime.generation.state import from_nothing

    model = load(job["model"], provider="cpu", precision=job["precision"], threads=job["threads"])

    def go(ids: list[int], count: int) -> tuple[list[int], list[float]]:
        tokens, stamps = [], []
        for token in model.stream(ids, max_new_tokens=count):
            tokens.append(token)
            stamps.append(time.perf_counter())
        return tokens, stamps

    def logits(ids: list[int]) -> Any:
        feeds = {"input_ids": np.array([ids]), **from_nothing(model.manifest.signature["model"], 1, len(ids))}
        return model.run(feeds)["logits"][0]

    return go, logits


def llama(job: dict[str, Any]) -> tuple[Continue, Logits]:
    """llama.cpp by its own C interface, as its example "simple" uses it."""
    import ctypes

    import llama_cpp as llama

    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(job["model"].encode(), llama.llama_model_default_params())
    parameters = llama.llama_context_default_params()
    parameters.n_ctx = parameters.n_batch = job["context"]
    parameters.n_threads = parameters.n_threads_batch = job["threads"]
    context = llama.llama_init_from_model(model, parameters)
    greedy = llama.llama_sampler_init_greedy()
    vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))

    def read(ids: list[int]) -> None:
        array = (llama.llama_token * len(ids))(*ids)
        if llama.llama_decode(context, llama.llama_batch_get_one(array, len(ids))):
            raise SystemExit("llama_decode failed")

    def go(ids: list[int], count: int) -> tuple[list[int], list[float]]:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        tokens, stamps = [], []
        read(ids)
        while True:
            tokens.append(llama.llama_sampler_sample(greedy, context, -1))
            stamps.append(time.perf_counter())
            if len(tokens) == count:
                return tokens, stamps
            read(tokens[-1:])

    def logits(ids: list[int]) -> Any:
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        batch = llama.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, True
        if llama.llama_decode(context, batch):
            raise SystemExit("llama_decode failed")
        found = llama.llama_get_logits(context)
        rows_SV = np.ctypeslib.as_array(ctypes.cast(found, ctypes.POINTER(ctypes.c_float)), (len(ids), vocabulary))
        llama.llama_batch_free(batch)
        return rows_SV

    return go, logits


def genai(job: dict[str, Any]) -> tuple[Continue, Logits]:
    """onnxruntime-genai on what its model builder made."""
    import onnxruntime_genai as og

    config = og.Config(job["model"])
    threads = {"intra_op_num_threads": job["threads"]}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": threads}}}))
    model = og.Model(config)

    def begin(length: int) -> Any:
        parameters = og.GeneratorParams(model)
        parameters.set_search_options(max_length=length, do_sample=False)
        return og.Generator(model, parameters)

    def go(ids: list[int], count: int) -> tuple[list[int], list[float]]:
        tokens, stamps = [], []
        generator = begin(len(ids) + count)
        generator.append_tokens(ids)
        while len(tokens) < count:
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
            stamps.append(time.perf_counter())
        return tokens, stamps

    def logits(ids: list[int]) -> Any:
        generator = begin(len(ids) + 1)
        generator.append_tokens(ids)
        return generator.get_output("logits")[0]

    return go, logits


def ctranslate2(job: dict[str, Any]) -> tuple[Continue, Logits]:
    """CTranslate2, which tells of each token by a callback; no end token, so that it goes on."""
    from ctranslate2 import Generator, StorageView

    generator = Generator(
        job["model"], device="cpu", compute_type="int8", inter_threads=1, intra_threads=job["threads"]
    )
    vocabulary = json.loads((Path(job["model"]) / "vocabulary.json").read_text())

    def go(ids: list[int], count: int) -> tuple[list[int], list[float]]:
        tokens: list[int] = []
        stamps: list[float] = []

        def tell(step: Any) -> bool:
            tokens.append(step.token_id)
            stamps.append(time.perf_counter())
            return False

        prompt = [[vocabulary[token] for token in ids]]
        settings = {"max_length": count, "min_length": count, "include_prompt_in_result": False}
        generator.generate_batch(prompt, beam_size=1, sampling_topk=1, callback=tell, **settings)
        return tokens, stamps

    def logits(ids: list[int]) -> Any:
        rows = StorageView.from_array(np.array([ids], np.int32))
        found = generator.forward_batch(rows, StorageView.from_array(np.array([len(ids)], np.int32)))
        return np.array(found)[0]

    return go, logits


def torch(job: dict[str, Any]) -> tuple[Continue, Logits]:
    """PyTorch by transformers: float32 or a form of torchao, eager or compiled, its cache dynamic or static."""
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = job["cache"]
    import torch
    from transformers import AutoModelForCausalLM, DynamicCache, StaticCache

    torch.set_num_threads(job["threads"])
    dtype = getattr(torch, job.get("dtype", "float32"))
    model = AutoModelForCausalLM.from_pretrained(job["model"], dtype=dtype).eval()
    if "torchao" in job:
        import torchao.quantization as ao

        ao.quantize_(model, getattr(ao, job["torchao"])())
    step = model.forward
    if job.get("compile"):
        import torch._inductor.config

        torch._inductor.config.freezing = True  # as PyTorch's documentation advises for inference on CPUs
        step = torch.compile(model.forward, dynamic=False)
    static = StaticCache(config=model.config, max_cache_len=job["context"]) if job.get("static") else None

    @torch.no_grad()
    def go(ids: list[int], count: int) -> tuple[list[int], list[float]]:
        tokens, stamps = [], []
        cache = DynamicCache(config=model.config) if static is None else static
        if static is not None:
            static.reset()
        found = model(torch.tensor([ids]), past_key_values=cache, logits_to_keep=1)
        while True:
            tokens.append(int(found.logits[0, -1].argmax()))
            stamps.append(time.perf_counter())
            if len(tokens) == count:
                return tokens, stamps
            place = torch.tensor([[len(ids) + len(tokens) - 1]])
            found = step(torch.tensor([tokens[-1:]]), past_key_values=cache, position_ids=place)

    @torch.no_grad()
    def logits(ids: list[int]) -> Any:
        return model(torch.tensor([ids]), use_cache=False).logits[0].float().numpy()

    return go, logits


ENGINES = {function.__name__: function for function in (tfm, llama, genai, ctranslate2, torch)}


def log_softmax(logits_SV: Any) -> Any:
    """Log probabilities in float64."""
    rows_SV = logits_SV.astype(np.float64)
    if not np.isfinite(rows_SV).all():
        raise SystemExit("logits are not all finite")
    rows_SV -= rows_SV.max(axis=-1, keepdims=True)
    return rows_SV - np.log(np.exp(rows_SV).sum(axis=-1, keepdims=True))


def compare(found_SV: Any, exact_SV: Any, ids: list[int]) -> dict[str, float]:
    """Sums over the positions of a window; the last one's next token is not known, so that it has no surprise."""
    if found_SV.shape != exact_SV.shape:
        raise SystemExit(f"logits are {found_SV.shape} instead of {exact_SV.shape}")
    found, exact = log_softmax(found_SV), log_softmax(exact_SV)
    next_tokens, places = ids[1:], np.arange(len(ids) - 1)
    return {
        "positions": len(ids),
        "targets": len(places),
        "agree": int((found_SV.argmax(-1) == exact_SV.argmax(-1)).sum()),
        "kl": float((np.exp(exact) * (exact - found)).sum()),
        "surprise": float(-found[places, next_tokens].sum()),
        "exact_surprise": float(-exact[places, next_tokens].sum()),
    }


def main(job: dict[str, Any]) -> None:
    """Answer until stdin ends."""
    go, logits = ENGINES[job["engine"]](job)
    prompts = json.loads(Path(job["prompts"]).read_text())
    windows = json.loads(Path(job["windows"]).read_text())

    def answer(line: str) -> dict[str, Any]:
        what, *numbers = line.split()
        if what == "continue":
            length, count = map(int, numbers)
            ids = prompts[str(length)]
            start = time.perf_counter()
            tokens, stamps = go(ids, count)
            if len(tokens) != count or len(stamps) != count:
                raise SystemExit(f"{count} tokens were asked for, but {len(tokens)} came")
            return {"first": stamps[0] - start, "seconds": stamps[-1] - stamps[0], "tokens": tokens}
        if what == "write":
            np.save(job["reference"], np.stack([logits(ids) for ids in windows]))
            return {}
        exact_WSV = np.load(job["reference"], mmap_mode="r")
        parts = [compare(logits(ids), exact_SV, ids) for ids, exact_SV in zip(windows, exact_WSV, strict=True)]
        return {name: sum(part[name] for part in parts) for name in parts[0]}

    serve(answer)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))

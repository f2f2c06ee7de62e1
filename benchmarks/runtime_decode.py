"""What a decoder's token costs: at short and long contexts, and our loop beside onnxruntime's own time.

    python benchmarks/runtime_decode.py BUNDLE [--precision fp32] [--contexts 128 512 2048] [--rounds 41] [--new 64]

Step: the time in which one row reads one more token, where so many are in its cache. The contexts take turns, in an
order drawn anew each round; printed is each one's time as a multiple of the first's, round by round: the median, and
the quartiles.

Loop: the time of greedy generation after a prompt of the first context, from the first new token to the last, and how
much longer that is than onnxruntime's runs alone: of the same tokens at the same places with the same binding, each
repeated right after the step that made it. Growth of the cache and the choice of the tokens are the loop's. The two
take turns.

On one thread. The machine must do nothing else.
"""

import argparse
import random
import statistics
from pathlib import Path
from time import perf_counter

import numpy as np

from tfm.runtime import Decoder, load
from tfm.runtime.generation import GenerationSettings
from tfm.runtime.generation.loop import Begun, continue_rows
from tfm.runtime.generation.state import DecoderState
from tfm.runtime.generation.stopping import Stopping
from tfm.runtime.inputs.batches import length_limit
from tfm.runtime.sessions.session import Session

WARM = 3


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 512, 2048])
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--new", type=int, default=64)
    args = parser.parse_args()
    if args.rounds < 2 or args.new < 2 or min(args.contexts) < 1:
        parser.error("needs at least 2 rounds, 2 new tokens and contexts of 1")

    with load(args.bundle, provider="cpu", precision=args.precision, threads=1) as model:
        if not isinstance(model, Decoder):
            raise SystemExit(f"{args.bundle} is no decoder's")
        decoder = model._decoder
        needed = max(*args.contexts, args.contexts[0] + args.new) + 1
        longest = length_limit(decoder.signature)
        if longest is not None and longest < needed:
            raise SystemExit(f"{args.bundle} takes at most {longest} tokens, but this needs {needed}; lower --contexts")
        below = next(spec.below for spec in decoder.signature.inputs if spec.name == "input_ids")
        ids = np.random.default_rng(0).integers(0, below, max(args.contexts)).tolist()
        print(f"{model.precision}, 1 thread, {args.rounds} rounds\n")
        print_steps(decoder, ids, args.contexts, args.rounds)
        print_loop(decoder, ids[: args.contexts[0]], args.new, max(2, args.rounds // 4))


def print_steps(decoder: Session, ids: list[int], contexts: list[int], rounds: int) -> None:
    """Print a table of the steps."""
    states = {context: DecoderState(decoder, 1) for context in contexts}
    for context, state in states.items():
        state.read([ids[:context]])
    seconds: dict[int, list[float]] = {context: [] for context in contexts}
    token_B = np.array(ids[:1])
    for turn in range(WARM + rounds):  # the first steps allocate
        for context in random.sample(contexts, len(contexts)):
            state = states[context]
            start = perf_counter()
            state.step(token_B)
            taken = perf_counter() - start
            state.rewind(context)  # the next one takes the same place
            if turn >= WARM:
                seconds[context].append(taken)
    print(f"| context | ms per step | ÷ that at {contexts[0]} | quartiles |\n| --- | --- | --- | --- |")
    for context, times in seconds.items():
        ratios = [time / first for time, first in zip(times, seconds[contexts[0]], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(f"| {context} | {1000 * statistics.median(times):.3f} | {middle:.2f} | {low:.2f} – {high:.2f} |")


def print_loop(decoder: Session, prompt: list[int], new: int, rounds: int) -> None:
    """Print what the loop adds."""
    ours, alone = [], []
    for turn in range(1 + rounds):
        taken, tokens = generate(decoder, prompt, new)
        raw = runs_alone(decoder, prompt, tokens[:-1])
        if turn:
            ours.append(taken)
            alone.append(raw)
    added = [100 * (a / b - 1) for a, b in zip(ours, alone, strict=True)]
    low, middle, high = statistics.quantiles(added, n=4)
    steps = new - 1
    print(f"\n{steps} steps after {len(prompt)} tokens, {rounds} rounds\n")
    print("| ms per token | onnxruntime alone | the loop adds | quartiles |\n| --- | --- | --- | --- |")
    mine, theirs = (1000 * statistics.median(times) / steps for times in (ours, alone))
    print(f"| {mine:.3f} | {theirs:.3f} | {middle:.1f} % | {low:.1f} – {high:.1f} % |")


def generate(decoder: Session, prompt: list[int], new: int) -> tuple[float, list[int]]:
    """Generate greedily, as `Decoder.stream` does but for end tokens: seconds from the first token on, and all."""
    state, row = DecoderState(decoder, 1), list(prompt)
    begun = Begun(state=state, logits_BV=state.read([row]), tokens=[row], limits=[new])
    stopping = Stopping(begun.limits, end_ids=())
    steps = continue_rows(begun, GenerationSettings(), stopping, ())
    next(steps)
    start = perf_counter()
    for _ in steps:
        pass
    return perf_counter() - start, stopping.rows[0]


def runs_alone(decoder: Session, prompt: list[int], tokens: list[int]) -> float:
    """Read a prompt and then tokens one by one: the seconds of onnxruntime's run of each token, repeated."""
    state, session, seconds = DecoderState(decoder, 1), decoder.opened(), 0.0
    state.read([prompt])
    for token in tokens:
        state.step(np.array([token]))
        binding = state._binding._binding  # it still holds this token and its place
        start = perf_counter()
        session.run_with_iobinding(binding)
        seconds += perf_counter() - start
    return seconds


if __name__ == "__main__":
    main()

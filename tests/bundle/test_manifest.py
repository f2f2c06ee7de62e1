import json
import re
from pathlib import Path

import pytest

from tfm.bundle.manifest import check_digests, read_manifest
from tfm.errors import BundleError
from tfm.runtime import load


def test_reads_what_the_exporter_wrote(make_bundle):
    manifest = read_manifest(make_bundle("copier"))
    assert manifest.kind == "encoder-decoder"
    assert manifest.generation.max_new_tokens == 6
    assert manifest.graphs["fp32"]["decoder"] == "onnx/decoder_model_merged.onnx"
    assert manifest.signature["encoder"].inputs[0].below == 12
    assert manifest.signature["decoder"].max_length == {"sequence": 8}
    assert set(manifest.files) == {"onnx/encoder_model.onnx", "onnx/decoder_model_merged.onnx", "tokenizer.json"}
    check_digests(manifest, manifest.files)


def test_unknown_fields_are_information(make_bundle, edit_manifest):
    bundle = make_bundle("encoder")
    edit_manifest(bundle, lambda m: m.update(note="hello"))
    assert read_manifest(bundle).kind == "encoder"


def test_not_there(tmp_path):
    with pytest.raises(BundleError, match=r"nowhere is not there; a bundle is the folder that tfm-export wrote"):
        read_manifest(tmp_path / "nowhere")


def test_a_file(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"model.onnx is a file, not a folder"):
        read_manifest(tmp_path / "model.onnx")


def test_no_manifest(tmp_path):
    with pytest.raises(BundleError, match=r"is not a bundle: it holds no manifest.json; export one with tfm-export"):
        read_manifest(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000])
def test_not_json(tmp_path, content):
    (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(BundleError, match=r"manifest.json cannot be read as JSON: "):
        read_manifest(tmp_path)


@pytest.mark.parametrize("kind", ["counter", "copier"])
@pytest.mark.parametrize("missing", ["attention_mask", "num_logits_to_keep"])
def test_decoders_of_older_versions(make_bundle, edit_manifest, kind, missing):
    bundle, role = make_bundle(kind), "model" if kind == "counter" else "decoder"

    def remove(manifest):
        inputs = manifest["signature"][role]["inputs"]
        gone = {missing, f"decoder_{missing}"}
        manifest["signature"][role]["inputs"] = [spec for spec in inputs if spec["name"] not in gone]

    edit_manifest(bundle, remove)
    message = rf"signature\.{role} takes its cache in the form of older versions, .*; export it again$"
    with pytest.raises(BundleError, match=message):
        read_manifest(bundle)


@pytest.mark.parametrize(
    ("default", "shape", "message"),
    [
        (-1, [], "inputs[5].default must be an integer of at least 0, but is -1"),
        (0, ["batch"], "inputs[5].default must be absent but for an integer without dimensions, but is 0"),
    ],
)
def test_defaults(make_bundle, edit_manifest, default, shape, message):
    bundle = make_bundle("counter")
    edit_manifest(bundle, lambda m: m["signature"]["model"]["inputs"][5].update(default=default, shape=shape))
    with pytest.raises(BundleError, match=re.escape(message)):
        read_manifest(bundle)


def test_what_a_decoder_is_fed_has_known_shapes(make_bundle, edit_manifest):
    bundle = make_bundle("counter")
    edit_manifest(bundle, lambda m: m["signature"]["model"]["inputs"][1].update(shape=["batch", "sequence"]))
    with pytest.raises(BundleError, match=r"inputs\[1\].shape must be \['batch', 'total_sequence'\] or .*, but is"):
        read_manifest(bundle)


@pytest.mark.parametrize("schema", [0, 2, "1", None, True])
def test_other_schema(make_bundle, edit_manifest, schema):
    bundle = make_bundle("encoder")
    edit_manifest(bundle, lambda m: m.update(schema=schema))
    with pytest.raises(BundleError, match=rf"its schema is {json.dumps(schema)}, but this tfm-export reads 1; upgrade"):
        read_manifest(bundle)


def first_input(manifest):
    return manifest["signature"]["model"]["inputs"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.pop("kind"), "'kind' is missing; export the bundle again"),
        (lambda m: m.pop("generation"), "'generation' is missing"),
        (lambda m: m.update(kind="rnn"), 'kind must be one of encoder, decoder, encoder-decoder, module, but is "rnn"'),
        (lambda m: m.update(kind=["encoder"]), r'kind must be one of .* but is \["encoder"\]'),
        (lambda m: m.update(graphs={}), "graphs must be at least one precision, but is {}"),
        (lambda m: m.update(graphs=[]), r"graphs must be an object, but is \[\]"),
        (lambda m: m.update(graphs={"fp32": {}}), "'model' is missing in graphs.fp32"),
        (
            lambda m: m["graphs"]["fp32"].update(model="x.onnx"),
            'graphs.fp32.model must be one of the paths in files, but is "x',
        ),
        (
            lambda m: m["graphs"]["fp32"].update(model="../x.onnx"),
            r"'../x.onnx' \(graphs.fp32.model\) is not a path inside",
        ),
        (lambda m: m.update(opset=True), "opset must be an integer of at least 1, but is true"),
        (lambda m: m.update(family=""), 'family must be a string, but is ""'),
        (lambda m: m.update(gates={}), "gates must be a list, but is {}"),
        (lambda m: m.update(max_text_tokens=0), "max_text_tokens must be an integer of at least 1, but is 0"),
        (lambda m: m.update(generation={}), "'bos_token_id' is missing in generation"),
        (
            lambda m: first_input(m).update(name="ids"),
            "signature.model.inputs has no input_ids; export the bundle again",
        ),
        (lambda m: m["signature"].clear(), "'model' is missing in signature"),
        (
            lambda m: first_input(m).update(dtype="bfloat16"),
            r"signature.model.inputs\[0\].dtype must be one of bool, int8",
        ),
        (
            lambda m: first_input(m).update(shape=["batch", 0]),
            r"inputs\[0\].shape\[1\] must be an integer of at least 1",
        ),
        (lambda m: first_input(m).update(shape=["a - b"]), r"inputs\[0\].shape must be of sizes, plain names and sums"),
        (lambda m: first_input(m).update(shape=["batch + b"]), r"inputs\[0\].shape must be of sizes, plain names and"),
        (lambda m: first_input(m).update(shape=["batch +"]), r"inputs\[0\].shape must be of sizes, plain names and su"),
        (lambda m: first_input(m).update(dtype="float32"), r"inputs\[0\].below must be absent for float32, but is 12"),
        (lambda m: m["signature"]["model"].update(max_length={"length": 3}), "max_length.length limits no dimension"),
        (
            lambda m: m["files"]["tokenizer.json"].update(sha256="abc"),
            "tokenizer.json.sha256 must be 64 lower-case hexa",
        ),
    ],
)
def test_malformed(make_bundle, edit_manifest, change, message):
    bundle = make_bundle("encoder")
    edit_manifest(bundle, change)
    with pytest.raises(BundleError, match=message) as info:
        read_manifest(bundle)
    assert str(bundle / "manifest.json") in str(info.value)


@pytest.mark.parametrize(("value", "ends"), [(None, ()), (2, (2,)), ([2, 5], (2, 5)), ([], ())])
def test_ids_that_end(make_bundle, edit_manifest, value, ends):
    bundle = make_bundle("counter")
    edit_manifest(bundle, lambda m: m["generation"].update(eos_token_id=value))
    assert read_manifest(bundle).generation.eos_token_ids == ends


@pytest.mark.parametrize("value", [-1, "2", [2, -1], [[2]]])
def test_wrong_ids_that_end(make_bundle, edit_manifest, value):
    bundle = make_bundle("counter")
    edit_manifest(bundle, lambda m: m["generation"].update(eos_token_id=value))
    with pytest.raises(BundleError, match=r"generation\.eos_token_id\S* must be an integer of at least 0"):
        read_manifest(bundle)


def test_an_encoder_decoder_needs_a_start(make_bundle, edit_manifest):
    bundle = make_bundle("copier")
    edit_manifest(bundle, lambda m: m["generation"].update(bos_token_id=None, split_on_whitespace=1))
    with pytest.raises(BundleError, match=r"generation.bos_token_id must be an integer of at least 0, but is null"):
        read_manifest(bundle)
    edit_manifest(bundle, lambda m: m["generation"].update(bos_token_id=1))
    with pytest.raises(BundleError, match=r"generation.split_on_whitespace must be true or false, but is 1"):
        read_manifest(bundle)


def test_what_older_bundles_do_not_say_of_generating(make_bundle):
    generation = read_manifest(make_bundle("counter")).generation
    assert (generation.max_length, dict(generation.defaults), generation.not_carried) == (None, {}, ())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_length": 0}, "generation.max_length must be an integer of at least 1, but is 0"),
        ({"defaults": [1]}, r"generation.defaults must be an object, but is \[1\]"),
        ({"not_carried": [1]}, r"generation.not_carried\[0\] must be a string, but is 1"),
    ],
)
def test_wrong_defaults(make_bundle, edit_manifest, values, message):
    bundle = make_bundle("counter")
    edit_manifest(bundle, lambda m: m["generation"].update(values))
    with pytest.raises(BundleError, match=message):
        read_manifest(bundle)


@pytest.mark.parametrize(
    ("defaults", "message"),
    [
        ({"num_beams": 0}, "num_beams must be an integer of at least 1, but is 0"),
        ({"of_tomorrow": 1}, "there is no setting 'of_tomorrow'"),
        ({"top_k": "x"}, "top_k must be an integer"),
        ({"suppress_tokens": [99]}, "suppress_tokens names the id 99"),
    ],
)
def test_defaults_that_cannot_be_generated_with(make_bundle, edit_manifest, defaults, message):
    bundle = make_bundle("counter")
    edit_manifest(bundle, lambda m: m["generation"].update(defaults=defaults))
    with pytest.raises(BundleError, match=f"generation.defaults in its manifest.json: {message}.*; upgrade tfm-export"):
        load(bundle).generate([[4]])


@pytest.mark.parametrize("name", ["/etc/passwd", "../x", "a/../../x", "a//b", "./x", "a\\..\\x", "C:x", "x\0", ""])
def test_paths_stay_inside(make_bundle, edit_manifest, name):
    bundle = make_bundle("encoder")
    edit_manifest(bundle, lambda m: m["files"].update({name: m["files"]["tokenizer.json"]}))
    with pytest.raises(BundleError, match=r"is not a path inside the bundle"):
        read_manifest(bundle)


def test_missing_file(make_bundle):
    bundle = make_bundle("encoder")
    (bundle / "onnx/model.onnx").unlink()
    with pytest.raises(BundleError, match=r"onnx/model.onnx is missing, though the manifest lists it; copy the bundle"):
        read_manifest(bundle)


def test_other_size(make_bundle):
    bundle = make_bundle("encoder")
    size = (bundle / "tokenizer.json").stat().st_size
    with open(bundle / "tokenizer.json", "a") as stream:
        stream.write(" ")
    with pytest.raises(BundleError, match=rf"tokenizer.json was altered: it has {size + 1} bytes, not {size} as in"):
        read_manifest(bundle)


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_other_content(make_bundle):
    bundle = make_bundle("encoder")
    flip_last_byte(bundle / "onnx/model.onnx")
    manifest = read_manifest(bundle)
    check_digests(manifest, ["onnx/model_int8.onnx"])
    with pytest.raises(BundleError, match=r"onnx/model.onnx was altered: its SHA-256 is not the manifest's; copy the"):
        check_digests(manifest, ["onnx/model.onnx"])


def test_a_folder_in_place_of_a_file(make_bundle, edit_manifest):
    bundle = make_bundle("encoder")
    (bundle / "tokenizer.json").unlink()
    (bundle / "tokenizer.json").mkdir()
    size = (bundle / "tokenizer.json").stat().st_size
    edit_manifest(bundle, lambda m: m["files"]["tokenizer.json"].update(size=size))
    with pytest.raises(BundleError, match=r"tokenizer.json is a folder, or no plain file"):
        read_manifest(bundle)

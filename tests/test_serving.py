"""What `serving/` and its docs hold, against the server's own messages and a stand-in for it.

TensorFlow Serving cannot be installed here. The stand-in answers by the exported model, over real
sockets, in the forms of the server's REST and gRPC interfaces.
"""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer

import cv2
import pytest
import tensorflow as tf
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from wbc_keras.serving import model_folder


@pytest.fixture(scope="module")
def loaded(saved_model):
    return tf.saved_model.load(str(saved_model))


@pytest.fixture(scope="module")
def signatures(loaded):
    return loaded.signatures


@pytest.fixture(scope="module")
def pictures(drawn_cells, tmp_path_factory):
    """Two cells, one of them larger, and no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    shutil.copy(drawn_cells / "monocyte" / "00.png", folder / "one.png")
    image = cv2.imread(str(drawn_cells / "eosinophil" / "00.png"))
    cv2.imwrite(str(folder / "two.jpg"), cv2.resize(image, (120, 90)))
    (folder / "none.jpg").write_bytes(b"none")
    return folder


# Over REST, as in tensorflow/serving's g3doc/api_rest.md


def to_inputs(body):
    """Turn a body in rows into the signature's tensors."""
    request = json.loads(body)
    rows = request["instances"]
    inputs = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if isinstance(values[0], dict):
            inputs[name] = tf.constant([base64.b64decode(value["b64"]) for value in values])
        else:
            inputs[name] = tf.constant(values, tf.int32)
    return request.get("signature_name", "serving_default"), inputs


def to_rows(outputs):
    """Turn the signature's outputs into JSON: what is not named _bytes must be text."""
    columns = {}
    for name, tensor in outputs.items():
        values = tensor.numpy().tolist()
        if name.endswith("_bytes"):
            values = [{"b64": base64.b64encode(value).decode()} for value in values]
        elif tensor.dtype == tf.string:
            values = [value.decode("utf-8") for value in values]
        columns[name] = values
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return json.dumps({"predictions": rows}).encode()


@pytest.fixture(scope="module")
def rest(signatures):
    """Address of a stand-in that answers over REST."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            assert self.path == "/v1/models/wbc:predict"
            body = self.rfile.read(int(self.headers["Content-Length"]))
            try:
                signature, inputs = to_inputs(body)
                status, answer = 200, to_rows(signatures[signature](**inputs))
            except tf.errors.InvalidArgumentError as error:
                status, answer = 400, json.dumps({"error": str(error)}).encode()
            self.send_response(status)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def run(*command, fails=False):
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, check=False
    )
    assert (done.returncode != 0) == fails, done.stderr
    return done.stderr if fails else done.stdout


def labels_of(signatures, *paths):
    encoded = tf.constant([path.read_bytes() for path in paths])
    answer = signatures["serving_default"](image_bytes=encoded)
    return [label.decode() for label in answer["label"].numpy()]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl(root, rest, signatures, pictures):
    script = root / "serving" / "curl.sh"
    (answer,) = json.loads(run("sh", script, pictures / "one.png", rest))["predictions"]
    assert [answer["label"]] == labels_of(signatures, pictures / "one.png")
    assert sum(answer["probabilities"]) == pytest.approx(1, abs=1e-5)
    assert {"accepted", "novelty", "confidence", "roi"} < set(answer)
    refusal = run("sh", script, pictures / "none.jpg", rest, fails=True)
    assert "400" in refusal


def test_rest_client(root, rest, signatures, pictures, tmp_path):
    paths = [pictures / "one.png", pictures / "two.jpg"]
    client = (
        sys.executable,
        "-I",
        root / "serving" / "client_rest.py",
        "--server",
        f"http://{rest}",
    )
    lines = run(*client, *paths).splitlines()
    for line, path, label in zip(lines, paths, labels_of(signatures, *paths), strict=True):
        assert line.startswith(f"{path}  {label}  ")
    assert run(*client, *paths, "--overlays", tmp_path / "looked").splitlines() == lines
    sizes = [cv2.imread(str(tmp_path / "looked" / name)).shape for name in ("one.png", "two.png")]
    assert sizes == [(64, 64, 3), (90, 120, 3)]
    refusal = run(*client, *paths, pictures / "none.jpg", fails=True)
    assert "image_bytes[2] is no JPEG or PNG" in refusal


def test_bodies_of_the_docs_are_the_signatures_tensors(root, signatures):
    text = (root / "docs" / "serving.md").read_text("utf-8")
    bodies = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    asked = set()
    for body in bodies:
        name, inputs = to_inputs(body)
        expected = signatures[name].structured_input_signature[1]
        assert set(inputs) == set(expected)
        for key, tensor in inputs.items():
            assert tensor.dtype == expected[key].dtype
            assert expected[key].shape.is_compatible_with(tensor.shape)
        assert signatures[name](**inputs)["probabilities"].shape == (1, 4)
        asked.add(name)
    assert asked == {"serving_default", "explain_rest"}


# Over gRPC


@pytest.fixture(scope="module")
def grpc_server(signatures):
    """Address of a stand-in that answers over gRPC."""
    grpc = pytest.importorskip("grpc")
    predict_pb2 = pytest.importorskip("tensorflow_serving.apis.predict_pb2")
    from tensorflow_serving.apis import prediction_service_pb2_grpc as service

    class Servicer(service.PredictionServiceServicer):
        def Predict(self, request, context):  # noqa: N802
            assert request.model_spec.name == "wbc"
            inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
            try:
                signature = signatures[request.model_spec.signature_name or "serving_default"]
                outputs = signature(**{key: tf.constant(value) for key, value in inputs.items()})
            except tf.errors.InvalidArgumentError as error:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
            response = predict_pb2.PredictResponse()
            for name, tensor in outputs.items():
                response.outputs[name].CopyFrom(tf.make_tensor_proto(tensor.numpy()))
            return response

    server = grpc.server(ThreadPoolExecutor(1))
    service.add_PredictionServiceServicer_to_server(Servicer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None)


def test_grpc_client(root, grpc_server, signatures, pictures, tmp_path):
    paths = [pictures / "one.png", pictures / "two.jpg"]
    script = root / "serving" / "client_grpc.py"
    client = (sys.executable, "-I", script, "--server", grpc_server)
    options = ("--class-index", "2", "--overlays", tmp_path)
    lines = run(*client, *paths, *options).splitlines()
    for line, path, label in zip(lines, paths, labels_of(signatures, *paths), strict=True):
        assert line.startswith(f"{path}  {label}  ")
    encoded = tf.constant([path.read_bytes() for path in paths])
    expected = signatures["explain_class"](
        image_bytes=encoded, class_index=tf.constant([2, 2], tf.int32)
    )["overlay_png"].numpy()
    assert (tmp_path / "one.png").read_bytes() == expected[0]
    assert (tmp_path / "two.png").read_bytes() == expected[1]
    refusal = run(*client, pictures / "none.jpg", fails=True)
    assert "image_bytes[0] is no JPEG or PNG" in refusal


# Configuration


def test_example_of_models_config_is_what_an_export_writes(root, tmp_path):
    messages = pytest.importorskip("tensorflow_serving.config.model_server_config_pb2")
    model_folder.add_version(tmp_path, lambda folder: None)
    texts = [(folder / "models.config").read_text() for folder in (root / "serving", tmp_path)]
    example, written = (text_format.Parse(text, messages.ModelServerConfig()) for text in texts)
    assert example == written
    assert written.model_config_list.config[0].base_path == "/models/wbc"


def batching_message():
    """Return the class of session_bundle_config.proto, which tensorflow-serving-api leaves out."""
    fields = (
        ("max_batch_size", 1, ".google.protobuf.Int64Value"),
        ("batch_timeout_micros", 2, ".google.protobuf.Int64Value"),
        ("max_enqueued_batches", 3, ".google.protobuf.Int64Value"),
        ("num_batch_threads", 4, ".google.protobuf.Int64Value"),
        ("thread_pool_name", 5, ".google.protobuf.StringValue"),
    )
    file = descriptor_pb2.FileDescriptorProto(
        name="batching.proto", package="test", dependency=["google/protobuf/wrappers.proto"]
    )
    message = file.message_type.add(name="BatchingParameters")
    for name, number, kind in fields:
        message.field.add(name=name, number=number, type_name=kind, type=11, label=1)
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("test.BatchingParameters"))


def test_batching_config_parses(root):
    text = (root / "serving" / "batching.config").read_text()
    parsed = text_format.Parse(text, batching_message()())
    assert parsed.max_batch_size.value == 32
    assert parsed.num_batch_threads.value >= 1


def test_compose_files_mount_what_they_name(root):
    folder = root / "serving"
    plain, batching = (
        yaml.safe_load((folder / name).read_text())["services"]["serving"]
        for name in ("compose.yaml", "compose.batching.yaml")
    )
    # The model folder lies where its models.config says, and cannot be changed by the server.
    assert any(
        mount.endswith(f":/models/{model_folder.MODEL_NAME}:ro") for mount in plain["volumes"]
    )
    assert all(port.startswith("127.0.0.1:") for port in plain["ports"])
    # A later file replaces the whole command.
    assert batching["command"][: len(plain["command"])] == plain["command"]
    (mount,) = batching["volumes"]
    source, target, _ = mount.split(":")
    assert (folder / source).is_file()
    assert f"--batching_parameters_file={target}" in batching["command"]

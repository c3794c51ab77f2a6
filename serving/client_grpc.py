"""Ask a server over gRPC: smaller and faster than REST. pip install tensorflow-serving-api.

python serving/client_grpc.py cell.jpg other.png
python serving/client_grpc.py cell.jpg --class-index 3 --overlays DIR
"""

import argparse
from pathlib import Path

import grpc
import numpy as np
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


def main() -> None:
    """Print one line for each picture."""
    parser = argparse.ArgumentParser(description="Classify pictures by TensorFlow Serving, gRPC.")
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--server", default="localhost:8500")
    parser.add_argument("--overlays", type=Path, help="folder for pictures under their heatmaps")
    parser.add_argument("--class-index", type=int, help="the class that heatmaps speak for")
    arguments = parser.parse_args()
    request = make_request(arguments.pictures, arguments.overlays, arguments.class_index)
    # Heatmaps are larger than the 4 MB that gRPC takes by default.
    channel = grpc.insecure_channel(
        arguments.server, options=[("grpc.max_receive_message_length", -1)]
    )
    try:
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(
            request, timeout=60
        )
    except grpc.RpcError as error:
        raise SystemExit(f"error: {error.details()}") from None
    answers = {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}
    for row, path in enumerate(arguments.pictures):
        # A model without a threshold says nothing of it.
        unsure = "" if "accepted" not in answers or answers["accepted"][row] else "  (rather not)"
        label, confidence = answers["label"][row].decode(), answers["confidence"][row]
        print(f"{path}  {label}  {confidence:.3f}{unsure}")
        if arguments.overlays:
            arguments.overlays.mkdir(parents=True, exist_ok=True)
            (arguments.overlays / f"{path.stem}.png").write_bytes(answers["overlay_png"][row])


def make_request(pictures, overlays, class_index):
    """Return a PredictRequest; raw bytes, no base64."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "wbc"
    encoded = [path.read_bytes() for path in pictures]
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto(encoded))
    if overlays:
        request.model_spec.signature_name = "explain"
    if overlays and class_index is not None:
        classes = np.full(len(encoded), class_index, np.int32)
        request.model_spec.signature_name = "explain_class"
        request.inputs["class_index"].CopyFrom(tf.make_tensor_proto(classes))
    return request


if __name__ == "__main__":
    main()

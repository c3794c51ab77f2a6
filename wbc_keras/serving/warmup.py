"""Requests that TensorFlow Serving plays to a new version before it takes it into service.

``assets.extra/tf_serving_warmup_requests`` is a TFRecord file of PredictionLog messages. Their
Python classes come with ``tensorflow-serving-api``, which nobody needs who only exports: the few
fields are encoded here, and the tests read them back by those classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import tensorflow as tf

from wbc_keras.serving.model_folder import MODEL_NAME
from wbc_keras.synthetic import draw_cell

WARMUP_FILE = "tf_serving_warmup_requests"

# prediction_log.proto, predict.proto and model.proto of tensorflow/serving.
_PREDICT_LOG, _REQUEST, _MODEL_SPEC, _INPUTS = 6, 1, 1, 2
_MODEL_NAME, _SIGNATURE_NAME, _KEY, _VALUE = 1, 3, 1, 2


def write_warmup(path: Path) -> None:
    """Write one request for each signature; the picture is a drawn cell."""
    image = draw_cell("monocyte", size=128, rng=np.random.default_rng(0)).image
    png = cv2.imencode(".png", np.ascontiguousarray(image[..., ::-1]))[1].tobytes()
    requests: dict[str, dict[str, Any]] = {
        "serving_default": {"image_bytes": [png]},
        "images": {"images": image[np.newaxis]},
        "explain": {"image_bytes": [png]},
        "explain_class": {"image_bytes": [png], "class_index": np.zeros(1, np.int32)},
        "explain_rest": {"image_bytes": [png], "class_index": np.zeros(1, np.int32)},
    }
    with tf.io.TFRecordWriter(str(path)) as writer:
        for signature, inputs in requests.items():
            writer.write(_encode_log(signature, inputs))


def _encode_log(signature: str, inputs: Mapping[str, Any]) -> bytes:
    spec = _field(_MODEL_NAME, MODEL_NAME.encode()) + _field(_SIGNATURE_NAME, signature.encode())
    request = _field(_MODEL_SPEC, spec)
    for name, value in inputs.items():
        tensor = tf.make_tensor_proto(value).SerializeToString()
        request += _field(_INPUTS, _field(_KEY, name.encode()) + _field(_VALUE, tensor))
    return _field(_PREDICT_LOG, _field(_REQUEST, request))


def _field(number: int, content: bytes) -> bytes:
    """Encode a field whose length comes before it: a text, bytes or a message."""
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    """Encode seven bits a byte, the lowest first; all but the last byte have the eighth set."""
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])

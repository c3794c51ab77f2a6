#!/bin/sh
# Ask a server for the class of one cell: sh serving/curl.sh cell.jpg [HOST:PORT]
set -eu
base64 <"$1" | tr -d '\n' | {
    printf '{"instances": [{"image_bytes": {"b64": "'
    cat
    printf '"}}]}'
} | curl --silent --show-error --fail-with-body --data-binary @- \
    "http://${2:-localhost:8501}/v1/models/wbc:predict"

"""Ask a server over REST, with nothing but Python.

python serving/client_rest.py cell.jpg other.png
python serving/client_rest.py cell.jpg --overlays DIR    # and where it looked
"""

import argparse
import base64
import json
import urllib.error
import urllib.request
from pathlib import Path


def main() -> None:
    """Print one line for each picture."""
    parser = argparse.ArgumentParser(description="Classify pictures by TensorFlow Serving, REST.")
    parser.add_argument("pictures", nargs="+", type=Path)
    parser.add_argument("--server", default="http://localhost:8501")
    parser.add_argument("--overlays", type=Path, help="folder for pictures under their heatmaps")
    arguments = parser.parse_args()
    body = make_body(arguments.pictures, explain=arguments.overlays is not None)
    answers = post(f"{arguments.server}/v1/models/wbc:predict", body)["predictions"]
    for path, answer in zip(arguments.pictures, answers, strict=True):
        # A model without a threshold says nothing of it.
        unsure = "" if answer.get("accepted", True) else "  (rather not)"
        print(f"{path}  {answer['label']}  {answer['confidence']:.3f}{unsure}")
        if arguments.overlays:
            arguments.overlays.mkdir(parents=True, exist_ok=True)
            png = base64.b64decode(answer["overlay_png_bytes"]["b64"])
            (arguments.overlays / f"{path.stem}.png").write_bytes(png)


def make_body(pictures: list[Path], *, explain: bool) -> dict:
    """Return a request in rows: bytes travel as base64 under the key b64."""
    rows = [
        {"image_bytes": {"b64": base64.b64encode(path.read_bytes()).decode()}} for path in pictures
    ]
    if not explain:
        return {"instances": rows}
    # -1 for the class that the model chooses.
    rows = [{**row, "class_index": -1} for row in rows]
    return {"signature_name": "explain_rest", "instances": rows}


def post(url: str, body: dict) -> dict:
    """Send JSON and return the answer; what the server refuses ends the program with its words."""
    request = urllib.request.Request(url, json.dumps(body).encode())
    try:
        with urllib.request.urlopen(request) as response:
            return json.load(response)
    except urllib.error.HTTPError as error:
        raise SystemExit(f"error: {error.read().decode()}") from None


if __name__ == "__main__":
    main()

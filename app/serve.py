"""Serve the playground as a public page, without any request to another machine: `make app`.

Arguments are passed to Voilà, such as --port=8866, or --Voila.ip=0.0.0.0 for a page that others can reach.
Others reach it under the names of this machine that $KANJILAB_HOSTS lists, as kanji.example.org,192.0.2.7.
Only the sites that $KANJILAB_FRAMES lists, as https://huggingface.co, may show it in a frame (default: none).
$KANJILAB_RUNS names the folder with the trained runs (default: runs/).
"""

import os
import sys
from pathlib import Path

from visitors import frame_ancestors
from voila.app import main

APP = Path(__file__).parent.resolve()


def serve(arguments: list[str]) -> None:
    """Run Voilà on playground.ipynb, with the settings and template of this folder."""
    try:
        frame_ancestors()
    except ValueError as error:
        sys.exit(str(error))
    os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [str(APP), os.environ.get("JUPYTER_PATH")]))
    os.environ["JUPYTER_CONFIG_PATH"] = str(APP / "config")
    os.environ.setdefault("KANJILAB_RUNS", str(APP.parent / "runs"))
    os.chdir(APP)
    main(["playground.ipynb", *arguments])


if __name__ == "__main__":
    serve(sys.argv[1:])

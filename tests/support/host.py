# SPDX-License-Identifier: MIT
"""One process of several: does runs of vae.py in turn, given as a JSON list of their flags."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "experiments"))

import vae
from jaxgen import script
from jaxgen.pictures import images

if __name__ == "__main__":
    images.save_curves = lambda *inputs: None  # as of one process, and as long as a tiny run
    for flags in json.loads(sys.argv[1]):
        sys.argv = ["vae.py", *flags]
        script.main(vae.main)

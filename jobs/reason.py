"""The rationales of all splits, and the sealed augmented set: one stage of a campaign as a submitted job (arguments as for jobs/run.py)."""

import sys

from fiat_ray.cli import main

raise SystemExit(main(["reason", *sys.argv[1:]]))

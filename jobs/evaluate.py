"""Predictions and scores of the tuned trials: one stage of a campaign as a submitted job (arguments as for jobs/run.py)."""

import sys

from fiat_ray.cli import main

raise SystemExit(main(["evaluate", *sys.argv[1:]]))

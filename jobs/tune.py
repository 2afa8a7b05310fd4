"""The trials of a campaign, on an augmented set that is there: one stage of a campaign as a submitted job (arguments as for jobs/run.py)."""

import sys

from fiat_ray.cli import main

raise SystemExit(main(["tune", *sys.argv[1:]]))

"""A whole campaign as a submitted job, from the folder of this repository:

ray job submit --working-dir . -- python jobs/run.py jobs/configs/xor_attriqa.yaml data=/shared/xor_attriqa --out /shared/runs/xor_attriqa
"""

import sys

from fiat_ray.cli import main

raise SystemExit(main(["run", *sys.argv[1:]]))

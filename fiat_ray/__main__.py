"""``python -m fiat_ray``: the command line."""

from fiat_ray.cli import main

raise SystemExit(main())

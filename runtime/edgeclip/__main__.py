"""`python -m edgeclip` is the command line."""

from edgeclip.cli import main

raise SystemExit(main())

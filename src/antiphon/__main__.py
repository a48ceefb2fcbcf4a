"""Makes `python -m antiphon` run the command line."""

from antiphon.entry import main

raise SystemExit(main())

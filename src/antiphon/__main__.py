"""`python -m antiphon`."""

from antiphon.entry import main

raise SystemExit(main())

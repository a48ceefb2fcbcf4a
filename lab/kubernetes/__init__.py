"""`scripts/lab kubernetes`: the chart on a real cluster. No test of pytest's: it needs one."""

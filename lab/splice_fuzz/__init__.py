"""`scripts/lab splice-fuzz`: checks that no argument makes the splice in C read foreign memory or crash."""

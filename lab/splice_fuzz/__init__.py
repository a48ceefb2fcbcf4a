"""What no argument must do to the splice in C: `scripts/lab splice-fuzz`."""

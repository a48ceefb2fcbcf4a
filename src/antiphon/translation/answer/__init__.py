"""Reads the upstream's answer: turns SSE, chunks, tool call deltas and errors into calls of the response builder."""

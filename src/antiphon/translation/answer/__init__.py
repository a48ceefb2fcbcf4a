"""Reads the upstream's answer: SSE, chunks, tool call deltas and errors become calls of the builder."""

"""Runs llama.cpp's own HTTP server with one model. The program prints `ready: URL` and serves until a signal stops it.

The server comes from the package `xllamacpp`, which `scripts/lib/engine-files` unpacks into a folder on PYTHONPATH.
"""

from __future__ import annotations

import argparse
import signal

import xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("weights", help="a GGUF file")
    parser.add_argument("--name", required=True, help="the model's name for clients")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--slots", type=int, default=2, help="requests at once")
    parser.add_argument("--context", type=int, default=8192, help="tokens of each request")
    parser.add_argument("--embeddings", action="store_true", help="make vectors, the mean of a text's tokens")
    given = parser.parse_args()
    wanted = xllamacpp.CommonParams()
    wanted.model.path = given.weights
    wanted.model_alias = {given.name}
    wanted.cpuparams.n_threads = wanted.cpuparams_batch.n_threads = given.threads
    wanted.n_parallel = given.slots
    wanted.n_ctx = given.slots * given.context
    wanted.fit_params = False
    wanted.port = 0
    wanted.use_jinja = wanted.endpoint_metrics = wanted.endpoint_slots = True
    if given.embeddings:
        wanted.embedding = True
        wanted.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN
    # This thread waits for the signal, so the signal must be blocked in all other threads.
    stop = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    server = xllamacpp.Server(wanted)
    print(f"ready: {server.listening_address}/v1", flush=True)
    signal.sigwait(stop)


if __name__ == "__main__":
    main()

# The sidecar, the HTTP server and the demo upstream in one image. Envoy comes from its own image.
# What is in it, what each extra adds, and how it is checked: docs/how-to/containers.md
ARG BASE=python:3.11-slim
# The stage that installs; only its folder /opt/antiphon goes into the image. Of the same Debian and Python as BASE.
ARG BUILD_BASE=${BASE}

FROM ${BUILD_BASE} AS build
RUN { command -v strip && command -v tini-static; } > /dev/null \
    || { apt-get update && apt-get install --yes --no-install-recommends binutils tini && rm -rf /var/lib/apt/lists/*; }
WORKDIR /src
COPY pyproject.toml requirements.lock README.md CHANGELOG.md LICENSE ./
COPY src ./src
COPY scripts/lib/build_*.py scripts/lib/locked.py ./scripts/lib/
# PIP_ARGS points pip at another source, for example a folder of wheels: --build-arg PIP_ARGS="--no-index --find-links /wheels"
ARG PIP_ARGS=""
# COMPILED=1 compiles the hot modules (scripts/lib/build_compiled.py). By default the sources alone are installed: compiling
# takes minutes of a core, many more where another architecture is emulated, and downloads a compiler and all extras.
ARG COMPILED=""
# What builds, like what runs, is pinned and checked by its hash (requirements.lock).
RUN { [ "${COMPILED:-0}" = 0 ] || command -v gcc > /dev/null \
        || { apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; }; } \
    && if [ "${COMPILED:-0}" = 0 ]; then more= on=false; else more=compile on=true; fi \
    && python3 scripts/lib/locked.py build $more > /build.txt \
    && python3 -m venv /opt/tools \
    && /opt/tools/bin/pip install --no-cache-dir --disable-pip-version-check ${PIP_ARGS} --require-hashes --no-deps -r /build.txt \
    && HATCH_BUILD_HOOK_ENABLE_CUSTOM=$on /opt/tools/bin/python -m hatchling build --target wheel --directory /wheel
# Which parts of pyproject.toml's optional dependencies the image has: --build-arg EXTRAS=fast,postgres,s3
ARG EXTRAS=console,fast,jwt,mcp,otel,postgres,s3
# Left out is what no process of ours reads: the installer, tests of libraries, and in libraries the names for debuggers.
# (Folders *.libs are left alone: their files were rewritten after linking, and strip damages such files.) Compiled
# bytecode stays: the file system is read-only, and without it every start and every health check compiles anew.
RUN python3 scripts/lib/locked.py core $(echo "$EXTRAS" | tr , ' ') > /run.txt \
    && python3 -m venv /opt/antiphon \
    && /opt/antiphon/bin/pip install --no-cache-dir --disable-pip-version-check ${PIP_ARGS} --require-hashes --no-deps -r /run.txt \
    && /opt/antiphon/bin/pip install --no-cache-dir --disable-pip-version-check --no-index --no-deps /wheel/*.whl \
    && /opt/antiphon/bin/pip uninstall --yes --quiet setuptools pip \
    && cd /opt/antiphon/lib/python3*/site-packages \
    && find . -type d \( -name tests -o -name test \) -prune -exec rm -rf {} + \
    && find . -name '*.so' -not -path './*.libs/*' -exec strip --strip-unneeded {} + \
    && /opt/antiphon/bin/antiphon --version

FROM ${BASE}
COPY --from=build /opt/antiphon /opt/antiphon
COPY --from=build /usr/bin/tini-static /usr/bin/tini
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin antiphon \
    && install -d -o antiphon -g antiphon -m 0700 /var/lib/antiphon /run/antiphon
ENV PATH=/opt/antiphon/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    ANTIPHON_DATA=/var/lib/antiphon \
    ANTIPHON_LOG__FORMAT=json
USER 10001:10001
# No VOLUME: Docker makes an anonymous volume of it at every start, and keeps each. Mount a named volume or a tmpfs at
# /var/lib/antiphon (the data folder) and, for `extproc` on sockets, at /run/antiphon.
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=9s --start-period=10s --retries=6 CMD ["antiphon", "health"]
# The kernel drops a signal to the first process of a container that has no handler yet, and Python needs a moment to
# have one. tini has its own at once, and passes signals on to Antiphon, which the kernel then ends like any process.
ENTRYPOINT ["tini", "--", "antiphon"]
CMD ["extproc"]

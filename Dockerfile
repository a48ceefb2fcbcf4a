# The sidecar, the HTTP server and the demo upstream in one image. Envoy comes from its own image.
# docs/how-to/containers.md describes the image's contents, its extras and its tests.
ARG BASE=python:3.11-slim
# BUILD_BASE is the base of the build stage. It must have the same Debian and Python as BASE. Only /opt/antiphon and tini of the
# build stage go into the image.
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
# The image has the compiled wheel (scripts/lib/build_compiled.py). Compiling takes three to five minutes of CPU time, and much
# longer under emulation. It also downloads a compiler and all extras. With COMPILED=0 the image has only the sources.
ARG COMPILED=1
# requirements.lock pins the versions and hashes of build tools, as it does for packages at run time.
RUN { [ "${COMPILED:-0}" = 0 ] || command -v gcc > /dev/null \
        || { apt-get update && apt-get install --yes --no-install-recommends gcc libc6-dev && rm -rf /var/lib/apt/lists/*; }; } \
    && if [ "${COMPILED:-0}" = 0 ]; then more= on=false; else more=compile on=true; fi \
    && python3 scripts/lib/locked.py build $more > /build.txt \
    && python3 -m venv /opt/tools \
    && /opt/tools/bin/pip install --no-cache-dir --disable-pip-version-check ${PIP_ARGS} --require-hashes --no-deps -r /build.txt \
    && HATCH_BUILD_HOOK_ENABLE_CUSTOM=$on /opt/tools/bin/python -m hatchling build --target wheel --directory /wheel
# The extras of pyproject.toml to install: --build-arg EXTRAS=fast,postgres,s3
ARG EXTRAS=console,fast,jwt,mcp,otel,postgres,s3
# This step removes files that Antiphon never reads: the installer, tests of libraries, and debug symbols of libraries. It does not
# strip files in *.libs, because strip damages files that were changed after linking. Python's bytecode files stay. The file system
# may be read-only, so without bytecode files every start and every health check would compile the modules again.
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
# The image declares no VOLUME, because Docker would create and keep an anonymous volume at every start. Mount a named volume or a
# tmpfs at /var/lib/antiphon (the data folder) and, for `extproc` on sockets, at /run/antiphon.
EXPOSE 8080
HEALTHCHECK --interval=10s --timeout=9s --start-period=10s --retries=6 CMD ["antiphon", "health"]
# The kernel drops a signal for the first process of a container if that process has no handler yet. Python needs a moment to
# install its handlers. tini has handlers immediately and forwards signals to Antiphon, which is then not the first process.
ENTRYPOINT ["tini", "--", "antiphon"]
CMD ["extproc"]

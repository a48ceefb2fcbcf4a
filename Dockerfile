# The sidecar, the HTTP door and the demo upstream in one image. Envoy comes from its own image.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
WORKDIR /src
COPY pyproject.toml README.md CHANGELOG.md LICENSE ./
COPY src ./src
# PIP_ARGS points pip at another source, for example a folder of wheels: --build-arg PIP_ARGS="--no-index --find-links /wheels"
ARG PIP_ARGS=""
RUN python3 -m venv /opt/antiphon && /opt/antiphon/bin/pip install --no-cache-dir ${PIP_ARGS} ".[fast,vector-stores,mcp,otel,s3]"

FROM ${BASE}
COPY --from=build /opt/antiphon /opt/antiphon
RUN useradd --uid 10001 --user-group --no-create-home --shell /usr/sbin/nologin antiphon \
    && install -d -o antiphon -g antiphon -m 0700 /var/lib/antiphon /run/antiphon
ENV PATH=/opt/antiphon/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    ANTIPHON_DATA=/var/lib/antiphon \
    ANTIPHON_LOG__FORMAT=json
USER 10001:10001
VOLUME ["/var/lib/antiphon", "/run/antiphon"]
EXPOSE 8080
HEALTHCHECK --interval=5s --timeout=4s --start-period=10s CMD ["antiphon", "health"]
ENTRYPOINT ["antiphon"]
CMD ["extproc"]

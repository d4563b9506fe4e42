# One image for each service: docker build --build-arg SERVICE=edge|analytics|decoder|console .
# GPU: --build-arg EXTRA=gpu (x86-64; needs the NVIDIA container toolkit on the host).
ARG PYTHON=3.12

FROM python:${PYTHON}-slim-bookworm AS build
ARG EXTRA=cpu
# arm64: constriction ships no wheel for it and is built from its hash-pinned source.
RUN if [ "$(uname -m)" = aarch64 ]; then \
        apt-get update && apt-get install -y --no-install-recommends cargo build-essential && \
        rm -rf /var/lib/apt/lists/*; \
    fi
RUN python -m venv /opt/sfic
ENV PATH=/opt/sfic/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
WORKDIR /src
COPY requirements/ requirements/
RUN pip install --require-hashes -r requirements/${EXTRA}.txt
COPY . .
RUN python -m venv /opt/build && \
    /opt/build/bin/pip install --require-hashes -r requirements/build.txt && \
    /opt/build/bin/pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . && \
    pip install --no-deps /wheels/*.whl

FROM python:${PYTHON}-slim-bookworm
ARG SERVICE=edge
RUN useradd --system --uid 10001 --create-home --home-dir /var/lib/sfic sfic && \
    install --directory --owner=sfic --group=sfic --mode=700 /certs
COPY --from=build /opt/sfic /opt/sfic
COPY deploy/sfic.toml /etc/sfic/sfic.toml
ENV PATH=/opt/sfic/bin:$PATH PYTHONUNBUFFERED=1 SFIC_SERVICE=${SERVICE} \
    SFIC_CONFIG=/etc/sfic/sfic.toml
USER sfic
WORKDIR /var/lib/sfic
VOLUME /var/lib/sfic
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s --retries=3 \
    CMD ["python", "-m", "sfic.healthcheck"]
STOPSIGNAL SIGTERM
CMD ["sh", "-c", "exec sfic serve \"$SFIC_SERVICE\" --config \"$SFIC_CONFIG\""]

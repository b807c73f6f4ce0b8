# syntax=docker/dockerfile:1
# Two images: `docker build --target proxy .` and `docker build --target worker .`; see docs/docker.md.
# tests/stories/test_docker.py runs the instructions that install the proxy without Docker, so their paths are variables.

ARG PYTHON_VERSION=3.13
ARG VLLM_VERSION=v0.33.0

# The project as a wheel. The pinned uv contains the build backend, so that nothing unpinned is downloaded.
FROM python:${PYTHON_VERSION}-slim AS wheel
ENV SOURCE=/source TOOLS=/tools WHEELS=/wheels
WORKDIR ${SOURCE}
COPY requirements/ requirements/
RUN python3 -m pip install --no-cache-dir --no-deps --only-binary :all: --require-hashes \
    --target "$TOOLS" --requirement requirements/uv.txt
COPY pyproject.toml README.md LICENSE ./
COPY proxy/ proxy/
COPY worker_vllm/ worker_vllm/
RUN "$TOOLS/bin/uv" build --quiet --no-cache --offline --wheel --out-dir "$WHEELS" "$SOURCE"

# The proxy's virtual environment: the packages of the lock, and the wheel.
FROM wheel AS packages
ENV VENV=/opt/vllm-serverless
RUN python3 -m venv --without-pip "$VENV" \
    && python3 -m pip --python "$VENV/bin/python" install --no-cache-dir --no-deps --only-binary :all: \
    --require-hashes --requirement requirements/base.txt \
    && python3 -m pip --python "$VENV/bin/python" install --no-cache-dir --no-deps --no-index "$WHEELS"/*.whl

FROM vllm/vllm-openai:${VLLM_VERSION} AS worker
# Install only packages that vLLM's image lacks: the versions in the image are constraints of the resolver. With the SDK,
# the same image also runs on Runpod; the resolver selects the release that fits.
ENV PIP_BREAK_SYSTEM_PACKAGES=1 PYTHONUNBUFFERED=1
COPY --from=wheel /wheels/ /wheels/
RUN (python3 -m pip --version || python3 -m ensurepip) \
    && python3 -m pip list --format freeze > /wheels/present.txt \
    && python3 -m pip install --no-cache-dir --constraint /wheels/present.txt /wheels/*.whl "runpod>=1.10,<2"
# To include a model in the image: --build-arg MODEL_NAME=…, and --secret id=HF_TOKEN for a gated one.
# hadolint ignore=DL3064
ARG MODEL_NAME="" MODEL_REVISION="" TOKENIZER_NAME="" TOKENIZER_REVISION="" QUANTIZATION=""
RUN --mount=type=secret,id=HF_TOKEN \
    if [ -n "$MODEL_NAME" ]; then \
    HF_TOKEN="$(cat /run/secrets/HF_TOKEN 2>/dev/null || true)" python3 -m worker_vllm.bake "$MODEL_NAME" \
    --revision "$MODEL_REVISION" --tokenizer "$TOKENIZER_NAME" --tokenizer-revision "$TOKENIZER_REVISION" \
    --quantization "$QUANTIZATION" && chmod -R a+rX /baked /local_model_args.json; \
    fi
# The user needs a name, which torch looks up, and a home directory, in which torch stores compiled kernels.
RUN useradd --uid 10001 --create-home worker && install --directory --owner worker --group worker --mode 0700 /models
ENV HOME=/home/worker
# By default, the model id of an included model is its hub id, not its folder.
ENV SERVED_MODEL_NAME=${MODEL_NAME}
# Mount a volume here and set HF_HOME to keep models. HF_HOME has no default, so that a Runpod volume (BASE_PATH) is used.
USER 10001:10001
VOLUME /models
STOPSIGNAL SIGTERM
ENTRYPOINT ["python3", "-m", "worker_vllm"]

FROM python:${PYTHON_VERSION}-slim AS proxy
ENV VENV=/opt/vllm-serverless
COPY --from=packages ${VENV} ${VENV}
RUN install --directory --owner 10001 --group 10001 --mode 0700 /data
ENV PATH="${VENV}/bin:${PATH}" PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 \
    PROXY_HOST=0.0.0.0 PROXY_PORT=8000 PROXY_DATA_DIR=/data
USER 10001:10001
VOLUME /data
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s CMD ["python", "-c", \
    "from http.client import HTTPConnection as C; from os import environ as e; c = C('127.0.0.1', int(e['PROXY_PORT']), timeout=3); c.request('GET', '/livez'); exit(c.getresponse().status != 200)"]
ENTRYPOINT ["vllm-serverless"]
CMD ["proxy"]

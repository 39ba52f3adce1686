# A job worker beside its own vLLM server, in one container (docs/jobs.md). Build it with ./build.sh.
ARG VLLM_IMAGE=vllm/vllm-openai:v0.26.0

FROM ${VLLM_IMAGE} AS wheel
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY components components
RUN python3 -m pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${VLLM_IMAGE}
COPY --from=wheel /wheels /wheels
# What the image has already stays as it is, unless penstock needs a newer one.
RUN python3 -m pip install --no-cache-dir /wheels/*.whl && rm -rf /wheels \
    && useradd --create-home --uid 10001 penstock
USER 10001
WORKDIR /home/penstock
ENV PYTHONUNBUFFERED=1
STOPSIGNAL SIGTERM
ENTRYPOINT ["python3", "-P", "-m", "components.jobs.entrypoint"]

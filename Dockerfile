# The `seggpt` command in a container.
#
#   docker build -t seggpt .                                     # CPUs
#   docker build -t seggpt:cuda13 --build-arg EXTRAS=cuda13 .    # NVIDIA GPUs; or cuda12 for older drivers
#   docker run --rm -v "$PWD:/work" seggpt infer --model-path small ...
#   docker run --rm --gpus all -v "$PWD:/work" seggpt:cuda13 train ...
#
# CUDA comes with JAX's own packages; the host needs only NVIDIA's driver and container toolkit.
FROM python:3.11-slim
ARG EXTRAS=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
WORKDIR /src
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY configs configs
COPY seggpt_jax seggpt_jax
RUN pip install --constraint constraints.txt ".[app,video,heif${EXTRAS:+,$EXTRAS}]" && rm -rf /src
# Any user may run it, so that results belong to the one who asked: docker run --user "$(id -u):$(id -g)" ...
RUN mkdir -m 1777 /home/seggpt
ENV HOME=/home/seggpt
USER 1000:1000
WORKDIR /work
# `seggpt serve` is healthy when it is ready; other commands always are.
HEALTHCHECK --start-period=5m --timeout=10s CMD ["python", "-c", "\
import re, urllib.request; \
line = open('/proc/1/cmdline').read().replace('\\0', ' '); \
port = re.search(r'--port[= ](\\d+)', line); \
address = f'http://127.0.0.1:{port[1] if port else 8000}/health'; \
' serve ' in line and urllib.request.urlopen(address, timeout=8)"]
ENTRYPOINT ["seggpt"]

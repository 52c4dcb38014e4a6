# For TPUs. From the root of the repository:
#   docker build --file cluster/tpu.Dockerfile --tag REGISTRY/ada:tpu . && docker push REGISTRY/ada:tpu
FROM python:3.12.11-slim-bookworm
WORKDIR /source
COPY requirements.txt cluster/constraints.txt ./
RUN pip install --no-cache-dir --constraint constraints.txt --requirement requirements.txt \
  'jax[tpu]' matplotlib gcsfs s3fs
COPY pyproject.toml setup.py README.md LICENSE ./
COPY adversarial_augment adversarial_augment
COPY configs configs
RUN pip install --no-cache-dir --no-deps .
RUN useradd --uid 1000 --create-home ada && install --directory --owner=ada /data /runs
USER 1000
WORKDIR /home/ada
ENV PYTHONUNBUFFERED=1
CMD ["python", "-m", "adversarial_augment.train", \
  "--config=configs/ada_edsr.py:quickstart", "--workdir=/runs/quickstart"]

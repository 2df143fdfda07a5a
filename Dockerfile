# Server or node of a deployment: docs/deploy.md. Torch for CPUs, which is a tenth in size.
FROM python:3.11-slim

WORKDIR /src
COPY . .
RUN pip install --no-cache-dir --extra-index-url https://download.pytorch.org/whl/cpu \
    -c constraints-deploy.txt ".[deploy]" \
    && useradd --create-home --uid 1000 fedras

USER fedras
WORKDIR /home/fedras
# Volumes take the owner of what they cover.
RUN mkdir deployment saved
ENTRYPOINT ["recbole-fedras", "deploy"]
CMD ["--help"]

#!/usr/bin/env bash
# Build the job worker's image: IMAGE_NAME=my-worker IMAGE_TAG=v1.0 ./build.sh [docker build's flags]
set -euo pipefail
cd "$(dirname "$0")"
exec "${DOCKER:-docker}" build --tag "${IMAGE_NAME:-penstock-job-worker}:${IMAGE_TAG:-latest}" "$@" .

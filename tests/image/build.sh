#!/bin/sh
# Builds the Dockerfile without an engine: `build.sh OUT_DIR`. Leaves the image's root file system in OUT_DIR/root, the
# configuration in OUT_DIR/config.json. Needs root, and Debian's buildah and mmdebstrap; takes about two minutes.
#
# The base is Debian's own Python 3.11, in place of python:3.11-slim. The packages of the lock are fetched outside, by
# this machine's pip with its settings, and mounted, so that the build itself needs neither network nor certificates.
set -eu
out=$1
project=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-python3}
export BUILDAH_ISOLATION=chroot
store() { buildah --storage-driver vfs --root "$out/store" --runroot "$out/run" "$@"; }

mkdir -p "$out/wheels"
if [ ! -s "$out/base.tar" ]; then
    mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates,passwd bookworm "$out/base.part"
    mv "$out/base.part" "$out/base.tar"
fi
"$python" -m pip download --quiet --quiet --require-hashes --only-binary :all: --python-version 3.11 \
    --dest "$out/wheels" -r "$project/requirements.lock"
printf '[global]\nno-index = true\nfind-links = /wheels\n' > "$out/pip.conf"

base=$(store from scratch)
store add --quiet "$base" "$out/base.tar" / > /dev/null
store commit --quiet "$base" localhost/base > /dev/null
store rm "$base" > /dev/null
store bud --quiet --pull-never --build-arg BASE=localhost/base \
    --volume "$out/wheels:/wheels:ro" --volume "$out/pip.conf:/etc/pip.conf:ro" \
    --tag runtime:test "$project" > /dev/null
store inspect --type image runtime:test > "$out/config.json"
image=$(store from --pull-never runtime:test)
rm -f "$out/root"
ln -s "$(store mount "$image")" "$out/root"

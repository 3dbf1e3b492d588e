#!/bin/sh
# Generates clients and servers in another language: generate.sh python|go DIRECTORY
set -eu
here=$(cd "$(dirname "$0")" && pwd)
language=$1
out=$2
mkdir -p "$out"
cd "$here"
case $language in
python)
    # The package `marchproxy`, with a module for each file.
    protoc -I. --python_out="$out" --grpc_python_out="$out" \
        --plugin=protoc-gen-grpc_python="$(command -v grpc_python_plugin)" marchproxy/*.proto
    touch "$out/marchproxy/__init__.py"
    ;;
go)
    protoc -I. --go_out="$out" --go-grpc_out="$out" marchproxy/*.proto
    ;;
*)
    echo "generate.sh: there is no $language here; python and go are" >&2
    exit 2
    ;;
esac

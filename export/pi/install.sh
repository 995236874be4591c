#!/bin/sh
# A bundle on a Raspberry Pi (or any Linux with Python 3.11 or later), in one line:
#
#     sh install.sh BUNDLE [FOLDER] [PACKAGE]
#
# Makes FOLDER (default: ~/edgedistill) with a virtual environment that holds the base package and nothing else (PACKAGE is what
# pip installs: edgedistill from an index, or the path of a wheel that `pip wheel --no-deps -w dist .` made of a checkout),
# copies the bundle there, checks its hashes and asks it a question.
# pip's own settings (PIP_INDEX_URL, PIP_NO_INDEX, ...) hold. Nothing needs root; to remove it all, remove FOLDER.
set -eu
fail() { echo "install: $1" >&2; exit 2; }

[ $# -ge 1 ] || fail "name a bundle's folder: sh install.sh BUNDLE [FOLDER] [PACKAGE]"
bundle=$1
folder=${2:-$HOME/edgedistill}
package=${3:-edgedistill}
python=${PYTHON:-python3}
[ -f "$bundle/bundle.json" ] || fail "$bundle is no bundle: it has no bundle.json; edgedistill export makes one"
[ ! -e "$folder" ] || fail "$folder exists; name another folder or remove it"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2> /dev/null || fail "$python is not Python 3.11 or later; set PYTHON"
"$python" -c 'import ensurepip, venv' 2> /dev/null || fail "$python cannot make virtual environments; sudo apt install python3-venv"

trap 'rm -rf "$folder"' EXIT
mkdir -p "$folder"
"$python" -m venv "$folder/venv"
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check "$package" ||
    fail "pip could not install $package (see above); the network, or PIP_INDEX_URL, may be the reason"
cp -R "$bundle" "$folder/bundle"
# The self-check: the engine opens the bundle, which compares every file's hash, and answers.
"$folder/venv/bin/edgedistill" run "$folder/bundle" "Ann has 12 apples and buys 30 more. How many apples does she have?" ||
    fail "the bundle does not answer here (see above); nothing was left behind"
trap - EXIT
cat <<DONE
install: $folder is ready
    $folder/venv/bin/edgedistill run $folder/bundle "your question"
    $folder/venv/bin/edgedistill bench $folder/bundle
DONE

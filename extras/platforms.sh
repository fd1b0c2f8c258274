#!/bin/sh
# The suite under every Python and torch: extras/platforms.sh [TESTS], a line each; what is not here is said.
# PYTHONS="3.11 3.12" TORCHES="2.11.0 2.13.0" choose others. An environment stays in .cache/platforms for the next time.
cd "$(dirname "$0")/.." || exit 2
here=.cache/platforms
mkdir -p "$here"
grep -v '^torch==' requirements.txt > "$here/others.txt"
pip="-m pip install --quiet --disable-pip-version-check"
failed=0

environment() { # PYTHON TORCH FOLDER
  [ -e "$3/ready" ] && return
  "$1" -m venv --clear "$3" &&
    "$3/bin/python" $pip "torch==$2" -r "$here/others.txt" &&
    touch "$3/ready"
}

for version in ${PYTHONS:-3.11 3.12 3.13}; do
  for torch in ${TORCHES:-2.11.0 2.13.0}; do
    env="$here/$version-$torch" said="python $version, torch $torch:"
    if ! "python$version" -c '' 2> "$env.log"; then
      echo "$said not run, no python$version here"
    elif ! environment "python$version" "$torch" "$env" > "$env.log" 2>&1; then
      echo "$said not run, pip: $(tail -n 1 "$env.log")"
    else
      OMP_NUM_THREADS=1 "$env/bin/python" -m pytest -q -n auto --dist loadfile "${@:-tests}" > "$env.log" 2>&1 || failed=1
      echo "$said $(tail -n 1 "$env.log")"
    fi
  done
done
exit $failed

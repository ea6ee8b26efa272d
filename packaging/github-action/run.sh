#!/usr/bin/env bash
# Runs netpol for action.yml, with the inputs of the action in INPUT_… and the program in NETPOL.
set -euo pipefail
set -f # words of inputs are not patterns

# Reads words, also of several lines, into the array `words`.
split() {
  read -r -d '' -a words <<<"$1" || true
}

split "$INPUT_ARGS"
more=("${words[@]}")
split "$INPUT_PATHS"
paths=("${words[@]}")
files=()
for path in "${paths[@]}"; do
  files+=(-f "$path")
done
# Without -f, netpol would use the objects of a cluster.
if [[ ${#paths[@]} -eq 0 ]]; then
  echo "netpol action: the input paths is empty" >&2
  exit 2
fi

case "$INPUT_COMMAND" in
lint)
  # The exit code is that of the second run, which writes the annotations.
  if [[ -n $INPUT_SARIF ]]; then
    "$NETPOL" lint "${files[@]}" "${more[@]}" --fail-on never -o sarif >"$INPUT_SARIF" 2>/dev/null || true
  fi
  exec "$NETPOL" lint "${files[@]}" "${more[@]}" --fail-on "$INPUT_FAIL_ON" -o github
  ;;
assert)
  split "$INPUT_ASSERTIONS"
  assertions=()
  for file in "${words[@]}"; do
    assertions+=(-a "$file")
  done
  exec "$NETPOL" assert "${files[@]}" "${assertions[@]}" "${more[@]}"
  ;;
diff)
  if [[ ${#paths[@]} -ne 1 ]]; then
    echo "netpol action: diff needs exactly one path, not ${#paths[@]}" >&2
    exit 2
  fi
  # In git, a path is relative to the current directory only with ./.
  path=${paths[0]}
  [[ $path == /* ]] || path=./${path#./}
  status=0
  "$NETPOL" diff "${more[@]}" -o md -- "$INPUT_BASE:$path" "$path" | tee -a "${GITHUB_STEP_SUMMARY:-/dev/null}" || status=$?
  exit "$status"
  ;;
*)
  echo "netpol action: unknown command '$INPUT_COMMAND'; use lint, diff or assert" >&2
  exit 2
  ;;
esac

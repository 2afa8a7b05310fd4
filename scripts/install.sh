#!/usr/bin/env bash
# Makes .venv with everything in it: the packages of requirements/ at their pinned versions, and this project in editable form.
#   scripts/install.sh [cpu|gpu]             install, for this machine unless told otherwise; running it again only adds what is missing
#   scripts/install.sh --dry-run [cpu|gpu]   look at the machine and print the commands, run none
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

venv=.venv
pip=("$venv/bin/python" -m pip --disable-pip-version-check --no-input)
cpu_index=https://download.pytorch.org/whl/cpu
dry_run=false
[ "${1:-}" != --dry-run ] || { dry_run=true; shift; }
machine=${1:-}
work='' # what a step without pip does, in words

fail() {
  echo "install: $1" >&2
  exit 1
}

check_platform() {
  local system processor
  system=$(uname -s) processor=$(uname -m)
  [ "$system" = Linux ] || fail "vLLM runs on Linux, this is $system: use the container (cluster/Containerfile), or WSL2 on Windows"
  case $processor in
    x86_64 | aarch64) ;;
    *) fail "the packages exist for x86_64 and aarch64, this is $processor" ;;
  esac
}

find_python() {
  local candidate
  for candidate in python3.11 python3 python; do
    # A version manager's stand-in may be on PATH without a Python behind it: only an answer counts.
    if [ "$("$candidate" -c 'import sys; print(*sys.version_info[:2])' 2>/dev/null || true)" = "3 11" ]; then
      python=$candidate
      "$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python cannot make virtual environments: apt install python3.11-venv"
      return
    fi
  done
  fail "Python 3.11 is needed, and neither python3.11 nor python3 nor python is one: install python3.11 and python3.11-venv"
}

# The pinned requirements of some packages, by name.
pinned() {
  local names
  names=$(IFS='|'; echo "$*")
  grep -E "^($names)==" "$requirements"
}

# Whether pip, as it is configured here, can get this very torch. Only lists of links are read, no wheel.
offers() {
  local asking=("${pip[@]}")
  [ -x "$venv/bin/python" ] || asking=("$python" -m pip)
  "${asking[@]}" index versions --retries 1 "${@:2}" torch 2>/dev/null | grep '^Available versions:' | grep -qF "${1#*==}"
}

choose_torch() {
  torch_source=()
  if [ "$machine" = gpu ] || { [ -z "$machine" ] && nvidia-smi >/dev/null 2>&1; }; then
    requirements=requirements/gpu.txt
    echo "For an NVIDIA GPU: $requirements"
    return
  fi
  requirements=requirements/cpu.txt
  local torch
  torch=$(pinned torch)
  if [ -d "$venv/lib/python3.11/site-packages/${torch/==/-}.dist-info" ]; then
    echo "For CPUs: $requirements, $torch is there already"
  elif offers "$torch"; then
    echo "For CPUs: $requirements, $torch from pip's configured sources"
  elif $dry_run || offers "$torch" --index-url "$cpu_index"; then
    torch_source=(--index-url "$cpu_index")
    echo "For CPUs: $requirements, $torch from PyTorch's CPU index"
  else
    fail "no source of $torch: put its wheel into a folder (pip config set global.find-links FOLDER), or let this machine reach $cpu_index"
  fi
}

# One line every five seconds: pip by itself is either a flood or, while it unpacks, silent.
watch() {
  local log=$1 total installed doing
  total=$(grep -c '^[a-zA-Z]' "$requirements")
  while sleep 5 >/dev/null && kill -0 $$ 2>/dev/null; do
    installed=$(find "$venv"/lib/python3.11/site-packages -maxdepth 1 -name '*.dist-info' ! -name 'fiat_ray-*' | wc -l)
    doing=$(grep -oE '(Collecting|Downloading|Building wheel for) [^ ]+|Installing' "$log" | tail -n 1 || true)
    printf '  %3d s: %s\n' "$SECONDS" "${work:-$installed of $total packages installed${doing:+; $doing}}"
  done
}

# Shows a command and, unless this is a dry run, runs it, its output in .venv/install.log.
step() {
  echo "+ $*"
  ! $dry_run || return 0
  local log=$venv/install.log watcher status=0
  : >"$log"
  watch "$log" &
  watcher=$!
  "$@" >"$log" 2>&1 || status=$?
  kill "$watcher"
  wait "$watcher" 2>/dev/null || true
  # What failed may stand far above what another pip went on to say.
  [ $status = 0 ] || { grep -iE '^ *error' "$log" >&2 || tail -n 15 "$log" >&2; fail "that command failed, its whole output is in $log"; }
}

case $machine in '' | cpu | gpu) ;; *) fail "unknown machine '$machine': cpu or gpu" ;; esac
check_platform
find_python
# A run that was killed while pip unpacked leaves packages that only look complete: start again.
if [ -e "$venv/unfinished" ] || ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
  echo "+ $python -m venv --clear $venv"
  $dry_run || "$python" -m venv --clear "$venv"
fi
choose_torch
$dry_run || touch "$venv/unfinished"

# DeepSpeed comes as source: DS_BUILD_OPS=0 leaves its C++ parts out, so no compiler is needed; without isolation it sees the torch that is there.
export DS_BUILD_OPS=0
mapfile -t tools < <(pinned pip setuptools wheel)
install=("${pip[@]}" install --no-compile)
step "${install[@]}" "${tools[@]}"
step "${install[@]}" --no-deps "${torch_source[@]}" "$(pinned torch)"
# pip downloads and unpacks one package after another: several of them, with some packages each, use the line and all cores.
in_parts="xargs -d '\n' -n 30 -P $(nproc) ${install[*]} --no-deps --no-build-isolation --progress-bar off"
step bash -c "grep -v '^#' $requirements | $in_parts"
step "${install[@]}" --no-deps --no-build-isolation --editable .
# pip compiles file after file: half of the whole time. Models, of which few are ever loaded, are compiled when they are.
work='compiling the packages'
step "$venv/bin/python" -c "import compileall, re; compileall.compile_dir('$venv/lib', quiet=2, workers=0, rx=re.compile('/(tests?|models)/'))"
# The embedded model as safetensors, in the user's cache: else the first run would do it.
work='converting the embedded model'
step "$venv/bin/python" -W ignore -c 'from fiat_ray.models import find; find("embedded")'
$dry_run || { rm "$venv/unfinished"; touch "$venv/installed"; echo "Ready after $SECONDS s: $venv"; }

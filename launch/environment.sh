# Sourced by the scripts beside it: makes .venv in the repository once and installs requirement files into it once.
#   prepare_environment requirements.txt [requirements-test.txt ...]      sets $python
# PYTHON=... chooses the interpreter, VENV=... another folder.

# In large pages of memory a training step takes less time on a CPU (contextdiff_jax/start.py).
export GLIBC_TUNABLES=${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}

say() { printf '%s\n' "$*" >&2; }

find_python() {
    local candidate candidates=(python3.13 python3.12 python3.11 python3)
    if [[ -n ${PYTHON:-} ]]; then candidates=("$PYTHON"); fi
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
            command -v "$candidate"
            return
        fi
    done
    say "error: Python 3.11 or newer is needed, and none of '${candidates[*]}' is;" \
        "install one (Debian: apt-get install python3 python3-venv) or name it: PYTHON=/path/to/python3.11 bash $0"
    return 1
}

make_venv() {
    local venv=$1 base
    if "$venv/bin/python" -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
        return
    fi
    base=$(find_python) || return 1
    if ! "$base" -c 'import venv, ensurepip' >/dev/null 2>&1; then
        local version
        version=$("$base" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
        say "error: $base has no venv or ensurepip; on Debian or Ubuntu: apt-get install python$version-venv"
        return 1
    fi
    say "making $venv with $base"
    "$base" -m venv --clear "$venv"
}

install_once() {
    local venv=$1 file=$2 stamp="$1/.installed-$(basename "$2")"
    # The stamp holds the file that was installed, so that an edited file is installed again.
    if cmp -s "$file" "$stamp"; then
        return
    fi
    say "installing $file into $venv (once, takes minutes)"
    local options=()
    if [[ $file == *-no-deps.txt ]]; then options=(--no-deps); fi
    # The long form, since an empty array counts as unset before bash 4.4, as macOS has it.
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check ${options[@]+"${options[@]}"} -r "$file" || return 1
    cp "$file" "$stamp"
}

prepare_environment() {
    local venv=${VENV:-.venv} file
    make_venv "$venv" || exit 1
    for file in "$@"; do
        install_once "$venv" "$file" || exit 1
    done
    python=$venv/bin/python
}

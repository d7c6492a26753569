#!/usr/bin/env bash
# Sets up one machine of a cluster; every node runs it at each `ray up`. What is there already is left as it is.
#
#   bash ~/xlstm_tune/clusters/node.sh          Python, and the project with the tested versions, in ~/venv
#   bash ~/xlstm_tune/clusters/node.sh cpu      the same with torch's CPU build, for machines without a GPU
#   bash ~/xlstm_tune/clusters/node.sh token    before Ray starts: the cluster's token is here, for its owner alone
#
# Shells of the node read ~/.xlstm_tune/env, from the first line of ~/.bashrc.
set -euo pipefail
umask 077

kind=${1:-gpu}
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=$HOME/venv
state=$HOME/.xlstm_tune
token=$HOME/.ray/auth_token

check_token() {
    if [ ! -s "$token" ]; then
        echo "$(hostname) has no $token: the head makes it (clusters/head.sh) and Ray copies it to every other node" \
             "(cluster_synced_files in the cluster file); run ray up again." >&2
        exit 1
    fi
    # Ray reads the file whatever its mode is, so nobody else would notice.
    chmod 700 "$(dirname "$token")"
    chmod 600 "$token"
}

find_python() {
    local name
    for name in python3.11 python3.12; do
        if command -v "$name" >/dev/null && "$name" -c 'import ensurepip' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    return 1
}

install_python() {
    local version said
    # A machine that has just started may still be updating itself. Installing waits for it; updating the lists does
    # not, whatever it is told.
    for _ in $(seq 60); do
        if said=$(sudo LC_ALL=C apt-get update -q 2>&1) || [[ $said != *"Could not get lock"* ]]; then
            break
        fi
        sleep 10
    done
    echo "$said"
    for version in 3.11 3.12; do
        # The headers and a C compiler are for Triton, which makes its launcher when it first starts a kernel.
        if sudo apt-get -o DPkg::Lock::Timeout=600 install -q -y "python$version" "python$version-venv" "python$version-dev" gcc; then
            return
        fi
    done
    echo "$(hostname) has no Python 3.11 or 3.12 and apt does not know one; install it and run ray up again." >&2
    exit 1
}

install_project() {
    local wanted python pip
    wanted="$kind $(cat "$project/constraints.txt" "$project/pyproject.toml" | sha256sum | cut -c 1-16)"
    if [ "$(cat "$venv/installed" 2>/dev/null)" = "$wanted" ]; then
        return
    fi
    # Whole only with pip, which comes last: a connection that broke off may have left the rest.
    if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
        find_python >/dev/null || install_python
        python=$(find_python)
        "$python" -m venv --clear "$venv"
    fi
    pip=("$venv/bin/python" -m pip install --quiet --disable-pip-version-check)
    if [ "$kind" = cpu ]; then
        # By itself and first: the torch of PyPI brings CUDA's libraries, three gigabytes that a CPU has no use for.
        "${pip[@]}" --no-deps --index-url https://download.pytorch.org/whl/cpu "$(grep '^torch==' "$project/constraints.txt")"
    fi
    "${pip[@]}" -c "$project/constraints.txt" -e "$project[cluster]"
    echo "$wanted" >"$venv/installed"
}

write_environment() {
    mkdir -p "$state"
    # The head adds where MLflow is (clusters/head.sh), so a file that is there stays.
    if [ ! -s "$state/env" ]; then
        printf '%s\n' 'export PATH="$HOME/venv/bin:$PATH"' 'export RAY_AUTH_MODE=token' >"$state/env"
    fi
    chmod 700 "$state"
    chmod 600 "$state/env"
    touch "$HOME/.bashrc"
    # The first line: further down, Ubuntu's ~/.bashrc ends for shells that nobody types in.
    if ! grep -qxF '. ~/.xlstm_tune/env' "$HOME/.bashrc"; then
        printf '%s\n' '. ~/.xlstm_tune/env' | cat - "$HOME/.bashrc" >"$state/bashrc"
        cat "$state/bashrc" >"$HOME/.bashrc"
        rm "$state/bashrc"
    fi
}

case $kind in
    token)
        check_token
        ;;
    gpu | cpu)
        install_project
        write_environment
        ;;
    *)
        echo "clusters/node.sh knows cpu, gpu and token, not '$kind'." >&2
        exit 2
        ;;
esac

#!/usr/bin/env bash
# What the head of a cluster has beside Ray: the cluster's token and an MLflow server behind a password. It runs before
# Ray starts, at each `ray up`; secrets that exist are kept, and a server that answers is left alone.
#
#   bash ~/xlstm_tune/clusters/head.sh                     artifacts on the head's disk, below ~/.xlstm_tune/mlflow
#   bash ~/xlstm_tune/clusters/head.sh s3://BUCKET/mlflow  artifacts in S3, through the server
#
# The server listens on 127.0.0.1 alone: it is seen through `ray attach -p 5000 cluster.yaml` or any other SSH tunnel.
set -euo pipefail
umask 077

artifacts=${1:-$HOME/.xlstm_tune/mlflow/artifacts}
port=${XLSTM_TUNE_MLFLOW_PORT:-5000}
venv=$HOME/venv
state=$HOME/.xlstm_tune
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)

# A secret that is not there yet; written beside its place first, so that half of one is never read.
secret() {
    if [ ! -s "$1" ]; then
        mkdir -p "$(dirname "$1")"
        "$venv/bin/python" -c 'import secrets; print(secrets.token_hex(32), end="")' >"$1.new"
        mv "$1.new" "$1"
    fi
    chmod 600 "$1"
}

write_environment() {
    cat >"$state/env.new" <<END
export PATH="\$HOME/venv/bin:\$PATH"
export RAY_AUTH_MODE=token
export MLFLOW_TRACKING_URI=http://127.0.0.1:$port
export MLFLOW_TRACKING_USERNAME=admin
export MLFLOW_TRACKING_PASSWORD=$(cat "$state/mlflow_password")
END
    mv "$state/env.new" "$state/env"
}

# Whether a server answers that refuses without the password and takes ours: 0 yes, 1 not yet, 2 another one.
answers() {
    "$venv/bin/python" "$project/clusters/mlflow_answers.py" "http://127.0.0.1:$port" <"$state/mlflow_password"
}

start_mlflow() {
    local code=0 tries server
    "$venv/bin/python" "$project/clusters/place_for_artifacts.py" "$artifacts"
    answers || code=$?
    if [ "$code" = 0 ]; then
        return
    elif [ "$code" = 2 ]; then
        exit 1
    fi
    cat >"$state/mlflow_auth.ini" <<END
[mlflow]
default_permission = NO_PERMISSIONS
database_uri = sqlite:///$state/mlflow/users.db
admin_username = admin
END
    # A session of its own, or the server would end with the SSH connection that started it.
    MLFLOW_AUTH_CONFIG_PATH=$state/mlflow_auth.ini \
    MLFLOW_AUTH_ADMIN_PASSWORD=$(cat "$state/mlflow_password") \
    MLFLOW_FLASK_SERVER_SECRET_KEY=$(cat "$state/mlflow_secret_key") \
    MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false \
        setsid nohup "$venv/bin/python" -m mlflow server --app-name basic-auth --workers 2 \
        --host 127.0.0.1 --port "$port" --allowed-hosts 'localhost,localhost:*,127.0.0.1,127.0.0.1:*' \
        --backend-store-uri "sqlite:///$state/mlflow/mlflow.db" --artifacts-destination "$artifacts" \
        >>"$state/mlflow/server.log" 2>&1 </dev/null &
    server=$!
    echo "$server" >"$state/mlflow/server.pid"
    for ((tries = 0; tries < 180; tries++)); do
        sleep 1
        kill -0 "$server" 2>/dev/null || break
        code=0
        answers || code=$?
        if [ "$code" = 0 ]; then
            return
        elif [ "$code" = 2 ]; then
            exit 1
        fi
    done
    echo "The MLflow server ended or did not answer within three minutes; the end of $state/mlflow/server.log says:" >&2
    tail -n 20 "$state/mlflow/server.log" >&2
    exit 1
}

mkdir -p "$state/mlflow"
chmod 700 "$state"
secret "$HOME/.ray/auth_token"
chmod 700 "$HOME/.ray"
secret "$state/mlflow_password"
secret "$state/mlflow_secret_key"
start_mlflow
write_environment

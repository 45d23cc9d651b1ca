#!/bin/sh
# Draws the passwords and the key that compose.yaml reads, into the folder given (by default secrets/ beside this file).
# What is there stays as it is. Keep a copy of `key`: without it dead letters cannot be opened.
set -eu

folder=${1:-$(dirname "$0")/secrets}
umask 077
mkdir -p "$folder"
chmod 700 "$folder" # nobody else comes in; the files themselves are for the containers' users to read
echo '*' >"$folder/.gitignore"

write() { # name, text
    [ -e "$folder/$1" ] && return
    printf '%s' "$2" >"$folder/$1.new"
    chmod 444 "$folder/$1.new"
    mv "$folder/$1.new" "$folder/$1"
}

draw() {
    od -An -N32 -tx1 /dev/urandom | tr -d ' \n'
}

for name in key postgres_password owner_password writer_password keeper_password grafana_password; do
    write "$name" "$(draw)"
done
for role in owner writer keeper; do
    write "${role}_url" "postgresql://errata_$role:$(cat "$folder/${role}_password")@postgres:5432/errata"
done

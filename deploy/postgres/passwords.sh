#!/bin/sh
# Gives the roles of roles.sql their passwords, from the secrets of compose.yaml. Run by the image of PostgreSQL, once.
set -eu

for role in owner writer keeper; do
    password=$(cat "${SECRETS:-/run/secrets}/${role}_password")
    # Over standard input: an argument could be read in the list of processes.
    psql --quiet --no-psqlrc --set=ON_ERROR_STOP=1 --username="$POSTGRES_USER" --dbname="$POSTGRES_DB" <<SQL
ALTER ROLE errata_$role PASSWORD '$password';
SQL
done

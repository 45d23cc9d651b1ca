#!/bin/sh
# Makes sure that what the integration tests need is there: running servers named by ERRATA_TEST_..., installed programs,
# or Docker if an engine answers within 3 s. On Debian, as root, what is missing is installed; its services are not
# started. Silent when all is there.
set -eu

missing() {  # packages of what is not there
    for pair in java:openjdk-17-jre-headless mvn:maven redis-server:redis-server postgres:postgresql \
        prometheus:prometheus promtool:prometheus prometheus-alertmanager:prometheus-alertmanager kcat:kcat; do
        program=${pair%%:*}
        case $program in
        java | mvn) [ -z "${ERRATA_TEST_KAFKA-}" ] || continue ;;
        redis-server) [ -z "${ERRATA_TEST_REDIS-}" ] || continue ;;
        postgres) [ -z "${ERRATA_TEST_POSTGRES-}" ] || continue ;;
        esac
        command -v "$program" >/dev/null 2>&1 && continue
        case $program in
        postgres)
            for found in /usr/lib/postgresql/*/bin/postgres /opt/homebrew/opt/postgresql*/bin/postgres; do
                [ -x "$found" ] && continue 2
            done ;;
        prometheus-alertmanager) command -v alertmanager >/dev/null 2>&1 && continue ;;
        esac
        printf '%s\n' "${pair#*:}"
    done | sort -u
}

packages=$(missing)
[ -n "$packages" ] || exit 0
packages=$(echo $packages)  # on one line

needed=  # what a container cannot stand in for, or stands in for nothing
for package in $packages; do
    case $package in
    openjdk-17-jre-headless | maven | redis-server | postgresql) ;;
    *) needed="$needed $package" ;;
    esac
done
if [ -z "$needed" ] && command -v docker >/dev/null 2>&1 && command -v timeout >/dev/null 2>&1 &&
    timeout 3 docker info >/dev/null 2>&1; then
    exit 0
fi

if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "the tests need servers that are not installed: $packages" >&2
    echo "install them (Debian: apt-get install $packages), or start Docker, or name running ones:" >&2
    echo "ERRATA_TEST_KAFKA=host:port ERRATA_TEST_REDIS=redis://… ERRATA_TEST_POSTGRES=postgresql://…" >&2
    exit 1
fi

echo "installing $packages" >&2
no_start=  # Debian starts a service when it installs it, unless this file forbids it
if [ ! -e /usr/sbin/policy-rc.d ]; then
    no_start=/usr/sbin/policy-rc.d
    trap 'rm -f "$no_start"' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$no_start"
    chmod 755 "$no_start"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get -qq update >&2
# shellcheck disable=SC2086  # one word for each package
apt-get -qq install -y --no-install-recommends $packages >&2
left=$(missing)
[ -z "$left" ] || { echo "installed, and still not found: $(echo $left)" >&2; exit 1; }

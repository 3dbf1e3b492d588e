# Installs the packages given as arguments, without letting Debian start their services: maintainer scripts ask
# policy-rc.d whether they may, and 101 is no. The policy is removed however this ends.
policy=/usr/sbin/policy-rc.d
mark='# No services while packages are being set up. Safe to delete.'
if [ ! -e "$policy" ] || grep -qF "$mark" "$policy"; then
    trap 'rm -f "$policy"' EXIT
    trap 'exit 130' HUP INT TERM
    printf '#!/bin/sh\n%s\nexit 101\n' "$mark" > "$policy"
    chmod 755 "$policy"
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update && apt-get install --yes --no-install-recommends "$@"

#!/usr/bin/env bash
# Runs three nodes behind stunnel, which ends TLS for them, asks through it, and ends all again.
#
#   run.sh NODE     NODE is the program of examples/node, built with the feature `tls`
#
# It needs stunnel, openssl and curl; `make tls` installs what is missing.
set -euo pipefail

node=$(realpath "$1")
conf=$(realpath "$(dirname "$0")/stunnel.conf")

cd "$(mktemp -d)"
started=()
end() {
    status=$?
    trap - EXIT
    [ $status = 0 ] || tail -v -n 5 ./*.log || true
    kill "${started[@]}" 2>/dev/null || true
    wait
    rm -r "$PWD"
    exit $status
}
trap end EXIT
trap 'exit 130' INT TERM

echo 'a root of our own, and a certificate for localhost that it signs'
certify() {
    openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 "$@" \
        2>>openssl.log
}
certify -keyout root.key -out root.pem -subj '/CN=our own root'
certify -keyout node.key -out node.pem -subj /CN=localhost -CA root.pem -CAkey root.key \
    -addext subjectAltName=DNS:localhost -addext basicConstraints=critical,CA:FALSE

echo 'a token that the nodes share'
umask 077
openssl rand -hex 32 >token

echo 'stunnel in front of three nodes'
stunnel "$conf" 2>stunnel.log &
started+=($!)
urls=https://localhost:8441,https://localhost:8442,https://localhost:8443
for i in 1 2 3; do
    api=()
    [ $i = 3 ] && api=(--api localhost:9998)
    "$node" --self-url https://localhost:844$i --listen localhost:801$i --peers $urls \
        --root-certificates root.pem --token-file token --db scores.db "${api[@]}" 2>node$i.log &
    started+=($!)
done
ask() { curl --silent --cacert root.pem --max-time 10 "$@"; }
for url in https://localhost:844{1,2,3}/healthz http://localhost:9998/; do
    ask --fail --retry 20 --retry-delay 1 --retry-all-errors --output /dev/null "$url"
done

expect() {
    if [ "$2" = "$3" ]; then echo "  $1: $2"; else echo "  $1: $2 instead of $3"; exit 1; fi
}
counted() {
    ask https://localhost:8443/metrics | awk "/^geecache_$1_total/ { n += \$2 } END { print n + 0 }"
}

echo 'through the front of the third'
expect Tom "$(ask 'http://localhost:9998/api?key=Tom')" 630
for i in $(seq 0 99); do
    [ "$(ask "http://localhost:9998/api?key=user:$(printf %08d "$i")")" = "$i" ]
done
echo "  100 users, of which its peers gave $(counted peer_loads)"
[ "$(counted peer_loads)" -gt 0 ]
expect 'peers that did not answer' "$(counted fallbacks)" 0
code=(--output /dev/null --write-out '%{http_code}')
removal=$(ask "${code[@]}" -X DELETE 'http://localhost:9998/api?key=Tom')
expect 'a removal from all nodes' "$removal" 204

echo 'and past it'
tom=https://localhost:8441/_geecache/scores/Tom
expect 'without the token' "$(ask "${code[@]}" $tom)" 401
echo "Authorization: Bearer $(cat token)" >header # since all users see a command line
expect 'with it' "$(ask --header @header $tom)" 630
expect 'without TLS' "$(ask "${code[@]}" http://localhost:8441/healthz || true)" 000
expect 'without our root' "$(curl --silent "${code[@]}" $tom || true)" 000

#!/bin/sh
# The answer to GET /: which guest this is, at which of its ports, and whom it sees asking.
. /who
peer=${REMOTE_ADDR##*:ffff:} peer=${peer%]} # httpd listens on IPv6 and writes [::ffff:198.51.100.1]
port=${PWD%/cgi-bin} port=${port##*/}
disks= comma=
for block in /sys/block/xvd*; do
  [ -e "$block" ] || continue
  access=rw
  [ "$(cat "$block/ro")" = 0 ] || access=ro
  disks="$disks$comma\"${block##*/}\": {\"bytes\": $(($(cat "$block/size") * 512)), \"access\": \"$access\"}"
  comma=", "
done
printf 'Content-Type: application/json\r\n\r\n'
cat <<END
{"name": "$name", "address": "$address", "port": $port, "peer": "$peer", "mac": "$mac", "type": "$type",
 "uuid": "$uuid", "kernel": "$kernel", "vcpus": $(nproc), "disks": {$disks}}
END

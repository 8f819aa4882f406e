#!/bin/busybox sh
# /init of a test guest: finds its address, answers HTTP on its ports saying who it is. It needs no disk.
/bin/busybox mount -t proc proc /proc
/bin/busybox --install -s /bin
export PATH=/bin
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec > /dev/console 2>&1
# `xl sysrq NAME c` makes it crash
echo 1 > /proc/sys/kernel/sysrq
for module in /modules/*; do insmod "$module"; done

# The front ends appear when xenbus has shaken hands with dom0; there is no udev to wait for
tries=1000
until [ -e /sys/class/net/eth0/address ] || [ $((tries -= 1)) = 0 ]; do usleep 20000; done
for device in /sys/bus/xen/devices/vbd-*; do
  [ -e "$device" ] || continue
  until [ -d "$device/block" ] || [ $((tries -= 1)) -le 0 ]; do usleep 20000; done
done

# Who am I: a line of /leases (MAC NAME ADDRESS/PREFIX GATEWAY PORT,PORT RAW,RAW), else the kernel's command line
mac=$(cat /sys/class/net/eth0/address)
on_line() { tr ' ' '\n' < /proc/cmdline | sed -n "s/^$1=//p" | tail -n 1; }
set -- $(grep -i "^$mac " /leases)
if [ $# = 0 ]; then
  set -- "$mac" "$(on_line dgisname)" "$(on_line dgisip)" "$(on_line dgisgw)" "$(on_line dgisports)"
fi
name=$2 address=$3 gateway=$4 ports=${5:-80} raw=${6:-}
[ -n "$address" ] || echo "GUEST-LOST: no lease for $mac and no dgisip= on the command line"
hostname "${name:-guest}"
ip link set lo up
ip addr add "$address" dev eth0
ip link set eth0 up
[ -z "$gateway" ] || ip route add default via "$gateway"

cat > /who <<END
name='$name' mac='$mac' address='${address%/*}' kernel='$(uname -r)'
type='$(cat /sys/hypervisor/guest_type)' uuid='$(cat /sys/hypervisor/uuid)'
END
for port in $(echo "$ports" | tr , ' '); do
  # A folder per port: httpd tells a CGI program who asks, but not at which port
  mkdir -p "/www/$port/cgi-bin"
  cp /who.cgi "/www/$port/cgi-bin/index.cgi"
  cat /proc/cmdline > "/www/$port/cmdline"
  httpd -p "$port" -h "/www/$port"
done
for port in $(echo "$raw" | tr , ' '); do
  mkdir -p "/www/$port/cgi-bin"
  # Read first: to close with something unread would reset the connection, and the answer with it
  printf '#!/bin/sh\ndd bs=4096 count=1 of=/dev/null 2> /dev/null\nexec /who.cgi\n' > "/www/$port/cgi-bin/raw"
  chmod 755 "/www/$port/cgi-bin/raw"
  (cd "/www/$port/cgi-bin" && exec nc -ll -p "$port" -e ./raw) &
done
echo "GUEST-READY $name $address $ports"
while :; do sleep 1000; done

#!/bin/busybox sh
# /init of the in-memory dom0: modules, xenstore, consoles; then it does what it is told over a virtio port.
export PATH=/usr/lib/xen-4.17/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts
mount -t devpts pts /dev/pts
mount -t tmpfs run /run
mkdir -p /run/xen /run/lock /run/xenstored
# The block hotplug script reads from /dev/fd and /dev/stdin; without these links it fails, or hangs for 40 s
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
while read -r module; do modprobe "$module" || echo "DOM0: no module $module"; done < /etc/dgis-modules
mount -t xenfs xenfs /proc/xen
ip link set lo up
echo 1 > /proc/sys/net/ipv4/ip_forward
xenstored --pid-file /run/xenstored.pid
until [ -S /run/xenstored/socket ]; do usleep 20000; done
xen-init-dom0
xenconsoled --log=guest --log-dir=/var/log/xen --pid-file=/run/xenconsoled.pid

# One request a line: seconds, a space, a script in base64. One answer a line: status and both outputs in base64.
# No console: kernel and hypervisor write into that whenever they like.
# The port is announced by a message of the device, after its module is loaded; opened too early a plain file is made.
# The first number in its name counts the virtio devices.
until port=$(ls /dev/vport*p1); do usleep 20000; done 2> /dev/null
exec 3<> "$port"
echo "ready $(uname -r)" >&3
while read -r seconds script <&3; do
  echo "$script" | base64 -d > /tmp/script
  # Not sh: busybox' shell takes its own ip and losetup before those of PATH
  timeout "$seconds" bash /tmp/script > /tmp/out 2> /tmp/err < /dev/null 3>&-
  status=$?
  echo "$status $(base64 /tmp/out | tr -d '\n') $(base64 /tmp/err | tr -d '\n')" >&3
done
poweroff -f
